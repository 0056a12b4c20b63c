"""Code shared by the three training stages: train or resume, score once on test, write outputs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from qnet.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from qnet.data import BatchSource, load_info
from qnet.distributed import leave
from qnet.evaluation import evaluate_classes
from qnet.history import History, is_due
from qnet.loss import distils
from qnet.models import source_files
from qnet.params import Params, TrainingParams
from qnet.resume import run_key
from qnet.runtime import Runtime
from qnet.size import full_precision_bytes, model_bytes
from qnet.training import Trainer
from stages.bars import bar
from stages.common import METRICS, PREPARED, write_json
from stages.data import evaluation_images, evaluation_steps, training_data
from stages.logs import Log, write_confusion, write_curves
from stages.resuming import resume_file

# Parameters that training a section reads besides its own, `seed` and `augment`.
READS: dict[str, dict[str, set[str]]] = {
    "fp": {"model": {"name", "pretrained"}},
    "weights": {},
    "activations": {"model": {"keep", "quantize"}, "cluster": {"images", "activations"}},
}


def train_stage(
    section: str,
    params: Params,
    checkpoint: Checkpoint,
    runtime: Runtime,
    out: Path,
    *,
    inputs: Sequence[Path] = (),
    teacher: Path | None = None,
    train: bool = True,
) -> None:
    """Train and score the network of `checkpoint`; write checkpoint, metrics and curves.

    Args:
        section: the section in params.yaml of the stage train_<section>.
        params: all of params.yaml.
        checkpoint: the network to train, on the device of `runtime`.
        runtime: the device and its precision.
        out: file for the trained checkpoint.
        inputs: files, besides the prepared data, that the result depends on.
        teacher: checkpoint of the network to distil from, if the section asks for it.
        train: False to pass the network on unchanged.
    """
    stage = f"train_{section}"
    settings: TrainingParams = getattr(params, section)
    history, resume = History(), None
    if train:
        taught_by = None
        if teacher is not None and distils(settings):
            taught_by = load_checkpoint(teacher, runtime.device).model
        key = _key(params, section, checkpoint.architecture, runtime, inputs)
        resume = resume_file(f"{stage}-{key}")
        data = training_data(params, section, checkpoint.dataset, runtime)
        trainer = Trainer(
            checkpoint.model, settings, data, runtime,
            phase=section, seed=params.seed, teacher=taught_by, progress=bar,
        )  # fmt: skip
        every = params.runtime.print_every
        log = Log(
            stage, checkpoint.model, lambda: data.train.waited,
            shown=lambda epoch: is_due(epoch, every, settings.epochs),
        )  # fmt: skip
        with log:
            history = trainer.fit(resume, log.epoch, save_every=params.runtime.save_every)
    if not leave():
        sys.exit()  # the first process scores and writes
    write_curves(stage, history.rows)
    _write_scores(stage, settings.select_on, params, checkpoint, runtime, history)
    save_checkpoint(out, checkpoint)
    if resume is not None:
        resume.remove()


def _write_scores(
    stage: str,
    selected_on: str,
    params: Params,
    checkpoint: Checkpoint,
    runtime: Runtime,
    history: History,
) -> None:
    """Score the final network in float32, as it is deployed; no other step sees test images, unless
    they choose the epoch."""
    exact = replace(runtime, mixed=False)
    test, validation = (
        evaluation_images(split, params, checkpoint.dataset, exact)
        for split in ("test", "validation")
    )

    def score(batches: BatchSource) -> tuple[dict[str, float], Tensor, Tensor]:
        steps = evaluation_steps(load_info(PREPARED).counts[batches.name], checkpoint.dataset)
        progress = partial(bar, count=steps, title=f"{stage}: {batches.name}")
        return evaluate_classes(checkpoint.model, batches, exact, progress)

    scores, actual, predicted = score(test)
    size = model_bytes(checkpoint.model)
    metrics = {
        "test": scores,
        "validation": score(validation)[0],
        "best_epoch": history.best_epoch,
        "selected_on": selected_on,
        "bytes": size,
        "compression": full_precision_bytes(checkpoint.model) / size,
    }
    write_json(METRICS / stage / "metrics.json", metrics)
    write_confusion(stage, checkpoint.dataset.classes, actual, predicted)


def _key(
    params: Params, section: str, architecture: str, runtime: Runtime, inputs: Sequence[Path]
) -> str:
    """Key that identifies everything that training this section depends on."""
    own = {"seed": True, "augment": True, section: True}
    used = params.model_dump(include={**own, **READS[section]})
    used["mixed"] = runtime.mixed
    code = [Path(__file__).parent, *source_files(architecture)]
    return run_key(used, [PREPARED, *inputs, *code])
