"""Stage train_weights: train with quantized weights and full-precision activations.

Reads data/prepared, checkpoints/fp.safetensors, checkpoints/weight_clusters.json,
and of params.yaml: seed, augment, weights, data.bad_images, runtime.
Writes checkpoints/weights.safetensors, metrics/train_weights and, for TensorBoard,
runs/train_weights.
"""

from __future__ import annotations

from qnet.checkpoint import load_checkpoint
from qnet.errors import UserError
from qnet.insertion import insert_quantizers
from qnet.levels import weight_levels
from qnet.params import Params
from qnet.runtime import start
from stages.ahead import check_ahead
from stages.cluster_files import LAYERS
from stages.common import FP, WEIGHT_CLUSTERS, WEIGHTS, reading
from stages.data import prepared_like
from stages.launch import run
from stages.training import TrainingStage


def main(params: Params) -> None:
    """Quantize the weights to `weights.levels` and train; `full` passes the network on."""
    runtime = start(params.runtime)
    checkpoint = load_checkpoint(FP, runtime.device)
    info = prepared_like(checkpoint.dataset)
    check_ahead(params, checkpoint.model, info, "weights", "activations")
    with reading(WEIGHT_CLUSTERS):
        clusters = LAYERS.validate_json(WEIGHT_CLUSTERS.read_bytes())
    levels = weight_levels(params.weights.levels)
    made_for = {found.clusters.levels.values for found in clusters.values()}
    if made_for != (set() if levels is None else {levels.values}):
        raise UserError(
            f"weights.levels is {params.weights.levels}, and {WEIGHT_CLUSTERS} was made for "
            "other levels; run `dvc repro cluster`"
        )
    with reading(WEIGHT_CLUSTERS):
        quantizers = {name: found.quantizer(params.weights) for name, found in clusters.items()}
        insert_quantizers(checkpoint.model, weights=quantizers)
    stage = TrainingStage("weights", params, checkpoint, runtime, WEIGHTS)
    if clusters:
        stage.train(inputs=[FP, WEIGHT_CLUSTERS], teacher=FP)
    else:
        stage.pass_on()


if __name__ == "__main__":
    run(main, __doc__)
