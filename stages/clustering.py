"""Clusters of a checkpoint's weights and activations, as set in params.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product

from qnet.calibration import activation_histograms
from qnet.checkpoint import Checkpoint
from qnet.clustering import Clusters, cluster, cluster_together
from qnet.data import load_info
from qnet.histogram import Histogram
from qnet.levels import LevelSet, activation_levels, weight_levels
from qnet.params import ClusteringParams, Params
from qnet.runtime import Runtime
from qnet.sites import activation_sites, quantizable_layers
from stages.bars import bar
from stages.cluster_files import Clustered, ClusteredByBits, Coarse
from stages.common import PREPARED
from stages.data import sample_images


def weight_clusters(params: Params, checkpoint: Checkpoint) -> dict[str, Clustered]:
    """For each layer, the histogram of its weights and the clusters for `weights.levels`."""
    levels = weight_levels(params.weights.levels)
    if levels is None:
        return {}
    histograms = {}
    for layer in quantizable_layers(checkpoint.model, params.model.keep, params.model.quantize):
        histograms[layer] = Histogram(f"{layer}.weight")
        histograms[layer].update(checkpoint.model.get_parameter(f"{layer}.weight"))
    clusters = _clusters(histograms, levels, params.cluster.weights)
    return {
        layer: Clustered(Coarse.of(histogram), clusters[layer])
        for layer, histogram in histograms.items()
    }


def activation_clusters(
    params: Params, checkpoint: Checkpoint, runtime: Runtime, bits: Iterable[int]
) -> dict[str, ClusteredByBits]:
    """For each site, the histogram of its activations and the clusters at each number of `bits`."""
    sites = activation_sites(
        checkpoint.model, params.activations.sites, params.model.keep, params.model.quantize
    )
    images = sample_images(params, checkpoint.dataset, runtime)
    count = min(params.cluster.images, load_info(PREPARED).counts["train"])
    batches = bar(images.ordered(), -(-count // images.batch_size), "activations")
    histograms = activation_histograms(checkpoint.model, sites, (x for x, _ in batches))
    found = {
        site: ClusteredByBits(Coarse.of(histogram), {}) for site, histogram in histograms.items()
    }
    for signed, count in product((False, True), bits):
        levels = activation_levels(count, signed=signed)
        assert levels is not None
        alike = {site: seen for site, seen in histograms.items() if (seen.min < 0) == signed}
        for site, clusters in _clusters(alike, levels, params.cluster.activations).items():
            found[site].clusters[count] = clusters
    return found


def _clusters(
    histograms: Mapping[str, Histogram], levels: LevelSet, params: ClusteringParams
) -> dict[str, Clusters]:
    rule = params.model_dump(exclude={"shared"})
    if params.shared:
        return cluster_together(histograms, levels, **rule)
    return {name: cluster(histogram, levels, **rule) for name, histogram in histograms.items()}
