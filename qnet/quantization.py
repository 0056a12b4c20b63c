"""A whole model quantized in one call, as the pipeline does by default."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch import Tensor, nn

from qnet.calibration import activation_histograms
from qnet.clustering import cluster
from qnet.errors import UserError
from qnet.insertion import insert_quantizers
from qnet.levels import activation_levels, weight_levels
from qnet.quantizer import Quantizer
from qnet.sites import quantizable_layers


def quantize_model(
    model: nn.Module,
    batches: Iterable[Tensor] = (),
    *,
    weights: str | int | Sequence[int],
    activations: str | int,
    keep: Collection[str] = ("first", "last"),
) -> nn.Module:
    """Give the layers of `model` quantizers, in place; train it afterwards.

    alpha and beta start by least squares, thresholds halfway between levels. For other rules, other
    places, or levels that differ from layer to layer, call in turn what this function calls.

    Args:
        model: with its weights loaded, before it is compiled, wrapped or given to an optimizer.
        batches: what the model is called with, a few hundred images in all, on its device; only
            activations need them.
        weights: bits from 1 to 8, "3pm2", "3pm4", a list of levels, or "full".
        activations: bits from 1 to 8, or "full". The input of each quantized layer gets 2^bits
            levels from zero up, or, where it goes below zero, the levels of weights.
        keep: layers left in full precision: `first`, `last`, or dotted names with * and ? in them.

    Returns:
        `model`.

    Raises:
        UserError: an argument is none of these, both are "full", or no layer is left; or, with
            activations quantized, the network never calls a layer, or there are no images. The
            model is then unchanged.
    """
    if weight_levels(weights) is None and activation_levels(activations) is None:
        raise UserError(
            "quantize_model: weights and activations are both full; quantize one or both"
        )
    layers = quantizable_layers(model, keep)
    weight_quantizers, activation_quantizers = {}, {}
    if (levels := weight_levels(weights)) is not None:
        for name in layers:
            values = model.get_parameter(f"{name}.weight")
            clusters = cluster(values, levels, gamma=0.0, name=f"{name}.weight")
            weight_quantizers[name] = Quantizer.from_clusters(clusters)
    if activation_levels(activations) is not None:
        for name, seen in activation_histograms(model, layers, batches).items():
            levels = activation_levels(activations, signed=seen.min < 0)
            assert levels is not None
            clusters = cluster(seen, levels)
            activation_quantizers[name] = Quantizer.from_clusters(clusters)
    return insert_quantizers(model, weights=weight_quantizers, activations=activation_quantizers)
