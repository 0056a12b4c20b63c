"""A quantized layer is a layer with two quantizers: one for its input and one for its weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

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
        """As the layer that was quantized, with quantized input and weight; shapes are the same."""
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
        """The output, from its sums of levels."""
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


def quantized_weights(model: nn.Module) -> Iterator[tuple[str, Tensor, Quantizer]]:
    """Name, value and quantizer of each quantized weight, in the order of `modules`."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer) and isinstance(module.weight_quantizer, Quantizer):
            yield f"{name}.weight".removeprefix("."), module.weight, module.weight_quantizer


def _computes_in(input: Tensor) -> torch.dtype:
    """The type in which a convolution or linear layer of `input` is computed."""
    device = input.device.type
    mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if mixed else input.dtype


def has_one_factor(quantizer: nn.Module) -> TypeGuard[Quantizer]:
    """Whether alpha is one number, and nothing but the quantizer itself decides what it gives."""
    return (
        type(quantizer) is Quantizer and quantizer.alpha.numel() == 1 and not has_hooks(quantizer)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook may read or change the inputs, outputs or gradients of the module."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_quantizable(module: nn.Module) -> bool:
    """Whether this is a convolution or linear layer, not of a subclass, whose weight is a
    parameter: not computed from others, as with `torch.nn.utils.weight_norm` or `prune`."""
    return type(module) in _LAYERS and module._parameters.get("weight") is not None


def is_relu(module: nn.Module) -> bool:
    """Whether this is an `nn.ReLU`, quantized or not, but not of another subclass."""
    return type(module) in _RELUS


_LAYERS = (nn.Conv2d, nn.Linear, QuantizedConv2d, QuantizedLinear)
_RELUS = (nn.ReLU, SkippedReLU, QuantizedReLU)
