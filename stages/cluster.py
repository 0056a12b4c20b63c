"""Stage cluster: initial alpha, beta and thresholds of every quantizer.

Reads data/prepared, checkpoints/fp.safetensors,
and of params.yaml: seed, model.keep, model.quantize, cluster, weights.levels, activations.sites,
data.bad_images, runtime.
Writes checkpoints/weight_clusters.json, checkpoints/activation_clusters.json and metrics/cluster.
"""

from __future__ import annotations

import json

from qnet.checkpoint import load_checkpoint
from qnet.clustering import Clusters
from qnet.files import check_writable, write_text
from qnet.params import Params
from qnet.runtime import start
from stages.ahead import check_ahead
from stages.cluster_files import LAYERS, SITES
from stages.clustering import activation_clusters, weight_clusters
from stages.common import (
    ACTIVATION_CLUSTERS,
    FP,
    METRICS,
    WEIGHT_CLUSTERS,
    run,
    write_json,
)
from stages.data import prepared_like
from stages.pictures import draw_clusters

BITS = range(1, 9)  # all of them, so that a sweep over activations.bits clusters once


def main(params: Params) -> None:
    """Cluster the weights into `weights.levels`, and the activations at every number of bits."""
    check_writable(WEIGHT_CLUSTERS)  # fail now, not after the work
    runtime = start(params.runtime)
    checkpoint = load_checkpoint(FP, runtime.device)
    info = prepared_like(checkpoint.dataset)
    check_ahead(params, checkpoint.model, info, "weights", "activations")
    weights = weight_clusters(params, checkpoint)
    activations = activation_clusters(params, checkpoint, runtime, BITS)
    write_text(WEIGHT_CLUSTERS, json.dumps(LAYERS.dump_python(weights, mode="json")))
    write_text(ACTIVATION_CLUSTERS, json.dumps(SITES.dump_python(activations, mode="json")))
    figures = {
        "weights": {layer: _figures(found.clusters) for layer, found in weights.items()},
        "activations": {
            site: {bits: _figures(clusters) for bits, clusters in found.clusters.items()}
            for site, found in activations.items()
        },
    }
    write_json(METRICS / "cluster" / "metrics.json", figures)
    draw_clusters(METRICS / "cluster" / "pictures", weights)


def _figures(clusters: Clusters) -> dict[str, float]:
    """Figures that `dvc metrics` shows."""
    return {name: getattr(clusters, name) for name in ("inertia", "trimmed", "alpha", "beta")}


if __name__ == "__main__":
    run(main, __doc__)
