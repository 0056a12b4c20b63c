"""Code shared by the three training stages: train or resume, score once on test, write outputs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from qnet.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from qnet.data import BatchSource, load_info
from qnet.distributed import leave
from qnet.evaluation import evaluate_classes
from qnet.files import check_writable, make_folder
from qnet.history import History, is_due
from qnet.loss import distils
from qnet.models import source_files
from qnet.params import Params, TrainingParams
from qnet.resume import ResumeFile, run_key
from qnet.runtime import Runtime
from qnet.size import full_precision_bytes, model_bytes
from qnet.training import Trainer
from stages.bars import bar
from stages.common import METRICS, PREPARED, write_json
from stages.data import evaluation_images, evaluation_steps, prepared_like, training_data
from stages.logs import Log, write_confusion, write_curves
from stages.resuming import resume_file
from stages.unchanged import check_unchanged

# Parameters that training a section reads besides its own, `seed` and `augment`.
READS: dict[str, dict[str, set[str]]] = {
    "fp": {"model": {"name", "pretrained"}},
    "weights": {},
    "activations": {"model": {"keep", "quantize"}, "cluster": {"images", "activations"}},
}


@dataclass(frozen=True)
class TrainingStage:
    """A training stage from the moment its network is there: train it or pass it on, and score it.

    Attributes:
        section: the section in params.yaml of the stage train_<section>.
        params: all of params.yaml.
        checkpoint: the network, on the device of `runtime`.
        runtime: the device and its precision.
        out: file for the resulting checkpoint.
    """

    section: str
    params: Params
    checkpoint: Checkpoint
    runtime: Runtime
    out: Path

    @property
    def name(self) -> str:
        """Name of the stage."""
        return f"train_{self.section}"

    @property
    def settings(self) -> TrainingParams:
        """The section's parameters."""
        settings: TrainingParams = getattr(self.params, self.section)
        return settings

    def train(self, inputs: Sequence[Path], teacher: Path | None = None) -> None:
        """Train the network, or resume its training; then score and write it.

        Args:
            inputs: files, besides the prepared data, that the result depends on.
            teacher: checkpoint of the network to distil from, if the section asks for it.
        """
        self._check_outputs()
        resume = resume_file(f"{self.name}-{self._key(inputs)}")
        check_writable(resume.path)
        history = self._fit(resume, teacher)
        self._write(history)
        resume.remove()

    def pass_on(self) -> None:
        """Score and write the network as it is: the section quantizes nothing."""
        self._check_outputs()
        self._write(History())

    def _check_outputs(self) -> None:
        """Fail now, not after the work."""
        check_writable(self.out)
        make_folder(METRICS / self.name)

    def _fit(self, resume: ResumeFile, teacher: Path | None) -> History:
        taught_by = None
        if teacher is not None and distils(self.settings):
            loaded = load_checkpoint(teacher, self.runtime.device)
            prepared_like(loaded.dataset)
            taught_by = loaded.model
        params, model = self.params, self.checkpoint.model
        data = training_data(params, self.section, self.checkpoint.dataset, self.runtime)
        trainer = Trainer(
            model, self.settings, data, self.runtime,
            phase=self.section, seed=params.seed, teacher=taught_by, progress=bar,
        )  # fmt: skip
        log = Log(
            self.name, model, lambda: data.train.waited,
            shown=lambda epoch: is_due(epoch, params.runtime.print_every, self.settings.epochs),
        )  # fmt: skip
        with log:
            return trainer.fit(
                resume, log.epoch, on_resume=log.resume, save_every=params.runtime.save_every
            )

    def _write(self, history: History) -> None:
        """Score the network, and write curves, metrics, confusions and checkpoint."""
        if not leave():
            sys.exit()  # the first process scores and writes
        check_unchanged(self.params, self._reads())
        write_curves(self.name, history.rows)
        self._write_scores(history)
        save_checkpoint(self.out, self.checkpoint)

    def _write_scores(self, history: History) -> None:
        """Score the final network in float32, as it is deployed; no other step sees test images,
        unless they choose the epoch."""
        model, dataset = self.checkpoint.model, self.checkpoint.dataset
        exact = replace(self.runtime, mixed=False)
        test, validation = (
            evaluation_images(split, self.params, dataset, exact)
            for split in ("test", "validation")
        )

        def score(batches: BatchSource) -> tuple[dict[str, float], Tensor, Tensor]:
            steps = evaluation_steps(load_info(PREPARED).counts[batches.name], dataset)
            progress = partial(bar, count=steps, title=f"{self.name}: {batches.name}")
            return evaluate_classes(model, batches, exact, progress)

        scores, actual, predicted = score(test)
        size = model_bytes(model)
        metrics = {
            "test": scores,
            "validation": score(validation)[0],
            "best_epoch": history.best_epoch,
            "selected_on": self.settings.select_on,
            "bytes": size,
            "compression": full_precision_bytes(model) / size,
        }
        write_json(METRICS / self.name / "metrics.json", metrics)
        write_confusion(self.name, dataset.classes, actual, predicted)

    def _reads(self) -> dict[str, Any]:
        return {"seed": True, "augment": True, self.section: True, **READS[self.section]}

    def _key(self, inputs: Sequence[Path]) -> str:
        """Key that identifies everything that training depends on."""
        used = self.params.model_dump(include=self._reads())
        used["mixed"] = self.runtime.mixed
        code = [Path(__file__).parent, *source_files(self.checkpoint.architecture)]
        return run_key(used, [PREPARED, *inputs, *code])
