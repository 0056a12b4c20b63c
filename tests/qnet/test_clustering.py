from __future__ import annotations

import json
import math
import warnings
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose
from pydantic import TypeAdapter

from qnet.clustering import Clusters, Thresholds, cluster, cluster_together
from qnet.errors import UserError
from qnet.histogram import Histogram
from qnet.levels import LevelSet, activation_levels, weight_levels

THRESHOLDS: tuple[Thresholds, ...] = ("uniform", "clustered", "centroids")
SCALES = ("least_squares", "max", "paper")
SETS: list[LevelSet] = [
    *filter(None, map(weight_levels, ("1", "2", "3", "4", "3pm2", "3pm4"))),
    LevelSet("[-4, -1, 1, 4]", (-4, -1, 1, 4)),
    *filter(None, map(activation_levels, (1, 2, 3, 4))),
]
rules = st.fixed_dictionaries(
    {
        "levels": st.sampled_from(SETS),
        "thresholds": st.sampled_from(THRESHOLDS),
        "scale": st.sampled_from(SCALES),
        "gamma": st.sampled_from([0, 0.0027, 0.2]),
    }
)
numbers = st.floats(-100, 100, width=32, allow_subnormal=False)
arrays = hnp.arrays(np.float32, st.integers(1, 40), elements=numbers)


def sample(kind: str, count: int = 50_000) -> np.ndarray:
    rng = np.random.default_rng(0)
    if kind == "normal":
        return rng.normal(size=count)
    if kind == "relu":  # half normal with half of the values exactly zero
        return np.maximum(rng.normal(size=count), 0)
    if kind == "laplace":
        return rng.laplace(size=count)
    if kind == "lognormal":
        return rng.lognormal(size=count)
    assert kind == "two groups"
    return np.concatenate([rng.normal(-3, 0.01, count // 2), rng.normal(5, 1, count // 2)])


def assigned_levels(x: np.ndarray, found: Clusters) -> np.ndarray:
    return np.array(found.levels.values)[np.searchsorted(found.thresholds, found.beta * x)]


def squared_error(x: np.ndarray, levels: LevelSet, step: float) -> float:
    values = np.array(levels.values)
    nearest = values[np.searchsorted((values[:-1] + values[1:]) / 2, x / step)]
    return float(((x - step * nearest) ** 2).sum())


@settings(max_examples=300)
@given(arrays, rules)
def test_the_result_can_be_trained_from(values: np.ndarray, rule: dict[str, Any]) -> None:
    found = cluster(values, **rule)
    assert len(found.thresholds) == len(found.levels.values) - 1
    assert np.isfinite(found.thresholds).all()
    assert (np.diff(np.array(found.thresholds, dtype=np.float32)) > 0).all()
    assert 0 < np.float32(found.alpha) < math.inf
    assert 0 < np.float32(found.beta) < math.inf
    assert values.min() <= found.low <= found.high <= values.max()
    assert 0 <= found.trimmed <= 2 * rule["gamma"]
    assert found.inertia >= 0


@given(arrays, rules)
def test_the_same_values_give_the_same_result(values: np.ndarray, rule: dict[str, Any]) -> None:
    once = cluster(values, **rule)
    assert cluster(torch.from_numpy(values).flip(0).reshape(1, -1), **rule) == once
    assert TypeAdapter(Clusters).validate_json(json.dumps(asdict(once))) == once


@settings(max_examples=60, deadline=None)
@given(
    rules,
    st.sampled_from(["normal", "relu", "laplace"]),
    st.floats(1e-3, 1e3),
)
def test_scaling_the_values_scales_alpha_and_beta(
    rule: dict[str, Any], kind: str, c: float
) -> None:
    x = sample(kind, 5_000)
    found, scaled = cluster(x, **rule), cluster(c * x, **rule)
    assert_allclose(scaled.alpha, c * found.alpha, rtol=5e-3)
    assert_allclose(scaled.beta, found.beta / c, rtol=5e-3)
    assert_allclose(scaled.inertia, found.inertia, rtol=5e-3)
    # Bins differ. The optimum of k-means is flat: an edge moves while the inertia hardly changes.
    assert_allclose(scaled.thresholds, found.thresholds, atol=0.02 * found.levels.max_abs)


def test_values_too_small_for_a_bin_keep_their_order() -> None:
    values = np.array([-1.0, *[1.1754944e-38] * 5], dtype=np.float32)
    found = cluster(values, weight_levels(1), gamma=0.2)
    assert found.low == found.high == values.max()


@given(arrays, rules, st.integers(-20, 20))
def test_scaling_by_a_power_of_two_changes_no_digit(
    values: np.ndarray, rule: dict[str, Any], exponent: int
) -> None:
    assume(np.abs(values[values != 0]).min(initial=1) > 1e-20)
    c = 2.0**exponent
    found, scaled = cluster(values, **rule), cluster(np.float32(c) * values, **rule)
    assume(np.any(values))
    assert scaled.thresholds == found.thresholds
    assert (scaled.alpha, scaled.beta) == (c * found.alpha, found.beta / c)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 30), elements=numbers), st.sampled_from(SETS))
def test_least_squares_beats_every_other_step(values: np.ndarray, levels: LevelSet) -> None:
    x = values.astype(np.float64)
    assume(np.abs(x).max() > 1e-3)
    found = cluster(x, levels, gamma=0, thresholds="uniform", scale="least_squares")
    assert_allclose(found.alpha * found.beta, 1)
    steps = np.geomspace(1e-3, 1.2, 600) * np.abs(x).max() / min(abs(v) for v in levels.values if v)
    least = min(squared_error(x, levels, step) for step in steps)
    assert squared_error(x, levels, found.alpha) <= least + 1e-5 * (x @ x)


@pytest.mark.parametrize("levels", SETS, ids=lambda levels: levels.name)
@pytest.mark.parametrize("kind", ["normal", "relu", "laplace"])
def test_least_squares_of_many_values(levels: LevelSet, kind: str) -> None:
    x = sample(kind, 20_000)
    found = cluster(x, levels, gamma=0, thresholds="uniform", scale="least_squares")
    steps = found.alpha * np.geomspace(0.25, 4, 200)
    least = min(squared_error(x, levels, step) for step in steps)
    assert squared_error(x, levels, found.alpha) <= least * 1.0001


def test_least_squares_of_binary_weights_is_the_mean_magnitude() -> None:
    x = sample("normal", 1000)
    binary = LevelSet("1", (-1, 1))
    found = cluster(x, binary, gamma=0, thresholds="uniform", scale="least_squares")
    assert found.thresholds == (0.0,)
    assert_allclose(found.alpha, np.abs(x).mean(), rtol=1e-6)


@pytest.mark.parametrize("thresholds", ["clustered", "centroids"])
@pytest.mark.parametrize("kind", ["normal", "relu", "laplace"])
def test_least_squares_alpha_fits_the_clusters(thresholds: Thresholds, kind: str) -> None:
    x = sample(kind, 20_000)
    levels = LevelSet("a2", (0, 1, 2, 3))
    found = cluster(x, levels, gamma=0, thresholds=thresholds, scale="least_squares")
    assert_allclose(found.beta, 3 / np.abs(x).max(), rtol=1e-6)
    level = assigned_levels(x, found)
    assert_allclose(found.alpha, (x @ level) / (level @ level), rtol=1e-3)


@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_scales_of_the_papers(thresholds: Thresholds) -> None:
    x = np.array([-2.0, -1.0, 0.5, 4.0])
    levels = LevelSet("2", (-1, 0, 1))
    fqn = cluster(x, levels, gamma=0, thresholds=thresholds, scale="max")
    assert (fqn.beta, fqn.alpha) == (0.25, 4)
    paper = cluster(x, levels, gamma=0, thresholds=thresholds, scale="paper")
    assert_allclose((paper.beta, paper.alpha), (1.25 / 4, 4 / 1.25))


def test_uniform_thresholds_lie_halfway_between_levels() -> None:
    levels = LevelSet("3pm4", (-4, -2, -1, 0, 1, 2, 4))
    found = cluster(sample("normal"), levels, thresholds="uniform", scale="max")
    assert found.thresholds == (-3, -1.5, -0.5, 0.5, 1.5, 3)


def test_central_thresholds_of_the_paper() -> None:
    x = sample("normal")
    found = cluster(x, LevelSet("3pm2", (-2, -1, 0, 1, 2)), thresholds="centroids", scale="paper")
    assert found.thresholds[1:3] == (-0.05, 0.05)
    binary = cluster(x + 0.3, LevelSet("1", (-1, 1)), thresholds="centroids", scale="paper")
    assert binary.thresholds == (0,)
    unsigned = cluster(np.abs(x), LevelSet("a1", (0, 1)), thresholds="centroids", scale="paper")
    assert unsigned.thresholds[0] > 0.1
    four = cluster(x, LevelSet("4", (-4, -1, 1, 4)), thresholds="centroids", scale="paper")
    assert_allclose(four.thresholds[1], 0, atol=0.02)


def test_central_thresholds_give_way_to_their_neighbours() -> None:
    x = np.append(sample("normal") * 1e-3, [-1, 1])  # clusters far closer to zero than 0.05
    levels = LevelSet("3", (-3, -2, -1, 0, 1, 2, 3))
    found = cluster(x, levels, gamma=0, thresholds="centroids", scale="max")
    assert (np.diff(found.thresholds) > 0).all()
    assert max(np.abs(found.thresholds[1:-1])) < 0.05  # still from k-means, not uniform


@pytest.mark.parametrize("name", ["2", "3pm2", "3", "3pm4", "4"])
def test_the_central_thresholds_are_those_around_zero(name: str) -> None:
    levels = weight_levels(name)
    assert levels is not None
    found = cluster(sample("normal"), levels, gamma=0, thresholds="centroids", scale="max")
    middle = len(found.thresholds) // 2
    assert found.thresholds[middle - 1 : middle + 1] == (-0.05, 0.05)


def test_trimming_cuts_only_the_end_that_has_values() -> None:
    x = sample("relu")
    found = cluster(x, LevelSet("a2", (0, 1, 2, 3)), gamma=0.0027, scale="max")
    assert found.low == 0
    assert_allclose(found.high, np.quantile(x, 0.9973), rtol=1e-3)
    assert_allclose(found.trimmed, 0.0027, rtol=0.2)


def test_trimming_drops_a_share_at_each_end_and_beta_follows() -> None:
    x = np.append(np.linspace(-1, 1, 9999), 1000.0)
    levels = LevelSet("2", (-1, 0, 1))
    kept = cluster(x, levels, gamma=0, thresholds="uniform", scale="max")
    assert (kept.low, kept.high, kept.trimmed) == (-1, 1000, 0)
    trimmed = cluster(x, levels, gamma=0.0027, thresholds="uniform", scale="max")
    assert_allclose((trimmed.low, trimmed.high), np.quantile(x, (0.0027, 0.9973)), rtol=1e-3)
    assert_allclose(trimmed.trimmed, 2 * 0.0027, rtol=0.2)
    assert_allclose(trimmed.beta, 1 / max(-trimmed.low, trimmed.high))


@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_outliers_leave_the_bulk_its_resolution(thresholds: Thresholds) -> None:
    x = sample("normal")
    far = np.append(x, [-100.0, 100.0])
    levels = LevelSet("4", tuple(range(-7, 8)))
    rule: dict[str, Any] = {"gamma": 0.0027, "thresholds": thresholds, "scale": "least_squares"}
    found, wanted = cluster(far, levels, **rule), cluster(x, levels, **rule)
    assert_allclose(found.alpha, wanted.alpha, rtol=0.01)
    assert_allclose(found.thresholds, wanted.thresholds, atol=0.05)


@pytest.mark.parametrize("rule", list(product(THRESHOLDS, SCALES)), ids="-".join)
@pytest.mark.parametrize("levels", SETS, ids=lambda levels: levels.name)
def test_values_that_leave_no_choice(levels: LevelSet, rule: tuple[str, str]) -> None:
    uniform = tuple((a + b) / 2 for a, b in zip(levels.values, levels.values[1:], strict=False))
    options: dict[str, Any] = {"thresholds": rule[0], "scale": rule[1]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zeros = cluster(np.zeros(1000), levels, **options)
        assert (zeros.alpha, zeros.beta, zeros.thresholds) == (1, 1, uniform)
        for values in ([0.3], [0.3] * 50, [-0.3] * 50, [1e-38, 0], [0.0] * 99 + [0.7]):
            found = cluster(np.array(values), levels, **options)
            assert found.thresholds == uniform or len(set(values)) >= len(levels.values)
            assert min(found.alpha, found.beta) > 0


def test_trimming_does_not_leave_zeros_only() -> None:
    x = np.zeros(10_000)
    x[:5] = [1, 2, 3, 4, 5]
    found = cluster(x, LevelSet("a1", (0, 1)), gamma=0.01, thresholds="uniform", scale="max")
    assert (found.high, found.alpha, found.trimmed) == (5, 5, 0)


@pytest.mark.parametrize("thresholds", ["clustered", "centroids"])
def test_with_too_few_values_for_k_means_the_scale_is_that_of_uniform_thresholds(
    thresholds: Thresholds,
) -> None:
    x = torch.tensor([0.1] * 99 + [1.0])
    found, uniform = (
        cluster(x, activation_levels(3), gamma=0, thresholds=rule, scale="least_squares")
        for rule in (thresholds, "uniform")
    )
    assert found == uniform


def test_a_histogram_is_as_good_as_its_values() -> None:
    x = torch.from_numpy(sample("relu")).float()
    histogram = Histogram()
    for batch in x.split(777):
        histogram.update(batch)
    rule: dict[str, Any] = {"thresholds": "clustered", "scale": "least_squares"}
    levels = LevelSet("a3", tuple(range(8)))
    found, wanted = cluster(histogram, levels, **rule), cluster(x, levels, **rule)
    assert_allclose(found.thresholds, wanted.thresholds, rtol=1e-9)
    assert_allclose(found.alpha, wanted.alpha, rtol=1e-9)


@pytest.mark.parametrize("thresholds", THRESHOLDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types(thresholds: Thresholds, dtype: torch.dtype) -> None:
    x = torch.from_numpy(sample("normal", 2000)).to(dtype)
    levels = LevelSet("2", (-1, 0, 1))
    found = cluster(x, levels, thresholds=thresholds, scale="least_squares")
    assert found == cluster(x.float(), levels, thresholds=thresholds, scale="least_squares")


@pytest.mark.parametrize(
    ("values", "change", "message"),
    [
        ([], {}, "conv1: no values"),
        ([1, math.nan], {}, "conv1: .*finite"),
        ([1, math.inf], {}, "conv1: .*finite"),
        ([1], {"gamma": 0.5}, "conv1: gamma 0.5"),
        ([1], {"gamma": -0.1}, "conv1: gamma -0.1"),
        ([1], {"gamma": math.nan}, "conv1: gamma nan"),
        ([1], {"thresholds": "kmeans"}, "conv1: thresholds 'kmeans'; use one of uniform, clus"),
        ([1], {"scale": "mse"}, "conv1: scale 'mse'; use one of least_squares, max, paper"),
    ],
)
def test_mistakes_are_named(values: list[float], change: dict[str, Any], message: str) -> None:
    rule: dict[str, Any] = {"thresholds": "uniform", "scale": "max", "name": "conv1"} | change
    with pytest.raises(UserError, match=message):
        cluster(np.array(values), LevelSet("2", (-1, 0, 1)), **rule)


def histogram_of(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.update(values)
    return histogram


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_together_all_layers_have_the_thresholds_of_the_union(thresholds, scale):
    layers = {"a": sample("normal"), "b": 0.01 * sample("laplace"), "dead": np.zeros(100)}
    levels = weight_levels(3)
    rule = {"gamma": 0.0, "thresholds": thresholds, "scale": scale}
    found = cluster_together({n: histogram_of(x) for n, x in layers.items()}, levels, **rule)
    alone = {name: cluster(x, levels, **rule) for name, x in layers.items()}

    assert found["a"].thresholds == found["b"].thresholds
    assert found["dead"] == alone["dead"]
    for name in layers:
        assert found[name].beta == alone[name].beta
    if thresholds == "uniform":
        assert found == alone
    else:
        assert found["a"].thresholds != alone["a"].thresholds
        union = np.concatenate([found[name].beta * layers[name] for name in ("a", "b")])
        expected = cluster(union, levels, gamma=0.0, thresholds=thresholds, scale="max")
        outer = [0, 1, 4, 5]  # the central two may be the paper's ±0.05, whatever the scale
        desired = np.array(expected.thresholds) / expected.beta
        assert_allclose(np.array(found["a"].thresholds)[outer], desired[outer], rtol=0.02)


def test_together_a_single_layer_is_as_alone():
    for levels, thresholds in product(SETS, THRESHOLDS):
        x = sample("relu")
        (found,) = cluster_together({"a": histogram_of(x)}, levels, thresholds=thresholds).values()
        assert found == cluster(x, levels, thresholds=thresholds)


def test_together_messages_name_the_layer():
    with pytest.raises(UserError, match=r"^b: no values"):
        cluster_together(
            {"a": histogram_of(sample("relu")), "b": Histogram()}, activation_levels(2)
        )


def test_a_histogram_names_itself_in_errors() -> None:
    with pytest.raises(UserError, match=r"^activations at layer1: no values"):
        cluster(Histogram("activations at layer1"), activation_levels(2))


def test_values_whose_beta_would_overflow_count_as_zeros() -> None:
    values = np.array([1e-38, 0.0], dtype=np.float32)
    found = cluster(values, activation_levels(8), scale="max", gamma=0)
    assert (found.alpha, found.beta) == (1, 1)
