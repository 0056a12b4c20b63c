"""Training, validation and test splits, and statistics of the training images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qnet.data.dataset import DatasetInfo, Split
from qnet.data.raw import Raw
from qnet.errors import UserError

_STD_FLOOR = 1 / 255  # one gray level, so that a constant channel is not divided by zero


def prepare(raw: Raw, *, validation: float, seed: int) -> tuple[DatasetInfo, dict[str, Split]]:
    """Hold out validation images and describe the data set.

    The validation images are a share of each class of the training set, at least one if the class
    has two. Training and validation images are shuffled, so that the first thousand are a sample of
    all; test images keep their order. Mean and standard deviation are those of the training images
    alone. Everything is determined by the seed.

    Raises:
        UserError: if `validation` leaves a split empty.
    """
    kept, held = hold_out(raw.train.labels, validation=validation, seed=seed)
    splits = {"train": raw.train.take(kept), "validation": raw.train.take(held), "test": raw.test}
    for name, split in splits.items():
        if len(split) == 0:
            raise UserError(f"data.name: {raw.name} has no {name} images: add some")
    mean, std = channel_statistics(splits["train"].images)
    info = DatasetInfo(
        name=raw.name,
        classes=raw.classes,
        size=raw.train.images.shape[-1],
        channels=raw.train.images.shape[1],
        mean=mean,
        std=std,
        counts={name: len(split) for name, split in splits.items()},
        flip=raw.flip,
    )
    return info, splits


def hold_out(labels: Tensor, *, validation: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of training and validation images, each in random order; see `prepare`."""
    if not 0 <= validation < 1:
        raise UserError(f"data.validation: {validation} must be at least 0 and below 1")
    generator = np.random.default_rng(seed)
    parts = stratified_holdout(labels.numpy(), share=validation, generator=generator)
    kept, held = (torch.from_numpy(generator.permutation(part)) for part in parts)
    if len(held) == 0:
        remedy = (
            "no class has two: add images"
            if validation > 0
            else "raise it (0.0001 takes one image of each class that has two)"
        )
        raise UserError(
            f"data.validation: {validation} of {len(labels)} training images leaves none to "
            f"validate on; {remedy}"
        )
    return kept, held


def stratified_holdout(
    labels: np.ndarray, *, share: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Indices to keep and to hold out, each in ascending order.

    Of a class with n images, round(share · n) are held out, at least 1 and at most n − 1; none of a
    class with a single image, and none at all if the share is 0.
    """
    held = np.zeros(len(labels), dtype=bool)
    if share > 0:
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            count = min(max(round(share * len(members)), 1), len(members) - 1)
            held[generator.choice(members, count, replace=False)] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W], where 255 counts as 1.

    Computed from a count of each of the 256 values, so the result does not depend on the order of
    the images or of the additions. The standard deviation is at least 1/255.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        weights = counts / counts.sum()
        mean = (weights * values).sum()
        std = (weights * (values - mean).square()).sum().sqrt()
        means.append(mean.item())
        stds.append(max(std.item(), _STD_FLOOR))
    return tuple(means), tuple(stds)
