"""The quantizer in one pass over memory each way: loops that torch.compile fuses.

The same functions as in `qnet.staircase`, for large tensors with one alpha and one beta. Beside
the fusion it saves exponentials. With z_i = T (u - b_i) and a threshold c close to u,

    exp(-z_i) = exp(-T (u - c)) exp(T (b_i - c)),

so all levels share the exponential of their value, and the second factor is a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from qnet.compiling import warn_uncompiled
from qnet.staircase import Stairs, Temperature

_WORTH_IT = 2**18  # values; below, starting a kernel costs as much as it saves
_UNROLLED = 7  # hard thresholds compared one by one; of more, the nearest is computed
_EXPONENT = 60.0  # exp of up to this, times exp(_SPREAD), stays inside float32
_SPREAD = 20.0  # and _EXPONENT - _SPREAD is far enough for σ to round to 1
_FAR = 14.0  # σ of this is 1 but for 1e-6
_RADII = (0, 1, 3)  # few, so that a rising T compiles few kernels: at most three each way
_LONGEST = (
    32  # terms that a kernel sums; the loop is unrolled, and compiling takes longer with each
)

Kernel = Callable[..., tuple[Tensor, ...]]


class _Plan(NamedTuple):
    """How σ, or the comparison, is computed for all thresholds."""

    how: Literal["each", "shared", "near"]  # on its own; from one exponential; near u only
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
        if stairs.spacing is not None and len(thresholds) > _UNROLLED:
            plan, numbers = _Plan("near"), [thresholds[0], stairs.spacing, 1 / stairs.spacing]
    elif (radius := _radius(stairs, temperature)) is not None and stairs.spacing is not None:
        factors = [math.exp(temperature * stairs.spacing * i) for i in range(-radius, radius + 1)]
        plan = _Plan("near", radius)
        numbers = [thresholds[0], stairs.spacing, 1 / stairs.spacing, *factors]
    elif temperature * (thresholds[-1] - thresholds[0]) / 2 < _SPREAD:
        centre = (thresholds[0] + thresholds[-1]) / 2
        factors = [math.exp(temperature * (b - centre)) for b in thresholds]
        plan, numbers = _Plan("shared"), [centre, *factors]
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


def _terms(
    u: Tensor, steps: Sequence[int], plan: _Plan, numbers: Tensor
) -> tuple[Tensor | float, list[tuple[int, Tensor]]]:
    """The height that is surely climbed, and for each threshold in doubt s_i and 1 - σ_i.

    Both σ_i and 1 - σ_i end as whole numbers far from the threshold: with tiny ones the layers
    after would compute with denormal numbers, which is slow.
    """
    temperature = numbers[0]
    if plan.how == "each":
        sigmas = [torch.sigmoid((u - numbers[1 + i]) * temperature) for i in range(len(steps))]
        return 0.0, [(s, 1 - sigma) for s, sigma in zip(steps, sigmas, strict=True)]
    if plan.how == "near":
        nearest, distance = _nearest(u, len(steps), plan.radius, numbers)
        base: Tensor | float = (nearest - plan.radius) * steps[0]
        steps, factors = steps[: 2 * plan.radius + 1], numbers[4:]
    else:
        distance, base, factors = u - numbers[1], 0.0, numbers[2:]
    shared = torch.exp((distance * -temperature).clamp(-_EXPONENT, _EXPONENT))
    return base, [(s, 1 - 1 / (1 + shared * factors[i])) for i, s in enumerate(steps)]


def _nearest(u: Tensor, count: int, radius: int, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the nearest threshold with `radius` more on either side, and the distance of u."""
    first, spacing, per_spacing = numbers[1], numbers[2], numbers[3]
    nearest = torch.round((u - first) * per_spacing).clamp(radius, count - 1 - radius)
    return nearest, u - (nearest * spacing + first)


def _level(u: Tensor, steps: Sequence[int], soft: bool, plan: _Plan, numbers: Tensor) -> Tensor:
    """The staircase at u."""
    total: Tensor | float
    if soft:
        base, terms = _terms(u, steps, plan, numbers)
        total = base + float(sum(s for s, _ in terms))
        for s, rest in terms:
            total = total - s * rest
    elif plan.how == "near":
        nearest, distance = _nearest(u, len(steps), 0, numbers)
        total = (nearest + torch.where(distance > 0, 1.0, 0.0)) * steps[0]
    else:
        total = 0.0
        for i, s in enumerate(steps):
            total = total + torch.where(u > numbers[1 + i], float(s), 0.0)
    assert isinstance(total, Tensor)
    return total


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
        slope: Tensor | float = 0.0
        for s, rest in _terms(u, steps, window_plan, window)[1]:
            slope = slope + s * (rest - rest * rest)
        grad_u = grad * (alpha * window[0]) * slope
        grad_alpha, grad_beta = (grad * level).sum(), (grad_u * values).sum()
        return (grad_u * beta).to(x.dtype), grad_alpha, grad_beta

    return _compiled(backward)


def _compiled(function: Callable[..., tuple[Tensor, ...]]) -> Kernel:
    """The function compiled for any number of values.

    PyTorch keeps what it compiled, and limits how much, by code object; a kernel has its own.
    """
    assert isinstance(function, FunctionType)
    code, closure = function.__code__.replace(), function.__closure__
    own = FunctionType(code, function.__globals__, function.__name__, None, closure)
    return torch.compile(own, dynamic=True, fullgraph=True)


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
    """The values of a dense tensor in the order of memory; a view."""
    return x.detach().as_strided((x.numel(),), (1,))
