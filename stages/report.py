"""The table at the end: accuracy, loss against full precision, size. `python -m stages.report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qnet.params import Params
from stages.common import METRICS, Parser, read_json, run

STAGES = ("train_fp", "train_weights", "train_activations")


def main(params: Params) -> None:
    """Print the figures of the three training stages, as they stand under metrics/."""
    parser = Parser(prog="python -m stages.report", description=__doc__)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw the curves, as PNG")
    picture = parser.parse_args().picture
    metrics = {stage: read_json(METRICS / stage / "metrics.json") for stage in STAGES}
    pairs = dict(zip(STAGES, _pairs(params), strict=True))
    title = f"{params.model.name} on {params.data.name}, test set"
    if any(found["selected_on"] == "test" for found in metrics.values()):
        title += " (which chose the epochs: too high)"
    print(title)
    _print_table(metrics, pairs)
    if picture is not None:
        from stages.charts import draw_result  # matplotlib takes a second to import

        draw_result(picture, {stage: (pairs[stage], metrics[stage]) for stage in STAGES})


def _print_table(metrics: dict[str, Any], pairs: dict[str, str]) -> None:
    titles = ("full precision", "weights quantized", "activations quantized")
    full = metrics["train_fp"]["test"]["top1"]
    print(f"{'':22} {'W/A':>7} {'top-1 %':>8} {'loss':>6} {'bytes':>11} {'compression':>11}")
    for stage, title in zip(STAGES, titles, strict=True):
        found = metrics[stage]
        top1 = found["test"]["top1"]
        print(
            f"{title:22} {pairs[stage]:>7} {top1:8.2f} {full - top1:6.2f} {found['bytes']:11,} "
            f"{found['compression']:10.1f}×"
        )


def _pairs(params: Params) -> tuple[str, str, str]:
    """What W/A each training stage ends with, such as 1/2; 32 is full precision."""

    def short(levels: object) -> str:
        return "32" if levels == "full" else str(levels)

    weights, bits = short(params.weights.levels), short(params.activations.bits)
    return "32/32", f"{weights}/32", f"{weights}/{bits}"


if __name__ == "__main__":
    run(main)
