"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qnet.data.dataset import Split
from qnet.data.folder import load_image_folder
from qnet.data.pixels import convert
from qnet.data.raw import Progress, Raw
from qnet.data.splits import stratified_holdout
from qnet.errors import UserError


def load_source(
    name: str,
    root: str | Path,
    *,
    size: int | None,
    channels: int | None,
    progress: Progress | None = None,
) -> Raw:
    """Read a data set, downloading it first if it is a published one that is not there.

    Args:
        name: `data.name` of params.yaml, except imagenet.
        root: folder of the downloads; for image_folder, the folder that holds train/ and test/.
        size: side of the images in pixels; None: the data set's own (digits: 16).
        channels: 1 gray, 3 colour; None: the data set's own.
        progress: called with the number of images done and the total.

    Raises:
        UserError: if the name is unknown, or the files are missing or damaged.
    """
    if name not in _LOADERS:
        raise UserError(f"data.name: {name!r} is unknown, choose one of {', '.join(_LOADERS)}")
    return _LOADERS[name](Path(root), size, channels, progress)


def _load_digits(
    root: Path, size: int | None, channels: int | None, progress: Progress | None
) -> Raw:
    """Load the 1797 handwritten digits of 8×8 pixels that come with scikit-learn.

    They have no test set of their own: a fixed fifth of each class is held out, whatever the seed
    of the experiment. As 8×8 is too small for networks that halve the size twice, the default
    size is 16.
    """
    from sklearn.datasets import load_digits  # takes seconds to import, as torchvision does

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # values are 0 to 16
    images = torch.from_numpy(convert(pixels, size or 16, channels or 1, progress))
    labels = digits.target.astype(np.int64)
    train, test = (
        torch.from_numpy(part)
        for part in stratified_holdout(labels, share=0.2, generator=np.random.default_rng(0))
    )
    targets = torch.from_numpy(labels)
    return Raw(
        name="digits",
        classes=tuple("0123456789"),
        train=Split(images[train], targets[train]),
        test=Split(images[test], targets[test]),
        flip=False,
    )


def _load_published(name: str, *arguments: Any) -> Raw:
    from qnet.data.published import load_cifar, load_mnist  # torchvision takes seconds to import

    load = load_cifar if name.startswith("cifar") else load_mnist
    return load(name, *arguments)


_PUBLISHED = ("cifar10", "cifar100", "mnist", "fashion_mnist")
_LOADERS: dict[str, Callable[[Path, int | None, int | None, Progress | None], Raw]] = {
    "digits": _load_digits,
    **{name: partial(_load_published, name) for name in _PUBLISHED},
    "image_folder": load_image_folder,
}
