"""Inference time of ResNet-20, in full precision and quantized, on a CPU.

Random images of CIFAR's shape, channels-last, go through the network as it is, as from
`qnet.load_model`, and compiled as a whole, both in float32; compiled after `network.bfloat16()`;
and, if both weights and activations are quantized, compiled after `qnet.to_int8`, in float32 except
for its sums. All take turns. The last column is the time of the fastest over that of full
precision, compiled in float32. Each network is compiled for each number of images, which takes
seconds and is not counted.

Allocating fresh memory for each layer's output costs time; GNU's C library saves it if allowed to
keep freed memory: set MALLOC_TOP_PAD_=500000000 in the environment.

    python -m benchmarks.inference
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from contextlib import suppress
from statistics import median

import torch
from torch import Tensor

from benchmarks.common import count, figure, parse, start_runtime, table, take_turns
from benchmarks.training_step import SIZE, phase_name, quantized_network
from qnet import UserError, to_int8
from qnet.fused import use_compiled

TURN = 0.1  # minimum seconds of a turn
KINDS = ("as it is", "compiled", "bfloat16, compiled", "int8, compiled")


def main() -> None:
    """Let the networks take turns, and print the table."""
    parser = argparse.ArgumentParser(description="Inference time of ResNet-20 in milliseconds.")
    parser.add_argument(
        "--phases", type=phase_name, nargs="+", default=["fp", "1/1", "2/2", "4/4"], metavar="W/A",
        help="fp, or bits of weights and of activations; default: fp 1/1 2/2 4/4",
    )  # fmt: skip
    parser.add_argument(
        "--batches", type=count, nargs="+", default=[1, 16, 128], metavar="N",
        help="images per batch; default: 1 16 128",
    )  # fmt: skip
    parser.add_argument("--repeats", type=count, default=7, help="turns of each (default: 7)")
    parser.add_argument("--threads", type=count, help="default: as PyTorch chooses (all)")
    given = parse(parser, {"phases": ["fp", "2/2"], "batches": [16], "repeats": 2})

    start_runtime(given.threads or "auto")
    use_compiled(False)  # as outside the pipeline
    networks: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {}
    for phase in given.phases:
        network = quantized_network(phase).eval().to(memory_format=torch.channels_last)
        networks[phase, KINDS[0]] = network
        networks[phase, KINDS[1]] = torch.compile(network, dynamic=False)
        rounded = copy.deepcopy(network).bfloat16()
        networks[phase, KINDS[2]] = torch.compile(rounded, dynamic=False)
        with suppress(UserError):  # weights or activations in full precision
            networks[phase, KINDS[3]] = torch.compile(to_int8(network), dynamic=False)
    rows = []
    # Each network and number of images has its own compiled code, for a single function.
    with torch.inference_mode(), torch._dynamo.config.patch(recompile_limit=10**6):
        for batch in given.batches:
            images = torch.randn(batch, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
            rounded_images = images.bfloat16()
            contestants = {
                name: _turn(network, rounded_images if name[1] == KINDS[2] else images)
                for name, network in networks.items()
            }
            turns = take_turns(contestants, given.repeats, warm_up=0)
            found = {name: 1000 * median(seconds) for name, seconds in turns.items()}
            full = found.get(("fp", KINDS[1]), math.nan)
            for phase in given.phases:
                times = [found.get((phase, kind), math.nan) for kind in KINDS]
                best = min(value for value in times if not math.isnan(value))
                rows.append([str(batch), phase, *map(figure, times), figure(best / full, "×")])
    print(f"{torch.get_num_threads()} threads; median of {given.repeats} turns.\n")
    head = ["images", "W/A", *(f"{kind} ms" for kind in KINDS), "fastest / compiled fp"]
    print(table(head, rows, words=2))


def _turn(network: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], float]:
    """Warm up; return a function that measures the seconds per call, averaged over a turn."""
    network(images)
    started = time.perf_counter()
    network(images)
    calls = max(1, math.ceil(TURN / (time.perf_counter() - started)))

    def turn() -> float:
        started = time.perf_counter()
        for _ in range(calls):
            network(images)
        return (time.perf_counter() - started) / calls

    return turn


if __name__ == "__main__":
    main()
