"""The table at the end: accuracy, loss against full precision, size. `python -m stages.report`."""

from __future__ import annotations

from qnet.params import Params
from stages.common import METRICS, read_json, run


def main(params: Params) -> None:
    """Print the figures of the three training stages, as they stand under metrics/."""
    weights, bits = params.weights.levels, params.activations.bits
    names = {
        "train_fp": ("full precision", "32/32"),
        "train_weights": ("weights quantized", f"{_short(weights)}/32"),
        "train_activations": ("activations quantized", f"{_short(weights)}/{_short(bits)}"),
    }
    metrics = {stage: read_json(METRICS / stage / "metrics.json") for stage in names}
    full = metrics["train_fp"]["test"]["top1"]
    print(f"{params.model.name} on {params.data.name}, test set")
    print(f"{'':22} {'W/A':>7} {'top-1 %':>8} {'loss':>6} {'bytes':>11} {'compression':>11}")
    for stage, (title, pair) in names.items():
        found = metrics[stage]
        top1 = found["test"]["top1"]
        print(
            f"{title:22} {pair:>7} {top1:8.2f} {full - top1:6.2f} {found['bytes']:11,} "
            f"{found['compression']:10.1f}×"
        )


def _short(levels: object) -> str:
    return "32" if levels == "full" else str(levels)


if __name__ == "__main__":
    run(main)
