"""Time, memory and accuracy of clustering.

The first rows cluster values like the output of a ReLU, half zero, half the positive half of a
normal distribution: many at once, and a sample small enough for scikit-learn's k-means on raw
values, the published way. Then the thresholds of the 19 ReLUs of ResNet-20 are found from images of
CIFAR's shape, including the forward pass; once also from ten times as many images. The last line
compares the inertia on the sample with that of k-means.

    python -m benchmarks.clustering_speed
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from sklearn.cluster import KMeans

from benchmarks.common import count, extra_memory, figure, parse, table, take_turns
from qnet import (
    LevelSet,
    activation_histograms,
    activation_levels,
    activation_sites,
    cluster,
)
from qnet.models import build_model

BATCH = 100  # images per forward pass, as in the stage


def main() -> None:
    """Cluster the values and the activations several times, and print the figures."""
    parser = argparse.ArgumentParser(description="Time and memory of clustering, and its inertia.")
    parser.add_argument(
        "--count", type=count, default=20_000_000, help="values (default: 20000000)"
    )
    parser.add_argument("--images", type=count, default=1000, help="images (default: 1000)")
    parser.add_argument("--bits", type=count, default=4, help="2^bits clusters (default: 4)")
    parser.add_argument(
        "--sample", type=count, default=200_000, help="for k-means (default: 200000)"
    )
    parser.add_argument("--repeats", type=count, default=5, help="turns (default: 5)")
    given = parse(parser, {"count": 2_000_000, "images": 200, "sample": 50_000, "repeats": 2})

    cases = {
        f"{given.count:,} values": (many_values, given.count, given.bits),
        f"{given.sample:,} values": (many_values, given.sample, given.bits),
        f"{given.sample:,} values, scikit-learn": (raw_values, given.sample, given.bits),
        f"19 sites, {given.images:,} images": (network, given.images, given.bits),
    }
    once = {f"19 sites, {10 * given.images:,} images": (network, 10 * given.images, given.bits)}
    memory = extra_memory(_warm, [*cases.values(), *once.values()])
    turns = ((cases, given.repeats, 1), (once, 1, 0))
    seconds = {
        name: found
        for group, repeats, warm_up in turns
        for name, found in take_turns(
            {name: _prepare(*case) for name, case in group.items()}, repeats, warm_up
        ).items()
    }
    print(
        f"Into {2**given.bits} clusters, {torch.get_num_threads()} threads; "
        f"median of {given.repeats} turns.\n"
    )
    rows = [
        [name, figure(median(found)), figure(extra)]
        for (name, found), extra in zip(seconds.items(), memory, strict=True)
    ]
    print(table(["what", "seconds", "extra MiB"], rows))

    sample, levels = relu_values(given.sample), _levels(given.bits)
    found = cluster(sample, levels, gamma=0.0, thresholds="clustered", scale="max")
    exact = k_means(levels).fit(found.beta * sample[:, None].astype(np.float64))
    ratio = found.inertia / (exact.inertia_ / len(sample))
    print(f"\nInertia over that of k-means on {len(sample):,} raw values: {ratio:.5f}")


def many_values(number: int, bits: int) -> Callable[[], None]:
    """Return a function that clusters values of one layer with `qnet.cluster`."""
    values, levels = relu_values(number), _levels(bits)

    def run() -> None:
        cluster(values, levels, thresholds="clustered", scale="max")

    return run


def raw_values(number: int, bits: int) -> Callable[[], None]:
    """Return a function that clusters the same raw values with scikit-learn."""
    values, levels = relu_values(number)[:, None], _levels(bits)

    def run() -> None:
        k_means(levels).fit(values)

    return run


def k_means(levels: LevelSet) -> KMeans:
    """K-means of scikit-learn: best of ten starts, one cluster per level."""
    return KMeans(len(levels.values), n_init=10, random_state=0)


def network(images: int, bits: int) -> Callable[[], None]:
    """Return a function that clusters the outputs of ResNet-20's ReLUs for the images."""
    torch.manual_seed(0)
    model = build_model("resnet20", classes=10, channels=3, size=32)
    batches, levels = torch.randn(images, 3, 32, 32).split(BATCH), _levels(bits)

    def run() -> None:
        seen = activation_histograms(model, activation_sites(model, "relu"), batches)
        for histogram in seen.values():
            cluster(histogram, levels, thresholds="clustered", scale="max")

    return run


def relu_values(number: int) -> np.ndarray:
    """Random values, float32 [number], half of them zero."""
    values = np.random.default_rng(0).standard_normal(number, dtype=np.float32)
    return np.maximum(values, 0, out=values)


def _levels(bits: int) -> LevelSet:
    levels = activation_levels(bits)
    assert levels is not None
    return levels


def _prepare(
    make: Callable[[int, int], Callable[[], None]], number: int, bits: int
) -> Callable[[], float]:
    """Return a function that runs the case and returns its seconds."""
    run = make(number, bits)

    def seconds() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return seconds


def _warm(
    make: Callable[[int, int], Callable[[], None]], number: int, bits: int
) -> Callable[[], None]:
    """Return the case's function, after a small run that loads what is loaded on first use."""
    make(BATCH, bits)()
    return make(number, bits)


if __name__ == "__main__":
    main()
