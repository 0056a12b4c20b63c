"""The arithmetic of the staircase: plain functions of tensors, without autograd.

With u = beta x, thresholds b_i, step heights s_i, the logistic function σ and σ_i = σ(T (u - b_i)):

    hard    Σ s_i [u > b_i]        soft    Σ s_i σ_i        window    w = T Σ s_i σ_i (1 - σ_i)

(Yang et al., "Quantization Networks", CVPR 2019, equations 2 to 4). The window can be that of a
straight line instead: 1 between the outermost levels, 0 beyond (the clipped straight-through
estimator: Hubara et al., "Binarized Neural Networks", NeurIPS 2016, section 1.3). Far from a
threshold σ is 0 or 1, so of many evenly spaced thresholds only the few around a value are looked
at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import EllipsisType
from typing import Any, Literal

import torch
from torch import Tensor

Temperature = Tensor | float
"""0-dim tensor or number, above zero."""

WindowTemperature = Temperature | Literal["straight_through"]
"""Temperature of the soft function whose derivative is the gradient, or the straight line's."""

_SATURATED = 40.0  # σ(40) rounds to 1; from 88 on, denormal numbers take a CPU twice as long
_CHUNK = 2**17  # values at a time on a CPU: the few buffers of a chunk stay in its cache
_SPREAD = 45.0  # exp of this, squared, loses nothing where it matters even in float32
_FOLD_COST = 2  # folding costs about as much as this many thresholds


def _staircase_loop(
    u: Tensor,
    thresholds: Sequence[Tensor | float],
    steps: Sequence[int],
    temperature: Temperature | None,
) -> Tensor:
    """Σ s_i σ(T (u - b_i)), or Σ s_i [u > b_i] if temperature is None."""
    part = torch.empty_like(u)
    if temperature is None:
        total = torch.zeros_like(u)
        for threshold, step in zip(thresholds, steps, strict=True):
            total.add_(torch.gt(u, threshold, out=part), alpha=step)
        return total
    # Σ s_i - Σ s_i σ(-z_i): far below the thresholds this is exactly 0, where Σ s_i σ(z_i) would
    # be a tiny number, and products of those are denormal and slow in every layer after.
    total = torch.full_like(u, sum(steps))
    for threshold, step in zip(thresholds, steps, strict=True):
        # Not T u - T b_i: near a threshold u - b_i is exact, so a large T does not magnify errors.
        torch.sub(u, threshold, out=part).mul_(-temperature)
        total.sub_(part.clamp_(-_SATURATED, _SATURATED).sigmoid_(), alpha=step)
    return total


def pair_constant(offset: float) -> float:
    """k = 2 cosh(T a) of two thresholds that lie T a = `offset` on either side of the centre."""
    return 2 * math.cosh(offset)


def _window_loop(
    u: Tensor,
    thresholds: Sequence[Tensor | float],
    steps: Sequence[int],
    temperature: Temperature,
) -> Tensor:
    """T Σ s_i σ_i (1 - σ_i) with σ_i = σ(T (u - b_i)): the derivative of the soft sum by u."""
    part, total = torch.empty_like(u), torch.zeros_like(u)
    for threshold, step in zip(thresholds, steps, strict=True):
        # σ(1 - σ) is even, and σ(|z|) rounds to 1 for a large |z|: exactly 0, as above.
        torch.sub(u, threshold, out=part).mul_(temperature).abs_().clamp_(max=_SATURATED).sigmoid_()
        total.add_(torch.addcmul(part, part, part, value=-1, out=part), alpha=step)
    return total.mul_(temperature)


def _window_pairs(u: Tensor, spacing: float, count: int, step: int, temperature: float) -> Tensor:
    """The same where thresholds lie evenly about u = 0, by the formulas of `qnet.kernels`.

    One exponential serves all of them. Overwrites u.
    """
    e = u.mul_(temperature).abs_().neg_().exp_()
    outermost = temperature * spacing * (count - 1) / 2
    gone = math.exp(-outermost - _saturated(u.dtype))
    e = e.mul_(e > gone)  # exactly 0 where all σ have rounded to 0 or 1, as above
    square, four = e.square().add_(1), e.mul(4)
    part, other, total = torch.empty_like(e), torch.empty_like(e), torch.zeros_like(e)
    if count % 2:
        total.add_(torch.add(square, e, alpha=2, out=part).reciprocal_())
    for i in range(count // 2):
        k = pair_constant(outermost - temperature * spacing * i)
        torch.add(square, e, alpha=k, out=part).square_()
        total.addcdiv_(torch.add(four, square, alpha=k, out=other), part)
    return total.mul_(e).mul_(temperature * step)


@dataclass(frozen=True)
class Stairs:
    """Thresholds, step heights and offset o (minus the lowest level) of a staircase.

    The thresholds are numbers where reading them does not wait for a device.
    """

    thresholds: tuple[Tensor | float, ...]
    steps: tuple[int, ...]
    offset: float = 0.0
    spacing: float | None = None  # of evenly spaced thresholds with equal steps
    plans: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)  # of qnet.fused


def staircase(u: Tensor, stairs: Stairs, temperature: Temperature | None) -> Tensor:
    """Σ s_i σ(T (u - b_i)) - o, or Σ s_i [u > b_i] - o if temperature is None; like u.

    Only the thresholds near each value are summed where that is less work.
    """
    radius = _radius(stairs, temperature, u.dtype)
    if radius is None:
        climbed = _staircase_loop(u, stairs.thresholds, stairs.steps, temperature)
    else:
        distance, below, near = _fold(u, stairs, radius)
        climbed = _staircase_loop(distance, near.thresholds, near.steps, temperature)
        climbed.add_(below, alpha=stairs.steps[0])
    return climbed.sub_(stairs.offset)


def window(u: Tensor, stairs: Stairs, temperature: WindowTemperature) -> Tensor:
    """The window w: the derivative of the soft staircase by u, or of the straight line; like u.

    The line is the one between the outermost levels: for -o <= u <= Σ s_i - o.
    """
    if isinstance(temperature, str):
        assert temperature == "straight_through", temperature
        return ((u >= -stairs.offset) & (u <= sum(stairs.steps) - stairs.offset)).to(u.dtype)
    radius = _radius(stairs, temperature, u.dtype)
    if radius is not None:
        u, _, stairs = _fold(u, stairs, radius)
    spacing, count = stairs.spacing, len(stairs.steps)
    if spacing is None or isinstance(temperature, Tensor):
        return _window_loop(u, stairs.thresholds, stairs.steps, temperature)
    if temperature * spacing * (count - 1) / 2 > _SPREAD:
        return _window_loop(u, stairs.thresholds, stairs.steps, temperature)
    centre = (stairs.thresholds[0] + stairs.thresholds[-1]) / 2
    return _window_pairs(u - centre, spacing, count, stairs.steps[0], temperature)


def _radius(stairs: Stairs, temperature: Temperature | None, dtype: torch.dtype) -> int | None:
    """How many thresholds on either side of the nearest one are not yet 0 or 1 to `dtype`'s
    precision; None if a loop over all thresholds is as fast."""
    if stairs.spacing is None or isinstance(temperature, Tensor):
        return None
    count, radius = len(stairs.steps), 0
    if temperature is not None:
        saturated = _saturated(dtype)
        if temperature * stairs.spacing * count < saturated:
            return None
        radius = max(0, math.ceil(saturated / (temperature * stairs.spacing) - 0.5))
    return radius if 2 * radius + 1 + _FOLD_COST < count else None


def _saturated(dtype: torch.dtype) -> float:
    """σ of this rounds to 1."""
    return 1 - math.log(torch.finfo(dtype).eps)


def _fold(u: Tensor, stairs: Stairs, radius: int) -> tuple[Tensor, Tensor, Stairs]:
    """Seen from the threshold nearest to u that has `radius` more on either side: the distance
    of u, how many thresholds lie below those 2 radius + 1, and these."""
    first, spacing = stairs.thresholds[0], stairs.spacing
    assert spacing is not None
    nearest = u.sub(first).mul_(1 / spacing).round_()
    nearest.clamp_(radius, len(stairs.steps) - 1 - radius)
    # This threshold is exact (see _spacing), hence so is the sign of the distance: u > b_i.
    distance = u - nearest.mul(spacing).add_(first)
    offsets = tuple(spacing * k for k in range(-radius, radius + 1))
    near = Stairs(offsets, stairs.steps[: len(offsets)], spacing=spacing)
    return distance, nearest.sub_(radius), near


@lru_cache(maxsize=1024)
def _spacing(thresholds: tuple[float, ...], dtype: torch.dtype) -> float | None:
    """d > 0 if every threshold is first + i d exactly as computed in `dtype`, else None."""
    count, first = len(thresholds), thresholds[0]
    spacing = (thresholds[-1] - first) / max(count - 1, 1)
    even = torch.arange(count, dtype=dtype).mul_(spacing).add_(first)
    return spacing if spacing > 0 and even.tolist() == list(thresholds) else None


def stairs_of(
    thresholds: Tensor, steps: Sequence[int], dtype: torch.dtype, offset: float = 0.0
) -> Stairs:
    """Thresholds [n] and the n step heights, prepared for values of type `dtype`."""
    thresholds = thresholds.detach().to(dtype)
    steps = tuple(steps)
    if not on_cpu(thresholds):
        return Stairs(tuple(thresholds.unbind()), steps, offset)
    values = tuple(thresholds.tolist())
    even = len(set(steps)) == 1
    return Stairs(values, steps, offset, _spacing(values, dtype) if even else None)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type to compute in: float64 for float64, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def on_cpu(tensor: Tensor) -> bool:
    """Whether operations run one by one on a CPU, where reading a number costs nothing."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def chunks(x: Tensor) -> list[slice | EllipsisType]:
    """Cuts of the first dimension, which keep any memory format dense."""
    if not on_cpu(x) or x.numel() <= _CHUNK:
        return [...]
    rows = max(1, _CHUNK * len(x) // x.numel())
    return [slice(start, start + rows) for start in range(0, len(x), rows)]


def part_of(scale: Tensor, x: Tensor, rows: slice | EllipsisType) -> Tensor:
    """The part of a scale, which broadcasts against x, that belongs to x[rows]; a view."""
    along_first = scale.dim() == x.dim() > 0 and len(scale) == len(x)
    return scale[rows] if along_first else scale
