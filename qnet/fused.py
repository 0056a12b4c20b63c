"""The quantizer in one pass over memory each way: kernels that torch.compile makes.

The same functions as in `qnet.staircase`, for large tensors with one alpha and one beta. Here: how
each is best computed, and calling it; the arithmetic is `qnet.kernels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from qnet.compiling import warn_uncompiled
from qnet.kernels import SPREAD, Plan, level, pair, slope
from qnet.staircase import Stairs, Temperature

_WORTH_IT = 2**18  # values; below, starting a kernel costs as much as it saves
_UNROLLED = 7  # hard thresholds compared one by one; of more, the nearest is computed
_FAR = 14.0  # σ of this is 1 but for 1e-6
_RADII = (0, 1, 3)  # few, so that a rising T compiles few kernels: at most three each way
_LONGEST = (
    32  # terms that a kernel sums; the loop is unrolled, and compiling takes longer with each
)

Kernel = Callable[..., tuple[Tensor, ...]]


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
        and not torch.compiler.is_compiling()  # before sizes, which it would take for fixed
        and x.numel() > _WORTH_IT
        and x.dtype in (torch.float32, torch.bfloat16)
        and alpha.numel() == beta.numel() == 1
        and _is_dense(x)
    )


def _planned(stairs: Stairs, temperature: Temperature | None) -> tuple[Plan, Tensor] | None:
    """The way to compute it, and the numbers this needs: T, thresholds or what replaces them.

    None where a kernel would be too long.
    """
    if isinstance(temperature, Tensor) or isinstance(stairs.thresholds[0], Tensor):
        return _planned_on_device(stairs, temperature)
    thresholds = [float(b) for b in stairs.thresholds]
    numbers, plan = thresholds, Plan("each")
    if temperature is None:
        if stairs.spacing == 1.0 and thresholds[0] == 0.5:
            plan, numbers = Plan("counted"), []
        elif stairs.spacing is not None and len(thresholds) > _UNROLLED:
            plan, numbers = Plan("near"), [thresholds[0], stairs.spacing, 1 / stairs.spacing]
    elif (radius := _radius(stairs, temperature)) is not None and stairs.spacing is not None:
        pairs = [pair(temperature * stairs.spacing * (i + 1)) for i in range(radius)]
        plan = Plan("near", radius)
        numbers = [thresholds[0], stairs.spacing, 1 / stairs.spacing, *pairs]
    elif temperature * (thresholds[-1] - thresholds[0]) / 2 < SPREAD:
        centre = (thresholds[0] + thresholds[-1]) / 2
        offsets = [temperature * (b - centre) for b in thresholds]
        if _is_even(offsets, stairs.steps):
            plan = Plan("even")
            numbers = [centre, *(pair(offset) for offset in offsets[(len(offsets) + 1) // 2 :])]
        else:
            plan, numbers = Plan("shared"), [centre, *(math.exp(z) for z in offsets)]
    if len(numbers) > _LONGEST:
        return None
    return plan, torch.tensor([temperature or 1.0, *numbers])


def _planned_on_device(
    stairs: Stairs, temperature: Temperature | None
) -> tuple[Plan, Tensor] | None:
    """The same where reading a number would wait for the device."""
    if len(stairs.thresholds) > _LONGEST:
        return None
    thresholds = torch.stack([torch.as_tensor(b) for b in stairs.thresholds])
    if isinstance(temperature, Tensor):
        t = temperature.to(thresholds).reshape(1)
    else:  # filled there: a number that is copied there waits for the device
        t = thresholds.new_full((1,), 1.0 if temperature is None else temperature)
    return Plan("each"), torch.cat([t, thresholds])


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


@lru_cache(maxsize=64)
def _forward_kernel(steps: tuple[int, ...], offset: float, soft: bool, plan: Plan) -> Kernel:
    def forward(x: Tensor, alpha: Tensor, beta: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
        climbed = level(x.float() * beta, steps, soft, plan, numbers) - offset
        return ((climbed * alpha).to(x.dtype),)

    return _compiled(forward)


@lru_cache(maxsize=64)
def _backward_kernel(
    steps: tuple[int, ...], offset: float, soft: bool, plan: Plan, window_plan: Plan
) -> Kernel:
    def backward(
        x: Tensor, grad_y: Tensor, alpha: Tensor, beta: Tensor, numbers: Tensor, window: Tensor
    ) -> tuple[Tensor, ...]:
        values, grad = x.float(), grad_y.float()
        u = values * beta
        climbed = level(u, steps, soft, plan, numbers) - offset
        grad_u = grad * (alpha * window[0]) * slope(u, steps, window_plan, window)
        grad_alpha, grad_beta = (grad * climbed).sum(), (grad_u * values).sum()
        return (grad_u * beta).to(x.dtype), grad_alpha, grad_beta

    return _compiled(backward, contract=True)


def _compiled(function: Callable[..., tuple[Tensor, ...]], contract: bool = False) -> Kernel:
    """The function compiled, for any number of values but with its own constants built in.

    PyTorch keeps what it compiled, and limits how much, by code object; a kernel has its own.
    With `contract`, a b + c may be rounded once and not twice: quicker, but beta x - b could then
    have another sign than the same computed uncompiled.
    """
    assert isinstance(function, FunctionType)
    code, closure = function.__code__.replace(), function.__closure__
    own = FunctionType(code, function.__globals__, function.__name__, None, closure)
    options: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": "fast"}
    return torch.compile(own, fullgraph=True, options=options if contract else None)


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
