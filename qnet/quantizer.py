"""The quantizer of Quantization Networks: one differentiable staircase for weights and activations.

Yang et al., "Quantization Networks", CVPR 2019 (arXiv 1911.09464), equations 2 to 4, with
u = beta x, thresholds b_i, step heights s_i, offset o and the logistic function σ:

    hard    y = alpha (Σ s_i [u > b_i] - o)             one of the levels, times alpha
    soft    y = alpha (Σ s_i σ(T (u - b_i)) - o)        becomes hard as the temperature T grows

    ∂y/∂x = alpha beta w    ∂y/∂beta = alpha x w    ∂y/∂alpha = y / alpha
    ∂y/∂b_i = -alpha s_i T σ_i (1 - σ_i)            w = T Σ s_i σ_i (1 - σ_i), the window

The window may have a temperature of its own, and then stands in for the gradient of either form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import EllipsisType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qnet.errors import UserError
from qnet.levels import LevelSet

Temperature = Tensor | float
"""0-dim tensor or number, above zero."""

_SATURATED = 40.0  # σ(40) rounds to 1; from 88 on a CPU takes twice as long, for denormal numbers
_CHUNK = 2**18  # values at a time on a CPU: the few buffers of a chunk stay in its cache
_FOLD_COST = 2  # folding costs about as much as this many thresholds


# --- The arithmetic: functions of tensors, without autograd ----------------------------------


def _forward(
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


def _window(
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


@dataclass(frozen=True)
class _Stairs:
    """Thresholds and step heights, as numbers where reading them does not wait for a device."""

    thresholds: Sequence[Tensor | float]
    steps: Sequence[int]
    spacing: float | None = None  # of evenly spaced thresholds with equal steps


def _sum(u: Tensor, stairs: _Stairs, temperature: Temperature | None) -> Tensor:
    """`_forward`, of only the thresholds near each value where that is less work."""
    radius = _radius(stairs, temperature, u.dtype)
    if radius is None:
        return _forward(u, stairs.thresholds, stairs.steps, temperature)
    distance, below, near = _fold(u, stairs, radius)
    return _forward(distance, near.thresholds, near.steps, temperature).add_(
        below, alpha=stairs.steps[0]
    )


def _slope(u: Tensor, stairs: _Stairs, temperature: Temperature) -> Tensor:
    """`_window`, of only the thresholds near each value where that is less work."""
    radius = _radius(stairs, temperature, u.dtype)
    if radius is None:
        return _window(u, stairs.thresholds, stairs.steps, temperature)
    distance, _, near = _fold(u, stairs, radius)
    return _window(distance, near.thresholds, near.steps, temperature)


def _radius(stairs: _Stairs, temperature: Temperature | None, dtype: torch.dtype) -> int | None:
    """How many thresholds on either side of the nearest one are not yet 0 or 1 to `dtype`'s
    precision; None if a loop over all thresholds is as fast."""
    if stairs.spacing is None or isinstance(temperature, Tensor):
        return None
    count, radius = len(stairs.steps), 0
    if temperature is not None:
        saturated = 1 - math.log(torch.finfo(dtype).eps)  # σ(saturated) rounds to 1
        if temperature * stairs.spacing * count < saturated:
            return None
        radius = max(0, math.ceil(saturated / (temperature * stairs.spacing) - 0.5))
    return radius if 2 * radius + 1 + _FOLD_COST < count else None


def _fold(u: Tensor, stairs: _Stairs, radius: int) -> tuple[Tensor, Tensor, _Stairs]:
    """Seen from the threshold nearest to u that has `radius` more on either side: the distance
    of u, how many thresholds lie below those 2 radius + 1, and these."""
    first, spacing = stairs.thresholds[0], stairs.spacing
    assert spacing is not None
    nearest = u.sub(first).mul_(1 / spacing).round_()
    nearest.clamp_(radius, len(stairs.steps) - 1 - radius)
    # This threshold is exact (see _spacing), hence so is the sign of the distance: u > b_i.
    distance = u - nearest.mul(spacing).add_(first)
    offsets = range(-radius, radius + 1)
    near = _Stairs([spacing * k for k in offsets], [stairs.steps[0]] * len(offsets))
    return distance, nearest.sub_(radius), near


@lru_cache(maxsize=1024)
def _spacing(thresholds: tuple[float, ...], dtype: torch.dtype) -> float | None:
    """d > 0 if every threshold is first + i d exactly as computed in `dtype`, else None."""
    count, first = len(thresholds), thresholds[0]
    spacing = (thresholds[-1] - first) / max(count - 1, 1)
    even = torch.arange(count, dtype=dtype).mul_(spacing).add_(first)
    return spacing if spacing > 0 and even.tolist() == list(thresholds) else None


def _stairs(thresholds: Tensor, steps: Sequence[int], dtype: torch.dtype) -> _Stairs:
    thresholds = thresholds.to(dtype)
    if not _on_cpu(thresholds):
        return _Stairs(thresholds.unbind(), steps)
    values = thresholds.tolist()
    even = len(set(steps)) == 1
    return _Stairs(values, steps, _spacing(tuple(values), dtype) if even else None)


# --- Autograd --------------------------------------------------------------------------------


class _Quantize(torch.autograd.Function):
    """alpha (staircase(beta x) - o); keeps x for the backward pass and nothing else of its size.

    A temperature of None is the hard staircase, a window temperature of None no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        alpha: Tensor,
        beta: Tensor,
        thresholds: Tensor,
        steps: Sequence[int],
        offset: float,
        temperature: Temperature | None,
        window_temperature: Temperature | None,
    ) -> Tensor:
        temperature, window_temperature = _constant(temperature), _constant(window_temperature)
        ctx.save_for_backward(x, alpha, beta, thresholds)
        ctx.steps, ctx.offset = steps, offset
        ctx.temperature, ctx.window_temperature = temperature, window_temperature
        dtype = _compute_dtype(x)
        stairs = _stairs(thresholds, steps, dtype)
        y = torch.empty_like(x)
        for rows in _chunks(x):
            u = x[rows].to(dtype) * _part(beta, x, rows).to(dtype)
            level = _sum(u, stairs, temperature).sub_(offset)
            y[rows] = level.mul_(_part(alpha, x, rows).to(dtype))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, beta, thresholds = ctx.saved_tensors
        need_x, need_alpha, need_beta, need_thresholds = ctx.needs_input_grad[:4]
        dtype = _compute_dtype(x)
        stairs = _stairs(thresholds, ctx.steps, dtype)
        temperature, window = ctx.temperature, ctx.window_temperature

        new_like = torch.zeros_like if window is None else torch.empty_like
        grad_x = new_like(x) if need_x else None
        grad_alpha = torch.zeros_like(alpha, dtype=dtype) if need_alpha else None
        grad_beta = torch.zeros_like(beta, dtype=dtype) if need_beta else None
        grad_thresholds = torch.zeros_like(thresholds, dtype=dtype) if need_thresholds else None

        for rows in _chunks(x):
            x_part, grad = x[rows].to(dtype), grad_y[rows].to(dtype)
            beta_part, alpha_part = _part(beta, x, rows).to(dtype), _part(alpha, x, rows).to(dtype)
            u = x_part * beta_part
            if grad_alpha is not None:
                level = _sum(u, stairs, temperature).sub_(ctx.offset)
                _accumulate(_part(grad_alpha, x, rows), level.mul_(grad))
            if window is None or not (need_x or need_beta or need_thresholds):
                continue
            grad = grad * alpha_part
            if grad_thresholds is not None:
                for i, step in enumerate(stairs.steps):
                    threshold = stairs.thresholds[i]
                    grad_thresholds[i] -= (grad * _window(u, [threshold], [step], window)).sum()
            grad_u = _slope(u, stairs, window).mul_(grad)
            if grad_beta is not None:
                _accumulate(_part(grad_beta, x, rows), grad_u * x_part)
            if grad_x is not None:
                grad_x[rows] = grad_u.mul_(beta_part)

        return grad_x, grad_alpha, grad_beta, grad_thresholds, None, None, None, None


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _on_cpu(tensor: Tensor) -> bool:
    """Whether operations run one by one on a CPU, where reading a number costs nothing."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _constant(temperature: Temperature | None) -> Temperature | None:
    """The temperature as it is now, whatever is assigned before the backward pass."""
    if not isinstance(temperature, Tensor):
        return temperature
    return temperature.item() if _on_cpu(temperature) else temperature.clone()


def _chunks(x: Tensor) -> list[slice | EllipsisType]:
    """Cuts of the first dimension, which keep any memory format dense."""
    if not _on_cpu(x) or x.numel() <= _CHUNK:
        return [...]
    rows = max(1, _CHUNK * len(x) // x.numel())
    return [slice(start, start + rows) for start in range(0, len(x), rows)]


def _part(scale: Tensor, x: Tensor, rows: slice | EllipsisType) -> Tensor:
    """What of a scale that broadcasts against x belongs to x[rows]; a view."""
    along_first = scale.dim() == x.dim() > 0 and len(scale) == len(x)
    return scale[rows] if along_first else scale


def _accumulate(total: Tensor, values: Tensor) -> None:
    total += values.sum_to_size(total.shape)


# --- Public ----------------------------------------------------------------------------------


def soft_steps(
    x: Tensor,
    thresholds: Tensor,
    steps: Sequence[int],
    temperature: Temperature,
    backward_temperature: Temperature | None = None,
) -> Tensor:
    """The soft staircase Σ s_i σ(T (x - b_i)), differentiable in x and thresholds.

    Args:
        x: values of any shape; finite.
        thresholds: [n], strictly increasing, in units of x.
        steps: the n heights s_i.
        temperature: T.
        backward_temperature: temperature of the gradient; None: T, the exact gradient.

    Returns:
        Tensor like x, between 0 and Σ s_i.
    """
    window = temperature if backward_temperature is None else backward_temperature
    one = x.new_ones(())
    return _Quantize.apply(x, one, one, thresholds, steps, 0.0, temperature, window)


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
    """
    one = x.new_ones(())
    return _Quantize.apply(x, one, one, thresholds, steps, 0.0, None, backward_temperature)


class Quantizer(nn.Module):
    """Maps each value to a level times alpha; one for the weights, one for the input of a layer.

    In eval mode the output is exactly level * alpha; while training it is that too
    (`forward_mode` "hard") or the soft function at `temperature` ("soft").

    Args:
        levels: the level set.
        thresholds: one fewer than levels, strictly increasing, in units of beta x, frozen; None:
            halfway between neighbouring levels.
        alpha: scale of the output; a number, or a tensor that broadcasts against x (per channel).
        beta: scale of the input; likewise.
        forward_mode: the function while training, "hard" or "soft".
        temperature: T of the soft function.
        backward_temperature: the gradient is the soft function's at this temperature; None: at T.

    Raises:
        UserError: if an argument is not as described.

    Example:
        >>> quantizer = Quantizer(LevelSet("2", (-1, 0, 1)), alpha=0.5, beta=2.0)
        >>> quantizer(torch.tensor([-0.9, 0.1, 0.3])).tolist()
        [-0.5, 0.0, 0.5]
    """

    alpha: nn.Parameter
    beta: nn.Parameter
    thresholds: Tensor
    temperature: Tensor

    def __init__(
        self,
        levels: LevelSet,
        *,
        thresholds: Sequence[float] | Tensor | None = None,
        alpha: float | Tensor = 1.0,
        beta: float | Tensor = 1.0,
        forward_mode: Literal["hard", "soft"] = "hard",
        temperature: float = 5.0,
        backward_temperature: float | None = 4.0,
    ) -> None:
        super().__init__()
        if forward_mode not in ("hard", "soft"):
            raise UserError(f"forward_mode {forward_mode!r}: unknown; use hard or soft")
        if backward_temperature is not None:
            _check_temperature("backward_temperature", backward_temperature)
        if thresholds is None:
            thresholds = [(low + high) / 2 for low, high in pairwise(levels.values)]
        self.level_set = levels
        self.forward_mode = forward_mode
        self.backward_temperature = backward_temperature
        self.force_soft = False
        self.alpha = nn.Parameter(_float_tensor(alpha))
        self.beta = nn.Parameter(_float_tensor(beta))
        self.register_buffer("thresholds", _checked(_float_tensor(thresholds), levels))
        self.register_buffer("temperature", torch.ones(()))
        self.set_temperature(temperature)

    def set_temperature(self, temperature: float) -> None:
        """Set T of the soft function.

        Raises:
            UserError: if it is not above zero.
        """
        _check_temperature("temperature", temperature)
        self.temperature.fill_(temperature)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize x: finite values of any shape and floating type; gives the same."""
        soft = self.force_soft or (self.training and self.forward_mode == "soft")
        exact = self.backward_temperature is None
        return _Quantize.apply(
            x,
            self.alpha,
            self.beta,
            self.thresholds,
            self.level_set.steps,
            self.level_set.offset,
            self.temperature if soft else None,
            self.temperature if exact else self.backward_temperature,
        )

    @torch.no_grad()
    def integers(self, x: Tensor) -> Tensor:
        """The level of each value, as int8 or, for levels beyond 127, int16.

        In eval mode the module gives exactly `alpha * integers(x)`.
        """
        dtype = _compute_dtype(x)
        stairs = _stairs(self.thresholds, self.level_set.steps, dtype)
        integer = torch.int8 if self.level_set.max_abs < 2**7 else torch.int16
        levels = torch.empty_like(x, dtype=integer)
        for rows in _chunks(x):
            u = x[rows].to(dtype) * _part(self.beta, x, rows).to(dtype)
            levels[rows] = _sum(u, stairs, None).sub_(self.level_set.offset)
        return levels

    def extra_repr(self) -> str:
        """Levels, mode and temperatures."""
        backward = "exact" if self.backward_temperature is None else self.backward_temperature
        return (
            f"levels={self.level_set.name}, forward_mode={self.forward_mode}, "
            f"temperature={self.temperature.item():g}, backward_temperature={backward}"
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # A full-precision state dict knows nothing of quantizers: keep what clustering gave.
        if any(prefix + name in state_dict for name in (*self._parameters, *self._buffers)):
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@contextmanager
def soft_forward(model: nn.Module) -> Iterator[None]:
    """Within the context every Quantizer of the model computes the soft function."""
    before = [(module, module.force_soft) for _, module in quantizers(model)]
    try:
        for module, _ in before:
            module.force_soft = True
        yield
    finally:
        for module, force_soft in before:
            module.force_soft = force_soft


def quantizers(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Names and modules of the model's quantizers, in the order of `named_modules`."""
    for name, module in model.named_modules():
        if isinstance(module, Quantizer):
            yield name, module


def _float_tensor(values: float | Sequence[float] | Tensor) -> Tensor:
    """A copy, of the default type unless values is a floating tensor already."""
    if isinstance(values, Tensor) and values.is_floating_point():
        return values.detach().clone()
    return torch.as_tensor(values, dtype=torch.get_default_dtype()).clone()


def _checked(thresholds: Tensor, levels: LevelSet) -> Tensor:
    count = len(levels.steps)
    if thresholds.shape != (count,):
        raise UserError(
            f"thresholds of shape {list(thresholds.shape)}: levels {levels.name} need {count}, "
            "one between each two neighbouring levels"
        )
    if not (thresholds.isfinite().all() and (thresholds.diff() > 0).all()):
        raise UserError(f"thresholds {thresholds.tolist()}: must be finite and strictly increasing")
    return thresholds


def _check_temperature(name: str, temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise UserError(f"{name} {temperature}: must be a number above zero")
