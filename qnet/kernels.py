"""The arithmetic of the staircase for kernels that compute it in one pass: as little as possible.

On a CPU arithmetic takes the time, not memory. So all levels share the exponential of their
value: with z = T (u - c) for a c close to u,

    exp(-z_i) = exp(-T (u - b_i)) = exp(-z) exp(T (b_i - c)),

and the second factor is a constant. Where thresholds lie symmetrically about c, E = exp(-|z|) and a
pair at c ± a needs one division: with k = 2 cosh(T a) and D = 1 + k E + E²

    Σ σ_i = E (k + 2 E) / D,  for z > 0: 2 less that,    Σ σ_i (1 - σ_i) = E (k + 4 E + k E²) / D².

The compiler looks at an intermediate result once for each of its uses, so powers are written as
powers: x * x takes twice as long to compile as x**2, and so does whatever is computed from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

_EXPONENT = 40.0  # exp of up to this, times exp(SPREAD), stays inside float32
SPREAD = 20.0  # and _EXPONENT - SPREAD is far enough for σ to round to 1
_NOTHING = 128.0  # exp of minus this is 0


Numbers = Tensor | Sequence[Tensor | float]
"""T and what else a plan needs: a tensor [n], or one by one where a network is compiled."""


class Plan(NamedTuple):
    """How σ, or the comparison, is computed for all thresholds, and of which numbers, after T.

    each: on its own; the thresholds.
    shared: from one exponential; c, and exp(T (b_i - c)) of each threshold.
    symmetric: from one exponential and in pairs; c, and k of each pair, the innermost first.
    near: as symmetric, of the thresholds nearest to u; the first one, spacing, 1 / spacing, k.
    counted: hard only, where thresholds are 1/2, 3/2, 5/2 ...; nothing.
    line: the window of a straight line only; nothing.
    """

    how: Literal["each", "shared", "symmetric", "near", "counted", "line"]
    radius: int = 0  # near: thresholds on either side of the nearest one


def _terms(
    u: Tensor, steps: Sequence[int], plan: Plan, numbers: Numbers
) -> list[tuple[int, Tensor]]:
    """For each threshold s_i and 1 - σ_i.

    Both σ_i and 1 - σ_i are exactly 0 or 1 far from the threshold: with tiny values the following
    layers would compute with denormal numbers, which is slow.
    """
    if plan.how == "each":
        temperature, *thresholds = numbers
        sigmas = [torch.sigmoid((u - b) * temperature) for b in thresholds]
        return [(s, 1 - sigma) for s, sigma in zip(steps, sigmas, strict=True)]
    temperature, centre, *factors = numbers
    shared = _exp(((u - centre) * -temperature).clamp(-_EXPONENT, _EXPONENT))
    return [(s, 1 - 1 / (1 + shared * factor)) for s, factor in zip(steps, factors, strict=True)]


class _Symmetric(NamedTuple):
    """Where a value is among thresholds that lie symmetrically about a centre."""

    below: Tensor | float  # the height that is climbed before the first of them
    above: Tensor  # whether the value is above the centre
    e: Tensor  # E
    middle: tuple[int, Tensor] | None  # of the threshold at the centre: s_i and 1 / (1 + E)²
    pairs: list[tuple[int, Tensor | float, Tensor]]  # s_i, k and 1 / D
    total: int  # Σ s_i of them


def _symmetric(u: Tensor, steps: Sequence[int], plan: Plan, numbers: Numbers) -> _Symmetric:
    below: Tensor | float = 0.0
    if plan.how == "near":
        temperature, first, spacing, per_spacing, *ks = numbers
        nearest, distance = _nearest(u, first, spacing, per_spacing, plan.radius, len(steps))
        below = (nearest - plan.radius) * steps[0]
        steps = steps[: 2 * plan.radius + 1]
    else:
        temperature, centre, *ks = numbers
        distance = u - centre
    e = _exp(-(distance * temperature).abs().clamp(max=_NOTHING))
    square = 1 + e**2
    upper = steps[(len(steps) + 1) // 2 :]
    pairs = [(s, k, 1 / (square + k * e)) for s, k in zip(upper, ks, strict=True)]
    middle = (steps[len(steps) // 2], 1 / (square + 2 * e)) if len(steps) % 2 else None
    return _Symmetric(below, distance > 0, e, middle, pairs, sum(steps))


def _symmetric_level(at: _Symmetric) -> Tensor:
    """Σ s_i σ_i."""
    level: Tensor | float = 0.0
    for s, k, inverse in at.pairs:
        level = level + s * (k + 2 * at.e) * inverse
    if at.middle is not None:
        s, inverse = at.middle
        level = level + s * (1 + at.e) * inverse
    level = level * at.e
    return at.below + torch.where(at.above, at.total - level, level)


def _symmetric_window(at: _Symmetric) -> Tensor:
    """Σ s_i σ_i (1 - σ_i)."""
    total: Tensor | float = 0.0
    square, four = 1 + at.e**2, 4 * at.e
    for s, k, inverse in at.pairs:
        total = total + s * (k * square + four) * inverse**2
    if at.middle is not None:
        s, inverse = at.middle
        total = total + s * inverse
    return total * at.e


def _exp(z: Tensor) -> Tensor:
    """exp(z / 64), a polynomial, to the power of 64: in a fused loop cheaper than torch.exp.

    Accurate to 4e-6 for |z| up to 20 (`SPREAD`), where thresholds lie, and to 4e-5 up to 28, where
    the outer ones of "near" may lie; further out σ is 0 or 1 anyway.
    """
    z = z * (1 / 64)
    result = z * (1 / 720) + 1 / 120
    for coefficient in (1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        result = result * z + coefficient
    return (result**8) ** 8


def _nearest(
    u: Tensor,
    first: Tensor | float,
    spacing: Tensor | float,
    per_spacing: Tensor | float,
    radius: int,
    count: int,
) -> tuple[Tensor, Tensor]:
    """Of `count` thresholds, the index of the one nearest to u that has `radius` more on either
    side, and the distance of u from it."""
    nearest = torch.round((u - first) * per_spacing).clamp(radius, count - 1 - radius)
    return nearest, u - (nearest * spacing + first)


def level(u: Tensor, steps: Sequence[int], soft: bool, plan: Plan, numbers: Numbers) -> Tensor:
    """The staircase at u."""
    total: Tensor | float
    if soft and plan.how in ("symmetric", "near"):
        total = _symmetric_level(_symmetric(u, steps, plan, numbers))
    elif soft:
        total = float(sum(steps))
        for s, rest in _terms(u, steps, plan, numbers):
            total = total - s * rest
    elif plan.how == "counted":  # u - 1/2 is exact where it is near a whole number above zero
        total = torch.ceil(u - 0.5).clamp(0, len(steps)) * steps[0]
    elif plan.how == "near":
        _, first, spacing, per_spacing = numbers
        nearest, distance = _nearest(u, first, spacing, per_spacing, 0, len(steps))
        total = (nearest + torch.where(distance > 0, 1.0, 0.0)) * steps[0]
    else:
        _, *thresholds = numbers
        total = 0.0
        for s, threshold in zip(steps, thresholds, strict=True):
            total = total + torch.where(u > threshold, float(s), 0.0)
    assert isinstance(total, Tensor)
    return total


def window_over_t(
    u: Tensor, steps: Sequence[int], offset: float, plan: Plan, numbers: Numbers
) -> Tensor:
    """Σ s_i σ_i (1 - σ_i) at u, without its factor T; or the slope of the line between the
    outermost levels."""
    if plan.how == "line":
        return torch.where((u >= -offset) & (u <= sum(steps) - offset), 1.0, 0.0)
    if plan.how in ("symmetric", "near"):
        return _symmetric_window(_symmetric(u, steps, plan, numbers))
    total: Tensor | float = 0.0
    for s, rest in _terms(u, steps, plan, numbers):
        total = total + s * (rest - rest**2)
    assert isinstance(total, Tensor)
    return total
