"""Batches that are cropped, mirrored and normalised on the training device.

The images stay on the device as bytes. A batch is a single gather: each output pixel comes from a
known pixel of the padded image, and random crops and mirroring only change which one. Random crops
after zero padding, and mirroring, follow He et al., *Deep Residual Learning for Image Recognition*
(2016), section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from qnet.data.dataset import DatasetInfo, Split
from qnet.errors import UserError

Batch = tuple[Tensor, Tensor]
"""Images, float32 [B, C, H, W] in the channels_last memory format, and labels, int64 [B]."""


@dataclass(frozen=True)
class Augment:
    """Augmentation of the training images.

    Attributes:
        pad: black pixels added on each side before taking a random crop of the original size.
        flip: mirror each image with probability one half.
    """

    pad: int = 0
    flip: bool = False


UNCHANGED = Augment()


@dataclass(frozen=True)
class Shard:
    """Share of one of several processes: of each training batch, or of all images to score.

    Attributes:
        rank: the number of the process, from 0.
        world_size: how many there are.
    """

    rank: int = 0
    world_size: int = 1

    def slice_of(self, start: int, stop: int) -> slice:
        """Slice of [start, stop) for this process.

        The slices of all processes cover it, and their lengths differ by at most one.
        """
        count = stop - start
        first, last = (count * number // self.world_size for number in (self.rank, self.rank + 1))
        return slice(start + first, start + last)


WHOLE = Shard()


class BatchSource(Protocol):
    """Source of batches to train or score on: `Batches`, or anything with its interface.

    Attributes:
        name: of the split, for messages.
        batch_size: images per batch, over all processes.
        waited: seconds that the last pass over the images spent waiting for them.
    """

    name: str
    batch_size: int
    waited: float

    def __len__(self) -> int:
        """Number of batches in an epoch."""

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """All images once in random order, augmented, without the last batch if it is short."""

    def ordered(self) -> Iterator[Batch]:
        """All images once, in order, not augmented; the last batch may be short."""


class Normalise:
    """Bytes [B, H, W, C] on a device in, (x / 255 − mean) / std out, float32 [B, C, H, W].

    The result is a view in the channels_last memory format.
    """

    def __init__(self, info: DatasetInfo, width: int, device: torch.device | str) -> None:
        # One multiplication and addition. Repeated along the width, because rows of W·C numbers are
        # added at full speed, and rows of C are not.
        mean = torch.tensor(info.mean, dtype=torch.float64)
        std = torch.tensor(info.std, dtype=torch.float64)
        self._scale = (1 / (255 * std)).float().repeat(width, 1).to(device)  # [W, C]
        self._shift = (-mean / std).float().repeat(width, 1).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, C, H, W]."""
        return torch.addcmul(self._shift, images.float(), self._scale).permute(0, 3, 1, 2)


class Batches:
    """Images of a split on a device, in batches for training or in order for evaluation.

    Images are normalised by the mean and std of `info`.

    Args:
        split: images uint8 [N, C, H, W] with H = W, and labels.
        info: gives mean and std.
        batch_size: images per batch.
        device: where the images are kept and the batches made.
        augment: for training images; the default leaves them unchanged.
        shard: share of this process; its images are the same as in a single-process run.
        name: of the split, for messages.
    """

    waited = 0.0  # images in memory need no waiting

    def __init__(
        self,
        split: Split,
        info: DatasetInfo,
        *,
        batch_size: int,
        device: torch.device | str,
        augment: Augment = UNCHANGED,
        shard: Shard = WHOLE,
        name: str = "given",
    ) -> None:
        self.name = name
        self.batch_size = batch_size
        self.augment = augment
        self.shard = shard
        self._images = split.images.permute(0, 2, 3, 1).contiguous().to(device)  # [N, H, W, C]
        self._labels = split.labels.to(device)
        self._normalise = Normalise(info, self._images.shape[2], device)

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self._labels) // self.batch_size

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """All images once in random order, augmented, without the last batch if it is short.

        The generator may be on any device. All random numbers of the epoch are drawn by this call:
        the same state gives the same batches and the same next state, however many are used.

        Raises:
            UserError: if the images do not fill one batch.
        """
        require_full_batch(self.batch_size, len(self._labels))
        augment = self.augment
        count, source, device = len(self._labels), generator.device, self._images.device
        order = torch.randperm(count, generator=generator, device=source)
        room = 2 * augment.pad + 1  # possible positions of a crop along a side
        starts = torch.randint(room, (2, count), generator=generator, device=source)
        mirrored = torch.randint(1 + augment.flip, (count,), generator=generator, device=source)
        # Moved in one go, so that the host need not wait for the device between batches.
        return self._augmented(order.to(device), starts.to(device), mirrored.bool().to(device))

    def ordered(self) -> Iterator[Batch]:
        """All images once, in order, not augmented; the last batch may be short."""
        mine = self.shard.slice_of(0, len(self._labels))
        for first in range(mine.start, mine.stop, self.batch_size):
            batch = slice(first, min(first + self.batch_size, mine.stop))
            yield self._normalise(self._images[batch]), self._labels[batch]

    def _augmented(self, order: Tensor, starts: Tensor, mirrored: Tensor) -> Iterator[Batch]:
        for first in range(0, len(self) * self.batch_size, self.batch_size):
            batch = self.shard.slice_of(first, first + self.batch_size)
            images = self._images.index_select(0, order[batch])
            labels = self._labels.index_select(0, order[batch])
            cropped = crop(images, starts[:, batch], mirrored[batch], self.augment.pad)
            yield self._normalise(cropped), labels


def require_full_batch(batch_size: int, count: int) -> None:
    """Raise a `UserError` if this many images do not fill one batch."""
    if batch_size > count:
        raise UserError(
            f"batch_size: {batch_size} is more than the {count} training images: choose at most "
            f"{count}"
        )


def crop(images: Tensor, starts: Tensor, mirrored: Tensor, pad: int) -> Tensor:
    """Crop each padded image to its original size, and mirror some.

    Args:
        images: [B, S, S, C], channels last.
        starts: int64 [2, B], top and left of each crop within the padded image, 0 to 2 · pad.
        mirrored: bool [B].
        pad: zeros on each side.

    Returns:
        [B, S, S, C], of the type of `images`.
    """
    batch, size, _, channels = images.shape
    padded_size = size + 2 * pad
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))
    steps = torch.arange(size, device=images.device)
    rows = starts[0, :, None] + steps  # [B, S]
    columns = starts[1, :, None] + torch.where(mirrored[:, None], steps.flip(0), steps)
    rows = rows + padded_size * torch.arange(batch, device=images.device)[:, None]
    pixels = rows[:, :, None] * padded_size + columns[:, None, :]  # [B, S, S]
    cut = padded.reshape(-1, channels).index_select(0, pixels.view(-1))
    return cut.view(batch, size, size, channels)
