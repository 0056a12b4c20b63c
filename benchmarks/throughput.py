"""Training speed of ResNet-20 in images per second, on an accelerator if there is one.

Runs the project's own loop as in `benchmarks/training_step.py`: random images of CIFAR's shape,
kept and augmented on the device, without distillation, for a number of steps until the last has
finished. The quantizers or the whole network are compiled (`runtime.compile`); on CUDA each step is
replayed as a CUDA graph.

    python -m benchmarks.throughput
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from benchmarks.common import count, figure, parse, start_runtime, table
from benchmarks.training_step import Setting, ours, phase_name


def main() -> None:
    """Measure the speeds, and print the table."""
    parser = argparse.ArgumentParser(description="Images per second while training.")
    parser.add_argument(
        "--phases", type=phase_name, nargs="+", default=["fp", "1/2", "1/4"], metavar="W/A",
        help="fp, or bits of weights and of activations; default: fp 1/2 1/4",
    )  # fmt: skip
    parser.add_argument(
        "--batches", type=count, nargs="+", default=[128, 512], metavar="N",
        help="images per batch; default: 128 512",
    )  # fmt: skip
    parser.add_argument("--steps", type=count, default=300, help="in a run (default: 300)")
    parser.add_argument("--repeats", type=count, default=3, help="runs of each (default: 3)")
    parser.add_argument(
        "--whole", action=argparse.BooleanOptionalAction, default=True,
        help="also with runtime.compile: network, a minute more per phase (default: yes)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
        help="default: auto, an accelerator if there is one",
    )  # fmt: skip
    quick = {"phases": ["fp", "1/2"], "batches": [64], "steps": 2, "repeats": 1, "whole": False}
    given = parse(parser, quick)

    runtime = start_runtime(device=given.device)
    device = runtime.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"{name}, {'bfloat16 (mixed)' if runtime.mixed else 'float32'}.\n")
    kinds = {"quantizers compiled": False}
    if given.whole:
        kinds["network compiled"] = True
    rows, first = [], given.phases[0]
    for batch in given.batches:
        setting = Setting(batch, given.steps, "auto", device=given.device)
        of_first: dict[str, float] = {}
        for phase in given.phases:
            row = [str(batch), phase]
            for kind, whole in kinds.items():
                rate = _images_per_second(phase, setting, whole, given.repeats)
                row += [figure(rate), figure(of_first.setdefault(kind, rate) / rate, "×")]
            rows.append(row)
    head = ["batch", "W/A", *(cell for kind in kinds for cell in (kind, f"time of {first}"))]
    print(table(head, rows, words=2))


def _images_per_second(phase: str, setting: Setting, whole: bool, repeats: int) -> float:
    run = ours(phase, setting, whole=whole)
    run()  # compiles, and records the step
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()  # ends by waiting for the scores
        seconds.append(time.perf_counter() - started)
    return setting.batch * (setting.steps + 1) / median(seconds)


if __name__ == "__main__":
    main()
