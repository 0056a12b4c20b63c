"""Table of results: accuracy, loss against full precision, size. `python -m stages.report`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qnet.errors import some
from qnet.params import load_params
from qnet.params.file import read_yaml
from stages.common import ACTIVATIONS, FP, METRICS, WEIGHTS, Parser, output_file, reading, run_tool
from stages.pairs import pairs
from stages.stale import changed_since

LOCK = Path("dvc.lock")
STAGES = {  # what the stage produced, and where it is
    "train_fp": ("full precision", FP),
    "train_weights": ("weights quantized", WEIGHTS),
    "train_activations": ("activations quantized", ACTIVATIONS),
}


def main() -> None:
    """Print the training stages' figures from metrics/."""
    parser = Parser(prog="python -m stages.report", description=__doc__)
    parser.add_argument(
        "--picture", type=output_file(".png"), metavar="FILE", help="also draw the curves, as PNG"
    )
    picture = parser.parse_args().picture
    params = load_params()
    networks = {
        stage: (pair.name, _read(METRICS / stage / "metrics.json"))
        for stage, pair in pairs(params.weights.levels, params.activations.bits).items()
    }
    title = f"{params.model.name} on {params.data.name}, test set"
    if any(found["selected_on"] == "test" for _, found in networks.values()):
        title += " (which chose the epochs: too high)"
    if changed := _changed():
        print(
            f"changed since a stage read it: {some(changed)}; the figures may not belong together "
            "or to params.yaml, run `dvc repro`"
        )
    print(title)
    _print_table(networks)
    if absent := [str(STAGES[stage][1]) for stage in networks if not STAGES[stage][1].exists()]:
        print(
            f"not here: {some(absent)}; the figures are from git, not from a run of yours: "
            "run `dvc repro`"
        )
    if picture is not None:
        from stages.charts import draw_result  # matplotlib takes a second to import

        draw_result(picture, networks)


def _read(path: Path) -> dict[str, Any]:
    with reading(path):
        metrics = json.loads(path.read_bytes())
        return {
            "test": {"top1": float(metrics["test"]["top1"])},
            "bytes": int(metrics["bytes"]),
            "compression": float(metrics["compression"]),
            "best_epoch": int(metrics["best_epoch"]),
            "selected_on": metrics["selected_on"],
        }


def _changed() -> list[str]:
    """Parameters and files that changed since a stage read them; empty if DVC has run none."""
    if not LOCK.is_file():
        return []
    with reading(LOCK):
        return changed_since(read_yaml(LOCK), read_yaml("params.yaml"))


def _print_table(networks: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
    full = networks["train_fp"][1]["test"]["top1"]
    width = max(7, *(len(name) for name, _ in networks.values()))
    print(f"{'':22} {'W/A':>{width}} {'top-1 %':>8} {'loss':>6} {'bytes':>11} {'compression':>11}")
    for stage, (name, found) in networks.items():
        top1 = found["test"]["top1"]
        print(
            f"{STAGES[stage][0]:22} {name:>{width}} {top1:8.2f} {full - top1:6.2f} "
            f"{found['bytes']:11,} {found['compression']:10.1f}×"
        )


if __name__ == "__main__":
    run_tool(main)
