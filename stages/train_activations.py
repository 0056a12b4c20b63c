"""Stage train_activations: the network with quantized weights and quantized activations."""

from __future__ import annotations

from qnet.checkpoint import load_checkpoint
from qnet.layers import insert_quantizers
from qnet.params import Params
from qnet.runtime import start
from stages.common import ACTIVATION_CLUSTERS, ACTIVATIONS, FP, METRICS, WEIGHTS, read_json, run
from stages.pictures import draw_clusters
from stages.quantizers import quantizer_from, treat_weights
from stages.training import train_stage


def main(params: Params) -> None:
    """Quantize the activations at `activations.bits` and train; `full` passes the network on."""
    runtime = start(params.runtime)
    checkpoint = load_checkpoint(WEIGHTS, runtime.device)
    bits = str(params.activations.bits)
    clusters = {
        site: {"histogram": entry["histogram"], "clusters": entry["clusters"][bits]}
        for site, entry in read_json(ACTIVATION_CLUSTERS).items()
        if bits != "full"
    }
    found = {
        site: quantizer_from(entry["clusters"], params.activations)
        for site, entry in clusters.items()
    }
    learning = treat_weights(checkpoint.model, params.activations)
    insert_quantizers(checkpoint.model, activations=found)
    train_stage(
        "train_activations",
        "activations",
        params,
        checkpoint,
        runtime,
        ACTIVATIONS,
        inputs=[FP, ACTIVATION_CLUSTERS, WEIGHTS],
        teacher=load_checkpoint(FP, runtime.device).model,
        annealed=[*found.values(), *learning],
        epochs=bool(found),
    )
    draw_clusters(METRICS / "train_activations" / "pictures", clusters)


if __name__ == "__main__":
    run(main)
