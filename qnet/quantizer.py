"""The one quantizer, for weights and activations: a level set, thresholds, alpha and beta.

y = alpha (staircase(beta x) - o), hard or soft; the staircase and its gradients are `qnet.steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qnet.clustering import Clusters
from qnet.errors import UserError
from qnet.levels import LevelSet, require_levels
from qnet.staircase import (
    Stairs,
    WindowTemperature,
    chunks,
    compute_dtype,
    on_cpu,
    part_of,
    staircase,
    stairs_of,
)
from qnet.steps import Quantize

BackwardTemperature = float | Literal["exact", "straight_through"]


_INCREASING = "must be finite and strictly increasing"


class Quantizer(nn.Module):
    """Maps each value to a level times alpha; a layer has one for its weight, one for its input.

    In eval mode the output is exactly level * alpha; while training it is that too
    (`forward_mode` "hard") or the soft function at `temperature` ("soft"). A state dict holds no
    level set: it fits any quantizer with as many levels (`qnet.save_checkpoint` keeps it).

    Args:
        levels: the level set.
        thresholds: one fewer than levels, strictly increasing, in units of beta x, frozen; None:
            halfway between neighbouring levels.
        alpha: scale of the output; a number, or a tensor that broadcasts against x (per channel).
        beta: scale of the input; likewise.
        forward_mode: the function while training, "hard" or "soft".
        temperature: T of the soft function.
        backward_temperature: the gradient is the soft function's at this temperature; "exact": at
            T; "straight_through": that of a straight line, alpha beta between the outermost levels
            and zero beyond.

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
        backward_temperature: BackwardTemperature = 4.0,
    ) -> None:
        super().__init__()
        require_levels(levels, "Quantizer")
        if forward_mode not in ("hard", "soft"):
            raise UserError(f"forward_mode {forward_mode!r}: unknown; use hard or soft")
        if isinstance(backward_temperature, str):
            if backward_temperature not in ("exact", "straight_through"):
                raise UserError(
                    f"backward_temperature {backward_temperature!r}: unknown; use a number above "
                    "zero, 'exact' or 'straight_through'"
                )
        else:
            backward_temperature = _checked_temperature(
                "backward_temperature", backward_temperature
            )
        if thresholds is None:
            thresholds = [(low + high) / 2 for low, high in pairwise(levels.values)]
        self.level_set = levels
        self.forward_mode = forward_mode
        self.backward_temperature = backward_temperature
        self.force_soft = False
        self.rectifies = False  # no gradient for x <= 0, as behind a ReLU (qnet.relus)
        self.alpha = nn.Parameter(_finite("alpha", _float_tensor(alpha)))
        self.beta = nn.Parameter(_finite("beta", _float_tensor(beta)))
        self.register_buffer("thresholds", _checked(_float_tensor(thresholds), levels))
        self._read_thresholds()
        self.register_buffer("temperature", _float_tensor(1.0))
        self.set_temperature(temperature)

    @classmethod
    def from_clusters(
        cls,
        clusters: Clusters,
        *,
        forward_mode: Literal["hard", "soft"] = "hard",
        backward_temperature: BackwardTemperature = 4.0,
    ) -> Quantizer:
        """A quantizer that starts where `qnet.cluster` found thresholds, alpha and beta."""
        return cls(
            clusters.levels,
            thresholds=clusters.thresholds,
            alpha=clusters.alpha,
            beta=clusters.beta,
            forward_mode=forward_mode,
            backward_temperature=backward_temperature,
        )

    def _read_thresholds(self) -> None:
        """Keep the thresholds as numbers: reading them in each call would wait for the device."""
        stairs = self._stairs(self.thresholds.cpu(), torch.float32)
        if stairs != getattr(self, "stairs", None):  # else keep what qnet.fused cached in it
            self.stairs = stairs
        self._read = self.thresholds.tolist()

    def _stairs(self, thresholds: Tensor, dtype: torch.dtype) -> Stairs:
        return stairs_of(thresholds, self.level_set.steps, dtype, self.level_set.offset)

    def _stairs_for(self, x: Tensor) -> Stairs:
        """The staircase for values of the type of x.

        Rereads thresholds that were replaced or written to; on a device `train` does.
        """
        if on_cpu(self.thresholds) and self.thresholds.tolist() != self._read:
            self._read_thresholds()
        dtype = compute_dtype(x)
        return self.stairs if dtype == torch.float32 else self._stairs(self.thresholds, dtype)

    def train(self, mode: bool = True) -> Quantizer:
        """As every module; thresholds that were replaced or written to count from here on."""
        super().train(mode)
        if not self.thresholds.is_meta:
            self._read_thresholds()
        return self

    def set_temperature(self, temperature: float) -> None:
        """Set T of the soft function.

        Raises:
            UserError: if it is not above zero.
        """
        self.temperature.fill_(_checked_temperature("temperature", temperature))

    def forward(self, x: Tensor) -> Tensor:
        """Quantize x, finite values of any shape and floating type; the output has the same.

        Raises:
            UserError: x is of another type, or alpha or beta does not broadcast against x.
        """
        return self.quantized(x, self.alpha, self.beta)

    def unscaled(self, x: Tensor) -> Tensor:
        """`forward` without the factor alpha: in eval mode the level of each value.

        Raises:
            UserError: see `forward`.
        """
        return self.quantized(x, torch.ones_like(self.alpha), self.beta)

    def quantized(self, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """`forward` with another alpha and beta, which broadcast against x.

        Raises:
            UserError: see `forward`.
        """
        if not x.is_floating_point():
            raise UserError(f"Quantizer: x is of {x.dtype}; convert it to a floating type first")
        for name, scale in (("alpha", alpha), ("beta", beta)):
            if not _broadcasts(scale.shape, x.shape):
                raise UserError(
                    f"Quantizer: {name} is of shape {list(scale.shape)} and x of {list(x.shape)}; "
                    "give one that broadcasts against x"
                )
        soft = self.force_soft or (self.training and self.forward_mode == "soft")
        window_temperature: WindowTemperature
        if self.backward_temperature == "exact":
            window_temperature = self.temperature.clone()  # torch.compile accepts no tensor twice
        else:
            window_temperature = self.backward_temperature
        return Quantize.apply(
            x,
            alpha,
            beta,
            self.thresholds,
            self._stairs_for(x),
            self.temperature if soft else None,
            window_temperature,
            self.rectifies,
        )

    @torch.no_grad()
    def integers(self, x: Tensor) -> Tensor:
        """The level of each value, as int8 or, for levels beyond 127, int16.

        In eval mode the module gives exactly `alpha * integers(x)`, rounded to the type of x.
        """
        dtype, stairs = compute_dtype(x), self._stairs_for(x)
        integer = torch.int8 if self.level_set.max_abs < 2**7 else torch.int16
        levels = torch.empty_like(x, dtype=integer)
        for rows in chunks(x):
            u = x[rows].to(dtype) * part_of(self.beta, x, rows).to(dtype)
            levels[rows] = staircase(u, stairs, None)
        return levels

    def extra_repr(self) -> str:
        """Levels, mode and temperatures."""
        temperature = "meta" if self.temperature.is_meta else f"{self.temperature.item():g}"
        return (
            f"levels={self.level_set.name}, forward_mode={self.forward_mode}, "
            f"temperature={temperature}, "
            f"backward_temperature={self.backward_temperature}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantizer:
        def moved(tensor: Tensor) -> Tensor:
            # A type with fewer digits would make neighbouring thresholds one, or a scale infinite.
            result = fn(tensor)
            fewer = result.dtype.itemsize < torch.float32.itemsize
            return tensor.to(result.device) if fewer else result

        super()._apply(moved, recurse)
        if not self.thresholds.is_meta:
            self._read_thresholds()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # A full-precision state dict has no quantizers: keep what clustering gave.
        if not any(prefix + name in state_dict for name in (*self._parameters, *self._buffers)):
            return
        given = state_dict.get(prefix + "thresholds")
        if given is not None and given.shape == self.thresholds.shape and not _increase(given):
            errors: list[str] = args[-1]
            errors.append(f"{prefix}thresholds {given.tolist()}: {_INCREASING}")
            return
        own = {  # with assign=True these tensors themselves are taken
            name: _enough_digits(value) if isinstance(value, Tensor) else value
            for name, value in state_dict.items()
            if name.startswith(prefix)
        }
        super()._load_from_state_dict(own, prefix, *args, **kwargs)
        if not self.thresholds.is_meta:
            self._read_thresholds()


@contextmanager
def soft_forward(*modules: nn.Module) -> Iterator[None]:
    """Within the context every Quantizer among or in the modules computes the soft function.

    To train with it, set `forward_mode`: what is computed again in a backward pass outside the
    context (`torch.utils.checkpoint`) is hard.
    """
    before = [(q, q.force_soft) for module in modules for _, q in quantizers(module)]
    try:
        for quantizer, _ in before:
            quantizer.force_soft = True
        yield
    finally:
        for quantizer, force_soft in before:
            quantizer.force_soft = force_soft


def quantizers(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Names and modules of the model's quantizers, in the order of `named_modules`."""
    for name, module in model.named_modules():
        if isinstance(module, Quantizer):
            yield name, module


def _float_tensor(values: float | Sequence[float] | Tensor) -> Tensor:
    """A copy, of the default type unless `values` is a floating tensor already, but with no fewer
    digits than float32."""
    dtype = torch.get_default_dtype()
    if isinstance(values, Tensor) and values.is_floating_point():
        dtype = values.dtype
    return torch.as_tensor(values, dtype=torch.promote_types(dtype, torch.float32)).detach().clone()


def _enough_digits(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _broadcasts(scale: torch.Size, x: torch.Size) -> bool:
    """Whether a scale of this shape leaves x as it is."""
    sizes = zip(reversed(scale), reversed(x), strict=False)
    return len(scale) <= len(x) and all(size in (1, of_x) for size, of_x in sizes)


def _finite(name: str, scale: Tensor) -> Tensor:
    if not scale.isfinite().all():
        raise UserError(f"{name} {scale.tolist()}: must be finite")
    return scale


def _checked(thresholds: Tensor, levels: LevelSet) -> Tensor:
    count = len(levels.steps)
    if thresholds.shape != (count,):
        raise UserError(
            f"thresholds of shape {list(thresholds.shape)}: levels {levels.name} need {count}, "
            "one between each two neighbouring levels"
        )
    if not _increase(thresholds):
        raise UserError(f"thresholds {thresholds.tolist()}: {_INCREASING}")
    return thresholds


def _increase(thresholds: Tensor) -> bool:
    computed = thresholds.float()  # as precise as a quantizer computes
    return bool(computed.isfinite().all() and (computed.diff() > 0).all())


def _checked_temperature(name: str, temperature: float) -> float:
    largest = torch.finfo(torch.float32).max
    if not 0 < temperature <= largest:
        raise UserError(
            f"{name} {float(temperature)}: must be a number above zero, up to {largest:.2g}"
        )
    return float(temperature)
