"""Batches of the prepared images for the stages: for training, evaluation and clustering."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from tqdm import tqdm

from qnet.data import (
    UNCHANGED,
    WHOLE,
    Augment,
    BatchSource,
    DatasetInfo,
    Shard,
    load_info,
    open_batches,
)
from qnet.distributed import rank, world_size
from qnet.errors import UserError
from qnet.params import Params, TrainingParams
from qnet.runtime import Runtime, seed_for
from qnet.training import TrainingData
from stages.common import PREPARED


def training_data(
    params: Params, section: str, info: DatasetInfo, runtime: Runtime
) -> TrainingData:
    """Training batches, augmented as `augment` says, and the batches that choose the epoch.

    Raises:
        UserError: a batch is larger than the training set, or the padding is not below the image
            size.
    """
    settings: TrainingParams = getattr(params, section)
    pad, flip = params.augment.pad, params.augment.flip
    if pad != "auto" and pad >= info.size:
        raise UserError(
            f"augment.pad is {pad}; it must be below {info.size}, the size of the images, or some "
            "crops are all black"
        )
    augment = Augment(
        pad=info.size // 8 if pad == "auto" else pad,
        flip=info.flip if flip == "auto" else flip,
    )
    check_batch_size(params, section)
    train = _open("train", params, info, runtime, settings.batch_size, augment=augment)
    validation = evaluation_images("validation", params, info, runtime)
    if settings.select_on != "test":
        return TrainingData(train, validation)
    return TrainingData(train, validation, evaluation_images("test", params, info, runtime))


def check_batch_size(params: Params, *sections: str) -> None:
    """Check that a batch is no larger than the training set and has an image for each process.

    Raises:
        UserError: it does not hold for one of `sections`.
    """
    count = load_info(PREPARED).counts["train"]
    sizes = {f"{section}.batch_size": getattr(params, section).batch_size for section in sections}
    if large := [f"{name} is {size}" for name, size in sizes.items() if size > count]:
        each = "it" if len(large) == 1 else "each"
        raise UserError(
            f"{', '.join(large)}; {each} must be at most {count}, the number of training images"
        )
    for name, size in sizes.items():
        if size < world_size():
            raise UserError(
                f"{name} is {size}, and {world_size()} processes share each batch; use a larger "
                "one, or fewer runtime.processes"
            )


def evaluation_images(
    split: str, params: Params, info: DatasetInfo, runtime: Runtime
) -> BatchSource:
    """All images of a split, for evaluation in order."""
    return _open(split, params, info, runtime, evaluation_batch(info))


def evaluation_batch(info: DatasetInfo) -> int:
    """Batch size for evaluation: 500, or fewer for images of more than 128 × 128 pixels."""
    return max(1, min(500, 500 * 128**2 // info.size**2))


def evaluation_steps(count: int, info: DatasetInfo) -> int:
    """Number of batches in which this many images are scored."""
    return -(-count // evaluation_batch(info))


def sample_batch(info: DatasetInfo) -> int:
    """Batch size for clustering: 100, or that for evaluation if it is smaller."""
    return min(100, evaluation_batch(info))


def sample_images(params: Params, info: DatasetInfo, runtime: Runtime) -> BatchSource:
    """Random `cluster.images` training images, drawn by the seed; all if there are fewer."""
    count = load_info(PREPARED).counts["train"]
    generator = torch.Generator().manual_seed(seed_for(params.seed, "cluster"))
    chosen = torch.randperm(count, generator=generator)[: params.cluster.images]
    return _open("train", params, info, runtime, sample_batch(info), chosen=chosen)


ANEW = ", or train it again with `dvc repro`"


def prepared_like(info: DatasetInfo, otherwise: str = ANEW) -> DatasetInfo:
    """Description of the prepared data, if a network trained on `info` can take it.

    Args:
        info: the data set that the network was trained on.
        otherwise: what else the user can do; ends the message.

    Raises:
        UserError: the prepared data is of another kind or missing.
    """
    there = load_info(PREPARED)
    for what in ("classes", "size", "channels"):
        if getattr(there, what) != getattr(info, what):
            raise UserError(
                f"{PREPARED} is {there.name} ({_described(there)}), and the network takes "
                f"{info.name} ({_described(info)}): they differ in {what}; set data to what it was "
                f"trained on and run `dvc repro prepare`{otherwise}"
            )
    return there


def _described(info: DatasetInfo) -> str:
    return f"{len(info.classes)} classes, {info.size} pixels, channels: {info.channels}"


def _open(
    split: str,
    params: Params,
    info: DatasetInfo,
    runtime: Runtime,
    batch_size: int,
    *,
    augment: Augment = UNCHANGED,
    chosen: Tensor | None = None,
) -> BatchSource:
    return open_batches(
        PREPARED,
        split,
        info,
        batch_size=batch_size,
        device=runtime.device,
        augment=augment,
        shard=Shard(rank(), world_size())
        if chosen is None
        else WHOLE,  # samples are not shared out
        chosen=chosen,
        workers=runtime.workers,
        bad_images=params.data.bad_images,
        warn=warn,
    )


def warn(line: str) -> None:
    """Print a warning without breaking a progress bar."""
    tqdm.write(f"warning: {line}", file=sys.stderr)
