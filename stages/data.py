"""The prepared images as a stage looks at them: to train on, to score on, to cluster."""

from __future__ import annotations

import torch

from qnet.data import Augment, Batches, DatasetInfo, Split, load_split
from qnet.errors import UserError
from qnet.params import Params, TrainingParams
from qnet.runtime import Runtime, seed_for
from qnet.training import TrainingData
from stages.common import PREPARED

EVALUATION_BATCH = 500
SAMPLE_BATCH = 100


def training_data(
    params: Params, section: str, info: DatasetInfo, runtime: Runtime
) -> TrainingData:
    """Batches to train on, augmented as `augment` says, and those that choose the epoch.

    Raises:
        UserError: a batch is larger than the training set.
    """
    settings: TrainingParams = getattr(params, section)
    pad, flip = params.augment.pad, params.augment.flip
    augment = Augment(
        pad=info.size // 8 if pad == "auto" else pad,
        flip=info.flip if flip == "auto" else flip,
    )
    images = load_split(PREPARED, "train")
    if settings.batch_size > len(images):
        raise UserError(
            f"{section}.batch_size is {settings.batch_size}; it must be at most {len(images)}, the "
            "number of training images"
        )
    train = Batches(
        images, info, batch_size=settings.batch_size, device=runtime.device, augment=augment
    )
    test = evaluation_images("test", info, runtime) if settings.select_on == "test" else None
    return TrainingData(train, evaluation_images("validation", info, runtime), test)


def evaluation_images(split: str, info: DatasetInfo, runtime: Runtime) -> Batches:
    """All images of a split, to be taken in order."""
    return Batches(
        load_split(PREPARED, split), info, batch_size=EVALUATION_BATCH, device=runtime.device
    )


def sample_images(params: Params, info: DatasetInfo, runtime: Runtime) -> Batches:
    """`cluster.images` training images, drawn by the seed; all of them where there are fewer."""
    split = load_split(PREPARED, "train")
    generator = torch.Generator().manual_seed(seed_for(params.seed, "cluster"))
    chosen = torch.randperm(len(split), generator=generator)[: params.cluster.images]
    sample = Split(split.images[chosen], split.labels[chosen])
    return Batches(sample, info, batch_size=SAMPLE_BATCH, device=runtime.device)
