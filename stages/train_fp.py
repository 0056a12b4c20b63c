"""Stage train_fp: train the full-precision network that later phases start and learn from.

Reads data/prepared, the file in model.pretrained if there is one,
and of params.yaml: seed, augment, model.name, model.pretrained, fp, data.bad_images, runtime.
Writes checkpoints/fp.safetensors, metrics/train_fp and, for TensorBoard, runs/train_fp.
"""

from __future__ import annotations

from pathlib import Path

import torch

from qnet.checkpoint import Checkpoint, check_rebuilt
from qnet.data import load_info
from qnet.errors import UserError
from qnet.models import build_model
from qnet.models.pretrained import RANDOM_HEAD, is_file, load_pretrained
from qnet.params import Params
from qnet.runtime import seed_for, start
from stages.ahead import check_ahead
from stages.common import FP, PREPARED
from stages.launch import run
from stages.training import TrainingStage


def main(params: Params) -> None:
    """Train the network named by `model` as `fp` says, from random or pretrained weights."""
    runtime = start(params.runtime)
    pretrained = params.model.pretrained
    if is_file(pretrained) and Path(pretrained).resolve() == FP.resolve():
        raise UserError(
            f"model.pretrained is {pretrained}, which this stage writes and DVC removes first: get "
            "it back with `git checkout dvc.lock metrics && dvc checkout`, copy it elsewhere, and "
            "name the copy"
        )
    info = load_info(PREPARED)
    for name in ("name", "size", "channels"):
        wanted, there = getattr(params.data, name), getattr(info, name)
        if wanted not in ("auto", there):
            raise UserError(
                f"data.{name} is {wanted}, and {PREPARED} holds {there}; run `dvc repro prepare`"
            )
    torch.manual_seed(seed_for(params.seed, "weights"))
    model = build_model(
        params.model.name, classes=len(info.classes), channels=info.channels, size=info.size
    )
    check_ahead(params, model, info, "fp", "weights", "activations")
    for note in load_pretrained(model, pretrained, name=params.model.name):
        print(f"train_fp: {note}")
        if RANDOM_HEAD in note and params.fp.epochs == 0:
            raise UserError(f"fp.epochs is 0, and {note}; set it above 0 to train that layer")
    inputs = [Path(pretrained)] if is_file(pretrained) else []
    checkpoint = Checkpoint(model, params.model.name, info)
    check_rebuilt(FP, checkpoint)
    model.to(runtime.device)
    TrainingStage("fp", params, checkpoint, runtime, FP).train(inputs)
    if params.fp.epochs == 0 and pretrained == "none":
        print("train_fp: fp.epochs is 0 and model.pretrained is none: the network is not trained")


if __name__ == "__main__":
    run(main, __doc__)
