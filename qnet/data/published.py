"""CIFAR and MNIST, read if present, else downloaded by torchvision."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from qnet.data.dataset import Split
from qnet.data.idx import find_idx, read_idx
from qnet.data.pixels import convert
from qnet.data.raw import Progress, Raw
from qnet.errors import UserError

_DOWNLOAD_ERRORS = (OSError, RuntimeError, HTTPException)  # URLError is an OSError
_MNIST_FILES = tuple(
    f"{part}-{kind}"
    for part in ("train", "t10k")
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
)
_FIRST_LABELS = {  # of the training images
    "mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4],
    "fashion_mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5],
}


def load_cifar(
    name: str, root: Path, size: int | None, channels: int | None, progress: Progress | None
) -> Raw:
    """Read CIFAR-10 or CIFAR-100 (Krizhevsky, 2009), the "python version" under `root`.

    Its files are pickles; torchvision opens them only if their MD5 is the publisher's.

    Raises:
        UserError: if the files are missing or damaged and cannot be downloaded.
    """
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        train = kind(root, train=True, download=True)  # downloads only missing files
        test = kind(root, train=False)
    except _DOWNLOAD_ERRORS as error:
        folder = root / kind.base_folder
        files = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
        bad = next((file for file, md5 in files if not check_integrity(folder / file, md5)), "")
        raise _unavailable(name, folder / bad, error) from error
    count = len(train.targets)
    pixels = np.concatenate([train.data, test.data])  # [N, H, W, C]
    images = convert(
        np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), size or 32, channels or 3, progress
    )
    labels = np.array([*train.targets, *test.targets], dtype=np.int64)
    return _raw(name, tuple(train.classes), images, labels, count, flip=True)


def load_mnist(
    name: str, root: Path, size: int | None, channels: int | None, progress: Progress | None
) -> Raw:
    """Read MNIST (LeCun et al., 1998) or Fashion-MNIST (Xiao et al., 2017).

    The four IDX files, plain or gzipped, are in torchvision's folder under `root` or directly in
    `root`.

    Raises:
        UserError: if files are missing and cannot be downloaded, are damaged, or are the other's.
    """
    kind = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name]
    fashion = name == "fashion_mnist"
    classes = tuple(kind.classes) if fashion else tuple("0123456789")
    own = root / kind.__name__ / "raw"
    files = _mnist_files(own) or _mnist_files(root)
    if files is None:
        try:
            kind(root, download=True)
        except _DOWNLOAD_ERRORS as error:
            missing = next((file for file in _MNIST_FILES if find_idx(own, file) is None), "")
            raise _unavailable(name, own / missing, error) from error
        files = _mnist_files(own)
        if files is None:
            raise UserError(f"data.root: the download left no {name} in {own}: put its files there")
    train_images, train_labels = _read_pair(files[0], files[1])
    test_images, test_labels = _read_pair(files[2], files[3])
    other = "fashion_mnist" if name == "mnist" else "mnist"
    if train_labels[:10].tolist() == _FIRST_LABELS[other]:
        raise UserError(
            f"data.root: {files[1]} belongs to {other}, whose files have the same names as those "
            f"of {name}: set data.name to {other}, or put the files of {name} in {own}"
        )
    images = np.concatenate([train_images, test_images])[:, None]
    labels = np.concatenate([train_labels, test_labels]).astype(np.int64)
    images = convert(images, size or 28, channels or 1, progress)
    return _raw(name, classes, images, labels, len(train_labels), flip=fashion)


def _mnist_files(folder: Path) -> list[Path] | None:
    """The four files in a folder, if they are all there."""
    files = [path for name in _MNIST_FILES if (path := find_idx(folder, name)) is not None]
    return files if len(files) == len(_MNIST_FILES) else None


def _read_pair(images_file: Path, labels_file: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if images.shape[1:] != (28, 28):
        raise UserError(
            f"{images_file}: holds images of {images.shape[1]}×{images.shape[2]} pixels "
            "instead of 28×28: put the published file there"
        )
    if len(images) != len(labels) or len(labels) == 0 or labels.max() > 9:
        raise UserError(
            f"{labels_file}: its {len(labels)} labels, each 0 to 9, do not match the "
            f"{len(images)} images of {images_file.name}: put the published files there"
        )
    return images, labels


def _raw(
    name: str,
    classes: tuple[str, ...],
    images: np.ndarray,
    labels: np.ndarray,
    train_count: int,
    flip: bool,
) -> Raw:
    everything = Split(torch.from_numpy(images), torch.from_numpy(labels))
    train = Split(everything.images[:train_count], everything.labels[:train_count])
    test = Split(everything.images[train_count:], everything.labels[train_count:])
    return Raw(name, classes, train, test, flip)


def _unavailable(name: str, looked_for: Path, error: BaseException) -> UserError:
    state = "damaged" if looked_for.is_file() else "not there"
    reason = " ".join(str(error).split())  # torchvision's message has several lines
    return UserError(
        f"data.root: {name} is not available: {looked_for} is {state} and the download failed "
        f"({reason}): connect to the internet, or put the published files in {looked_for.parent}"
    )
