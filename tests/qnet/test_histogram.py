from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from qnet.errors import UserError
from qnet.histogram import Histogram, condense

magnitudes = st.floats(2.0**-40, 2.0**40, width=32)
numbers = st.just(0.0) | magnitudes | magnitudes.map(lambda value: -value)
arrays = hnp.arrays(np.float32, st.integers(1, 60), elements=numbers)


def histogram_of(*batches: np.ndarray | torch.Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.update(batch)
    return histogram


def assert_same_points(found: Histogram, wanted: Histogram) -> None:
    assert_array_equal(found.points()[1], wanted.points()[1])
    precision = 2.0**-40 * max(-wanted.min, wanted.max)
    assert_allclose(found.points()[0], wanted.points()[0], rtol=1e-9, atol=precision)


def heavy_tailed(count: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).laplace(size=count).astype(np.float32)
    values[: count // 4] = 0
    values[-5:] *= 100
    return values


@given(arrays)
def test_count_extremes_and_total(values: np.ndarray) -> None:
    histogram = histogram_of(values)
    means, counts = histogram.points()
    assert (histogram.count, histogram.min, histogram.max) == (
        values.size,
        values.min(),
        values.max(),
    )
    assert counts.sum() == values.size
    scale = np.abs(values).max()
    assert_allclose(
        counts @ means, values.astype(np.float64).sum(), atol=1e-6 * scale * len(values)
    )


@given(arrays)
def test_points_are_increasing_and_zero_is_a_point_of_its_own(values: np.ndarray) -> None:
    means, counts = histogram_of(values).points()
    assert (np.diff(means) > 0).all()
    assert counts[means == 0].sum() == (values == 0).sum()


@settings(max_examples=50)
@given(st.lists(arrays, min_size=1, max_size=5), st.randoms())
def test_batches_in_any_order_are_as_good_as_all_at_once(
    batches: list[np.ndarray], random: Random
) -> None:
    once = histogram_of(np.concatenate(batches))
    random.shuffle(batches)
    assert_same_points(histogram_of(*batches), once)


@pytest.mark.parametrize("scale", [1e-2, 1e-5, 1e-10])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_batch_of_zeros_makes_no_bin_wider(scale: float, order: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random(10_000, dtype=np.float32) * np.float32(scale)
    batches = [values, np.zeros(100, dtype=np.float32)]
    once = histogram_of(np.concatenate(batches))
    assert len(once.points()[0]) > 5000
    assert_same_points(histogram_of(*(batches[i] for i in order)), once)


def test_growing_by_many_octaves_keeps_the_counts() -> None:
    values = heavy_tailed(30_000)
    batches = [values * np.float32(2.0**exponent) for exponent in (-60, -13, -1, 0, 7, 30)]
    assert_same_points(histogram_of(*batches), histogram_of(np.concatenate(batches)))


def test_bins_agree_with_numpy() -> None:
    values = heavy_tailed(200_000)
    means, counts = histogram_of(values).points()
    edges = np.array([-64.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0, 512.0])  # all edges of bins
    # numpy's intervals include their lower edge, the histogram's the edge away from zero
    nudged = np.where(values > 0, np.nextafter(values, np.float32(0)), values)
    mirrored = np.where(means > 0, np.nextafter(means, 0), means)
    expected, _ = np.histogram(nudged[values != 0], edges)
    found, _ = np.histogram(mirrored[means != 0], edges, weights=counts[means != 0])
    assert_array_equal(found, expected)


def test_bins_are_narrow_whatever_the_outliers() -> None:
    bulk = np.linspace(1, 2, 100_000, dtype=np.float32)
    means, counts = histogram_of(np.append(bulk, np.float32(4000))).points()
    assert len(means) > 2000
    assert counts[:-1].max() < 100_000 / 2000


@settings(max_examples=50)
@given(arrays, st.floats(0, 1))
def test_percentile_of_few_values_is_that_of_numpy(values: np.ndarray, share: float) -> None:
    expected = np.quantile(values.astype(np.float64), share)
    width = np.abs(values).max() / 2048
    assert abs(histogram_of(values).percentile(share) - expected) <= width


@pytest.mark.parametrize("share", [0, 0.0027, 0.3, 0.5, 0.9973, 1])
def test_percentile_of_many_values_is_that_of_numpy(share: float) -> None:
    values = heavy_tailed(100_000)
    assert_allclose(
        histogram_of(values).percentile(share), np.quantile(values, share), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_float_type_and_layout(dtype: torch.dtype) -> None:
    tensor = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    parameter = tensor.to(memory_format=torch.channels_last).requires_grad_()
    expected = histogram_of(tensor.float().numpy()).points()
    for found, wanted in zip(histogram_of(parameter).points(), expected, strict=True):
        assert_array_equal(found, wanted)


def test_arrays_that_torch_does_not_take_as_they_are() -> None:
    values = np.arange(10.0)
    values.flags.writeable = False
    assert histogram_of(values[::-1]).max == 9
    assert histogram_of(np.arange(10)).count == 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_agree() -> None:
    values = torch.from_numpy(heavy_tailed(3_000_000))
    for found, wanted in zip(
        histogram_of(values.cuda()).points(), histogram_of(values).points(), strict=True
    ):
        assert_array_equal(found, wanted)


def test_threads_and_views_do_not_matter() -> None:
    values = torch.from_numpy(heavy_tailed(300_000))
    before = torch.get_num_threads()
    try:
        points = []
        for threads, given in ((1, values), (2, values), (2, values.flip(0).reshape(100, -1))):
            torch.set_num_threads(threads)
            points.append(histogram_of(given).points())
    finally:
        torch.set_num_threads(before)
    for means, counts in points[1:]:
        assert_array_equal(means, points[0][0])
        assert_array_equal(counts, points[0][1])


def test_memory_does_not_grow() -> None:
    def size(histogram: Histogram) -> int:
        return sum(v.nbytes for v in vars(histogram).values() if isinstance(v, np.ndarray))

    assert size(histogram_of(heavy_tailed(100_000))) == size(Histogram()) < 1e6


def test_without_values_there_are_no_points_and_no_percentile() -> None:
    histogram = histogram_of(np.empty((0, 3)))
    assert histogram.count == 0
    assert len(histogram.points()[0]) == 0
    with pytest.raises(UserError, match="no values"):
        histogram.percentile(0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39])
def test_values_that_are_not_finite(bad: float) -> None:
    histogram = Histogram("layer1.conv1")
    with pytest.raises(UserError, match=r"layer1\.conv1: .*finite"):
        histogram.update(np.array([1.0, bad, 2.0]))
    assert histogram.count == 0


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_share_out_of_range(share: float) -> None:
    with pytest.raises(UserError, match="share"):
        histogram_of(np.ones(3)).percentile(share)


@pytest.mark.parametrize("value", [1e-45, 1e-38, 1e-30, 3.4e38, 0.1])
def test_a_single_value_of_any_size(value: float) -> None:
    histogram = histogram_of(np.array([value, -value], dtype=np.float32))
    assert histogram.max == np.float32(value)
    assert histogram.count == 2


def test_condense_keeps_totals_and_loses_little() -> None:
    means, counts = histogram_of(heavy_tailed(300_000)).points()
    points, weights = condense(means, counts, 2048)
    assert len(points) <= 2048 < len(means)
    assert (np.diff(points) > 0).all()
    assert weights.sum() == counts.sum()
    assert_allclose(points @ weights, means @ counts)
    within = means**2 @ counts - points**2 @ weights
    assert 0 <= within < 2e-6 * (means**2 @ counts)


def test_condense_leaves_few_points_alone() -> None:
    points, weights = np.array([1.0, 2.0]), np.array([3, 4])
    assert condense(points, weights, 2) == (points, weights)


def test_sums_of_many_large_values_do_not_overflow() -> None:
    count = 2**21 + 2**19
    histogram = Histogram()
    histogram.update(torch.full((count,), 0.999))
    (mean,), (found,) = histogram.points()
    assert found == count
    assert mean == pytest.approx(0.999, rel=1e-6)
