"""Images decoded as needed: the same batches with any number of workers, bad images replaced."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.transforms import v2

from qnet.data import Augment, DatasetInfo, Listing, Shard, prepare_imagenet
from qnet.data import streamed as module
from qnet.data.pixels import to_pixels
from qnet.data.streamed import StreamedBatches
from qnet.data.workers import make_room, why_lost
from qnet.errors import UserError
from tests.pictures import corrupt, write_tree

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def found(tmp_path: Path) -> tuple[DatasetInfo, dict[str, Listing]]:
    """27 training, 9 validation and 12 test images, at 32 pixels."""
    root = write_tree(tmp_path / "imagenet")
    return prepare_imagenet(root, size=32, channels=None, validation=0.25, seed=0)[:2]


def batches(found: tuple[DatasetInfo, dict[str, Listing]], **changes: Any) -> StreamedBatches:
    arguments = {"batch_size": 8, "device": "cpu", "augment": Augment(4, True), **changes}
    split = arguments.pop("split", "train")
    return StreamedBatches(found[1][split], found[0], **arguments)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def equal(a: Iterator[Batch], b: Iterator[Batch]) -> bool:
    return all(torch.equal(x, y) and torch.equal(k, m) for (x, k), (y, m) in zip(a, b, strict=True))


def test_an_epoch_drops_the_short_batch_and_its_seed_decides_its_order(found) -> None:
    data = batches(found)
    taken = list(data.epoch(generator()))
    assert len(data) == len(taken) == 3
    for images, labels in taken:
        assert images.shape == (8, 3, 32, 32)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64
    assert data.waited > 0
    assert not equal(iter(taken), data.epoch(generator(1)))


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_number_of_workers_changes_nothing(found, split) -> None:
    here, there = (batches(found, split=split, workers=workers) for workers in (0, 2))
    assert equal(here.epoch(generator()), there.epoch(generator()))
    assert equal(here.ordered(), there.ordered())


@pytest.mark.parametrize("world_size", [3, 13])  # 12 images to score: one of 13 processes has none
def test_the_parts_of_several_processes_make_up_the_batches(found, world_size) -> None:
    whole = [batches(found, split=split) for split in ("train", "test")]
    parts = [
        [batches(found, split=split, shard=Shard(rank, world_size)) for rank in range(world_size)]
        for split in ("train", "test")
    ]
    if world_size <= 8:
        epochs = zip(*(part.epoch(generator()) for part in parts[0]), strict=True)
        joined = ((torch.cat(x), torch.cat(y)) for x, y in (zip(*b, strict=True) for b in epochs))
        assert equal(whole[0].epoch(generator()), joined)
    scored = [batch for part in parts[1] for batch in part.ordered()]
    parted = zip(*scored, strict=True)
    for of_whole, of_parts in zip(zip(*whole[1].ordered(), strict=True), parted, strict=True):
        assert torch.equal(torch.cat(of_whole), torch.cat(of_parts))


def test_the_generator_decides_and_no_other(found) -> None:
    first, again = generator(), generator()
    torch.manual_seed(1)
    data = batches(found)
    taken = list(data.epoch(first))
    assert torch.initial_seed() == 1
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert equal(iter(taken), data.epoch(again))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.get_state(), again.get_state())


def test_evaluation_is_the_centre_of_each_picture_in_order(found) -> None:
    info, splits = found
    data = batches(found, split="test", augment=Augment(), batch_size=5)
    taken = list(data.ordered())
    assert [len(labels) for _, labels in taken] == [5, 5, 2]
    labels = torch.cat([labels for _, labels in taken])
    assert torch.equal(labels, splits["test"].labels)
    transform = v2.Compose([v2.Resize(37), v2.CenterCrop(32), v2.PILToTensor()])
    mean, std = (torch.tensor(values)[:, None, None] for values in (info.mean, info.std))
    for place, image in enumerate(torch.cat([images for images, _ in taken])):
        pixels = transform(Image.open(splits["test"].path(place))) / 255
        torch.testing.assert_close(image, (pixels - mean) / std, atol=1e-5, rtol=1e-5)


def test_no_augmentation_is_that_too(found) -> None:
    data = batches(found, augment=Augment(), batch_size=27)
    (images, labels), (ordered, all_labels) = next(data.epoch(generator())), next(data.ordered())
    order = torch.randperm(27, generator=generator())
    assert torch.equal(images, ordered[order])
    assert torch.equal(labels, all_labels[order])


def test_a_batch_must_fill(found) -> None:
    with pytest.raises(UserError, match="batch_size: 28 is more than the 27 training images"):
        batches(found, batch_size=28).epoch(generator())
    assert len(list(batches(found, batch_size=28).ordered())) == 1


# Images that cannot be read


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_pictures_are_named_once_and_replaced(found, workers) -> None:
    listing = found[1]["train"]
    corrupt(Path(listing.path(3)))
    Path(listing.path(4)).unlink()
    warned: list[str] = []
    data = batches(found, workers=workers, bad_images=2, warn=warned.append, batch_size=9)
    for epoch in range(2):
        taken = list(data.epoch(generator(epoch)))
        assert [len(labels) for _, labels in taken] == [9, 9, 9]
    labels = torch.cat([labels for _, labels in taken]).bincount(minlength=3)
    expected = listing.labels.clone()
    expected[3] = expected[4] = expected[5]
    assert labels.tolist() == expected.bincount(minlength=3).tolist()
    assert len(warned) == 2
    for place in (3, 4):
        (line,) = [line for line in warned if listing.path(place) in line]
        assert " cannot be read (" in line
        assert line.endswith("): left out")
        assert "\n" not in line


@pytest.mark.parametrize("workers", [0, 2])
def test_one_more_than_allowed_stops(found, workers) -> None:
    for place in (0, 1, 2):
        corrupt(Path(found[1]["train"].path(place)))
    warned: list[str] = []
    data = batches(found, workers=workers, bad_images=2, warn=warned.append)
    with pytest.raises(UserError, match=r"data\.bad_images is 2, and this is number 3: .*JPEG"):
        list(data.epoch(generator()))
    assert len(warned) == 2


def test_each_picture_is_tried_once_however_many_may_be_bad(found) -> None:
    listing = found[1]["train"]
    for place in range(len(listing)):
        Path(listing.path(place)).unlink()
    warned: list[str] = []
    data = batches(found, bad_images=10**9, warn=warned.append)
    assert list(data.epoch(generator())) == []
    assert len(warned) == len(listing)


def test_bad_pictures_are_left_out_of_evaluation(found) -> None:
    listing = found[1]["test"]
    for place in (0, 1, 5):
        Path(listing.path(place)).write_bytes(b"")
    data = batches(found, split="test", augment=Augment(), batch_size=2, bad_images=3, warn=str)
    kept = [place for place in range(12) if place not in (0, 1, 5)]
    assert torch.cat([labels for _, labels in data.ordered()]).tolist() == (
        listing.labels[kept].tolist()
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_is_not_blamed_for_the_machine(found, workers, monkeypatch) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("qnet.data.streamed._Pictures._decode", fail)
    data = batches(found, split="test", augment=Augment(), workers=workers, bad_images=99, warn=str)
    with pytest.raises(MemoryError):
        list(data.ordered())


def test_a_disk_that_fails_in_a_worker_is_named(found, monkeypatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "some/picture.jpg")

    monkeypatch.setattr("qnet.data.streamed._Pictures._decode", fail)
    data = batches(found, split="test", augment=Augment(), workers=1, bad_images=99, warn=str)
    message = r"^data\.root: OSError: .*Input/output error: 'some/picture\.jpg'; fix the file"
    with pytest.raises(UserError, match=message):
        list(data.ordered())


def test_odd_but_good_pictures(found) -> None:
    listing = found[1]["test"]
    kinds = {0: ("CMYK", "JPEG"), 1: ("L", "JPEG"), 2: ("RGBA", "PNG"), 3: ("P", "PNG")}
    for place, (mode, form) in kinds.items():
        Image.open(listing.path(place)).convert(mode).save(listing.path(place), form)
    data = batches(found, split="test", augment=Augment())
    assert sum(len(labels) for _, labels in data.ordered()) == 12


def test_a_size_larger_than_the_pictures(found) -> None:
    info = replace(found[0], size=64)
    images, _ = next(batches((info, found[1])).epoch(generator()))
    assert images.shape == (8, 3, 64, 64)


def test_a_worker_that_dies_is_no_traceback(found, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: object, order: object) -> None:
        assert get_worker_info() is not None
        os._exit(1)

    monkeypatch.setattr(module._Pictures, "__getitem__", die)
    with pytest.raises(UserError, match=r"runtime\.workers is 1, and one of them died"):
        list(batches(found, workers=1).ordered())


def test_a_worker_that_is_killed_between_batches_is_known_as_that(found) -> None:
    others = multiprocessing.active_children()  # of tests before, until their memory is collected
    epoch = batches(found, workers=1, batch_size=1).epoch(generator())
    next(epoch)
    [worker] = set(multiprocessing.active_children()) - set(others)

    def go_on() -> None:
        worker.kill()
        time.sleep(1)  # the signal of its end arrives now, or with the next batch
        list(epoch)

    with pytest.raises((RuntimeError, UserError)) as caught:
        go_on()
    error = caught.value
    assert isinstance(error, UserError) or why_lost(error) is not None


def test_without_room_for_the_workers_files_it_says_so(found, monkeypatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module.DataLoader, "__iter__", full)
    with pytest.raises(UserError, match=r"runtime\.workers is 1, .*Too many open files.*use fewer"):
        list(batches(found, workers=1).ordered())


def test_workers_may_open_as_many_files_as_are_allowed() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 64), hard))
    try:
        make_room()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_png_is_what_it_is_in_a_folder_of_images(found) -> None:
    listing = found[1]["test"]
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    see_through = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    for place, image in enumerate((Image.fromarray(ramp), see_through)):
        image.save(listing.path(place), format="png")
        pixels = batches(found, split="test", augment=Augment())._pictures._decode(place, None)
        assert abs(pixels.mean() - to_pixels(image, 32, 3).mean()) < 10  # its middle is cut


def copies(found, augment: Augment, count: int = 60) -> Tensor:
    """One training image, augmented `count` times."""
    info, splits = found
    listing = splits["train"].take(torch.zeros(count, dtype=torch.int64))
    data = StreamedBatches(listing, info, batch_size=count, device="cpu", augment=augment)
    return next(data.epoch(generator()))[0]


def test_each_copy_of_an_image_has_a_crop_of_its_own(found) -> None:
    assert len(copies(found, Augment(4, False)).flatten(1).unique(dim=0)) > 50


def test_half_of_the_copies_of_an_image_are_mirrored(found) -> None:
    plain, flipped = (copies(found, Augment(0, flip)) for flip in (False, True))
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    assert ((flipped == plain).flatten(1).all(1) | mirrored).all()
    assert 15 < mirrored.sum() < 45


def test_no_more_images_are_tried_than_may_be_bad(found, monkeypatch) -> None:
    tried: list[int] = []

    def fails(pictures: Any, index: int, seed: int) -> Tensor:
        tried.append(index)
        raise ValueError

    monkeypatch.setattr(module._Pictures, "_decode", fails)
    data = batches(found, batch_size=1, bad_images=2, warn=str)
    with pytest.raises(UserError):
        list(data.epoch(generator()))
    assert len(tried) == 3
