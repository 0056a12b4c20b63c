"""How many training images a second are loaded and augmented, and by torchvision instead.

First small images in memory: cropped after padding, mirrored and normalised, by this project in the
process that trains, by torchvision with workers from PIL images. Then pictures decoded in each
epoch, of random colours that fade into each other, in JPEG files in a temporary folder: cut at
random, resized to 224 pixels, mirrored and normalised. All take turns; the first two batches of
each worker, during which they start and fill their queues, are not counted.

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
from qnet.data.workers import processors

SIZE, PICTURE = 32, (500, 375)  # pixels
CLASSES = ("n01440764", "n01443537")


def main() -> None:
    """Let all take turns and print the table."""
    parser = argparse.ArgumentParser(description="Images a second of the training data's sources.")
    parser.add_argument("--images", type=count, default=12_800, help="in memory (default: 12800)")
    parser.add_argument("--batch", type=count, default=256, help="of them (default: 256)")
    parser.add_argument("--pictures", type=count, default=1024, help="JPEG (default: 1024)")
    parser.add_argument("--picture-batch", type=count, default=32, help="of them (default: 32)")
    parser.add_argument(
        "--workers", type=count, default=processors(), help="of both sides (default: one a core)"
    )
    parser.add_argument("--repeats", type=count, default=5, help="of each (default: 5)")
    given = parse(parser, {"images": 2560, "pictures": 160, "picture_batch": 16, "repeats": 2})
    for all_of_them, batch in (("images", "batch"), ("pictures", "picture_batch")):
        if getattr(given, all_of_them) <= 2 * given.workers * getattr(given, batch):
            parser.error(f"--{all_of_them} must make more than two batches for each worker")

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
    """Images a second of both, and the ratio."""
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
    """Random images of CIFAR's shape."""
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
    """The pictures of a small ImageNet."""
    root = folder / "raw"
    write_pictures(root / "train", given.pictures + len(CLASSES))  # one of each is for validation
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
    """So many JPEG files, in turn in the folder of each class."""
    generator = np.random.default_rng(0)
    for place in range(number):
        colours = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        file = folder / CLASSES[place % len(CLASSES)] / f"{place}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours).resize(PICTURE, Image.Resampling.BICUBIC).save(file, quality=95)


def _rate(batches: Callable[[], Iterable[Any]], warm_up: int) -> Callable[[], float]:
    """Images a second, after so many batches."""

    def run() -> float:
        seconds: list[float] = []
        for _, labels in timed(batches(), seconds, warm_up):
            images = len(labels)
        return images * len(seconds) / sum(seconds)

    return run


if __name__ == "__main__":
    main()
