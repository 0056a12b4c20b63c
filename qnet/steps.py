"""The staircase as a differentiable function: soft or hard forward, a window for a gradient.

Yang et al., "Quantization Networks", CVPR 2019 (arXiv 1911.09464), equations 2 to 4, with
u = beta x, thresholds b_i, step heights s_i, offset o and the logistic function σ:

    hard    y = alpha (Σ s_i [u > b_i] - o)             one of the levels, times alpha
    soft    y = alpha (Σ s_i σ(T (u - b_i)) - o)        becomes hard as the temperature T grows

    ∂y/∂x = alpha beta w    ∂y/∂beta = alpha x w    ∂y/∂alpha = y / alpha
    ∂y/∂b_i = -alpha s_i T σ_i (1 - σ_i)            w = T Σ s_i σ_i (1 - σ_i), the window

The window may have a temperature of its own, or be 1 between the outermost levels and 0 beyond; it
then stands in for the gradient of either form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qnet.errors import UserError
from qnet.fused import applies, fused_backward, fused_forward
from qnet.staircase import (
    Stairs,
    Temperature,
    WindowTemperature,
    chunks,
    compute_dtype,
    on_cpu,
    part_of,
    staircase,
    stairs_of,
    window,
)


class Quantize(torch.autograd.Function):
    """alpha (staircase(beta x) - o); keeps x for the backward pass and nothing else of its size."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        alpha: Tensor,
        beta: Tensor,
        thresholds: Tensor,
        stairs: Stairs,
        temperature: Temperature | None,
        window_temperature: WindowTemperature | None,
        rectified: bool,
    ) -> Tensor:
        """Temperature None: the hard staircase. Window temperature None: no gradient. Rectified:
        x and beta have no gradient where x <= 0, as behind a ReLU.

        The thresholds are those of `stairs`, whose type is `compute_dtype(x)`; the tensor is there
        for its gradient.
        """
        temperature, window_temperature = _constant(temperature), _constant(window_temperature)
        ctx.save_for_backward(x, alpha, beta, thresholds)
        ctx.stairs, ctx.rectified = stairs, rectified
        ctx.temperature, ctx.window_temperature = temperature, window_temperature
        dtype = compute_dtype(x)
        if applies(x, alpha, beta):
            fused = fused_forward(x, alpha, beta, stairs, temperature)
            if fused is not None:
                return fused
        y = torch.empty_like(x)
        for rows in chunks(x):
            u = x[rows].to(dtype) * part_of(beta, x, rows).to(dtype)
            y[rows] = staircase(u, stairs, temperature).mul_(part_of(alpha, x, rows).to(dtype))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, alpha, beta and thresholds that are asked for."""
        x, alpha, beta, thresholds = ctx.saved_tensors
        need_x, need_alpha, need_beta, need_thresholds = ctx.needs_input_grad[:4]
        dtype, stairs = compute_dtype(x), ctx.stairs
        temperature, window_temperature = ctx.temperature, ctx.window_temperature
        if window_temperature is not None and not need_thresholds and applies(x, alpha, beta):
            grads = fused_backward(
                x, grad_y, alpha, beta, stairs, temperature, window_temperature, ctx.rectified
            )
            if grads is not None:
                return *grads, None, None, None, None, None

        new_like = torch.zeros_like if window_temperature is None else torch.empty_like
        grad_x = new_like(x) if need_x else None
        grad_alpha = torch.zeros_like(alpha, dtype=dtype) if need_alpha else None
        grad_beta = torch.zeros_like(beta, dtype=dtype) if need_beta else None
        grad_thresholds = torch.zeros_like(thresholds, dtype=dtype) if need_thresholds else None

        for rows in chunks(x):
            x_part, grad = x[rows].to(dtype), grad_y[rows].to(dtype)
            beta_part, alpha_part = (
                part_of(beta, x, rows).to(dtype),
                part_of(alpha, x, rows).to(dtype),
            )
            u = x_part * beta_part
            if grad_alpha is not None:
                level = staircase(u, stairs, temperature)
                _accumulate(part_of(grad_alpha, x, rows), level.mul_(grad))
            if window_temperature is None or not (need_x or need_beta or need_thresholds):
                continue
            grad = grad * alpha_part
            if ctx.rectified:
                grad.mul_(x_part > 0)
            if grad_thresholds is not None:
                for i, step in enumerate(stairs.steps):
                    threshold = stairs.thresholds[i]
                    grad_thresholds[i] -= (
                        grad * window(u, Stairs((threshold,), (step,)), window_temperature)
                    ).sum()
            grad_u = window(u, stairs, window_temperature).mul_(grad)
            if grad_beta is not None:
                _accumulate(part_of(grad_beta, x, rows), grad_u * x_part)
            if grad_x is not None:
                grad_x[rows] = grad_u.mul_(beta_part)

        return grad_x, grad_alpha, grad_beta, grad_thresholds, None, None, None, None


def _constant(temperature: Any) -> Any:
    """The temperature as it is now, whatever is assigned before the backward pass."""
    if not isinstance(temperature, Tensor):
        return temperature
    return temperature.item() if on_cpu(temperature) else temperature.clone()


def _accumulate(total: Tensor, values: Tensor) -> None:
    total += values.sum_to_size(total.shape)


def soft_steps(
    x: Tensor,
    thresholds: Tensor,
    steps: Sequence[int],
    temperature: Temperature,
    backward_temperature: Temperature | Literal["exact"] = "exact",
) -> Tensor:
    """The soft staircase Σ s_i σ(T (x - b_i)), differentiable in x and thresholds.

    Args:
        x: values of any shape; finite.
        thresholds: [n], strictly increasing, in units of x.
        steps: the n heights s_i.
        temperature: T.
        backward_temperature: temperature of the gradient; "exact": T.

    Returns:
        Tensor like x, between 0 and Σ s_i.

    Raises:
        UserError: x is not of a floating type, a temperature is not above zero, or there are not
            as many heights as thresholds.
    """
    _check("soft_steps", x, thresholds, steps, temperature)
    if backward_temperature != "exact":
        _check("soft_steps", x, thresholds, steps, backward_temperature)
    window_temperature = temperature if backward_temperature == "exact" else backward_temperature
    if isinstance(window_temperature, Tensor):
        window_temperature = window_temperature.clone()  # torch.compile accepts no tensor twice
    return _unscaled(x, thresholds, steps, temperature, window_temperature)


def hard_steps(
    x: Tensor,
    thresholds: Tensor,
    steps: Sequence[int],
    backward_temperature: Temperature | None = None,
) -> Tensor:
    """The hard staircase Σ s_i [x > b_i].

    Args:
        x: values of any shape; finite.
        thresholds: [n], strictly increasing, in units of x.
        steps: the n heights s_i.
        backward_temperature: the gradient is the soft staircase's at this temperature; None: zero.

    Returns:
        Tensor like x, of whole numbers.

    Raises:
        UserError: x is not of a floating type, the temperature is not above zero, or there are not
            as many heights as thresholds.
    """
    _check("hard_steps", x, thresholds, steps, backward_temperature)
    return _unscaled(x, thresholds, steps, None, backward_temperature)


def _unscaled(
    x: Tensor,
    thresholds: Tensor,
    steps: Sequence[int],
    temperature: Temperature | None,
    window_temperature: Temperature | None,
) -> Tensor:
    stairs = stairs_of(thresholds, steps, compute_dtype(x))
    alpha, beta = x.new_ones(()), x.new_ones(())
    return Quantize.apply(
        x, alpha, beta, thresholds, stairs, temperature, window_temperature, False
    )


def _check(
    name: str, x: Tensor, thresholds: Tensor, steps: Sequence[int], temperature: object
) -> None:
    if not x.is_floating_point():
        raise UserError(f"{name}: x is of {x.dtype}; convert it to a floating type first")
    if len(steps) != len(thresholds):
        raise UserError(
            f"{name}: {len(thresholds)} thresholds and {len(steps)} heights; give one height for "
            "each threshold"
        )
    if isinstance(temperature, Tensor) or temperature is None:
        return  # to read a tensor would wait for its device
    if isinstance(temperature, str) or not temperature > 0:  # type: ignore[operator]
        raise UserError(f"{name}: temperature {temperature!r}; give a number above zero")
