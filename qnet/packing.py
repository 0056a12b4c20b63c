"""A network as it is deployed: weights as packed integers, and nothing that only training needs.

    quantized weight      uint8 [⌈values · bits / 8⌉]: for each value, in the order of a contiguous
                          tensor, the index of its level in the level set, counted from 0; bits
                          follow each other, the least significant of a value and of a byte first
    its quantizer         α
    everything else       as in the state dict

What only training needs (`training_only`) is left out. A tensor with two names is stored twice
(`qnet.size` counts it once).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from qnet.errors import UserError
from qnet.layers import quantized_weights
from qnet.levels import LevelSet
from qnet.quantizer import Quantizer


def packed_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of `model` that its outputs in eval mode depend on, quantized weights packed.

    Raises:
        UserError: no weight is quantized, or a quantized one has two names.
    """
    weights = {name: quantizer for name, _, quantizer in quantized_weights(model)}
    if not weights:
        raise UserError("no weight is quantized: nothing to pack")
    left_out, state = training_only(model), model.state_dict(keep_vars=True)
    for name, quantizer in weights.items():
        weight = state[name]
        names = [other for other, tensor in state.items() if tensor is weight]
        if len(names) > 1:
            raise UserError(
                f"{' and '.join(names)} are one weight, which cannot be packed; keep it in "
                "full precision (model.keep)"
            )
        state[name] = pack(quantizer.integers(weight), quantizer.level_set)
    return {name: tensor for name, tensor in state.items() if name not in left_out}


def unpacked_state(model: nn.Module, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of what `packed_state` gave, for `model` with new quantizers.

    Their β is 1 and their thresholds are uniform, so a weight may be its level. What does not fit
    `model` is passed on as it is.

    Raises:
        UserError: a quantized weight is not packed, or holds a code without a level.
    """
    own = model.state_dict()
    state = {name: own[name] for name in training_only(model)} | dict(packed)
    for name, weight, quantizer in quantized_weights(model):
        levels, shape = quantizer.level_set, weight.shape
        codes = packed.get(name)
        if codes is None:
            continue
        if codes.dtype != torch.uint8:
            raise UserError(f"{name} is {codes.dtype} instead of packed levels, torch.uint8")
        if codes.shape == ((shape.numel() * levels.bits + 7) // 8,):
            try:
                state[name] = unpack(codes, levels, shape.numel()).to(own[name]).view(shape)
            except IndexError:
                raise UserError(f"{name} holds codes without a level in {levels.name}") from None
    return state


def training_only(model: nn.Module) -> set[str]:
    """Names in the state dict of `model` that its outputs in eval mode do not depend on.

    β and the thresholds of weights, temperatures, and the counters of batch norm.
    """
    names = {name for name in model.state_dict() if name.endswith("num_batches_tracked")}
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, Quantizer):
            continue
        of_weight = name.rpartition(".")[2] == "weight_quantizer"
        own = ("temperature", "beta", "thresholds") if of_weight else ("temperature",)
        names |= {f"{name}.{tensor}".removeprefix(".") for tensor in own}
    return names


def pack(integers: Tensor, levels: LevelSet) -> Tensor:
    """Levels of any shape -> uint8 [⌈values · bits / 8⌉], on the CPU."""
    codes = np.searchsorted(levels.values, integers.cpu().numpy().ravel())
    bits = np.empty((codes.size, levels.bits), dtype=np.uint8)
    for bit in range(levels.bits):
        bits[:, bit] = codes >> bit & 1
    return torch.from_numpy(np.packbits(bits, bitorder="little"))


def unpack(packed: Tensor, levels: LevelSet, count: int) -> Tensor:
    """The inverse of `pack`: uint8 -> int64 [count].

    Raises:
        IndexError: a code is beyond the last level.
    """
    bits = np.unpackbits(packed.cpu().numpy(), count=count * levels.bits, bitorder="little")
    codes = bits.reshape(count, levels.bits) @ (1 << np.arange(levels.bits))
    return torch.from_numpy(np.array(levels.values)[codes])
