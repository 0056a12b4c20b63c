"""The quantizer in one pass over memory each way: kernels that torch.compile makes.

The same functions as in `qnet.staircase`, for large tensors with one alpha and one beta. This
module makes and calls the kernels; `qnet.plans` chooses how they compute, and `qnet.kernels` is
their arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qnet.compiling import warn_slower
from qnet.kernels import Numbers, Plan, level, window_over_t
from qnet.plans import plan_of
from qnet.staircase import Stairs, Temperature, WindowTemperature

_WORTH_IT = 2**18  # values; below, starting a kernel costs as much as it saves

Kernel = Callable[..., tuple[Tensor, ...]]


class KernelSpec(NamedTuple):
    """What is built into a kernel; the numbers of the plans are its arguments."""

    steps: tuple[int, ...]
    offset: float
    soft: bool
    plan: Plan
    window: Plan | None = None  # of the gradient, in a backward kernel
    rectified: bool = False


def fused_forward(
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    stairs: Stairs,
    temperature: Temperature | None,
) -> Tensor | None:
    """alpha (staircase(beta x) - o), like x; temperature None: hard. None if it cannot compile."""
    planned = _planned(stairs, temperature, x.device)
    if planned is None:
        return None
    plan, numbers = planned
    spec = KernelSpec(stairs.steps, stairs.offset, temperature is not None, plan)
    if torch.compiler.is_compiling():
        return _output(x, alpha, beta, spec, numbers)
    result = _call(_forward_kernel(spec), _flat(x), _scalar(alpha), _scalar(beta), numbers)
    return None if result is None else result[0].as_strided(x.shape, x.stride())


def fused_backward(
    x: Tensor,
    grad_y: Tensor,
    alpha: Tensor,
    beta: Tensor,
    stairs: Stairs,
    temperature: Temperature | None,
    window_temperature: WindowTemperature,
    rectified: bool,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The gradients of x, alpha and beta, with a window of its own; None if it cannot compile."""
    planned = _planned(stairs, temperature, x.device)
    window_planned = _planned(stairs, window_temperature, x.device)
    if planned is None or window_planned is None:
        return None
    (plan, numbers), (window_plan, window_numbers) = planned, window_planned
    soft = temperature is not None
    spec = KernelSpec(stairs.steps, stairs.offset, soft, plan, window_plan, rectified)
    if torch.compiler.is_compiling():
        return _traced_gradients(x, grad_y, alpha, beta, spec, numbers, window_numbers)
    if grad_y.stride() != x.stride():
        grad_y = torch.empty_like(x, dtype=grad_y.dtype).copy_(grad_y)
    tensors = _flat(x), _flat(grad_y), _scalar(alpha), _scalar(beta), numbers, window_numbers
    gradients = _call(_backward_kernel(spec), *tensors)
    if gradients is None:
        return None
    grad_x, grad_alpha, grad_beta = gradients
    return (
        grad_x.as_strided(x.shape, x.stride()),
        grad_alpha.reshape(alpha.shape),
        grad_beta.reshape(beta.shape),
    )


_enabled = False


def use_compiled(on: bool) -> None:
    """Turn the compiled path of large tensors on or off, in this process; it starts off."""
    global _enabled
    _enabled = on


def uses_compiled() -> bool:
    """Whether large tensors take the compiled path: turned on, and no kernel has failed since."""
    return _enabled


def applies(x: Tensor, alpha: Tensor, beta: Tensor) -> bool:
    """Whether the compiled path can take these tensors and, unless a whole network is being
    compiled, is turned on and worth it."""
    if torch.compiler.is_compiling():  # reading a size here would make it a constant
        return x.dtype != torch.float64
    return (
        _enabled
        and x.numel() > _WORTH_IT
        and x.dtype in (torch.float32, torch.bfloat16)
        and alpha.numel() == beta.numel() == 1
        and _is_dense(x)
    )


def _planned(
    stairs: Stairs, temperature: WindowTemperature | None, device: torch.device
) -> tuple[Plan, Numbers] | None:
    """The plan, and its numbers in a tensor [n] on the device; kept, except a T that may change.

    So one set of exponentials serves a staircase and a window of the same temperature.
    """
    if torch.compiler.is_compiling():
        return plan_of(stairs, temperature)
    key = Tensor if isinstance(temperature, Tensor) else temperature, device
    if key not in stairs.plans:
        planned = plan_of(stairs, temperature)
        stairs.plans[key] = planned and (planned[0], _tensor(planned[1], device))
    kept: tuple[Plan, Tensor] | None = stairs.plans[key]
    if kept is None or not isinstance(temperature, Tensor):
        return kept
    plan, numbers = kept
    return plan, torch.cat([_filled(temperature, device), numbers[1:]])


def _tensor(numbers: Sequence[Tensor | float], device: torch.device) -> Tensor:
    return torch.cat([_filled(number, device) for number in numbers])


def _filled(number: Tensor | float, device: torch.device) -> Tensor:
    """A tensor [1], filled in on the device: copying a number there would wait for it."""
    if isinstance(number, Tensor):
        return number.to(device, torch.float32).reshape(1)
    return torch.full((1,), number, dtype=torch.float32, device=device)


@lru_cache(maxsize=64)
def _forward_kernel(spec: KernelSpec) -> Kernel:
    def forward(x: Tensor, alpha: Tensor, beta: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
        return (_output(x, alpha, beta, spec, numbers),)

    return _compiled(forward)


@lru_cache(maxsize=64)
def _backward_kernel(spec: KernelSpec) -> Kernel:
    def backward(
        x: Tensor,
        grad_y: Tensor,
        alpha: Tensor,
        beta: Tensor,
        numbers: Tensor,
        window_numbers: Tensor,
    ) -> tuple[Tensor, ...]:
        grad_x, of_alpha, of_beta = _gradients(
            x.float(), grad_y.float(), alpha, beta, spec, numbers, window_numbers
        )
        return grad_x.to(x.dtype), of_alpha.sum(), of_beta.sum()

    return _compiled(backward, contract=True)


def _output(x: Tensor, alpha: Tensor, beta: Tensor, spec: KernelSpec, numbers: Numbers) -> Tensor:
    steps, offset, soft, plan, *_ = spec
    y = (level(x.float() * beta, steps, soft, plan, numbers) - offset) * alpha
    # PyTorch 2.11 loses the gradient of a result that is converted to the type it has already.
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _gradients(
    x: Tensor,
    grad_y: Tensor,
    alpha: Tensor,
    beta: Tensor,
    spec: KernelSpec,
    numbers: Numbers,
    window_numbers: Numbers,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of x, and what each value adds to those of alpha and beta."""
    steps, offset, soft, plan, window_plan, rectified = spec
    temperature = window_numbers[0]
    assert window_plan is not None
    u = x * beta
    climbed = level(u, steps, soft, plan, numbers) - offset
    window = window_over_t(u, steps, offset, window_plan, window_numbers)
    grad_u = grad_y * (alpha * temperature) * window
    if rectified:
        grad_u = torch.where(x > 0, grad_u, 0.0)
    return grad_u * beta, grad_y * climbed, grad_u * x


def _traced_gradients(
    x: Tensor, grad_y: Tensor, alpha: Tensor, beta: Tensor, spec: KernelSpec, *numbers: Numbers
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, alpha and beta in a network that is being compiled, of any alpha and
    beta."""
    shapes = alpha.shape, beta.shape
    in_order = alpha.numel() == beta.numel() == 1 and x.dim() == 4
    if in_order:  # a sum in another order than that of memory takes many times as long on a GPU
        x, grad_y = x.permute(0, 2, 3, 1), grad_y.permute(0, 2, 3, 1)
        alpha, beta = _scalar(alpha), _scalar(beta)
    grad_x, *others = _gradients(x.float(), grad_y.float(), alpha, beta, spec, *numbers)
    if in_order:
        grad_x, others = grad_x.permute(0, 3, 1, 2), [other.sum() for other in others]
    grad_alpha, grad_beta = (
        other.reshape(shape) if in_order else other.sum_to_size(shape)
        for other, shape in zip(others, shapes, strict=True)
    )
    return grad_x.to(x.dtype), grad_alpha, grad_beta


def _compiled(function: Callable[..., tuple[Tensor, ...]], contract: bool = False) -> Kernel:
    """The function compiled, for any number of values but with its own constants built in.

    PyTorch keeps what it compiled, and limits how much, per code object, so each kernel has its
    own. With `contract`, a b + c may be rounded once instead of twice: quicker, but beta x - b
    could then have another sign than uncompiled. On CUDA it always may: there a value that is
    rounded onto a threshold can get the level on its other side.
    """
    assert isinstance(function, FunctionType)
    code, closure = function.__code__.replace(), function.__closure__
    own = FunctionType(code, function.__globals__, function.__name__, None, closure)
    options: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": "fast"}
    return torch.compile(own, fullgraph=True, options=options if contract else None)


def _call(kernel: Kernel, *arguments: Numbers) -> tuple[Tensor, ...] | None:
    """What the kernel gives, or None, and a warning the first time, if it cannot be compiled."""
    try:
        return kernel(*arguments)
    except Exception as error:
        warn_slower("the step function could not be compiled and is computed uncompiled", error)
        use_compiled(False)
        return None


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )


def _scalar(scale: Tensor) -> Tensor:
    return scale.detach().reshape(())


def _flat(x: Tensor) -> Tensor:
    """A view of a dense tensor's values in the order of memory; kernels take any length of it."""
    values = x.detach().as_strided((x.numel(),), (1,))
    torch._dynamo.mark_dynamic(values, 0)
    return values
