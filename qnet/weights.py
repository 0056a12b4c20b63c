"""Weights quantized once a step, those of one shape together.

A network has many small weights. Quantizing one takes some forty operations, and starting these
takes longer than computing them; stacked, the weights of one shape share them. The results are
the same, except that the weight of a layer that is never called gets zeros instead of None as its
gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qnet.layers import QuantizedLayer, has_one_factor
from qnet.quantizer import Quantizer

_SMALL = 2**18  # values of a weight; larger ones gain nothing


def weight_groups(model: nn.Module) -> list[list[QuantizedLayer]]:
    """The layers of `model` whose small weights can be quantized together, two or more to a group.

    They have weights of one shape, the same levels, thresholds and window, one alpha and one beta
    each, and a hard forward: T, which each quantizer has of its own, plays no part.
    """
    groups: dict[object, list[QuantizedLayer]] = defaultdict(list)
    for layer in model.modules():
        if not isinstance(layer, QuantizedLayer):
            continue
        weight, quantizer = layer.weight, layer.weight_quantizer
        if (
            has_one_factor(quantizer)
            and quantizer.forward_mode == "hard"
            and quantizer.backward_temperature != "exact"
            and quantizer.beta.numel() == 1
            and weight.numel() <= _SMALL
        ):
            levels, thresholds = quantizer.level_set, quantizer.thresholds.tolist()
            like = (
                weight.shape, weight.dtype, weight.device, levels, *thresholds,
                quantizer.backward_temperature,
            )  # fmt: skip
            groups[like].append(layer)
    return [group for group in groups.values() if len(group) > 1]


@contextmanager
def quantized_in_groups(groups: Sequence[Sequence[QuantizedLayer]]) -> Iterator[None]:
    """Inside, each layer of `groups` uses a weight that was quantized when the context began."""
    try:
        for group in groups:
            for layer, weight in zip(group, _quantized(group), strict=True):
                layer.quantized_weight = weight
        yield
    finally:
        for group in groups:
            for layer in group:
                layer.quantized_weight = None


def _quantized(group: Sequence[QuantizedLayer]) -> Sequence[Tensor]:
    quantizers = [layer.weight_quantizer for layer in group]
    first = quantizers[0]
    assert isinstance(first, Quantizer)
    of_each = (len(group), *[1] * group[0].weight.dim())
    alpha, beta = (
        torch.stack([getattr(quantizer, name).reshape(()) for quantizer in quantizers]).view(
            of_each
        )
        for name in ("alpha", "beta")
    )
    return first.quantized(torch.stack([layer.weight for layer in group]), alpha, beta).unbind()
