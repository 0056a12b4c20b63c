"""A small ImageNet on disk: scikit-learn's digits as JPEG files of several sizes."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

WNIDS = ("n01440764", "n01443537", "n02123045")


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


def write_picture(path: Path, label: int, number: int) -> None:
    """Write the given digit of a class, enlarged and not square."""
    images, targets = _digits()
    digit = Image.fromarray(images[np.flatnonzero(targets == label)[number]])
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (40 + 4 * (number % 3), 40 + 6 * (number % 2))
    digit.convert("RGB").resize(size).save(path, "JPEG", quality=95)


def write_tree(root: Path, train: int = 12, val: int = 4, flat: bool = False) -> Path:
    """Write train/<wnid>/ with this many images each, and val/<wnid>/, or val/ and both lists."""
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for label, wnid in enumerate(WNIDS):
        for number in range(train):
            name = f"{wnid}/{wnid}_{number}.JPEG"
            write_picture(root / "train" / name, label, number)
            lists["train"].append(f"{name} {label}")
        for number in range(val):
            name = f"ILSVRC2012_val_{number * len(WNIDS) + label:08}.JPEG"
            name = name if flat else f"{wnid}/{name}"
            write_picture(root / "val" / name, label, train + number)
            lists["val"].append(f"{name} {label}")
    if flat:
        for half, lines in lists.items():
            (root / f"{half}.txt").write_text("\n".join(lines) + "\n")
    return root


def corrupt(path: Path) -> None:
    """Cut an image file in half, as an interrupted download does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
