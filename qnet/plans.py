"""Which of the ways in `qnet.kernels` computes a step function or its window with the least work.

One exponential for all thresholds where they are close together, in pairs where they are
symmetric; only those near a value where they are evenly spaced and far apart; and of a hard
function the nearest one alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from qnet.kernels import SPREAD, Plan
from qnet.staircase import Stairs, WindowTemperature, pair_constant

_UNROLLED = 7  # hard thresholds compared one by one; of more, the nearest is computed
_FAR = 14.0  # σ of this is 1 but for 1e-6
_RADII = (0, 1, 3)  # few, so that a rising T compiles few kernels: at most three each way
_LONGEST = 32  # terms that a kernel sums, unrolled: compiling takes longer with each

Planned = tuple[Plan, list[Tensor | float]]
"""A way, and the numbers it needs: T, and thresholds or what replaces them."""


def plan_of(stairs: Stairs, temperature: WindowTemperature | None) -> Planned | None:
    """How to compute the window of that temperature or, in a forward pass, the staircase
    (temperature None: the hard one).

    Returns:
        None if the kernel would have too many terms.
    """
    if isinstance(temperature, str):
        assert temperature == "straight_through", temperature
        return Plan("line"), [1.0]
    t = 1.0 if temperature is None else temperature
    plan, numbers = Plan("each"), list(stairs.thresholds)
    if not isinstance(temperature, Tensor) and not isinstance(stairs.thresholds[0], Tensor):
        plan, numbers = _best(stairs, temperature)
    return None if len(numbers) > _LONGEST else (plan, [t, *numbers])


def _best(stairs: Stairs, temperature: float | None) -> tuple[Plan, list[Tensor | float]]:
    """The plan with the least work, and its numbers except T, where all numbers are known."""
    thresholds = [float(b) for b in stairs.thresholds]
    first, spacing = thresholds[0], stairs.spacing
    if temperature is None:
        if spacing == 1.0 and first == 0.5:
            return Plan("counted"), []
        if spacing is not None and len(thresholds) > _UNROLLED:
            return Plan("near"), [first, spacing, 1 / spacing]
        return Plan("each"), [*thresholds]
    radius = _near_radius(stairs, temperature)
    if radius is not None and spacing is not None:
        pairs = [pair_constant(temperature * spacing * (i + 1)) for i in range(radius)]
        return Plan("near", radius), [first, spacing, 1 / spacing, *pairs]
    if temperature * (thresholds[-1] - first) / 2 >= SPREAD:
        return Plan("each"), [*thresholds]
    centre = (first + thresholds[-1]) / 2
    offsets = [temperature * (b - centre) for b in thresholds]
    if _is_symmetric(offsets, stairs.steps):
        upper = offsets[(len(offsets) + 1) // 2 :]
        return Plan("symmetric"), [centre, *[pair_constant(offset) for offset in upper]]
    return Plan("shared"), [centre, *[math.exp(z) for z in offsets]]


def _near_radius(stairs: Stairs, temperature: float) -> int | None:
    """The smallest of `_RADII` that is enough; None if none is or all thresholds are as quick."""
    if stairs.spacing is None:
        return None
    needed = _FAR / (temperature * stairs.spacing) - 0.5
    few = (len(stairs.steps) - 2) // 2
    return next((radius for radius in _RADII if needed <= radius < few), None)


def _is_symmetric(offsets: Sequence[float], steps: Sequence[int]) -> bool:
    """Whether thresholds and steps are the same seen from either end."""
    mirrored = zip(offsets, steps, reversed(offsets), reversed(steps), strict=True)
    return all(abs(a + b) < 1e-6 and s == t for a, s, b, t in mirrored)
