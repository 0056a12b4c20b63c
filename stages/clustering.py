"""Clusters of a checkpoint's weights and of its activations, as params.yaml wants them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qnet.calibration import activation_histograms
from qnet.checkpoint import Checkpoint
from qnet.clustering import cluster
from qnet.histogram import Histogram
from qnet.layers import activation_sites, quantizable_layers
from qnet.levels import activation_levels, weight_levels
from qnet.params import Params
from qnet.runtime import Runtime
from stages.data import sample_images
from stages.pictures import coarse


def weight_clusters(params: Params, checkpoint: Checkpoint) -> dict[str, Any]:
    """By layer: the histogram of its weights and the clusters at `weights.levels`."""
    levels = weight_levels(params.weights.levels)
    if levels is None:
        return {}
    rule = params.cluster.weights.model_dump()
    found = {}
    for layer in quantizable_layers(checkpoint.model, params.model.keep, params.model.quantize):
        histogram = Histogram(f"{layer}.weight")
        histogram.update(checkpoint.model.get_parameter(f"{layer}.weight"))
        clusters = cluster(histogram, levels, **rule, name=f"{layer}.weight")
        found[layer] = {"histogram": coarse(histogram), "clusters": clusters.to_dict()}
    return found


def activation_clusters(
    params: Params, checkpoint: Checkpoint, runtime: Runtime, bits: Iterable[int]
) -> dict[str, Any]:
    """By site: the histogram of its activations and the clusters at each number of `bits`."""
    sites = activation_sites(
        checkpoint.model, params.activations.sites, params.model.keep, params.model.quantize
    )
    images = sample_images(params, checkpoint.dataset, runtime)
    histograms = activation_histograms(checkpoint.model, sites, (x for x, _ in images.ordered()))
    rule = params.cluster.activations.model_dump()
    found: dict[str, Any] = {}
    for site, histogram in histograms.items():
        found[site] = {"histogram": coarse(histogram), "clusters": {}}
        for count in bits:
            levels = activation_levels(count, signed=histogram.min < 0)
            assert levels is not None
            clusters = cluster(histogram, levels, **rule, name=f"activations of {site}")
            found[site]["clusters"][str(count)] = clusters.to_dict()
    return found
