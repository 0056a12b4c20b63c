"""The quantizer in one pass over memory each way: loops that torch.compile fuses.

The same functions as in `qnet.staircase`, for large tensors with one alpha and one beta. On a
processor the time goes into arithmetic, so there is less of it than in the formulas. All levels
share the exponential of their value: with z = T (u - c) for a c close to u,

    exp(-z_i) = exp(-T (u - b_i)) = exp(-z) exp(T (b_i - c)),

and the second factor is a constant. Where thresholds lie symmetrically about c, E = exp(-|z|) and a
pair at c ± a needs one division: with k = 2 cosh(T a) and D = 1 + k E + E²

    Σ σ_i = E (k + 2 E) / D,  for z > 0: 2 less that,    Σ σ_i (1 - σ_i) = E (k + 4 E + k E²) / D².
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from qnet.compiling import warn_uncompiled
from qnet.staircase import Stairs, Temperature

_WORTH_IT = 2**18  # values; below, starting a kernel costs as much as it saves
_UNROLLED = 7  # hard thresholds compared one by one; of more, the nearest is computed
_EXPONENT = 37.0  # exp of up to this, times exp(_SPREAD), stays inside float32
_SPREAD = 20.0  # and _EXPONENT - _SPREAD is far enough for σ to round to 1
_NOTHING = 128.0  # exp of minus this is 0
_FAR = 14.0  # σ of this is 1 but for 1e-6
_RADII = (0, 1, 3)  # few, so that a rising T compiles few kernels: at most three each way
_LONGEST = (
    32  # terms that a kernel sums; the loop is unrolled, and compiling takes longer with each
)

_OPTIONS: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": "fast"}  # a b + c as one

Kernel = Callable[..., tuple[Tensor, ...]]


class _Plan(NamedTuple):
    """How σ, or the comparison, is computed for all thresholds."""

    # Each on its own; from one exponential; from one and in pairs; pairs near u only; counted,
    # where thresholds are 1/2, 3/2, 5/2 ...
    how: Literal["each", "shared", "even", "near", "counted"]
    radius: int = 0  # near: thresholds on either side of the nearest one


def fused_forward(
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    stairs: Stairs,
    offset: float,
    temperature: Temperature | None,
) -> Tensor | None:
    """alpha (staircase(beta x) - o), like x; temperature None: hard. None if it cannot compile."""
    planned = _planned(stairs, temperature)
    if planned is None:
        return None
    plan, numbers = planned
    kernel = _forward_kernel(tuple(stairs.steps), offset, temperature is not None, plan)
    found = _call(kernel, _flat(x), _scalar(alpha), _scalar(beta), numbers)
    return None if found is None else found[0].as_strided(x.shape, x.stride())


def fused_backward(
    x: Tensor,
    grad_y: Tensor,
    alpha: Tensor,
    beta: Tensor,
    stairs: Stairs,
    offset: float,
    temperature: Temperature | None,
    window: Temperature,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The gradients of x, alpha and beta, with the window at a temperature of its own; None if it
    cannot compile."""
    planned, window_planned = _planned(stairs, temperature), _planned(stairs, window)
    if planned is None or window_planned is None:
        return None
    (plan, numbers), (window_plan, window_numbers) = planned, window_planned
    if isinstance(window, float) and isinstance(temperature, float) and temperature == window:
        window_numbers = numbers  # one set of exponentials then serves both
    if grad_y.stride() != x.stride():
        grad_y = torch.empty_like(x, dtype=grad_y.dtype).copy_(grad_y)
    soft = temperature is not None
    kernel = _backward_kernel(tuple(stairs.steps), offset, soft, plan, window_plan)
    tensors = (_flat(x), _flat(grad_y), _scalar(alpha), _scalar(beta), numbers, window_numbers)
    found = _call(kernel, *tensors)
    if found is None:
        return None
    grad_x, grad_alpha, grad_beta = found
    return (
        grad_x.as_strided(x.shape, x.stride()),
        grad_alpha.reshape(alpha.shape),
        grad_beta.reshape(beta.shape),
    )


class _Switch:
    on = False


def use_compiled(on: bool) -> None:
    """Whether large tensors take the compiled path, in this process; off unless turned on."""
    _Switch.on = on


def applies(x: Tensor, alpha: Tensor, beta: Tensor) -> bool:
    """Whether the compiled path is turned on, serves these tensors and is worth it."""
    return (
        _Switch.on
        and x.numel() > _WORTH_IT
        and x.dtype in (torch.float32, torch.bfloat16)
        and alpha.numel() == beta.numel() == 1
        and not torch.compiler.is_compiling()
        and _is_dense(x)
    )


def _planned(stairs: Stairs, temperature: Temperature | None) -> tuple[_Plan, Tensor] | None:
    """The way to compute it, and the numbers this needs: T, thresholds or what replaces them.

    None where a kernel would be too long.
    """
    if isinstance(temperature, Tensor) or isinstance(stairs.thresholds[0], Tensor):
        return _planned_on_device(stairs, temperature)
    thresholds = [float(b) for b in stairs.thresholds]
    numbers, plan = thresholds, _Plan("each")
    if temperature is None:
        if stairs.spacing == 1.0 and thresholds[0] == 0.5:
            plan, numbers = _Plan("counted"), []
        elif stairs.spacing is not None and len(thresholds) > _UNROLLED:
            plan, numbers = _Plan("near"), [thresholds[0], stairs.spacing, 1 / stairs.spacing]
    elif (radius := _radius(stairs, temperature)) is not None and stairs.spacing is not None:
        pairs = [_pair(temperature * stairs.spacing * (i + 1)) for i in range(radius)]
        plan = _Plan("near", radius)
        numbers = [thresholds[0], stairs.spacing, 1 / stairs.spacing, *pairs]
    elif temperature * (thresholds[-1] - thresholds[0]) / 2 < _SPREAD:
        centre = (thresholds[0] + thresholds[-1]) / 2
        offsets = [temperature * (b - centre) for b in thresholds]
        if _is_even(offsets, stairs.steps):
            plan = _Plan("even")
            numbers = [centre, *(_pair(offset) for offset in offsets[(len(offsets) + 1) // 2 :])]
        else:
            plan, numbers = _Plan("shared"), [centre, *(math.exp(z) for z in offsets)]
    if len(numbers) > _LONGEST:
        return None
    return plan, torch.tensor([temperature or 1.0, *numbers])


def _planned_on_device(
    stairs: Stairs, temperature: Temperature | None
) -> tuple[_Plan, Tensor] | None:
    """The same where reading a number would wait for the device."""
    if len(stairs.thresholds) > _LONGEST:
        return None
    thresholds = torch.stack([torch.as_tensor(b) for b in stairs.thresholds])
    if isinstance(temperature, Tensor):
        t = temperature.to(thresholds).reshape(1)
    else:  # filled there: a number that is copied there waits for the device
        t = thresholds.new_full((1,), 1.0 if temperature is None else temperature)
    return _Plan("each"), torch.cat([t, thresholds])


def _radius(stairs: Stairs, temperature: float) -> int | None:
    """Of `_RADII` the smallest that serves; None if none does or all thresholds are as quick."""
    if stairs.spacing is None:
        return None
    needed = _FAR / (temperature * stairs.spacing) - 0.5
    few = (len(stairs.steps) - 2) // 2
    return next((radius for radius in _RADII if needed <= radius < few), None)


def _is_even(offsets: Sequence[float], steps: Sequence[int]) -> bool:
    """Whether thresholds and steps are the same seen from either end."""
    mirrored = zip(offsets, steps, reversed(offsets), reversed(steps), strict=True)
    return all(abs(a + b) < 1e-6 and s == t for a, s, b, t in mirrored)


def _pair(offset: float) -> float:
    """k of two thresholds that lie T a = `offset` on either side of the centre."""
    return 2 * math.cosh(offset)


def _terms(
    u: Tensor, steps: Sequence[int], plan: _Plan, numbers: Tensor
) -> list[tuple[int, Tensor]]:
    """For each threshold s_i and 1 - σ_i.

    Both σ_i and 1 - σ_i end as whole numbers far from the threshold: with tiny ones the layers
    after would compute with denormal numbers, which is slow.
    """
    temperature = numbers[0]
    if plan.how == "each":
        sigmas = [torch.sigmoid((u - numbers[1 + i]) * temperature) for i in range(len(steps))]
        return [(s, 1 - sigma) for s, sigma in zip(steps, sigmas, strict=True)]
    shared = _exp(((u - numbers[1]) * -temperature).clamp(-_EXPONENT, _EXPONENT))
    return [(s, 1 - 1 / (1 + shared * numbers[2 + i])) for i, s in enumerate(steps)]


class _Even(NamedTuple):
    """What the value does among thresholds that lie symmetrically about a centre."""

    below: Tensor | float  # the height that is climbed before the first of them
    above: Tensor  # whether the value is above the centre
    e: Tensor  # E
    middle: tuple[int, Tensor] | None  # of the threshold at the centre: s_i and 1 / (1 + E)²
    pairs: list[tuple[int, Tensor, Tensor]]  # s_i, k and 1 / D
    total: int  # Σ s_i of them


def _even(u: Tensor, steps: Sequence[int], plan: _Plan, numbers: Tensor) -> _Even:
    below: Tensor | float = 0.0
    if plan.how == "near":
        nearest, distance = _nearest(u, len(steps), plan.radius, numbers)
        below = (nearest - plan.radius) * steps[0]
        steps, constants = steps[: 2 * plan.radius + 1], numbers[4:]
    else:
        distance, constants = u - numbers[1], numbers[2:]
    e = _exp(-(distance * numbers[0]).abs().clamp(max=_NOTHING))
    square = 1 + e**2
    upper = steps[(len(steps) + 1) // 2 :]
    pairs = [(s, constants[i], 1 / (square + constants[i] * e)) for i, s in enumerate(upper)]
    middle = (steps[len(steps) // 2], 1 / (square + 2 * e)) if len(steps) % 2 else None
    return _Even(below, distance > 0, e, middle, pairs, sum(steps))


def _even_level(even: _Even) -> Tensor:
    """Σ s_i σ_i."""
    level: Tensor | float = 0.0
    for s, k, inverse in even.pairs:
        level = level + s * (k + 2 * even.e) * inverse
    if even.middle is not None:
        s, inverse = even.middle
        level = level + s * (1 + even.e) * inverse
    level = level * even.e
    return even.below + torch.where(even.above, even.total - level, level)


def _even_slope(even: _Even) -> Tensor:
    """Σ s_i σ_i (1 - σ_i)."""
    slope: Tensor | float = 0.0
    square, four = 1 + even.e**2, 4 * even.e
    for s, k, inverse in even.pairs:
        slope = slope + s * (k * square + four) * inverse**2
    if even.middle is not None:
        s, inverse = even.middle
        slope = slope + s * inverse
    return slope * even.e


def _exp(z: Tensor) -> Tensor:
    """exp(z / 64), a polynomial, to the power of 64: in a fused loop cheaper than torch.exp.

    Right to 4e-6 for |z| up to `_SPREAD`, where thresholds lie; further out σ is 0 or 1 anyway.
    """
    z = z * (1 / 64)
    result = z * (1 / 720) + 1 / 120
    for coefficient in (1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        result = result * z + coefficient
    return (result**8) ** 8


def _nearest(u: Tensor, count: int, radius: int, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the nearest threshold with `radius` more on either side, and the distance of u."""
    first, spacing, per_spacing = numbers[1], numbers[2], numbers[3]
    nearest = torch.round((u - first) * per_spacing).clamp(radius, count - 1 - radius)
    return nearest, u - (nearest * spacing + first)


def _level(u: Tensor, steps: Sequence[int], soft: bool, plan: _Plan, numbers: Tensor) -> Tensor:
    """The staircase at u."""
    total: Tensor | float
    if soft and plan.how in ("even", "near"):
        total = _even_level(_even(u, steps, plan, numbers))
    elif soft:
        total = float(sum(steps))
        for s, rest in _terms(u, steps, plan, numbers):
            total = total - s * rest
    elif plan.how == "counted":  # u - 1/2 is exact where it is near a whole number above zero
        total = torch.ceil(u - 0.5).clamp(0, len(steps)) * steps[0]
    elif plan.how == "near":
        nearest, distance = _nearest(u, len(steps), 0, numbers)
        total = (nearest + torch.where(distance > 0, 1.0, 0.0)) * steps[0]
    else:
        total = 0.0
        for i, s in enumerate(steps):
            total = total + torch.where(u > numbers[1 + i], float(s), 0.0)
    assert isinstance(total, Tensor)
    return total


def _slope(u: Tensor, steps: Sequence[int], plan: _Plan, numbers: Tensor) -> Tensor:
    """Σ s_i σ_i (1 - σ_i) at u."""
    if plan.how in ("even", "near"):
        return _even_slope(_even(u, steps, plan, numbers))
    slope: Tensor | float = 0.0
    for s, rest in _terms(u, steps, plan, numbers):
        slope = slope + s * (rest - rest**2)
    assert isinstance(slope, Tensor)
    return slope


@lru_cache(maxsize=64)
def _forward_kernel(steps: tuple[int, ...], offset: float, soft: bool, plan: _Plan) -> Kernel:
    def forward(x: Tensor, alpha: Tensor, beta: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
        level = _level(x.float() * beta, steps, soft, plan, numbers) - offset
        return ((level * alpha).to(x.dtype),)

    return _compiled(forward)


@lru_cache(maxsize=64)
def _backward_kernel(
    steps: tuple[int, ...], offset: float, soft: bool, plan: _Plan, window_plan: _Plan
) -> Kernel:
    def backward(
        x: Tensor, grad_y: Tensor, alpha: Tensor, beta: Tensor, numbers: Tensor, window: Tensor
    ) -> tuple[Tensor, ...]:
        values, grad = x.float(), grad_y.float()
        u = values * beta
        level = _level(u, steps, soft, plan, numbers) - offset
        grad_u = grad * (alpha * window[0]) * _slope(u, steps, window_plan, window)
        grad_alpha, grad_beta = (grad * level).sum(), (grad_u * values).sum()
        return (grad_u * beta).to(x.dtype), grad_alpha, grad_beta

    return _compiled(backward)


def _compiled(function: Callable[..., tuple[Tensor, ...]]) -> Kernel:
    """The function compiled, for any number of values but with its own constants built in.

    The compiler looks at an intermediate result once for each use, so powers are written as powers:
    x * x would take twice as long to compile as x**2, and so would whatever is computed from it.

    PyTorch keeps what it compiled, and limits how much, by code object; a kernel has its own.
    """
    assert isinstance(function, FunctionType)
    code, closure = function.__code__.replace(), function.__closure__
    own = FunctionType(code, function.__globals__, function.__name__, None, closure)
    return torch.compile(own, fullgraph=True, options=_OPTIONS)


def _call(kernel: Kernel, *tensors: Tensor) -> tuple[Tensor, ...] | None:
    """What the kernel gives, or None, and a warning the first time, if it cannot be compiled."""
    try:
        return kernel(*tensors)
    except Exception as error:
        warn_uncompiled("the step function", error)
        _Switch.on = False
        return None


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )


def _scalar(scale: Tensor) -> Tensor:
    return scale.detach().reshape(())


def _flat(x: Tensor) -> Tensor:
    """The values of a dense tensor in the order of memory; a view, of any length to a kernel."""
    values = x.detach().as_strided((x.numel(),), (1,))
    torch._dynamo.mark_dynamic(values, 0)
    return values
