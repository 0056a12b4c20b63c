"""Forward and backward time and memory of a `Quantizer` in training: the step function alone.

Compared with `copy_` of the same tensor, the minimum for any operation on it, and with the soft
function written with autograd, one level at a time, in float32 (`benchmarks/textbook.py`). All take
turns. Gradients are those of x, alpha and beta; that of the hard function has temperature 4. Memory
is what forward and backward together need besides x and its incoming gradient. With 255 thresholds
the textbook's function is left out: it would need over 20 GiB.

    python -m benchmarks.step_function
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.common import (
    count,
    extra_memory,
    figure,
    parse,
    start_runtime,
    table,
    take_turns,
)
from benchmarks.textbook import TEMPERATURE, SoftQuantizer
from qnet import Clusters, LevelSet, Quantizer, cluster

THRESHOLDS = [1, 3, 15, 255]
TEXTBOOK = 64  # most thresholds for it; with 255 and 4 million values it needs over 20 GiB
VALUES = 256 * 16 * 32 * 32  # the first activations of ResNet-20 in a batch of 256
Function = Literal["hard", "soft", "textbook"]
Times = tuple[float, float]  # forward, backward, in seconds


def main() -> None:
    """Let all take turns for each number of thresholds, and print the table."""
    parser = argparse.ArgumentParser(description="Time and memory of the step function alone.")
    parser.add_argument(
        "--thresholds", type=count, nargs="+", default=THRESHOLDS, metavar="N",
        help=f"default: {' '.join(map(str, THRESHOLDS))}",
    )  # fmt: skip
    parser.add_argument("--values", type=count, default=VALUES, help=f"default: {VALUES}")
    parser.add_argument("--repeats", type=count, default=5, help="turns of each (default: 5)")
    given = parse(parser, {"values": VALUES // 8, "repeats": 3})

    kinds: list[tuple[Function, torch.dtype]] = [
        (function, dtype)
        for function in ("hard", "soft")
        for dtype in (torch.float32, torch.bfloat16)
    ]

    def compared(n: int) -> list[tuple[Function, torch.dtype]]:
        return [*kinds, ("textbook", torch.float32)] if n <= TEXTBOOK else kinds

    cases = [(*kind, n, given.values) for n in given.thresholds for kind in compared(n)]
    memory = iter(extra_memory(_warm, cases))
    start_runtime()
    rows = []
    for n in given.thresholds:
        contestants: dict[Any, Callable[[], Times]] = {
            kind: prepare(*kind, n, given.values) for kind in compared(n)
        }
        for dtype in (torch.float32, torch.bfloat16):
            contestants[dtype] = copy(dtype, given.values)
        times = take_turns(contestants, given.repeats)
        theirs = median(map(sum, times.get(("textbook", torch.float32), [(math.nan,)])))
        for kind in compared(n):
            forward, backward = (median(turn) for turn in zip(*times[kind], strict=True))
            floor = median(turn[0] for turn in times[kind[1]])
            both = median(map(sum, times[kind]))
            rows.append(
                [
                    kind[0], str(kind[1]).removeprefix("torch."), f"{n}",
                    figure(1000 * floor), figure(1000 * forward), figure(1000 * backward),
                    figure(forward / floor, "×"), figure(backward / floor, "×"),
                    figure(theirs / both, "×"), figure(next(memory)),
                ]
            )  # fmt: skip
    print(
        f"{given.values:,} values ({given.values * 4 / 2**20:.1f} MiB in float32), "
        f"{torch.get_num_threads()} threads; median of {given.repeats} turns.\n"
    )
    head = [
        "function", "type", "thresholds", "copy ms", "forward ms", "backward ms",
        "forward / copy", "backward / copy", "faster than textbook", "extra MiB",
    ]  # fmt: skip
    print(table(head, rows, words=2))


def prepare(function: Function, dtype: torch.dtype, n: int, values: int) -> Callable[[], Times]:
    """Return a function that times a forward and a backward pass."""
    levels = LevelSet(f"{n} thresholds", tuple(range(n + 1)))
    clusters = cluster(_values(values).float(), levels)
    x = _values(values).to(dtype).requires_grad_()
    grad = torch.ones_like(x)
    quantizer = _quantizer(function, clusters).train()

    def run() -> Times:
        x.grad = None
        quantizer.zero_grad()
        started = time.perf_counter()
        y: Tensor = quantizer(x)
        between = time.perf_counter()
        y.backward(grad)
        return between - started, time.perf_counter() - between

    return run


def _warm(function: Function, dtype: torch.dtype, n: int, values: int) -> Callable[[], Times]:
    """Same as `prepare`, for a separate process, after everything is compiled and loaded."""
    start_runtime()
    prepare(function, dtype, n, values)()
    return prepare(function, dtype, n, values)


def copy(dtype: torch.dtype, values: int) -> Callable[[], Times]:
    """Return a function that times reading and writing every value once."""
    source = _values(values).to(dtype)
    target = torch.empty_like(source)

    def run() -> Times:
        started = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - started, 0.0

    return run


def _quantizer(function: Function, clusters: Clusters) -> nn.Module:
    if function == "textbook":
        return SoftQuantizer(clusters)
    exact = function == "soft"
    quantizer = Quantizer.from_clusters(
        clusters, forward_mode=function, backward_temperature="exact" if exact else 4.0
    )
    quantizer.set_temperature(TEMPERATURE)
    return quantizer


def _values(number: int) -> Tensor:
    """Values like the output of a ReLU, shaped like activations if the number allows it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(number, generator=generator).relu_()
    return x.view(-1, 16, 32, 32) if number % (16 * 32 * 32) == 0 else x


if __name__ == "__main__":
    main()
