"""K-means of a histogram: the best partition there is."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose
from sklearn.cluster import KMeans

from qnet.clustering import cluster
from qnet.kmeans import kmeans
from qnet.levels import LevelSet, weight_levels
from tests.qnet.test_clustering import numbers, sample


@pytest.mark.parametrize("kind", ["normal", "relu", "laplace", "lognormal", "two groups"])
@pytest.mark.parametrize("k", [2, 4, 16])
def test_clusters_are_those_of_k_means_on_the_raw_values(kind: str, k: int) -> None:
    x = sample(kind, 20_000)
    levels = LevelSet("test", tuple(range(k)))
    found = cluster(x, levels, gamma=0, thresholds="centroids", scale="max")
    y = (found.beta * x)[:, None]
    raw = KMeans(k, n_init=3, tol=0, random_state=0).fit(y)
    assert found.inertia <= raw.inertia_ / len(x) * 1.001


def test_k_means_of_few_values_is_exact() -> None:
    x = np.array([0.0, 0.1, 0.2, 5.0, 5.1, 9.0, 9.5, 10.0])
    found = cluster(x, LevelSet("test", (0, 1, 2)), gamma=0, thresholds="clustered", scale="max")
    assert_allclose(np.array(found.thresholds) / found.beta, [2.6, 7.05], rtol=1e-6)
    found = cluster(x, LevelSet("test", (0, 1, 2)), gamma=0, thresholds="centroids", scale="max")
    assert_allclose(
        np.array(found.thresholds) / found.beta, [(0.1 + 5.05) / 2, (5.05 + 9.5) / 2], rtol=1e-6
    )


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float32, st.integers(5, 9), elements=numbers, unique=True), st.integers(2, 4))
def test_k_means_is_the_best_of_all_partitions(values: np.ndarray, k: int) -> None:
    levels = LevelSet("test", tuple(range(k)))
    found = cluster(values, levels, gamma=0, thresholds="clustered", scale="max")
    y = np.sort(values.astype(np.float64)) * found.beta
    assume(np.diff(y).min() > 1e-3)  # else two values may share a bin
    cuts = [sorted(c) for c in product(range(1, len(y)), repeat=k - 1) if len({*c}) == k - 1]
    best = min(sum(part.var() * len(part) for part in np.split(y, c)) for c in cuts)
    assert_allclose(found.inertia, best / len(y), rtol=1e-4, atol=1e-6)


def test_k_means_of_values_with_extreme_outliers() -> None:
    x = np.append(np.random.default_rng(0).normal(size=200_000), [-1e4, 1e4])
    levels = weight_levels(8)
    assert levels is not None
    rule: dict[str, Any] = {"gamma": 0, "scale": "max"}
    found = cluster(x, levels, thresholds="clustered", **rule)
    assert found.inertia < cluster(x, levels, thresholds="uniform", **rule).inertia / 10


def test_as_many_values_as_levels_are_a_cluster_each() -> None:
    levels = LevelSet("t", (0, 1, 2))
    values = np.array([1.0, 2.0, 4.0])
    found = cluster(values, levels, gamma=0, thresholds="clustered", scale="max")
    assert_allclose(np.array(found.thresholds) / found.beta, [1.5, 3.0], rtol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 2.0**26])
def test_clusters_do_not_depend_on_where_zero_is(shift: float) -> None:
    assert kmeans(np.arange(8.0) / 8 + shift, np.ones(8), 4).tolist() == [0, 2, 4, 6]


def test_of_equal_partitions_one_is_always_chosen() -> None:
    assert kmeans(np.arange(5.0), np.ones(5), 2).tolist() == [0, 2]
