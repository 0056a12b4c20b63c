"""One loop for all phases: full precision, quantized weights, quantized activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from qnet.batch_norm import synchronise_batch_norm
from qnet.bn_statistics import measure_batch_norm
from qnet.compiling import CompiledNetwork
from qnet.data import BatchSource
from qnet.distributed import backward, broadcast_state, rank, sum_over_processes, world_size
from qnet.errors import UserError
from qnet.evaluation import Scores, evaluate
from qnet.graphs import GraphedStep
from qnet.history import History, Row, is_due
from qnet.layers import QuantizedLayer
from qnet.learning import Learning, check_batch_norm
from qnet.loss import distils, training_loss
from qnet.machine_errors import is_out_of_memory
from qnet.memory_format import channels_last
from qnet.optimizer import build_optimizer, set_learning_rate
from qnet.params import TrainingParams
from qnet.quantizer import soft_forward
from qnet.relus import skip_relus
from qnet.resume import ResumeFile, load_optimizer_tensors, optimizer_tensors
from qnet.runtime import Runtime, seed_for
from qnet.scales import ScaleFloor
from qnet.schedules import learning_rate, temperature_at
from qnet.states import State, load_state, misfit
from qnet.teacher import Teacher
from qnet.weights import quantized_in_groups, weight_groups

EpochProgress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Wraps the batches of an epoch, given their number and a title, to draw a progress bar."""


@dataclass(frozen=True)
class TrainingData:
    """The images of a run; `test` is given only where epochs are selected on it."""

    train: BatchSource
    validation: BatchSource
    test: BatchSource | None = None


class Trainer:
    """Trains one network through one phase.

    Args:
        model: on the device of `runtime`; trained in place, without the ReLUs that only quantizers
            read (`qnet.relus`): in eval mode they are there.
        params: the section of params.yaml that this phase follows.
        data: training images, and those that choose the epoch.
        runtime: the device and its arithmetic.
        phase: the section's name, for messages and seeds.
        seed: fixes, with `phase` and the epoch, batches, augmentation and dropout.
        teacher: the network to distil from; needed where `distillation` is above 0.
        progress: wraps the batches of each epoch.

    Raises:
        UserError: batch norm would see one image per batch, or no parameter may learn.
        ValueError: the parameters ask for a teacher, or for test images, and there are none.
    """

    def __init__(
        self,
        model: nn.Module,
        params: TrainingParams,
        data: TrainingData,
        runtime: Runtime,
        *,
        phase: str,
        seed: int,
        teacher: nn.Module | None = None,
        progress: EpochProgress = lambda batches, count, title: batches,
    ) -> None:
        self.model = model
        self.params = params
        self.data = data
        self.runtime = runtime
        self.phase = phase
        self.seed = seed
        self.progress = progress
        self._check(teacher)
        skip_relus(model)
        channels_last(model.to(runtime.device))
        self.learning = Learning(model, params)
        broadcast_state(model)
        if world_size() > 1 and self.learning.norms_learn:
            synchronise_batch_norm(model)
        self._require_learning()
        model.zero_grad(set_to_none=True)  # what is frozen now would count in the gradient's norm
        self.optimizer = build_optimizer(model, params)
        self.parameters = list(model.parameters())
        self.scale_floor = ScaleFloor(model)
        self.network: Callable[[Tensor], Tensor] = model
        if runtime.compile_network:
            self.network = CompiledNetwork(model)
        self.weight_groups: list[list[QuantizedLayer]] = []
        self.scores = Scores(runtime.device)
        self.graph = GraphedStep(self.step) if runtime.graphs else None
        self.teacher = None if teacher is None or not distils(params) else Teacher(teacher, runtime)

    def _check(self, teacher: nn.Module | None) -> None:
        """Raise an error if something is missing that the parameters ask for."""
        check_batch_norm(self.model, self.params, self.phase)
        if distils(self.params) and teacher is None:
            raise ValueError(f"{self.phase}.distillation is above 0 and no teacher was given")
        if self.params.select_on == "test" and self.data.test is None:
            raise ValueError(f"{self.phase}.select_on is test and no test images were given")

    def _require_learning(self) -> None:
        if self.params.epochs > 0 and not self.learning.learns_at_first():
            raise UserError(
                f"{self.phase}.epochs is {self.params.epochs}, and no parameter of the network may "
                f"learn (weights, scales and batch norm are all frozen); set {self.phase}."
                "epochs to 0, or let something learn"
            )

    def fit(
        self,
        resume: ResumeFile | None = None,
        on_epoch: Callable[[History], None] = lambda history: None,
        *,
        on_resume: Callable[[History], None] = lambda history: None,
        save_every: int = 1,
    ) -> History:
        """Train to the end and leave the model in eval mode with the selected epoch's weights.

        Call it once. In quantized networks, batch norm's mean and variance are then re-measured on
        `bn_images`.

        Args:
            resume: where the run's state is saved; if it already holds one, training continues
                from it.
            on_epoch: called with the history, resumed epochs included, after each new epoch.
            on_resume: called once, with the history so far, if training continues from a state.
            save_every: the state is saved after every `save_every` epochs, and after the last.

        Raises:
            UserError: the loss is not finite, memory ran out, or the processes resume after
                different epochs.
        """
        history, best = self._start(resume)
        if history.rows and rank() == 0:
            on_resume(history)
        if self.teacher is not None and len(history.rows) < self.params.epochs:
            self.teacher.check(self.data.validation)
        # Compiled as a whole, the network gains nothing from groups.
        self.weight_groups = [] if self.runtime.compile_network else weight_groups(self.model)
        for epoch in range(len(history.rows), self.params.epochs):
            row = self._epoch(epoch)
            if history.add(row, self.params.select_on):
                best = _copy(self.model.state_dict())
            if rank() > 0:
                continue  # the first process writes
            if resume is not None and is_due(epoch + 1, save_every, self.params.epochs):
                self._save(resume, history, best)
            on_epoch(history)
        if self.graph is not None:
            self.graph.forget()  # it holds the memory of a whole step
        self.model.zero_grad(set_to_none=True)
        load_state(self.model, best)
        self.model.eval()
        self._measure_batch_norm()
        self.learning.end()
        return history

    def _start(self, resume: ResumeFile | None) -> tuple[History, State]:
        """The epochs done so far, some in a resumed run, and the state of the best one."""
        history = History()
        best = _copy(self.model.state_dict())
        saved = None if resume is None else resume.load()
        if saved is not None and not misfit(best, saved[0]["model"]):
            groups, numbers = saved
            load_state(self.model, groups["model"])
            load_optimizer_tensors(self.optimizer, groups.get("optimizer", {}))
            best = groups["best"]
            for row in numbers["rows"]:
                history.add(row, self.params.select_on)
        self._agree(history)
        return history, best

    def _save(self, resume: ResumeFile, history: History, best: State) -> None:
        groups = {
            "model": self.model.state_dict(),
            "best": best,
            "optimizer": optimizer_tensors(self.optimizer),
        }
        resume.save(groups, {"rows": history.rows})

    def _agree(self, history: History) -> None:
        """Give all processes the same weights, or raise an error if their epochs differ."""
        done = len(history.rows)
        if sum_over_processes([done])[0] != done * world_size():
            raise UserError(
                f"process {rank() + 1} resumes after epoch {done} and others do not; all machines "
                "need the same files: start in one folder that they share"
            )
        broadcast_state(self.model)

    def _epoch(self, epoch: int) -> Row:
        """Train for one epoch and score it."""
        params = self.params
        if self.learning.begin(epoch) and self.graph is not None:
            self.graph.forget()
        temperature = temperature_at(params, epoch)
        if temperature is not None:
            for quantizer in self.learning.annealed:
                quantizer.set_temperature(temperature)
        # A different seed in each process, because each has different images.
        torch.manual_seed(seed_for(self.seed, self.phase, epoch, "network") + rank())
        try:
            self._train(epoch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"{self.phase}.batch_size is {params.batch_size}, and memory ran out; use a "
                "smaller one, or smaller images (data.size)"
            ) from error
        row = {"epoch": epoch + 1, "lr": learning_rate(params, epoch + 0.5)}
        if temperature is not None:
            row["temperature"] = temperature
        row |= {f"train_{name}": value for name, value in self.scores.read().items()}
        self._require_finite("the loss", row["train_loss"], epoch)
        # A hard quantizer turns whatever it is given into a level: the loss alone does not tell.
        parameters = [p.detach() for p in self.parameters if p.numel() > 0]
        largest = torch.stack([parameter.abs().amax() for parameter in parameters]).amax()
        self._require_finite("the largest weight", largest.item(), epoch)
        row |= self._score()
        self._require_finite("the loss on validation", row["validation_loss"], epoch)
        return row

    def _train(self, epoch: int) -> None:
        """Take the steps of an epoch; `scores` are then those of its images."""
        generator = torch.Generator().manual_seed(seed_for(self.seed, self.phase, epoch, "data"))
        self.scores.clear()
        make_step = self.step if self.graph is None else self.graph
        steps = len(self.data.train)
        title = f"{self.phase} {epoch + 1}/{self.params.epochs}"
        batches = self.progress(self.data.train.epoch(generator), steps, title)
        for step, (images, labels) in enumerate(batches):
            lr = learning_rate(self.params, epoch + (step + 0.5) / steps)
            set_learning_rate(self.optimizer, lr)
            make_step(images, labels)

    def _require_finite(self, what: str, value: float, epoch: int) -> None:
        if not math.isfinite(value):
            raise UserError(
                f"{self.phase}.lr is {self.params.lr}: {what} is {value} in epoch {epoch + 1}; use "
                "a smaller one, or a longer warm-up"
            )

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Take one step of the optimizer on images [N, C, H, W] with labels [N]."""
        # Backward too, which may compute activations again.
        with quantized_in_groups(self.weight_groups):
            with self.runtime.autocast():
                logits = self.network(images).float()
            taught = None if self.teacher is None else self.teacher(images)
            loss = training_loss(logits, labels, self.params, taught)
            self.scores.add(logits, labels, loss)
            self.optimizer.zero_grad(set_to_none=True)
            share = len(labels) / self.data.train.batch_size
            backward(loss, share, self.parameters)
        if self.params.clip_norm > 0:
            nn.utils.clip_grad_norm_(self.parameters, self.params.clip_norm)
        self.optimizer.step()
        self.scale_floor.apply()

    def _measure_batch_norm(self) -> None:
        """Re-measure batch norm in float32, as the network is scored and deployed."""
        params = self.params
        count = math.ceil(params.bn_images / self.data.train.batch_size) if params.epochs else 0
        if count > 0 and self.learning.norms_learn:
            generator = torch.Generator()
            generator.manual_seed(seed_for(self.seed, self.phase, "batch norm"))
            batches = islice(self.data.train.epoch(generator), count)
            measure_batch_norm(self.model, (images for images, _ in batches))

    def _score(self) -> Row:
        """Loss, top-1 and top-5 on validation, and top-1 of the soft function if there is one."""
        row: Row = {}
        sets = {"validation": self.data.validation}
        if self.params.select_on == "test" and self.data.test is not None:
            sets["test"] = self.data.test
        for name, batches in sets.items():
            scores = evaluate(self.model, batches, self.runtime)
            row |= {f"{name}_{key}": value for key, value in scores.items()}
        if self.learning.annealed:
            with soft_forward(*self.learning.annealed):
                soft = evaluate(self.model, self.data.validation, self.runtime)
            row["validation_soft_top1"] = soft["top1"]
        return row


def _copy(state: State) -> State:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
