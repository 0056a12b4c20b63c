"""Where a quantizer starts: thresholds, alpha and beta from the values it will see.

Yang et al., *Quantization Networks*, CVPR 2019, section 3.3, with the trimming of Li et al., *Fully
Quantized Network for Object Detection* (FQN), CVPR 2019. With levels Y_1 < ... < Y_{n+1}:

1. Values below the γ and above the 1 − γ percentile are dropped (FQN: γ = 0.0027; γ = 0: none).
2. With q = max |x| of what is left and p = max |Y|:

       scale            beta                                        alpha
       max              p / q  (FQN)                                1 / beta
       paper            5p / 4q                                     1 / beta
       least_squares    with uniform thresholds 1/Δ, for the Δ      Δ
                        that minimises Σ (x − Δ · level(x/Δ))²
                        with other thresholds p / q                 Σ x · level / Σ level²

3. Thresholds b_i, in units of βx:

       uniform          halfway between neighbouring levels
       clustered        k-means of βx with as many clusters as levels: halfway between the two
                        values on either side of each gap between clusters (haoyz's CIFAR-10 code)
       centroids        k-means, halfway between neighbouring centroids; of an odd number of
                        symmetric levels the two central ones at ±0.05, of −1, +1 at 0 (the paper)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor

from qnet.errors import UserError
from qnet.histogram import Histogram, condense
from qnet.kmeans import kmeans
from qnet.levels import LevelSet, require_levels

__all__ = ["Clusters", "cluster", "cluster_together"]

Thresholds = Literal["uniform", "clustered", "centroids"]
Scale = Literal["least_squares", "max", "paper"]

_DEAD = 1e-30  # no larger values count as zeros: their beta would leave the range of float32
_CENTRAL = 0.05  # the paper's thresholds on either side of level 0
_POINTS = 2048  # that the searches look at, of a histogram's 50,000


@dataclass(frozen=True)
class Clusters:
    """What `cluster` found: y = alpha · level(beta · x).

    Args:
        levels: the level set, n + 1 values.
        thresholds: n of them, in units of beta · x, strictly increasing.
        alpha: units of x per level, positive.
        beta: levels per unit of x, positive.
        low: the smallest value that trimming kept, in units of x.
        high: the largest.
        trimmed: share of the values that trimming dropped, 0 to 1.
        inertia: mean over the kept values of (beta · x − mean of its interval between thresholds)².
    """

    levels: LevelSet
    thresholds: tuple[float, ...]
    alpha: float
    beta: float
    low: float
    high: float
    trimmed: float
    inertia: float


def cluster(
    values: Tensor | np.ndarray | Histogram,
    levels: LevelSet,
    *,
    gamma: float = 0.0027,
    thresholds: Thresholds = "uniform",
    scale: Scale = "least_squares",
    name: str = "values",
) -> Clusters:
    """Find thresholds, alpha and beta for values of any shape, or for their histogram.

    Deterministic. Where the values leave nothing to choose, the result can still be trained from:
    all zeros give alpha = beta = 1, and fewer distinct values than levels uniform thresholds.

    Args:
        values: weights or activations.
        levels: the integers to quantize to.
        gamma: share of the values to drop at each end, from 0 to below 0.5; 0.0027 is the
            three-sigma rule. params.yaml has 0 for weights.
        thresholds: "uniform", "clustered" or "centroids", as above.
        scale: "least_squares", "max" or "paper", as above.
        name: what the values are, for example a layer; error messages begin with it. A histogram
            has its own.

    Raises:
        UserError: no values, one that is not finite, or an argument that is none of the above.
    """
    if isinstance(values, Histogram):
        histogram = values
    else:
        histogram = Histogram(name)
        histogram.update(values)
    alone = {histogram.name: histogram}
    found = cluster_together(alone, levels, gamma=gamma, thresholds=thresholds, scale=scale)
    return found[histogram.name]


def cluster_together(
    histograms: Mapping[str, Histogram],
    levels: LevelSet,
    *,
    gamma: float = 0.0027,
    thresholds: Thresholds = "uniform",
    scale: Scale = "least_squares",
) -> dict[str, Clusters]:
    """As `cluster` of each histogram, but k-means sees the βx of all, each with its own β, at once.

    So all have the same thresholds (an ablation of the paper); uniform ones are the same anyway. A
    histogram of zeros only keeps uniform ones.

    Args:
        histograms: by name, which error messages begin with.
        levels: see `cluster`, like the rest.
        gamma: see `cluster`.
        thresholds: see `cluster`.
        scale: see `cluster`.

    Raises:
        UserError: see `cluster`.
    """
    for name, histogram in histograms.items():
        require_levels(levels, name)
        _check(gamma, thresholds, scale, name)
        if histogram.count == 0:
            raise UserError(f"{name}: no values to cluster; give at least one")
    trimmed = {name: _trim(histogram, gamma) for name, histogram in histograms.items()}
    scaled = [
        (_beta(kept.largest, levels, scale) * kept.x, kept.weights)
        for kept in trimmed.values()
        if kept.largest > _DEAD
    ]
    found = None
    if scaled and thresholds != "uniform":
        y, place = np.unique(np.concatenate([y for y, _ in scaled]), return_inverse=True)
        weights = np.bincount(place, np.concatenate([weights for _, weights in scaled]))
        found = _kmeans_thresholds(y, weights, levels, thresholds)
    return {
        name: _fit(kept, histograms[name].count, levels, scale, found)
        for name, kept in trimmed.items()
    }


class _Trimmed(NamedTuple):
    """The values that trimming keeps: points, weights, and the smallest and the largest value."""

    x: np.ndarray
    weights: np.ndarray
    low: float
    high: float

    @property
    def largest(self) -> float:
        """q, the largest magnitude."""
        return max(-self.low, self.high)


def _beta(q: float, levels: LevelSet, scale: Scale) -> float:
    return 5 * levels.max_abs / (4 * q) if scale == "paper" else levels.max_abs / q


def _fit(
    kept: _Trimmed, count: int, levels: LevelSet, scale: Scale, found: np.ndarray | None
) -> Clusters:
    """Of `count` values before trimming, with the thresholds that k-means found; None: uniform."""
    x, weights, q = kept.x, kept.weights, kept.largest
    b, alpha, beta = _uniform(levels), 1.0, 1.0
    if q > _DEAD:
        beta = _beta(q, levels, scale)
        alpha = 1 / beta
        if found is not None:
            b = found
            if scale == "least_squares":
                alpha = _fitted_alpha(x, weights, levels, b / beta) or alpha
        elif scale == "least_squares":
            alpha = _best_step(*condense(x, weights, _POINTS), levels) or alpha
            beta = 1 / alpha
    return Clusters(
        levels=levels,
        thresholds=tuple(b.tolist()),
        alpha=alpha,
        beta=beta,
        low=kept.low,
        high=kept.high,
        trimmed=1 - int(weights.sum()) / count,
        inertia=_inertia(beta * x, weights, b),
    )


def _check(gamma: float, thresholds: str, scale: str, name: str) -> None:
    if not 0 <= gamma < 0.5:
        raise UserError(f"{name}: gamma {gamma}; give a share from 0 to below 0.5")
    for parameter, value, kind in (("thresholds", thresholds, Thresholds), ("scale", scale, Scale)):
        if value not in get_args(kind):
            raise UserError(
                f"{name}: {parameter} {value!r}; use one of {', '.join(get_args(kind))}"
            )


def _trim(histogram: Histogram, gamma: float) -> _Trimmed:
    """The values between the quantiles gamma and 1 - gamma.

    Ranks are rounded outwards, so that at least one value stays. Where trimming would leave zeros
    only (a ReLU that hardly ever fires), nothing is trimmed.
    """
    points, weights = histogram.points()
    rank = math.floor(gamma * (histogram.count - 1))
    ranks = [rank, histogram.count - 1 - rank]
    first, last = np.searchsorted(weights.cumsum(), ranks, side="right")
    if not points[first : last + 1].any():
        first, last = 0, len(points) - 1
    # A bin's mean is rounded away from zero, and so can lie beyond the outermost value in it.
    low, high = np.clip(points[[first, last]], histogram.min, histogram.max).tolist()
    low = histogram.min if first == 0 else low
    high = histogram.max if last == len(points) - 1 else high
    return _Trimmed(points[first : last + 1], weights[first : last + 1], low, high)


def _halfway(values: np.ndarray) -> np.ndarray:
    return (values[:-1] + values[1:]) / 2


def _uniform(levels: LevelSet) -> np.ndarray:
    return _halfway(np.array(levels.values, dtype=np.float64))


def _best_step(x: np.ndarray, weights: np.ndarray, levels: LevelSet) -> float | None:
    """The Δ that minimises f(Δ) = Σ w (x − Δ · level(x/Δ))², or None if any would do.

    Between the Δ at which an x/Δ crosses a threshold, f is Σ w x² − 2AΔ + BΔ² with A = Σ w x level
    and B = Σ w level², so the least value is that of the largest A²/B, at Δ = A/B. The search is
    exact: Δ falls from infinity, where all levels are next to zero, past every crossing x / b_i.
    """
    values = np.array(levels.values, dtype=np.float64)
    b, steps = _halfway(values), np.diff(values)
    level = values[np.where(x > 0, np.searchsorted(b, 0, side="right"), np.searchsorted(b, 0))]
    crossings = np.array([np.inf])
    to_a, to_b = np.array([weights @ (x * level)]), np.array([weights @ level**2])
    for sign in (1, -1):
        size, w = sign * x[sign * x > 0, None], weights[sign * x > 0, None]
        threshold, step = sign * b[sign * b > 0], steps[sign * b > 0]
        crossings = np.append(crossings, size / threshold)
        to_a = np.append(to_a, w * size * step)
        to_b = np.append(to_b, w * 2 * threshold * step)  # level² rises by (Y_i + Y_i+1) s_i
    order = np.argsort(-crossings, kind="stable")
    A, B = to_a[order].cumsum(), to_b[order].cumsum()
    gain = np.divide(np.maximum(A, 0) ** 2, B, out=np.zeros_like(A), where=B > 0)
    best = gain.argmax()
    return float(A[best] / B[best]) if gain[best] > 0 else None


def _fitted_alpha(
    x: np.ndarray, weights: np.ndarray, levels: LevelSet, edges: np.ndarray
) -> float | None:
    """The α that minimises Σ w (x − α · level)², thresholds at x = edges; None if not positive."""
    level = np.array(levels.values, dtype=np.float64)[np.searchsorted(edges, x)]
    product = weights @ (x * level)
    return float(product / (weights @ level**2)) if product > 0 else None


def _inertia(y: np.ndarray, weights: np.ndarray, b: np.ndarray) -> float:
    interval = np.searchsorted(b, y)
    mass = np.bincount(interval, weights)
    mean = np.bincount(interval, weights * y) / np.maximum(mass, 1)
    return float(weights @ (y - mean[interval]) ** 2 / weights.sum())


def _kmeans_thresholds(
    y: np.ndarray, weights: np.ndarray, levels: LevelSet, thresholds: Thresholds
) -> np.ndarray | None:
    """Thresholds from k-means of y = βx; None where there are too few distinct values."""
    if len(y) < len(levels.values):
        return None
    few = condense(y, weights, _POINTS)
    if len(few[0]) >= len(levels.values):  # with extreme outliers hardly any are left
        y, weights = few
    firsts = kmeans(y, weights, len(levels.values))
    if thresholds == "clustered":
        b = (y[firsts[1:] - 1] + y[firsts[1:]]) / 2
    else:
        centroids = np.add.reduceat(weights * y, firsts) / np.add.reduceat(weights, firsts)
        b = _with_central(_halfway(centroids), levels)
    return b if _increasing(b) else None


def _with_central(b: np.ndarray, levels: LevelSet) -> np.ndarray:
    """The paper's central thresholds, unless their neighbours are closer to zero than they."""
    fixed, middle = b.copy(), len(b) // 2
    if levels.values == (-1, 1):
        fixed[:] = 0
    elif levels.values[0] < 0 and 0 in levels.values:
        fixed[middle - 1 : middle + 1] = -_CENTRAL, _CENTRAL
    return fixed if _increasing(fixed) else b


def _increasing(b: np.ndarray) -> bool:
    return bool((np.diff(b.astype(np.float32)) > 0).all())  # the arithmetic of a quantizer
