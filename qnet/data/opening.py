"""From a prepared folder to batches, whatever was prepared: pixels, or a listing of pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qnet.data.batches import WHOLE, Augment, Batches, BatchSource, Part
from qnet.data.manifest import has_manifest, load_listing
from qnet.data.prepared import DatasetInfo, load_split
from qnet.data.raw import Warn, to_stderr


def open_batches(
    folder: str | Path,
    split: str,
    info: DatasetInfo,
    *,
    batch_size: int,
    device: torch.device | str,
    augment: Augment | None = None,
    part: Part = WHOLE,
    chosen: Tensor | None = None,
    workers: int = 0,
    bad_images: int = 0,
    warn: Warn = to_stderr,
) -> BatchSource:
    """The images of a split, in memory or decoded on the way.

    Args:
        folder: of the prepared data set.
        split: train, validation or test.
        info: gives mean and std, and of pictures that are decoded the size.
        batch_size: images to a batch.
        device: where the batches are wanted.
        augment: given for training images.
        part: what this process takes of them, where there are several.
        chosen: places of the images to take, int64 [n]; None: all.
        workers, bad_images, warn: as in `StreamedBatches`; images in memory need none of them.

    Raises:
        UserError: if the split cannot be read, or does not fill a batch to train on.
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
            part=part,
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
        part=part,
        workers=workers,
        bad_images=bad_images,
        warn=warn,
        name=split,
    )
