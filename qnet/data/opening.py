"""Batches from a prepared folder, whether it holds pixels or a listing of images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qnet.data.batches import UNCHANGED, WHOLE, Augment, Batches, BatchSource, Shard
from qnet.data.dataset import DatasetInfo
from qnet.data.manifest import has_manifest, load_listing
from qnet.data.prepared import load_split
from qnet.data.raw import Warn, to_stderr


def open_batches(
    folder: str | Path,
    split: str,
    info: DatasetInfo,
    *,
    batch_size: int,
    device: torch.device | str,
    augment: Augment = UNCHANGED,
    shard: Shard = WHOLE,
    chosen: Tensor | None = None,
    workers: int = 0,
    bad_images: int = 0,
    warn: Warn = to_stderr,
) -> BatchSource:
    """Batches of a split, from images in memory or decoded as needed.

    Args:
        folder: of the prepared data set.
        split: train, validation or test.
        info: gives mean and std, and the size of decoded images.
        batch_size: images per batch.
        device: where the batches are needed.
        augment: for training images.
        shard: share of this process, if there are several.
        chosen: indices of the images to use, int64 [n]; None: all.
        workers, bad_images, warn: as in `StreamedBatches`; unused for images in memory.

    Raises:
        UserError: if the split cannot be read.
    """
    if not has_manifest(folder):
        images = load_split(folder, split)
        images = images if chosen is None else images.take(chosen)
        return Batches(
            images,
            info,
            batch_size=batch_size,
            device=device,
            augment=augment,
            shard=shard,
            name=split,
        )
    from qnet.data.streamed import StreamedBatches  # torchvision takes seconds to import

    listing = load_listing(folder, split)
    return StreamedBatches(
        listing if chosen is None else listing.take(chosen),
        info,
        batch_size=batch_size,
        device=device,
        augment=augment,
        shard=shard,
        workers=workers,
        bad_images=bad_images,
        warn=warn,
        name=split,
    )
