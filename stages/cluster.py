"""Stage cluster: where alpha, beta and the thresholds of every quantizer start."""

from __future__ import annotations

import json
from typing import Any

from qnet.calibration import activation_histograms
from qnet.checkpoint import Checkpoint, load_checkpoint
from qnet.clustering import cluster
from qnet.files import write_text
from qnet.histogram import Histogram
from qnet.layers import activation_sites, quantizable_layers
from qnet.levels import activation_levels, weight_levels
from qnet.params import Params
from qnet.runtime import Runtime, start
from stages.common import (
    ACTIVATION_CLUSTERS,
    FP,
    METRICS,
    WEIGHT_CLUSTERS,
    run,
    write_json,
)
from stages.data import sample_images
from stages.pictures import coarse, draw_clusters

BITS = range(1, 9)  # all of them, so that a sweep over activations.bits clusters once


def main(params: Params) -> None:
    """Cluster the weights at `weights.levels`, and the activations at every number of bits."""
    runtime = start(params.runtime)
    checkpoint = load_checkpoint(FP, runtime.device)
    content = {
        "weights": _weights(params, checkpoint),
        "activations": _activations(params, checkpoint, runtime),
    }
    write_text(WEIGHT_CLUSTERS, json.dumps(content["weights"]))
    write_text(ACTIVATION_CLUSTERS, json.dumps(content["activations"]))
    write_json(METRICS / "cluster" / "metrics.json", _figures(content))
    draw_clusters(METRICS / "cluster" / "pictures", content["weights"])


def _weights(params: Params, checkpoint: Checkpoint) -> dict[str, Any]:
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


def _activations(params: Params, checkpoint: Checkpoint, runtime: Runtime) -> dict[str, Any]:
    sites = activation_sites(
        checkpoint.model, params.activations.sites, params.model.keep, params.model.quantize
    )
    images = sample_images(params, checkpoint.dataset, runtime)
    histograms = activation_histograms(checkpoint.model, sites, (x for x, _ in images.ordered()))
    rule = params.cluster.activations.model_dump()
    found: dict[str, Any] = {}
    for site, histogram in histograms.items():
        found[site] = {"histogram": coarse(histogram), "clusters": {}}
        for bits in BITS:
            levels = activation_levels(bits, signed=histogram.min < 0)
            assert levels is not None
            clusters = cluster(histogram, levels, **rule, name=f"activations of {site}")
            found[site]["clusters"][str(bits)] = clusters.to_dict()
    return found


def _figures(content: dict[str, Any]) -> dict[str, Any]:
    """What `dvc metrics` shows: inertia, trimmed share, alpha and beta per layer."""

    def figures(clusters: dict[str, Any]) -> dict[str, float]:
        return {name: clusters[name] for name in ("inertia", "trimmed", "alpha", "beta")}

    return {
        "weights": {
            layer: figures(found["clusters"]) for layer, found in content["weights"].items()
        },
        "activations": {
            site: {bits: figures(c) for bits, c in found["clusters"].items()}
            for site, found in content["activations"].items()
        },
    }


if __name__ == "__main__":
    run(main)
