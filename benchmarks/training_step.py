"""Time and memory of a training step in each phase, compared with a textbook baseline.

A step comprises loading and augmenting a batch, forward, backward, clipping and optimizer, for
ResNet-20 on random images of CIFAR's shape. The baseline is `benchmarks/textbook.py`: like the
published code, in float32, one level at a time, with activations quantized after all 19 ReLUs; but
autograd finds its gradients and keeps what each level computed, so that its memory is not that of
the published code, which keeps only the input. This project trains in its own loop over images in
memory, with the optimizer and precision of params.yaml (bfloat16 if it is faster); quantizers have
their default settings (hard, gradient at temperature 4) and are at the inputs of 18 layers. Like
the baseline, it does not distil unless stated. The quantizers are compiled, or where stated the
whole step. All take turns in one process that flushes denormal numbers to zero. Memory is the
largest growth of the process during two steps, without libraries, compiling, data and workers. W/A
are the bits of weights and activations; fp is full precision.

    python -m benchmarks.training_step
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice
from statistics import median
from typing import Any, Literal

import torch
from torch import nn

from benchmarks import textbook
from benchmarks.common import (
    ROOT,
    count,
    extra_memory,
    figure,
    parse,
    start_runtime,
    table,
    take_turns,
    timed,
)
from qnet import (
    Clusters,
    Quantizer,
    UserError,
    activation_histograms,
    activation_levels,
    activation_sites,
    cluster,
    insert_quantizers,
    quantizable_layers,
    weight_levels,
)
from qnet.data import Augment, Batch, Batches, DatasetInfo, Split
from qnet.models import build_model
from qnet.params import load_params
from qnet.training import Trainer, TrainingData

PHASES = ["fp", "1/32", "4/32", "1/1", "1/2", "1/4"]
CLASSES, SIZE, PAD = 10, 32, 4
QUEUED = 4  # batches kept ready by two workers, so that the loader does not run dry at the end

Block = Callable[[], list[float]]
"""Runs a warm-up step and then several more; returns the seconds of each of the latter."""


@dataclass(frozen=True)
class Setting:
    """Settings that all contestants share."""

    batch: int
    steps: int
    threads: Any  # a number, or "auto"
    workers: int = 2  # of the baseline
    device: str = "cpu"  # of the project


def main() -> None:
    """Let project and baseline take turns, and print the table."""
    parser = argparse.ArgumentParser(
        description="Seconds and memory of a training step, against a textbook baseline."
    )
    parser.add_argument(
        "--phases", type=phase_name, nargs="+", default=PHASES, metavar="W/A",
        help=f"fp, or bits of weights and of activations; default: {' '.join(PHASES)}",
    )  # fmt: skip
    parser.add_argument("--batch", type=count, default=256, help="images per batch (default: 256)")
    parser.add_argument("--steps", type=count, default=3, help="steps per turn (default: 3)")
    parser.add_argument("--repeats", type=count, default=5, help="turns of each (default: 5)")
    parser.add_argument("--threads", type=count, help="default: as PyTorch chooses (all)")
    parser.add_argument(
        "--whole", action=argparse.BooleanOptionalAction, default=True,
        help="also with runtime.compile: network, half a minute more per phase (default: yes)",
    )  # fmt: skip
    quick = {"phases": ["fp", "1/2", "1/4"], "batch": 64, "steps": 1, "repeats": 2, "whole": False}
    given = parse(parser, quick)

    setting = Setting(given.batch, given.steps, given.threads or "auto")
    contestants: dict[str, Block] = {}
    for phase in given.phases:
        contestants[f"{phase} baseline"] = baseline(phase, setting)
        contestants[f"{phase} ours"] = ours(phase, setting)
        if phase != "fp":
            contestants[f"{phase} distilled"] = ours(phase, setting, distilled=True)
        if given.whole:
            contestants[f"{phase} whole"] = ours(phase, setting, whole=True)
    turns = take_turns(contestants, given.repeats, warm_up=0)  # each turn has its own warm-up
    seconds = {name: median(chain(*found)) for name, found in turns.items()}
    cases = [(make, phase, setting) for phase in given.phases for make in (baseline, ours)]
    memory = extra_memory(_warm, cases)
    _loader.cache_clear()  # ends its workers

    own_fp = seconds.get("fp ours", math.nan)
    own_fp_memory = memory[1 + 2 * given.phases.index("fp")] if "fp" in given.phases else math.nan
    rows = []
    for place, phase in enumerate(given.phases):
        theirs, mine = seconds[f"{phase} baseline"], seconds[f"{phase} ours"]
        their_memory, my_memory = memory[2 * place : 2 * place + 2]
        distilled = seconds.get(f"{phase} distilled", math.nan)
        whole = seconds.get(f"{phase} whole", math.nan)
        rows.append(
            [
                phase, figure(theirs), figure(mine), figure(theirs / mine, "×"),
                figure(mine / own_fp, "×"), figure(distilled), figure(whole),
                figure(theirs / whole, "×"), figure(their_memory), figure(my_memory),
                figure(their_memory / my_memory, "×"), figure(my_memory / own_fp_memory, "×"),
            ]
        )  # fmt: skip
    precision = "bfloat16 (mixed)" if start_runtime(setting.threads).mixed else "float32"
    print(
        f"Batch {given.batch}, {torch.get_num_threads()} threads, this project in {precision}; "
        f"median of {given.repeats} × {given.steps} steps.\n"
    )
    head = [
        "W/A", "baseline s", "ours s", "faster", "of own fp", "with distillation s",
        "compiled whole s", "faster", "baseline MiB", "ours MiB", "less", "of own fp",
    ]  # fmt: skip
    print(table(head, rows))


def ours(phase: str, setting: Setting, *, distilled: bool = False, whole: bool = False) -> Block:
    """Steps of the project's own loop, with the parameters of its params.yaml."""
    params = load_params(ROOT / "params.yaml")
    runtime = replace(start_runtime(setting.threads, setting.device), compile_network=whole)
    activations = _levels(phase)[1]
    section = "fp" if phase == "fp" else "weights" if activations is None else "activations"
    changes = {"epochs": 1, "warmup_epochs": 0, "lr": textbook.LR, "schedule": "constant"}
    changes |= {"batch_size": setting.batch, "select_on": "validation"}
    if section != "fp":
        changes["bn_images"] = 0
        if not distilled:
            changes["distillation"] = 0.0
    model = quantized_network(phase)
    info = DatasetInfo(
        name="random", classes=tuple("0123456789"), size=SIZE, channels=3,
        mean=textbook.MEAN, std=textbook.STD, counts={}, flip=True,
    )  # fmt: skip
    sources = [
        Batches(_images(images), info, batch_size=batch, device=runtime.device, augment=augment)
        for images, batch, augment in (
            (setting.batch * (setting.steps + 1), setting.batch, Augment(PAD, flip=True)),
            (8, 8, Augment()),  # validation, which is not timed
        )
    ]
    teacher = _network("fp", sites="input")[0].to(runtime.device) if distilled else None
    seconds: list[float] = []
    trainer = Trainer(
        model, getattr(params, section).model_copy(update=changes), TrainingData(*sources), runtime,
        phase=section, seed=0, teacher=teacher,
        progress=lambda batches, count, title: timed(batches, seconds),
    )  # fmt: skip

    def block() -> list[float]:
        seconds.clear()
        trainer.fit()
        return list(seconds)

    return block


def baseline(phase: str, setting: Setting) -> Block:
    """Steps of the textbook baseline."""
    start_runtime(setting.threads)
    training = textbook.Training(*_network(phase, sites="relu"))
    batches = _loader(setting)

    def block() -> list[float]:
        seconds: list[float] = []
        training.train(timed(islice(batches, setting.steps + 1), seconds))
        return seconds

    return block


@lru_cache
def _loader(setting: Setting) -> Iterable[Batch]:
    """Loader for all phases, as starting workers takes seconds."""
    split = _images(setting.batch)
    length = setting.batch * (setting.steps + 1 + QUEUED)
    return textbook.loader(split.images, split.labels, setting.batch, length, setting.workers)


def _warm(make: Callable[[str, Setting], Block], phase: str, setting: Setting) -> Block:
    """Two steps with this batch size, after small ones that load and compile on first use."""
    small = replace(setting, batch=32, steps=1, workers=0)  # with fewer images nothing is compiled
    make(phase, small)()
    return make(phase, replace(small, batch=setting.batch))


def phase_name(text: str) -> str:
    """Check for `argparse` that the text is fp or bits of weights and activations."""
    try:
        _levels(text)
    except (UserError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither fp nor of a form such as 1/2 or 3pm2/32"
        ) from error
    return text


def _levels(phase: str) -> tuple[Any, Any]:
    """Level sets of weights and activations; None for full precision."""
    weights, _, activations = ("32/32" if phase == "fp" else phase).partition("/")
    return (
        None if weights == "32" else weight_levels(int(weights) if weights.isdigit() else weights),
        None if activations == "32" else activation_levels(int(activations)),
    )


def quantized_network(phase: str) -> nn.Module:
    """ResNet-20 with its quantizers; those of activations are at the inputs of layers."""
    model, *found = _network(phase, sites="input")
    of_weights, of_activations = (
        {name: Quantizer.from_clusters(clusters) for name, clusters in kind.items()}
        for kind in found
    )
    return insert_quantizers(model, weights=of_weights, activations=of_activations)


def _network(
    phase: str, sites: Literal["input", "relu"]
) -> tuple[nn.Module, dict[str, Clusters], dict[str, Clusters]]:
    """ResNet-20 and the initial states of its weight and activation quantizers."""
    torch.manual_seed(0)
    model = build_model("resnet20", classes=CLASSES, channels=3, size=SIZE)
    of_weights, of_activations = _levels(phase)
    weights, activations = {}, {}
    if of_weights is not None:
        for name in quantizable_layers(model):
            weights[name] = cluster(model.get_parameter(f"{name}.weight"), of_weights)
    if of_activations is not None:
        images = torch.randn(16, 3, SIZE, SIZE)
        seen = activation_histograms(model, activation_sites(model, sites), [images])
        activations = {name: cluster(values, of_activations) for name, values in seen.items()}
    return model, weights, activations


def _images(number: int) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (number, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(CLASSES, (number,), generator=generator))


if __name__ == "__main__":
    main()
