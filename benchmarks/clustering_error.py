"""Initial quantization error of each rule of `qnet.cluster`, as a Markdown table.

The figure is the relative squared error Σ (x − α·level(βx))² / Σ x² over all values, trimmed ones
included: 0 is perfect, 1 is as bad as returning zeros. Values are random, not trained: weights (W,
with the bits in the column heading) from a normal distribution; activations (A) like the output of
a ReLU, half of them zero and the others the positive half of a normal distribution.

    OMP_NUM_THREADS=1 python -m benchmarks.clustering_error
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from typing import get_args

import numpy as np

from benchmarks.common import count, table
from qnet import Histogram, LevelSet, activation_levels, cluster, weight_levels
from qnet.clustering import Scale, Thresholds

BITS = (1, 2, 3, 4)
GAMMA_WEIGHTS, GAMMA_ACTIVATIONS = 0.0, 0.0027  # as in params.yaml


def main() -> None:
    """Draw the values, cluster them by every rule, and print the table."""
    parser = argparse.ArgumentParser(
        description="Print the relative squared quantization error of each clustering rule."
    )
    parser.add_argument("--seed", type=int, default=0, help="for the random values (default: 0)")
    parser.add_argument(
        "--count", type=count, default=1_000_000, help="values of each kind (default: 1000000)"
    )
    arguments = parser.parse_args()

    generator = np.random.default_rng(arguments.seed)
    weights = generator.standard_normal(arguments.count, dtype=np.float32)
    activations = np.abs(generator.standard_normal(arguments.count, dtype=np.float32))
    activations[: arguments.count // 2] = 0

    names = [f"{kind} {bits}" for kind in "WA" for bits in BITS]
    samples = [*_samples(weights, activations)]
    rows = []
    for thresholds, scale in product(get_args(Thresholds), get_args(Scale)):
        errors = []
        for values, histogram, levels, gamma in samples:
            found = cluster(histogram, levels, gamma=gamma, thresholds=thresholds, scale=scale)
            errors.append(relative_error(values, levels, found.thresholds, found.alpha, found.beta))
        rows.append([thresholds, scale, *(f"{error:#.3g}" for error in errors)])
    print(table(["thresholds", "scale", *names], rows, words=2))


def relative_error(
    x: np.ndarray, levels: LevelSet, thresholds: tuple[float, ...], alpha: float, beta: float
) -> float:
    """Σ (x − α·level(βx))² / Σ x², where the level's index counts the thresholds below βx."""
    x = x.astype(np.float64)
    level = np.array(levels.values)[np.searchsorted(thresholds, beta * x)]
    return float(((x - alpha * level) ** 2).sum() / (x**2).sum())


def _samples(
    weights: np.ndarray, activations: np.ndarray
) -> Iterator[tuple[np.ndarray, Histogram, LevelSet, float]]:
    """Yield values, their histogram, a level set and γ for each column of the table."""
    for values, level_set, gamma in (
        (weights, weight_levels, GAMMA_WEIGHTS),
        (activations, activation_levels, GAMMA_ACTIVATIONS),
    ):
        histogram = Histogram()
        histogram.update(values)
        for bits in BITS:
            levels = level_set(bits)
            assert levels is not None
            yield values, histogram, levels, gamma


if __name__ == "__main__":
    main()
