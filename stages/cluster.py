"""Stage cluster: initial alpha, beta and thresholds of every quantizer.

Reads data/prepared, checkpoints/fp.safetensors,
and of params.yaml: seed, model.keep, model.quantize, cluster, weights.levels, activations.sites,
data.bad_images, runtime.
Writes checkpoints/weight_clusters.json, checkpoints/activation_clusters.json and metrics/cluster.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from statistics import fmean

from qnet.checkpoint import load_checkpoint
from qnet.clustering import Clusters
from qnet.files import check_writable, make_folder, write_text
from qnet.params import Params
from qnet.runtime import start
from stages.ahead import check_ahead
from stages.cluster_files import LAYERS, SITES, Clustered, ClusteredByBits
from stages.clustering import activation_clusters, weight_clusters
from stages.common import (
    ACTIVATION_CLUSTERS,
    FP,
    METRICS,
    WEIGHT_CLUSTERS,
    run,
    write_csv,
    write_json,
)
from stages.data import prepared_like
from stages.pictures import draw_clusters
from stages.unchanged import check_unchanged

BITS = range(1, 9)  # all of them, so that a sweep over activations.bits clusters once
READS = {
    "seed": True,
    "model": {"keep", "quantize"},
    "cluster": True,
    "weights": {"levels"},
    "activations": {"sites"},
}
FOLDER = METRICS / "cluster"
FIGURES = ("inertia", "trimmed", "alpha", "beta")


def main(params: Params) -> None:
    """Cluster the weights into `weights.levels`, and the activations at every number of bits."""
    check_writable(WEIGHT_CLUSTERS)  # fail now, not after the work
    make_folder(FOLDER)
    runtime = start(params.runtime)
    checkpoint = load_checkpoint(FP, runtime.device)
    info = prepared_like(checkpoint.dataset)
    check_ahead(params, checkpoint.model, info, "weights", "activations")
    weights = weight_clusters(params, checkpoint)
    activations = activation_clusters(params, checkpoint, runtime, BITS)
    check_unchanged(params, READS)
    write_text(WEIGHT_CLUSTERS, json.dumps(LAYERS.dump_python(weights, mode="json")))
    write_text(ACTIVATION_CLUSTERS, json.dumps(SITES.dump_python(activations, mode="json")))
    _write_weights(weights)
    _write_activations(activations)
    write_json(FOLDER / "metrics.json", _summary(weights.values(), activations.values()))
    draw_clusters(FOLDER / "pictures", weights)


def _summary(
    weights: Collection[Clustered], activations: Collection[ClusteredByBits]
) -> dict[str, object]:
    """Means over the layers, few enough for `dvc metrics`."""
    figures: dict[str, object] = {}
    if weights:
        figures["weights"] = {
            "inertia": fmean(found.clusters.inertia for found in weights),
            "trimmed": fmean(found.clusters.trimmed for found in weights),
        }
    if activations:
        figures["activations"] = {
            "inertia": {
                bits: fmean(found.clusters[bits].inertia for found in activations) for bits in BITS
            },
            "trimmed": fmean(found.clusters[BITS[0]].trimmed for found in activations),
        }
    return figures


def _write_weights(weights: Mapping[str, Clustered]) -> None:
    rows = ([layer, *_figures(found.clusters)] for layer, found in weights.items())
    write_csv(FOLDER / "weights.csv", ["layer", *FIGURES], rows)


def _write_activations(activations: Mapping[str, ClusteredByBits]) -> None:
    rows = (
        [site, bits, *_figures(clusters)]
        for site, found in activations.items()
        for bits, clusters in found.clusters.items()
    )
    write_csv(FOLDER / "activations.csv", ["site", "bits", *FIGURES], rows)


def _figures(clusters: Clusters) -> list[float]:
    return [getattr(clusters, name) for name in FIGURES]


if __name__ == "__main__":
    run(main, __doc__)
