"""Which layers of a network are quantized, and where its activations are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from qnet.errors import UserError, nearest
from qnet.layers import is_quantizable, is_relu


def quantizable_layers(
    model: nn.Module, keep: Collection[str] = ("first", "last"), quantize: Collection[str] = ("*",)
) -> list[str]:
    """Names of the convolutions and linear layers to quantize, in the order of their registration.

    These are `nn.Conv2d` and `nn.Linear` themselves: no subclass (`nn.MultiheadAttention` has one),
    and none whose weight is computed from others (`weight_norm`). The model has to call them: one
    whose weight it uses in another way (as torchvision's Swin does in its attention) is listed, but
    quantizing it has no effect.

    Args:
        model: any module.
        keep: layers left in full precision: `first`, `last`, or dotted names with * and ? in them.
        quantize: of the others, those to quantize, written the same way.

    Raises:
        UserError: an entry matches no layer, or no layer is left.
    """
    layers = [name for name, module in model.named_modules() if is_quantizable(module)]
    if not layers:
        raise UserError(
            "model.name: the model has no nn.Conv2d or nn.Linear whose weight is its own, not "
            "computed from others, so there is nothing to quantize; choose another model"
        )
    kept = _select(layers, keep, "model.keep")
    selected = _select(layers, quantize, "model.quantize") - kept
    if not selected:
        raise UserError(
            f"model.keep: {list(keep)} and model.quantize: {list(quantize)} leave no nn.Conv2d or "
            f"nn.Linear to quantize; keep fewer of the network's {len(layers)}: {_some(layers)}"
        )
    return [name for name in layers if name in selected]


def relu_sites(model: nn.Module) -> list[str]:
    """Names of the nn.ReLU modules, in the order of their registration.

    Raises:
        UserError: the model has none.
    """
    sites = [name for name, module in model.named_modules() if is_relu(module)]
    if not sites:
        raise UserError(
            "activations.sites: 'relu' needs nn.ReLU modules, and the model has none; "
            "set activations.sites=input"
        )
    return sites


def activation_sites(
    model: nn.Module,
    sites: Literal["input", "relu"],
    keep: Collection[str] = ("first", "last"),
    quantize: Collection[str] = ("*",),
) -> list[str]:
    """Names of the modules where activations are quantized.

    Args:
        model: any module.
        sites: `input`, of each layer in `quantizable_layers(model, keep, quantize)`, or `relu`, the
            output of every ReLU (as the published code does), whatever `keep` and `quantize` say.
        keep: see `quantizable_layers`.
        quantize: see `quantizable_layers`.

    Raises:
        UserError: see `quantizable_layers` and `relu_sites`.
    """
    if sites not in ("input", "relu"):
        raise UserError(f"activations.sites: {sites!r}; use input or relu")
    return relu_sites(model) if sites == "relu" else quantizable_layers(model, keep, quantize)


def _select(layers: Sequence[str], patterns: Collection[str], parameter: str) -> set[str]:
    """The layers that match one of the patterns."""
    if isinstance(patterns, str):
        raise UserError(f"{parameter}: {patterns!r} is text; give a list of names, [{patterns!r}]")
    ends = {"first": layers[0], "last": layers[-1]}
    selected: set[str] = set()
    for pattern in map(str, patterns):  # 1 is as good a name as "1"
        if pattern in ends:
            fitting = {ends[pattern]}
        else:
            fitting = {name for name in layers if fnmatchcase(name, pattern)}
        if not fitting:
            raise UserError(
                f"{parameter}: {pattern!r} fits no layer, {nearest(pattern, [*ends, *layers])}; "
                f"write first, last, or names with * and ? in them ({_some(layers)})"
            )
        selected |= fitting
    return selected


def _some(layers: Sequence[str]) -> str:
    more = ["..."] if len(layers) > 4 else []
    return ", ".join([*layers[:3], *more, *layers[3:][-1:]])
