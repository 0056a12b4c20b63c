"""Training images loaded and augmented per second, compared with torchvision.

The first row is for small images in memory, cropped after padding, mirrored and normalised: by this
project in the training process, by torchvision in workers from PIL images. The second is for JPEG
files in a temporary folder, of random colours that fade into each other, decoded in each epoch:
cropped at random, resized to 224 pixels, mirrored and normalised. All take turns; the first two
batches of each worker, in which it starts and fills its queue, are not counted.

    python -m benchmarks.data_pipeline
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks import textbook
from benchmarks.common import (
    count,
    figure,
    parse,
    table,
    take_turns,
    timed,
)
from qnet.data import (
    Augment,
    Batches,
    BatchSource,
    DatasetInfo,
    Split,
    open_batches,
    prepare_imagenet,
    save_manifest,
)
from qnet.data.workers import usable_cpus

SIZE, PICTURE = 32, (500, 375)  # pixels
CLASSES = ("n01440764", "n01443537")


def main() -> None:
    """Let all take turns, and print the table."""
    parser = argparse.ArgumentParser(
        description="Images per second from each source of training data."
    )
    parser.add_argument("--images", type=count, default=12_800, help="in memory (default: 12800)")
    parser.add_argument("--batch", type=count, default=256, help="images per batch (default: 256)")
    parser.add_argument("--pictures", type=count, default=1024, help="JPEG files (default: 1024)")
    parser.add_argument(
        "--picture-batch", type=count, default=32, help="JPEG files per batch (default: 32)"
    )
    parser.add_argument(
        "--workers", type=count, default=usable_cpus(), help="of both sides (default: one per core)"
    )
    parser.add_argument("--repeats", type=count, default=5, help="turns of each (default: 5)")
    given = parse(parser, {"images": 2560, "pictures": 160, "picture_batch": 16, "repeats": 2})
    for all_of_them, batch in (("images", "batch"), ("pictures", "picture_batch")):
        if getattr(given, all_of_them) <= 2 * given.workers * getattr(given, batch):
            parser.error(f"--{all_of_them} must give more than two batches per worker")

    with tempfile.TemporaryDirectory() as folder:
        rows = [
            ["in memory", *compare(*in_memory(given), given)],
            ["pictures", *compare(*streamed(Path(folder), given), given)],
        ]
    print(
        f"{given.images:,} images of {SIZE} × {SIZE} pixels in batches of {given.batch}; "
        f"{given.pictures:,} pictures of {PICTURE[0]} × {PICTURE[1]} in batches of "
        f"{given.picture_batch}; {given.workers} workers, {torch.get_num_threads()} threads; "
        f"median of {given.repeats} turns.\n"
    )
    print(table(["source", "ours, images/s", "torchvision, images/s", "faster"], rows))


def compare(
    ours: BatchSource, theirs: Iterable[Any], given: argparse.Namespace
) -> tuple[str, str, str]:
    """Images per second of both, and their ratio."""
    generator = torch.Generator().manual_seed(0)
    turns = take_turns(
        {
            "ours": _rate(lambda: ours.epoch(generator), 2 * given.workers),
            "theirs": _rate(lambda: theirs, 2 * given.workers),
        },
        given.repeats,
        warm_up=0,
    )
    mine, other = median(turns["ours"]), median(turns["theirs"])
    return figure(mine), figure(other), figure(mine / other, "×")


def in_memory(given: argparse.Namespace) -> tuple[BatchSource, Iterable[Any]]:
    """Sources of random images of CIFAR's shape, ours and torchvision's."""
    generator = torch.Generator().manual_seed(0)
    shape = (given.images, 3, SIZE, SIZE)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    split = Split(images, torch.zeros(given.images, dtype=torch.int64))
    info = DatasetInfo(
        name="random", classes=("none",), size=SIZE, channels=3,
        mean=textbook.MEAN, std=textbook.STD, counts={}, flip=True,
    )  # fmt: skip
    augment = Augment(pad=SIZE // 8, flip=True)
    ours = Batches(split, info, batch_size=given.batch, device="cpu", augment=augment)
    theirs = textbook.loader(images, split.labels, given.batch, given.images, given.workers)
    return ours, theirs


def streamed(folder: Path, given: argparse.Namespace) -> tuple[BatchSource, Iterable[Any]]:
    """Sources of the images of a small ImageNet, ours and torchvision's."""
    root = folder / "raw"
    write_pictures(root / "train", given.pictures + len(CLASSES))  # one per class is for validation
    write_pictures(root / "val", len(CLASSES))
    info, splits, _ = prepare_imagenet(
        root, size=None, channels=None, validation=1e-6, seed=0
    )  # fmt: skip
    save_manifest(folder / "prepared", info, splits)
    ours = open_batches(
        folder / "prepared", "train", info, batch_size=given.picture_batch, device="cpu",
        augment=Augment(pad=1, flip=True), workers=given.workers,
    )  # fmt: skip
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(info.size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(info.mean, info.std),
        ]
    )
    theirs = DataLoader(
        ImageFolder(str(root / "train"), transform), given.picture_batch,
        shuffle=True, num_workers=given.workers, drop_last=True,
    )  # fmt: skip
    return ours, theirs


def write_pictures(folder: Path, number: int) -> None:
    """Write this many JPEG files, to the folder of each class in turn."""
    generator = np.random.default_rng(0)
    for place in range(number):
        colours = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        file = folder / CLASSES[place % len(CLASSES)] / f"{place}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours).resize(PICTURE, Image.Resampling.BICUBIC).save(file, quality=95)


def _rate(batches: Callable[[], Iterable[Any]], warm_up: int) -> Callable[[], float]:
    """Return a function that measures images per second after `warm_up` batches."""

    def run() -> float:
        seconds: list[float] = []
        for _, labels in timed(batches(), seconds, warm_up):
            images = len(labels)
        return images * len(seconds) / sum(seconds)

    return run


if __name__ == "__main__":
    main()
