"""Quantizers for the layers of any model, without editing it.

A layer stays the same object and only changes its class (as `torch.nn.utils.parametrize` does): its
name, its parameters, its hooks and all references to it remain. A full-precision state dict loads
unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from qnet.errors import UserError, nearest
from qnet.layers import (
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    QuantizedReLU,
    SkippedReLU,
    is_quantizable,
    is_relu,
)
from qnet.quantizer import Quantizer

# Exactly these classes: a subclass may use its weight in its own way.
_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: QuantizedConv2d,
    nn.Linear: QuantizedLinear,
    nn.ReLU: QuantizedReLU,
    SkippedReLU: QuantizedReLU,
}
_DESCRIBED = {
    "weights": "an nn.Conv2d or nn.Linear of the model",
    "activations": "an nn.Conv2d, nn.Linear or nn.ReLU of the model",
}

_Place = tuple[nn.Module, str]  # a layer, and the name of one of its quantizers


def insert_quantizers(
    model: nn.Module,
    *,
    weights: Mapping[str, Quantizer] = {},
    activations: Mapping[str, Quantizer] = {},
) -> nn.Module:
    """Put quantizers into the layers of `model`, in place.

    Call it after loading the weights, which alpha and beta fit, and before compiling or wrapping
    the model (as for several processes) or giving it to an optimizer, which would not know of alpha
    and beta. It may be called again for other places. Parameters keep their identity and names.
    Each quantizer takes the device and the mode (train or eval) of its layer. A module that is used
    several times, or has several names, has one quantizer for all its uses.

    Args:
        model: any module.
        weights: by the name of the convolution or linear layer whose weight is quantized.
        activations: by the name of the convolution or linear layer whose input is quantized, or of
            the nn.ReLU whose output is.

    Returns:
        `model`.

    Raises:
        UserError: a name is not that of such a layer, the layer has a quantizer already or a
            forward of its own, which would not call it, or what is given is not a `Quantizer` or
            is given twice. The model is then unchanged.
    """
    places = _places(model, {"weights": weights, "activations": activations})
    first = next((parameter.device for parameter in model.parameters()), None)
    for (module, slot), quantizer in places.items():
        if type(module) in _QUANTIZED:
            module.__class__ = _QUANTIZED[type(module)]
            _add_slots(module)
        weight = module._parameters.get("weight")
        device = first if weight is None else weight.device
        setattr(module, slot, quantizer.to(device).train(module.training))
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(
            isinstance(part, tuple(_QUANTIZED.values())) for part in module.modules()
        ):
            module.register_forward_hook(_unchanged)
    return model


def _places(
    model: nn.Module, given: Mapping[str, Mapping[str, Quantizer]]
) -> dict[_Place, Quantizer]:
    """Where each quantizer goes. Raises what `insert_quantizers` does."""
    modules = dict(model.named_modules(remove_duplicate=False))
    places: dict[_Place, Quantizer] = {}
    placed = set(modules.values())
    for kind, quantizers in given.items():
        known = [name for name, module in modules.items() if _has_place(module, kind)]
        for name, quantizer in quantizers.items():
            if name not in known:
                raise UserError(
                    f"{kind}: {name!r} is not {_DESCRIBED[kind]}; {nearest(str(name), known)}"
                )
            module = modules[name]
            slot = "weight_quantizer" if kind == "weights" else _slots(module)[0]
            taken = (module, slot) in places or isinstance(getattr(module, slot, None), Quantizer)
            if problem := _problem(name, module, quantizer, taken, quantizer in placed):
                raise UserError(f"{kind}: {problem}")
            places[module, slot] = quantizer
            placed.add(quantizer)
    return places


def _problem(name: str, module: nn.Module, quantizer: Any, taken: bool, placed: bool) -> str | None:
    """Why this quantizer cannot go into the layer `name`; None if it can."""
    if "forward" in vars(module):
        return (
            f"{name!r} has a forward that was set on it and would not quantize; insert quantizers "
            "first"
        )
    if taken:
        return f"{name!r} has a quantizer already; give it only one"
    if not isinstance(quantizer, Quantizer):
        return (
            f"{name!r} is given a {type(quantizer).__name__}; give a Quantizer "
            "(Quantizer.from_clusters makes one of Clusters)"
        )
    if placed:
        return f"the quantizer of {name!r} has another place; make a new one"
    return None


def _has_place(module: nn.Module, kind: str) -> bool:
    return is_quantizable(module) or (kind == "activations" and is_relu(module))


def _unchanged(module: nn.Module, inputs: Any, output: Any) -> None:
    """A hook that does nothing. A Transformer layer without hooks may, in eval mode, read the
    weights of its linear layers and not call them: these would not be quantized."""


def _slots(module: nn.Module) -> tuple[str, ...]:
    """Names of the quantizers of a layer, that of its activations first."""
    if isinstance(module, nn.ReLU):
        return ("output_quantizer",)
    return ("input_quantizer", "weight_quantizer")


def _add_slots(module: nn.Module) -> None:
    for slot in _slots(module):
        setattr(module, slot, nn.Identity())
    if isinstance(module, QuantizedLayer):
        module.quantized_weight = None
