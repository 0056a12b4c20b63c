"""Quantizers as the stage cluster found them and params.yaml wants them."""

from __future__ import annotations

from typing import Any

from torch import nn

from qnet.clustering import Clusters
from qnet.layers import quantized_weights
from qnet.params import ActivationsParams, QuantizedTrainingParams
from qnet.quantizer import Quantizer


def quantizer_from(clusters: dict[str, Any], params: QuantizedTrainingParams) -> Quantizer:
    """A quantizer that starts with these `clusters` and is trained as `params` say."""
    return Quantizer.from_clusters(
        Clusters.from_dict(clusters),
        forward_mode=params.forward,
        backward_temperature=params.backward_temperature,
    )


def treat_weights(model: nn.Module, params: ActivationsParams) -> list[Quantizer]:
    """Have the quantized weights of `model` treated as `activations.weights` says.

    Returns:
        The quantizers in whose training T has a part, so that it follows the schedule.
    """
    annealed = []
    for weight, quantizer in quantized_weights(model):
        frozen = params.weights == "frozen"
        quantizer.forward_mode = "soft" if params.weights == "soft" else "hard"
        weight.requires_grad_(not frozen)
        quantizer.requires_grad_(params.weight_scales and not frozen)
        exact = quantizer.backward_temperature == "exact"
        if params.weights == "soft" or (exact and not frozen):
            annealed.append(quantizer)
    return annealed
