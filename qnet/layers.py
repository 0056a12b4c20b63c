"""A quantized layer is a layer with two quantizers: one for its input and one for its weight.

`insert_quantizers` turns layers of any model into quantized ones without editing it. A layer stays
the same object and only changes its class (as `torch.nn.utils.parametrize` does): its name, its
parameters, its hooks and all references to it remain. A full-precision state dict loads unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from qnet.errors import UserError
from qnet.quantizer import Quantizer


class QuantizedLayer(nn.Module):
    """What `QuantizedConv2d` and `QuantizedLinear` share; the bias is not quantized.

    In eval mode levels are summed and the sum is scaled once, (Σ level · level) alpha alpha, if
    both quantizers have one alpha and no hooks. Float32, in which bfloat16 is summed too, holds
    integers up to 2^24 exactly, so up to there the result does not depend on the order of the sum,
    which differs between batch sizes, devices and libraries. (Not in float16, where such a sum may
    overflow.)
    """

    weight: Tensor
    bias: Any  # a tensor or None, which nn.Conv2d and nn.Linear declare otherwise
    input_quantizer: nn.Module
    weight_quantizer: nn.Module
    quantized_weight: Tensor | None  # where `qnet.weights` has quantized it already

    def _operation(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """What the layer that has been quantized computes, of the same shapes."""
        inputs, weights = self.input_quantizer, self.weight_quantizer
        exact = not self.training and _computes_in(input) != torch.float16
        if exact and has_one_factor(inputs) and has_one_factor(weights):
            sums = self._operation(inputs.unscaled(input), weights.unscaled(self.weight), None)
            return self._scaled(sums, inputs, weights)
        weight = self.quantized_weight
        return self._operation(
            inputs(input), weights(self.weight) if weight is None else weight, self.bias
        )

    def _scaled(self, sums: Tensor, inputs: Quantizer, weights: Quantizer) -> Tensor:
        """The output whose sums of levels these are."""
        # Divided: ONNX Runtime would move a factor into the weights of the convolution.
        output = sums / (1 / (inputs.alpha * weights.alpha)).reshape(())
        if self.bias is None:
            return output
        return output + self.bias.to(output.dtype).view(-1, *[1] * (self.weight.dim() - 2))


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """`nn.Conv2d` of the quantized input and the quantized weight:
    [N, in_channels, H, W] -> [N, out_channels, H', W']."""

    def _operation(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(input, weight, bias)


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """`nn.Linear` of the quantized input and the quantized weight:
    [..., in_features] -> [..., out_features]."""

    def _operation(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(input, weight, bias)


class QuantizedReLU(nn.ReLU):
    """`nn.ReLU` whose output is quantized."""

    output_quantizer: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the output has the same."""
        return self.output_quantizer(nn.functional.relu(input, inplace=self.inplace))


class SkippedReLU(nn.ReLU):
    """`nn.ReLU` in eval mode; while training it passes its input on (`qnet.relus`)."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the output has the same."""
        return input if self.training else super().forward(input)


# Exactly these classes: a subclass may use its weight in a way of its own.
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
_LAYERS = (nn.Conv2d, nn.Linear, QuantizedConv2d, QuantizedLinear)
_RELUS = (nn.ReLU, SkippedReLU, QuantizedReLU)


def quantizable_layers(
    model: nn.Module, keep: Collection[str] = ("first", "last"), quantize: Collection[str] = ("*",)
) -> list[str]:
    """Names of the convolutions and linear layers to quantize, in the order of their registration.

    These are `nn.Conv2d` and `nn.Linear` themselves: no subclass (`nn.MultiheadAttention` has one),
    and none whose weight is computed from others (`weight_norm`). The model has to call them: one
    whose weight it uses in a way of its own (as torchvision's Swin does in its attention) is
    listed, and quantizing it has no effect.

    Args:
        model: any module.
        keep: layers left in full precision: `first`, `last`, or dotted names with * and ? in them.
        quantize: of the others, those to quantize, written the same way.

    Raises:
        UserError: an entry fits no layer, or no layer is left.
    """
    layers = [name for name, module in model.named_modules() if _has_weight(module)]
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
    sites = [name for name, module in model.named_modules() if type(module) in _RELUS]
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


def insert_quantizers(
    model: nn.Module,
    *,
    weights: Mapping[str, Quantizer] = {},
    activations: Mapping[str, Quantizer] = {},
) -> nn.Module:
    """Put quantizers into the layers of `model`, in place.

    Before it is compiled, wrapped (as for several processes) or given to an optimizer, which would
    not know of alpha and beta; and after its weights are loaded, which alpha and beta fit. May be
    called again for other places. Parameters keep their identity and names. Each quantizer
    takes the device and the mode (train or eval) of its layer. A module that is used several times,
    or has several names, has one quantizer for all its uses.

    Args:
        model: any module.
        weights: by the name of the convolution or linear layer whose weight is quantized.
        activations: by the name of the convolution or linear layer whose input is quantized, or of
            the nn.ReLU whose output is.

    Returns:
        `model`.

    Raises:
        UserError: a name is not that of such a layer, there is a quantizer already, one is given
            twice, or it is none; or the layer has a forward of its own, which would not call it.
            The model is then unchanged.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    places: dict[tuple[nn.Module, str], Quantizer] = {}
    placed = set(modules.values())
    for kind, given in (("weights", weights), ("activations", activations)):
        known = {
            name: module
            for name, module in modules.items()
            if _has_weight(module) or (type(module) in _RELUS and kind == "activations")
        }
        for name, quantizer in given.items():
            if name not in known:
                raise UserError(
                    f"{kind}: {name!r} is not {_DESCRIBED[kind]}; {_nearest(name, list(known))}"
                )
            module = modules[name]
            if "forward" in vars(module):
                raise UserError(
                    f"{kind}: {name!r} has a forward that was set on it and would not quantize; "
                    "insert quantizers first"
                )
            slot = "weight_quantizer" if kind == "weights" else _slots(module)[0]
            if (module, slot) in places or isinstance(getattr(module, slot, None), Quantizer):
                raise UserError(f"{kind}: {name!r} has a quantizer already; give it only one")
            if not isinstance(quantizer, Quantizer):
                raise UserError(
                    f"{kind}: {name!r} is given a {type(quantizer).__name__}; give a Quantizer "
                    "(Quantizer.from_clusters makes one of Clusters)"
                )
            if quantizer in placed:
                raise UserError(
                    f"{kind}: the quantizer of {name!r} has another place; make a new one"
                )
            places[module, slot] = quantizer
            placed.add(quantizer)

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


def _unchanged(module: nn.Module, inputs: Any, output: Any) -> None:
    """A hook that does nothing. A Transformer layer without hooks may, in eval mode, read the
    weights of its linear layers and not call them: these would not be quantized."""


def quantized_weights(model: nn.Module) -> Iterator[tuple[str, Tensor, Quantizer]]:
    """Name, value and quantizer of each quantized weight, in the order of `modules`."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer) and isinstance(module.weight_quantizer, Quantizer):
            yield f"{name}.weight".removeprefix("."), module.weight, module.weight_quantizer


def _computes_in(input: Tensor) -> torch.dtype:
    """The type in which a convolution or linear layer of `input` is computed."""
    device = input.device.type
    mixed = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if mixed else input.dtype


def has_one_factor(quantizer: nn.Module) -> TypeGuard[Quantizer]:
    """Whether alpha is one number, and nothing but the quantizer itself decides what it gives."""
    return (
        type(quantizer) is Quantizer and quantizer.alpha.numel() == 1 and not has_hooks(quantizer)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether something looks at what the module is given or gives, or changes it."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _has_weight(module: nn.Module) -> bool:
    """Whether it is a layer whose weight is a parameter: not one computed from others, as with
    `torch.nn.utils.weight_norm` or `prune`."""
    return type(module) in _LAYERS and module._parameters.get("weight") is not None


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


def _select(layers: Sequence[str], patterns: Collection[str], parameter: str) -> set[str]:
    """The layers that one of the patterns fits."""
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
                f"{parameter}: {pattern!r} fits no layer, {_nearest(pattern, [*ends, *layers])}; "
                f"write first, last, or names with * and ? in them ({_some(layers)})"
            )
        selected |= fitting
    return selected


def _nearest(name: str, known: Sequence[str]) -> str:
    if not known:
        return "there is none"
    return f"nearest is {get_close_matches(name, known, n=1, cutoff=0.0)[0]!r}"


def _some(layers: Sequence[str]) -> str:
    more = ["..."] if len(layers) > 4 else []
    return ", ".join([*layers[:3], *more, *layers[3:][-1:]])
