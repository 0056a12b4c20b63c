"""How many bytes a network takes where it is deployed.

Quantized weights count packed, as in `qnet.packing`, in whole bytes per tensor; all other
floating-point numbers as float32; integers at their own size. A tensor with two names counts once,
and is not packed.
"""

from __future__ import annotations

from collections import Counter

from torch import Tensor, nn

from qnet.layers import quantized_weights
from qnet.packing import training_only
from qnet.quantizer import quantizers

_FLOAT_BITS = 32


def full_precision_bytes(model: nn.Module) -> int:
    """Bytes of `model` as if it had no quantizers."""
    of_quantizers = {
        id(tensor)
        for _, quantizer in quantizers(model)
        for tensor in quantizer.state_dict(keep_vars=True).values()
    }
    tensors = _deployed(model)
    return sum(_bytes(tensor) for key, tensor in tensors.items() if key not in of_quantizers)


def model_bytes(model: nn.Module) -> int:
    """Bytes of `model`; its compression is `full_precision_bytes(model) / model_bytes(model)`."""
    names = Counter(map(id, model.state_dict(keep_vars=True).values()))
    bits = {
        id(weight): quantizer.level_set.bits
        for _, weight, quantizer in quantized_weights(model)
        if names[id(weight)] == 1
    }
    return sum(_bytes(tensor, bits.get(key)) for key, tensor in _deployed(model).items())


def _deployed(model: nn.Module) -> dict[int, Tensor]:
    """The tensors that inference needs, each once, by id."""
    left_out = training_only(model)
    return {
        id(tensor): tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor) and name not in left_out
    }


def _bytes(tensor: Tensor, bits: int | None = None) -> int:
    """Bytes of a tensor, with `bits` for each value if it is packed."""
    if bits is None:
        bits = _FLOAT_BITS if tensor.is_floating_point() else 8 * tensor.element_size()
    return (tensor.numel() * bits + 7) // 8
