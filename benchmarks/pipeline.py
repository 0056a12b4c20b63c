"""Time of the whole pipeline, by stage and phase: `dvc repro` in a fresh clone.

The clone is of the last commit, with its params.yaml, in a temporary folder; installing is not
included. The columns are derived from the time at which each line is printed. "before training" is
from the stage's start to the start of its first epoch, and so includes its imports, which are also
timed alone; "epochs" is training and validation; "after" is scoring the final network, writing, and
DVC's hashing. A stage that prints no epochs has all of its time under "before training".

    python -m benchmarks.pipeline
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

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

SECTIONS = ("fp", "weights", "activations")  # of the training stages


@dataclass
class Times:
    """Times of one stage, in seconds since the pipeline's start."""

    start: float
    end: float = 0.0
    epochs: list[tuple[float, float]] = field(
        default_factory=list
    )  # when each ended, and its duration


def main() -> None:
    """Run the pipeline once, and print the table."""
    parser = argparse.ArgumentParser(description="Seconds of each stage of `dvc repro`.")
    parser.add_argument(
        "--epochs", type=count, help="of each training stage (default: as params.yaml says)"
    )
    parser.add_argument("--imports", type=count, default=3, help="repetitions (default: 3)")
    given = parse(parser, {"epochs": 3, "imports": 1})

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        clone(folder)
        if given.epochs is not None:
            changes = {f"{section}.epochs": given.epochs for section in SECTIONS}
            changes |= {f"{section}.warmup_epochs": 0 for section in SECTIONS}
            set_params(folder, changes)
        found, total = _repro(folder)
        imports = take_turns(
            {stage: partial(_import, stage, folder) for stage in found},
            given.imports,
            warm_up=0,  # the stages have just run
        )
    print(
        f"{usable_cpus()} cores, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}; "
        f"one run, imports the median of {given.imports}.\n"
    )
    rows = [_row(stage, times, median(imports[stage])) for stage, times in found.items()]
    first = next(iter(found.values())).start
    rows.append(["DVC, before the first stage", figure(first), "", "", "", "", ""])
    rows.append(["all", figure(total), "", "", "", "", ""])
    head = ["stage", "seconds", "imports", "before training", "epochs", "an epoch", "after"]
    print(table(head, rows))


def parse_lines(lines: Iterable[tuple[float, str]]) -> dict[str, Times]:
    """Times of each stage, from the lines that `dvc repro` prints and when."""
    found: dict[str, Times] = {}
    stage, now = None, 0.0
    for now, line in lines:
        if started := re.match(r"Running stage '(\w+)'", line):
            if stage is not None:
                found[stage].end = now
            stage = started[1]
            found[stage] = Times(now)
        elif stage is not None and (seconds := epoch_seconds(line)) is not None:
            found[stage].epochs.append((now, seconds))
    if stage is not None:
        found[stage].end = now
    return found


def _repro(folder: Path) -> tuple[dict[str, Times], float]:
    """Run `dvc repro` and return the times of each stage and the total."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "--force"],
        cwd=folder, env=in_clone(folder), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = [(time.perf_counter() - started, line) for line in process.stdout]
    if process.wait() != 0:
        raise SystemExit(f"dvc repro failed: {''.join(line for _, line in lines[-5:])}")
    total = time.perf_counter() - started
    return parse_lines([*lines, (total, "")]), total


def _import(stage: str, folder: Path) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-c", f"import stages.{stage}"]
    subprocess.run(command, cwd=folder, env=in_clone(folder), check=True)
    return time.perf_counter() - started


def _row(stage: str, times: Times, imports: float) -> list[str]:
    seconds = times.end - times.start
    if not times.epochs:
        return [stage, figure(seconds), figure(imports), figure(seconds), "–", "–", "–"]
    first, last = times.epochs[0], times.epochs[-1]
    training = last[0] - first[0] + first[1]
    return [
        stage, figure(seconds), figure(imports), figure(first[0] - first[1] - times.start),
        figure(training), figure(training / len(times.epochs)), figure(times.end - last[0]),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
