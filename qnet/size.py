"""How many bytes a network takes where it is deployed, at its real bit widths.

    quantized weight      bits of its level set per value, packed, whole bytes per tensor; its α
    activation quantizer  its α, β and thresholds
    everything else       biases, batch norm, layers in full precision

All but the packed values are float32; integer buffers count at their own size. A
quantized weight with two names, such as one that an embedding reads too, is not packed. What
inference does not need is not counted: β and the thresholds of weights, temperatures, and the
counters of batch norm.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain

from torch import Tensor, nn

from qnet.layers import quantized_weights
from qnet.quantizer import Quantizer, quantizers

FLOAT_BYTES = 4


def full_precision_bytes(model: nn.Module) -> int:
    """Bytes of `model` as if it had no quantizers."""
    return sum(_bits(tensor) * tensor.numel() // 8 for tensor in _tensors(model))


def model_bytes(model: nn.Module) -> int:
    """Bytes of `model`; its compression is `full_precision_bytes(model) / model_bytes(model)`."""
    names = Counter(map(id, model.state_dict(keep_vars=True).values()))
    bits: dict[int, int] = {}  # of a quantized weight, by its id
    of_weights: set[Quantizer] = set()
    for _, weight, quantizer in quantized_weights(model):
        if names[id(weight)] == 1:
            bits[id(weight)] = quantizer.level_set.bits
        of_weights.add(quantizer)

    total = sum(
        (tensor.numel() * bits.get(id(tensor), _bits(tensor)) + 7) // 8
        for tensor in _tensors(model)
    )
    for _, quantizer in quantizers(model):
        total += FLOAT_BYTES * quantizer.alpha.numel()
        if quantizer not in of_weights:
            total += FLOAT_BYTES * (quantizer.beta.numel() + quantizer.thresholds.numel())
    return total


def _bits(tensor: Tensor) -> int:
    return 8 * (FLOAT_BYTES if tensor.is_floating_point() else tensor.element_size())


def _tensors(model: nn.Module) -> list[Tensor]:
    """What the state dict holds for inference, each tensor once, without the quantizers' own."""
    own = {
        id(tensor)
        for _, quantizer in quantizers(model)
        for tensor in chain(quantizer.parameters(), quantizer.buffers())
    }
    tensors = {
        id(tensor): tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor) and not name.endswith("num_batches_tracked")
    }
    return [tensor for key, tensor in tensors.items() if key not in own]
