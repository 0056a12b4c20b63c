"""Batches equal a plain loop over images; every image has its own crop and flip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from qnet.data.batches import Augment, Batches, Shard, crop
from qnet.data.dataset import DatasetInfo, Split
from qnet.errors import UserError


def some_data(count: int = 20, channels: int = 3, size: int = 6) -> tuple[Split, DatasetInfo]:
    generator = torch.Generator().manual_seed(count)
    shape = (count, channels, size, size)
    split = Split(
        torch.randint(256, shape, generator=generator, dtype=torch.uint8), torch.arange(count)
    )
    info = DatasetInfo(
        name="digits",
        classes=tuple(map(str, range(count))),
        size=size,
        channels=channels,
        mean=(0.4, 0.5, 0.6)[:channels],
        std=(0.2, 0.3, 0.25)[:channels],
        counts={"train": count},
        flip=True,
    )
    return split, info


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normalised(images: Tensor, info: DatasetInfo) -> Tensor:
    """The textbook formula, [N, C, H, W]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (info.mean, info.std))
    return (images.float() / 255 - mean) / std


def cut_one(image: Tensor, top: int, left: int, mirrored: bool, pad: int) -> Tensor:
    """Crop and mirror one image [C, S, S] in plain code."""
    size = image.shape[-1]
    cut = F.pad(image, (pad, pad, pad, pad))[:, top : top + size, left : left + size]
    return cut.flip(-1) if mirrored else cut


@settings(max_examples=60)
@given(
    batch=st.integers(1, 6),
    size=st.integers(1, 7),
    channels=st.sampled_from([1, 3]),
    pad=st.integers(0, 9),
    seed=st.integers(0, 2**32),
)
def test_crop_is_the_plain_loop(batch: int, size: int, channels: int, pad: int, seed: int) -> None:
    generator = seeded(seed)
    shape = (batch, channels, size, size)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    starts = torch.randint(2 * pad + 1, (2, batch), generator=generator)
    mirrored = torch.randint(2, (batch,), generator=generator).bool()
    expected = torch.stack(
        [
            cut_one(image, int(top), int(left), bool(mirror), pad)
            for image, top, left, mirror in zip(images, *starts, mirrored, strict=True)
        ]
    )
    actual = crop(images.permute(0, 2, 3, 1), starts, mirrored, pad)
    assert actual.dtype == torch.uint8
    assert torch.equal(actual.permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_ordered_is_every_image_once_and_normalised(channels: int) -> None:
    split, info = some_data(channels=channels)
    batches = Batches(split, info, batch_size=8, device="cpu", augment=Augment(2, True))
    images, labels = zip(*batches.ordered(), strict=True)
    assert [len(part) for part in images] == [8, 8, 4]
    assert torch.equal(torch.cat(labels), split.labels)
    torch.testing.assert_close(torch.cat(images), normalised(split.images, info))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", [Augment(), Augment(2, True)])
def test_batches_are_float32_and_channels_last(channels: int, augment: Augment) -> None:
    split, info = some_data(channels=channels)
    batches = Batches(split, info, batch_size=8, device="cpu", augment=augment)
    for pairs in (batches.epoch(seeded()), batches.ordered()):
        images, labels = next(pairs)
        assert images.shape == (8, channels, 6, 6)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64


def test_epoch_without_augmentation() -> None:
    split, info = some_data()
    batches = Batches(split, info, batch_size=8, device="cpu")
    pairs = list(batches.epoch(seeded()))
    assert len(pairs) == len(batches) == 2
    labels = torch.cat([labels for _, labels in pairs])
    assert len(labels) == len(labels.unique()) == 16
    assert labels.tolist() != sorted(labels.tolist())
    images = torch.cat([images for images, _ in pairs])
    torch.testing.assert_close(images, normalised(split.images[labels], info))


def test_every_augmented_image_is_a_crop_of_its_own_image() -> None:
    split, info = some_data(count=12, size=4)
    pad = 1
    batches = Batches(split, info, batch_size=6, device="cpu", augment=Augment(pad, True))
    for images, labels in batches.epoch(seeded(3)):
        for image, label in zip(images, labels, strict=True):
            choices = [
                normalised(cut_one(split.images[label], top, left, mirrored, pad), info)
                for top in range(2 * pad + 1)
                for left in range(2 * pad + 1)
                for mirrored in (False, True)
            ]
            assert sum(torch.allclose(image, choice, atol=1e-5) for choice in choices) == 1


def positions(augment: Augment, size: int = 9, count: int = 2000) -> tuple[Tensor, Tensor]:
    """Rows and columns (from the centre) to which a bright pixel right of the centre moves in
    `count` copies of one image."""
    image = torch.zeros(1, size, size, dtype=torch.uint8)
    image[0, size // 2, size // 2 + 1] = 255
    split = Split(image.repeat(count, 1, 1, 1), torch.zeros(count, dtype=torch.int64))
    _, info = some_data(channels=1, size=size)
    batches = Batches(split, info, batch_size=count, device="cpu", augment=augment)
    images, _ = next(batches.epoch(seeded()))
    brightest = images.flatten(1).argmax(1)
    return brightest // size - size // 2, brightest % size - size // 2


def test_flips_are_independent_and_even() -> None:
    _, columns = positions(Augment(0, True))
    assert set(columns.tolist()) == {-1, 1}
    mirrored = (columns == -1).double()
    assert abs(mirrored.mean() - 0.5) < 0.05
    neighbours = torch.corrcoef(torch.stack([mirrored[1:], mirrored[:-1]]))[0, 1]
    assert abs(neighbours) < 0.1


def test_crops_are_independent_and_uniform() -> None:
    rows, columns = positions(Augment(2, False))
    table = torch.zeros(5, 5)
    table.index_put_((rows + 2, columns - 1 + 2), torch.ones(len(rows)), accumulate=True)
    assert table.sum() == 2000
    assert table.min() > 40  # each of the 25 shifts is expected 80 times
    assert table.max() < 120
    both = torch.corrcoef(torch.stack([rows, columns]).double())[0, 1]
    neighbours = torch.corrcoef(torch.stack([rows[1:], rows[:-1]]).double())[0, 1]
    assert abs(both) < 0.1
    assert abs(neighbours) < 0.1


def test_what_the_padding_adds_is_black() -> None:
    split, info = some_data(count=16, size=4)
    white = Split(torch.full_like(split.images, 255), split.labels)
    batches = Batches(white, info, batch_size=16, device="cpu", augment=Augment(2, False))
    images, _ = next(batches.epoch(seeded()))
    black = normalised(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), info)
    full = normalised(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), info)
    is_black = torch.isclose(images, black, atol=1e-5)
    assert is_black.any()
    assert (is_black | torch.isclose(images, full, atol=1e-5)).all()


def test_the_same_state_gives_the_same_batches() -> None:
    split, info = some_data()
    batches = Batches(split, info, batch_size=8, device="cpu", augment=Augment(2, True))
    generator = seeded(5)
    first = [*batches.epoch(generator)]
    second = [*batches.epoch(generator)]
    again = [*batches.epoch(seeded(5))]
    for (images, labels), (same_images, same_labels) in zip(first, again, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    assert not torch.equal(first[0][1], second[0][1])


def test_the_parts_of_several_processes_make_up_the_batches() -> None:
    split, info = some_data()
    options = {"batch_size": 8, "device": "cpu", "augment": Augment(2, True)}
    whole = Batches(split, info, **options)
    parts = [Batches(split, info, shard=Shard(rank, 3), **options) for rank in range(3)]
    for batch, *shares in zip(*(b.epoch(seeded(5)) for b in (whole, *parts)), strict=True):
        assert [len(labels) for _, labels in shares] == [2, 3, 3]
        for of_batch, of_shares in zip(batch, zip(*shares, strict=True), strict=True):
            assert torch.equal(of_batch, torch.cat(of_shares))
    scored = [batch for part in parts for batch in part.ordered()]
    parted = zip(*scored, strict=True)
    for of_whole, of_parts in zip(zip(*whole.ordered(), strict=True), parted, strict=True):
        assert torch.equal(torch.cat(of_whole), torch.cat(of_parts))


def test_an_epoch_left_early_takes_as_many_random_numbers() -> None:
    split, info = some_data()
    batches = Batches(split, info, batch_size=8, device="cpu", augment=Augment(2, True))
    whole, left = seeded(5), seeded(5)
    list(batches.epoch(whole))
    next(batches.epoch(left))
    assert torch.equal(whole.get_state(), left.get_state())


def test_the_images_are_not_changed() -> None:
    split, info = some_data(channels=1)
    before = split.images.clone()
    batches = Batches(split, info, batch_size=8, device="cpu", augment=Augment(2, True))
    for images, _ in [*batches.epoch(seeded()), *batches.ordered()]:
        images.zero_()
    assert torch.equal(split.images, before)


def test_a_batch_larger_than_the_training_set() -> None:
    split, info = some_data()
    with pytest.raises(UserError, match=r"21 is more than the 20 training images.*at most 20"):
        Batches(split, info, batch_size=21, device="cpu").epoch(seeded())
    Batches(split, info, batch_size=20, device="cpu").epoch(seeded())
    evaluation = Batches(split, info, batch_size=21, device="cpu")
    assert [len(labels) for _, labels in evaluation.ordered()] == [20]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", [Augment(), Augment(2, True)])
def test_a_gpu_gives_the_same_batches_without_waiting(augment: Augment) -> None:
    split, info = some_data()
    here = Batches(split, info, batch_size=8, device="cpu", augment=augment)
    there = Batches(split, info, batch_size=8, device="cuda", augment=augment)
    epoch = there.epoch(seeded())
    torch.cuda.set_sync_debug_mode("error")
    try:
        pairs = list(epoch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (images, labels), (gpu_images, gpu_labels) in zip(here.epoch(seeded()), pairs, strict=True):
        torch.testing.assert_close(gpu_images.cpu(), images)
        assert torch.equal(gpu_labels.cpu(), labels)
