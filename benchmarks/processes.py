"""Speed-up of training with `runtime.processes`: images per second of the stage train_fp.

Runs in a temporary clone of the last commit, on scikit-learn's digits scaled to CIFAR's size. Each
run is the whole stage, `python -m stages.train_fp`; the figures are from the epoch times that it
prints, without the first. They include validation.

    python -m benchmarks.processes
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import (
    clone,
    count,
    epoch_seconds,
    figure,
    in_clone,
    parse,
    set_params,
    table,
    take_turns,
)
from qnet.data.workers import usable_cpus


def main() -> None:
    """Train with each number of processes in turn, and print the table."""
    parser = argparse.ArgumentParser(description="Training speed by number of processes.")
    parser.add_argument(
        "--processes", type=count, nargs="+", default=[1, 2], metavar="N", help="default: 1 2"
    )
    parser.add_argument("--size", type=count, default=32, help="side in pixels (default: 32)")
    parser.add_argument("--batch", type=count, default=128, help="images per batch (default: 128)")
    parser.add_argument("--epochs", type=count, default=6, help="of a run, 2 or more (default: 6)")
    parser.add_argument("--repeats", type=count, default=2, help="runs of each (default: 2)")
    given = parse(parser, {"epochs": 3, "repeats": 1})
    if given.epochs < 2:
        parser.error("--epochs must be 2 or more: the first one is left out")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        clone(folder)
        changes = {
            "data.size": given.size, "runtime.device": "cpu", "fp.batch_size": given.batch,
            "fp.epochs": given.epochs, "fp.warmup_epochs": 0, "fp.lr": 0.01,
            "runtime.processes": 1,
        }  # fmt: skip
        set_params(folder, changes)
        _stage("prepare", folder)
        info = json.loads((folder / "data/prepared/dataset.json").read_text(encoding="utf-8"))
        images = info["counts"]["train"] // given.batch * given.batch
        turns = take_turns(
            {n: _run(folder, {"runtime.processes": n}) for n in given.processes},
            given.repeats,
            warm_up=0,
        )
    rates = {n: images / median(chain(*found)) for n, found in turns.items()}
    first = rates[given.processes[0]]
    print(
        f"ResNet-20, {images:,} images of {given.size} × {given.size} pixels to an epoch, batch "
        f"{given.batch}, {usable_cpus()} cores, runtime.threads auto, OMP_NUM_THREADS "
        f"{os.environ.get('OMP_NUM_THREADS', 'not set')}; median of {given.repeats} × "
        f"{given.epochs - 1} epochs.\n"
    )
    rows = [
        [f"{n}", figure(images / rate), figure(rate), figure(rate / first, "×")]
        for n, rate in rates.items()
    ]
    print(table(["processes", "seconds an epoch", "images/s", "speed-up"], rows))


def _run(folder: Path, changes: Mapping[str, Any]) -> Callable[[], list[float]]:
    """Return a function that measures the seconds of each epoch except the first."""

    def run() -> list[float]:
        set_params(folder, changes)
        lines = _stage("train_fp", folder).splitlines()
        return [seconds for line in lines if (seconds := epoch_seconds(line)) is not None][1:]

    return run


def _stage(stage: str, folder: Path) -> str:
    """Run a stage in the clone and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=folder, env=in_clone(folder), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"stages.{stage} failed")  # it has said why on standard error
    return done.stdout


if __name__ == "__main__":
    main()
