"""A network for inference whose quantized layers add 8-bit integers, by oneDNN on a CPU.

A level of up to 8 bits fits a byte, and CPUs multiply and add bytes faster than float32. The
sums are the same whole numbers that a quantized layer adds in eval mode, so its outputs are the
same to the last bit, in float32; other types round sums before they are scaled.
"""

from __future__ import annotations

import copy
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from qnet.errors import UserError
from qnet.layers import QuantizedConv2d, QuantizedLayer, QuantizedLinear, has_one_factor
from qnet.memory_format import channels_last
from qnet.quantizer import Quantizer

Module = TypeVar("Module", bound=nn.Module)


def to_int8(model: nn.Module) -> nn.Module:
    """A copy of `model` for inference on a CPU, in which quantized layers add integers.

    These are layers whose input and weight are both quantized, with one alpha each and levels of
    up to 8 bits, of one of them up to 7, whose sums cannot exceed 2^24, up to which float32 holds
    integers exactly, and whose padding is zeros, given as numbers; the others stay as they are.
    Made for CPUs with VNNI; `torch.compile` then fuses what lies between the layers.

    Args:
        model: a network as `qnet.load_model` gives it, on the CPU; it is not changed.

    Returns:
        The copy, in eval mode and channels-last. It takes batches, [N, ...]. It can be copied and
        compiled, not trained, differentiated, exported to ONNX, saved as a checkpoint or moved to
        another device.

    Raises:
        UserError: there is no such layer, the network is on another device or comes from this
            function, or PyTorch was built without oneDNN.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, section 2.2, sums levels likewise.
    """
    if not torch.backends.mkldnn.is_available():
        raise UserError("to_int8: this PyTorch was built without oneDNN; use the network as it is")
    devices = {parameter.device.type for parameter in model.parameters()} - {"cpu"}
    if devices:
        raise UserError(f"to_int8: the network is on {devices.pop()}; load it on cpu")
    if any(isinstance(module, _Int8Layer) for module in model.modules()):
        raise UserError("to_int8: the network comes from to_int8 already; use it as it is")
    converted = channels_last(copy.deepcopy(model).eval()).requires_grad_(False)
    layers = [module for module in converted.modules() if _fits(module)]
    if not layers:
        quantized = any(map(_is_quantized, converted.modules()))
        how = ", with one alpha each, to levels of 8 and 7 bits or fewer, and padding of zeros"
        raise UserError(
            f"to_int8: no layer of the network has input and weight quantized{how * quantized}; "
            "give one trained with weights.levels, activations.bits and activations.sites=input, "
            "or use the network as it is"
        )
    for layer in layers:
        _convert(layer)
    return converted


def _convert(layer: QuantizedLayer) -> None:
    """Change the class of a layer of a copy, as `qnet.insertion.insert_quantizers` does."""
    assert isinstance(layer.weight_quantizer, Quantizer)
    levels = layer.weight_quantizer.integers(layer.weight)
    del layer.weight
    layer.register_buffer("weight", levels)
    converted = _INT8[type(layer)]
    layer.__class__ = converted
    assert isinstance(layer, converted)
    layer.pack()


class _Int8Layer(QuantizedLayer):
    """What `_Int8Conv2d` and `_Int8Linear` share. Its weight is levels, int8."""

    input_quantizer: Quantizer
    weight_quantizer: Quantizer

    def pack(self) -> None:
        """Prepare what each call needs."""
        outputs = len(self.weight)
        self.zero_point = int(self.input_quantizer.level_set.offset)  # the code of level 0
        self.ones = torch.ones(outputs, dtype=torch.float32)
        self.zeros = torch.zeros(outputs, dtype=torch.int32)
        self.packed = self._packed()

    def _packed(self) -> Tensor:
        """The weight as oneDNN lays it out: opaque, so neither copied nor saved."""
        raise NotImplementedError

    def _sums(self, codes: Tensor) -> Tensor:
        """Σ (codes - zero_point) · weight: uint8 -> float32."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """What the quantized layer computes, of the same shapes.

        Raises:
            UserError: a gradient of the input is wanted, which integers do not have.
        """
        if input.requires_grad and torch.is_grad_enabled():
            raise UserError(
                "a network of to_int8 has no gradients; take those of the one it came from"
            )
        codes = (self.input_quantizer.unscaled(input) + self.zero_point).to(torch.uint8)
        sums = self._sums(codes)
        return self._scaled(sums, self.input_quantizer, self.weight_quantizer).to(input.dtype)

    def train(self: Module, mode: bool = True) -> Module:
        """Like any module's, but there is only eval mode.

        Raises:
            UserError: mode is True.
        """
        if mode:
            raise UserError("to_int8: its network cannot be trained; train the one it came from")
        return nn.Module.train(self, mode)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.is_floating_point():
            raise UserError(
                f"to_int8: {prefix}weight is of {weight.dtype}, and its network holds levels; load "
                "the state into the network it came from, then call to_int8 again"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.pack()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "packed"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.pack()


class _Int8Conv2d(_Int8Layer, QuantizedConv2d):
    def _geometry(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.groups

    def _packed(self) -> Tensor:
        return torch.ops.onednn.qconv_prepack(
            self.weight, self.ones, 1.0, self.zero_point, *self._geometry()
        )

    def _sums(self, codes: Tensor) -> Tensor:
        return torch.ops.onednn.qconv2d_pointwise(
            codes, 1.0, self.zero_point, self.packed, self.ones, self.zeros, None,
            *self._geometry(), 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip


class _Int8Linear(_Int8Layer, QuantizedLinear):
    def _packed(self) -> Tensor:
        return torch.ops.onednn.qlinear_prepack(self.weight, None)

    def _sums(self, codes: Tensor) -> Tensor:
        return _linear_sums(codes, self.zero_point, self.packed, self.ones, self.zeros)


@torch.library.custom_op("qnet::int8_linear", mutates_args=())
def _linear_sums(
    codes: Tensor, zero_point: int, packed: Tensor, ones: Tensor, zeros: Tensor
) -> Tensor:
    """A custom operator, because `torch.compile` accepts oneDNN's only with a constant weight."""
    if codes.numel() == 0:  # oneDNN drops leading dimensions
        return codes.new_zeros((*codes.shape[:-1], len(ones)), dtype=torch.float32)
    return torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, zero_point, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


@_linear_sums.register_fake
def _(codes: Tensor, zero_point: int, packed: Tensor, ones: Tensor, zeros: Tensor) -> Tensor:
    return codes.new_empty((*codes.shape[:-1], len(ones)), dtype=torch.float32)


_INT8: dict[type[nn.Module], type[_Int8Layer]] = {
    QuantizedConv2d: _Int8Conv2d,
    QuantizedLinear: _Int8Linear,
}


def _is_quantized(layer: nn.Module) -> bool:
    """Whether its input and weight are quantized."""
    return isinstance(layer, QuantizedLayer) and all(
        isinstance(part, Quantizer) for part in (layer.input_quantizer, layer.weight_quantizer)
    )


def _fits(layer: nn.Module) -> TypeGuard[QuantizedLayer]:
    """Whether its levels can be added as bytes, exactly."""
    if type(layer) not in _INT8 or not isinstance(layer, QuantizedLayer):
        return False
    inputs, weights = layer.input_quantizer, layer.weight_quantizer
    if not (has_one_factor(inputs) and has_one_factor(weights)):
        return False
    if isinstance(layer, nn.Conv2d) and (
        layer.padding_mode != "zeros" or isinstance(layer.padding, str)
    ):
        return False
    if layer.weight.numel() == 0:  # oneDNN divides by its sizes
        return False
    span, size = sum(inputs.level_set.steps), weights.level_set.max_abs
    # Without VNNI a CPU adds two products in 16 bits.
    if not (span < 2**8 and size < 2**7 and 2 * span * size < 2**15):
        return False
    largest = weights.integers(layer.weight).flatten(1).int().abs().sum(1).max()
    return span * int(largest) <= 2**24
