"""Stage train_activations: train with quantized weights and quantized activations.

Reads data/prepared, checkpoints/fp.safetensors, checkpoints/weights.safetensors,
checkpoints/activation_clusters.json,
and of params.yaml: seed, augment, model.keep, model.quantize, cluster.images, cluster.activations,
activations, data.bad_images, runtime.
Writes checkpoints/activations.safetensors, metrics/train_activations and, for TensorBoard,
runs/train_activations.
"""

from __future__ import annotations

from qnet.checkpoint import Checkpoint, load_checkpoint
from qnet.distributed import rank
from qnet.errors import UserError
from qnet.insertion import insert_quantizers
from qnet.params import Params
from qnet.runtime import Runtime, start
from qnet.sites import activation_sites
from stages.cluster_files import SITES, Clustered
from stages.clustering import activation_clusters
from stages.common import ACTIVATION_CLUSTERS, ACTIVATIONS, FP, METRICS, WEIGHTS, reading
from stages.data import prepared_like
from stages.launch import run
from stages.pictures import draw_clusters
from stages.training import TrainingStage


def main(params: Params) -> None:
    """Quantize the activations to `activations.bits` and train; `full` passes the network on."""
    runtime = start(params.runtime)
    checkpoint = load_checkpoint(WEIGHTS, runtime.device)
    prepared_like(checkpoint.dataset)
    clusters = _clusters(params, checkpoint, runtime)
    quantizers = {name: found.quantizer(params.activations) for name, found in clusters.items()}
    insert_quantizers(checkpoint.model, activations=quantizers)
    if rank() == 0:
        # Before training: if something fails afterwards, DVC runs the stage again from the start.
        draw_clusters(METRICS / "train_activations" / "pictures", clusters)
    stage = TrainingStage("activations", params, checkpoint, runtime, ACTIVATIONS)
    if clusters:
        stage.train(inputs=[FP, ACTIVATION_CLUSTERS, WEIGHTS], teacher=FP)
    else:
        stage.pass_on()


def _clusters(params: Params, checkpoint: Checkpoint, runtime: Runtime) -> dict[str, Clustered]:
    """For each site, the histogram and the clusters from which its quantizer starts."""
    bits = params.activations.bits
    if bits == "full":
        return {}
    if params.activations.thresholds_from == "weights":
        clusters = activation_clusters(params, checkpoint, runtime, [bits])
        return {site: found.at(bits) for site, found in clusters.items()}
    with reading(ACTIVATION_CLUSTERS):
        clusters = SITES.validate_json(ACTIVATION_CLUSTERS.read_bytes())
        starts = {site: found.at(bits) for site, found in clusters.items()}
    sites = activation_sites(
        checkpoint.model, params.activations.sites, params.model.keep, params.model.quantize
    )
    if list(starts) != sites:
        raise UserError(
            f"activations.sites is {params.activations.sites}, model.keep is "
            f"{list(params.model.keep)}, model.quantize is {list(params.model.quantize)}, and "
            f"{ACTIVATION_CLUSTERS} was made for other values; run `dvc repro cluster`"
        )
    return starts


if __name__ == "__main__":
    run(main, __doc__)
