"""How long `qnet.cluster` takes for many values, how much memory, and how exact it is.

Values are drawn as a ReLU leaves them: half zero, half the positive half of a normal distribution.
Inertia is compared with scikit-learn's k-means on raw values, on a sample small enough for it.

    python benchmarks/clustering_speed.py
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import numpy as np
from sklearn.cluster import KMeans

from qnet import activation_levels, cluster


def main() -> None:
    """Draw the values, cluster them several times, print the figures."""
    parser = argparse.ArgumentParser(description="Time and memory of clustering, and its inertia.")
    parser.add_argument("--count", type=int, default=20_000_000, help="values (default: 20000000)")
    parser.add_argument("--bits", type=int, default=4, help="2^bits clusters (default: 4)")
    parser.add_argument("--runs", type=int, default=5, help="of which the median (default: 5)")
    arguments = parser.parse_args()

    levels = activation_levels(arguments.bits)
    assert levels is not None
    values = relu_values(arguments.count)
    before = peak_memory()
    seconds = []
    for _ in range(arguments.runs):
        start = time.perf_counter()
        cluster(values, levels, thresholds="clustered", scale="max")
        seconds.append(time.perf_counter() - start)
    extra = peak_memory() - before
    print(
        f"{arguments.count:,} values into {len(levels.values)} clusters: median "
        f"{statistics.median(seconds):.2f} s of {arguments.runs} runs, {extra:.0f} MB extra memory"
    )

    sample = relu_values(200_000)
    found = cluster(sample, levels, gamma=0.0, thresholds="clustered", scale="max")
    exact = KMeans(len(levels.values), n_init=10, random_state=0).fit(
        found.beta * sample[:, None].astype(np.float64)
    )
    ratio = found.inertia / (exact.inertia_ / len(sample))
    print(f"inertia over that of k-means on {len(sample):,} raw values: {ratio:.5f}")


def relu_values(count: int) -> np.ndarray:
    """Float32 [count], half of them zero."""
    values = np.random.default_rng(0).standard_normal(count, dtype=np.float32)
    return np.maximum(values, 0, out=values)


def peak_memory() -> float:
    """The most memory that the process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
