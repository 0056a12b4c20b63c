"""The table at the end: accuracy, loss against full precision, size. `python -m stages.report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qnet.errors import some
from qnet.params import Params
from qnet.params.file import read_yaml
from stages.common import METRICS, Parser, read_json, reading, run
from stages.pairs import pairs
from stages.stale import changed_since

LOCK = Path("dvc.lock")
STAGES = ("train_fp", "train_weights", "train_activations")


def main(params: Params) -> None:
    """Print the figures of the three training stages, as they stand under metrics/."""
    parser = Parser(prog="python -m stages.report", description=__doc__)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw the curves, as PNG")
    picture = parser.parse_args().picture
    metrics = {stage: _read(METRICS / stage / "metrics.json") for stage in STAGES}
    names = {
        stage: pair.name
        for stage, pair in pairs(params.weights.levels, params.activations.bits).items()
    }
    title = f"{params.model.name} on {params.data.name}, test set"
    if any(found["selected_on"] == "test" for found in metrics.values()):
        title += " (which chose the epochs: too high)"
    print(title)
    _print_table(metrics, names)
    if changed := _changed():
        print(
            f"changed since a stage read it: {some(changed)}; the figures may not belong together "
            "or to params.yaml, run `dvc repro`"
        )
    if picture is not None:
        from stages.charts import draw_result  # matplotlib takes a second to import

        draw_result(picture, {stage: (names[stage], metrics[stage]) for stage in STAGES})


def _read(path: Path) -> dict[str, Any]:
    metrics = read_json(path)
    with reading(path):
        return {
            "test": {"top1": float(metrics["test"]["top1"])},
            "bytes": int(metrics["bytes"]),
            "compression": float(metrics["compression"]),
            "best_epoch": int(metrics["best_epoch"]),
            "selected_on": metrics["selected_on"],
        }


def _changed() -> list[str]:
    """What stages read otherwise than it is now; nothing where DVC has not run them."""
    if not LOCK.is_file():
        return []
    with reading(LOCK):
        return changed_since(read_yaml(LOCK), read_yaml("params.yaml"))


def _print_table(metrics: dict[str, Any], names: dict[str, str]) -> None:
    titles = ("full precision", "weights quantized", "activations quantized")
    full = metrics["train_fp"]["test"]["top1"]
    width = max(7, *map(len, names.values()))
    print(f"{'':22} {'W/A':>{width}} {'top-1 %':>8} {'loss':>6} {'bytes':>11} {'compression':>11}")
    for stage, title in zip(STAGES, titles, strict=True):
        found, name = metrics[stage], names[stage]
        top1 = found["test"]["top1"]
        print(
            f"{title:22} {name:>{width}} {top1:8.2f} {full - top1:6.2f} {found['bytes']:11,} "
            f"{found['compression']:10.1f}×"
        )


if __name__ == "__main__":
    run(main)
