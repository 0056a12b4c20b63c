"""Code shared by the benchmarks: options, fair turns, peak memory, a clone to run in, tables."""

from __future__ import annotations

import argparse
import gc
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar
from unittest import mock

import yaml

from qnet.data.workers import usable_cpus
from qnet.params import load_params
from qnet.runtime import Runtime, start

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "pillow", "dvc")

Key = TypeVar("Key")
Item = TypeVar("Item")


def parse(parser: argparse.ArgumentParser, quick: Mapping[str, Any]) -> argparse.Namespace:
    """Parse the command line; `--quick` changes the defaults to these."""
    settings = ", ".join(f"{name} {value}" for name, value in quick.items())
    parser.add_argument("--quick", action="store_true", help=f"other defaults: {settings}")
    if parser.parse_args().quick:
        parser.set_defaults(**quick)
    return parser.parse_args()


def count(text: str) -> int:
    """Parse an integer of 1 or more, for `argparse`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def start_runtime(threads: int | Literal["auto"] = "auto", device: str = "cpu") -> Runtime:
    """Set up this process as a stage does from params.yaml, but on this device."""
    params = load_params(ROOT / "params.yaml").runtime
    return start(params.model_copy(update={"device": device, "threads": threads}))


def take_turns(
    contestants: Mapping[Key, Callable[[], Item]], repeats: int, warm_up: int = 1
) -> dict[Key, list[Item]]:
    """Results of each in `repeats` rounds, A B C A B C, so that slow moments affect all alike.

    The results of `warm_up` rounds before are discarded.
    """
    found: dict[Key, list[Item]] = {name: [] for name in contestants}
    for number in range(warm_up + repeats):
        for name, contestant in contestants.items():
            result = contestant()
            if number >= warm_up:
                found[name].append(result)
    return found


def timed(batches: Iterable[Item], seconds: list[float], warm_up: int = 1) -> Iterator[Item]:
    """Yield the batches, and append the seconds each takes, until the next is requested.

    The first `warm_up` are not timed: libraries load, and worker processes fill their queues.
    """
    started = time.perf_counter()
    for number, batch in enumerate(batches):
        yield batch
        now = time.perf_counter()
        if number >= warm_up:
            seconds.append(now - started)
        started = now


def extra_memory(
    prepare: Callable[..., Callable[[], Any]], cases: Sequence[tuple[Any, ...]]
) -> list[float]:
    """Peak growth of a process, in MiB, in `prepare(*case)()` for each case.

    The memory of `prepare` itself is not counted. Runs in a separate process, in which malloc
    returns all large blocks at once, so that nothing is left over from the previous case. Reads
    /proc, so the figures are NaN except on Linux.
    """
    if not Path("/proc/self/status").exists():
        return [math.nan] * len(cases)
    with (
        mock.patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(2**17)),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process,
    ):
        return [process.submit(_growth, prepare, case).result() for case in cases]


def _growth(prepare: Callable[..., Callable[[], Any]], case: tuple[Any, ...]) -> float:
    run = prepare(*case)
    gc.collect()
    with suppress(OSError):  # forbidden in some containers: then the peak of `prepare` counts too
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to current use
    before = _memory("VmRSS")
    run()
    return max(0.0, _memory("VmHWM") - before)


def _memory(name: str) -> float:
    """Memory figure of this process from /proc, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return math.nan


def clone(folder: Path) -> None:
    """Clone the last commit into `folder`."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)


def set_params(folder: Path, changes: Mapping[str, Any]) -> None:
    """Set each `section.name` in the params.yaml of `folder`.

    Raises:
        SystemExit: the file has no such parameter.
    """
    file = folder / "params.yaml"
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name, value in changes.items():
        section, leaf = name.split(".")
        if leaf not in tree[section]:
            raise SystemExit(f"params.yaml of the last commit has no {name}")
        tree[section][leaf] = value
    file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def in_clone(folder: Path) -> dict[str, str]:
    """Environment in which the clone's own code runs, whatever is installed."""
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}


def epoch_seconds(line: str) -> float | None:
    """Seconds of an epoch, if this line printed by a training stage reports one."""
    found = re.search(r" epoch +\d+ .*?([\d.]+) s\b", line)
    return float(found[1]) if found else None


def machine() -> list[str]:
    """CPU and memory, load, versions, and commit, one line each."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        named = (x.split(": ")[1] for x in lines if x.startswith("model name"))
        processor = next(named, processor)  # none on ARM
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [
        f"{processor}, {usable_cpus()} logical cores, {memory:.0f} GiB memory",
        f"load when it began: {os.getloadavg()[0]:.2f}",
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {packages}",
        f"commit `{described.stdout.strip()}`",
    ]


def figure(value: float, unit: str = "") -> str:
    """Format with three significant digits and no exponent; a dash for NaN."""
    if math.isnan(value):
        return "–"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f}{unit}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Markdown table; all but the first `words` columns are numbers, right-aligned."""
    lines = [head, ["---"] * words + ["--:"] * (len(head) - words), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
