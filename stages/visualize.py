"""Draw what a checkpoint's quantizers do: `python -m stages.visualize --help`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qnet.calibration import activation_histograms
from qnet.checkpoint import Checkpoint, load_checkpoint
from qnet.clustering import Clusters
from qnet.errors import UserError
from qnet.files import make_folder
from qnet.histogram import Histogram
from qnet.params import Params, load_params
from qnet.quantizer import Quantizer, quantizers
from qnet.runtime import Runtime, start
from stages.bars import bar
from stages.cluster_files import Clustered, Coarse
from stages.common import ACTIVATIONS, WEIGHTS, Parser, run_tool
from stages.data import prepared_like, sample_batch, sample_images
from stages.pictures import draw_panels, draw_quantizer

Seen = tuple[Histogram, Tensor]
"""A quantizer's inputs, and how often it outputs each level."""


def main() -> None:
    """Draw the inputs and outputs of each quantizer of a checkpoint, and an overview."""
    arguments = _arguments()
    params = load_params()
    path = arguments.checkpoint or _newest()
    runtime = start(params.runtime)
    checkpoint = load_checkpoint(path, runtime.device)
    found = dict(quantizers(checkpoint.model))
    if not found:
        raise UserError(f"{path} has no quantizers; give one written by train_weights")
    if checkpoint.packed:
        raise UserError(
            f"{path} is packed, without its unquantized weights; give the file that it was packed "
            "from"
        )
    make_folder(arguments.output)  # fail now, not after the work
    weights = {name: q for name, q in found.items() if name.endswith(".weight_quantizer")}
    seen = {name: _look_at_weight(checkpoint, name, q) for name, q in weights.items()}
    activations = {name: q for name, q in found.items() if name not in weights}
    if activations:
        seen |= _look_at_activations(checkpoint, activations, params, runtime)

    panels, drawn = {}, set()
    for name in bar(seen, len(seen), "draw"):
        layer, _, slot = name.rpartition(".")
        kind = "weights" if name in weights else "activations"
        histogram, counts = seen[name]
        panel = _panel(histogram, found[name])
        bits = found[name].level_set.bits
        panels[f"{layer}, {slot.partition('_')[0]}"] = panel
        picture = arguments.output / kind / f"{layer}.png"
        drawn.add(picture)
        draw_quantizer(
            picture,
            f"{layer}: {kind} ({bits} bit{'s' if bits > 1 else ''})",
            kind,
            panel,
            (counts / counts.sum()).tolist(),
        )
    for kind in ("weights", "activations"):
        for picture in set((arguments.output / kind).glob("*.png")) - drawn:
            picture.unlink()  # of another network
    draw_panels(arguments.output / "overview.png", panels, columns=math.ceil(len(panels) ** 0.5))
    print(f"{path}: {len(seen) + 1} images in {arguments.output}")


def _arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m stages.visualize",
        description="Draw weights and activations before and after a checkpoint quantizes them.",
    )
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", help=f"default: {ACTIVATIONS} or {WEIGHTS}, the newer"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", default=Path("pictures"),
        help="where overview.png, weights/ and activations/ go, in place of those there; "
        "default: pictures",
    )  # fmt: skip
    return parser.parse_args()


def _newest() -> Path:
    there = [path for path in (ACTIVATIONS, WEIGHTS) if path.exists()]
    return max(there, key=lambda path: path.stat().st_mtime, default=ACTIVATIONS)


def _look_at_weight(checkpoint: Checkpoint, name: str, quantizer: Quantizer) -> Seen:
    weight = checkpoint.model.get_parameter(name.removesuffix("_quantizer"))
    histogram = Histogram(name)
    histogram.update(weight)
    return histogram, _level_counts(quantizer, weight)


def _look_at_activations(
    checkpoint: Checkpoint,
    activations: Mapping[str, Quantizer],
    params: Params,
    runtime: Runtime,
) -> dict[str, Seen]:
    """Run `cluster.images` training images through the quantized network."""
    count = min(prepared_like(checkpoint.dataset).counts["train"], params.cluster.images)
    batches = sample_images(params, checkpoint.dataset, runtime).ordered()
    size = sample_batch(checkpoint.dataset)
    counts: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def add(quantizer: Quantizer, inputs: tuple[Tensor]) -> None:
            found = _level_counts(quantizer, inputs[0])
            counts[name] = counts[name] + found if name in counts else found

        return add

    for name, quantizer in activations.items():
        quantizer.register_forward_pre_hook(watch(name))
    images = (x for x, _ in bar(batches, -(-count // size), "look at activations"))
    # Observed at its quantizer, a ReLU's output is seen before it is quantized.
    histograms = activation_histograms(checkpoint.model, list(activations), images)
    return {name: (histogram, counts[name]) for name, histogram in histograms.items()}


def _level_counts(quantizer: Quantizer, values: Tensor) -> Tensor:
    """Count the `values` at each level: int64 [levels], on the CPU."""
    levels = torch.tensor(quantizer.level_set.values)
    lowest, highest = int(levels[0]), int(levels[-1])
    found = quantizer.integers(values).flatten().long() - lowest
    return torch.bincount(found, minlength=highest - lowest + 1).cpu()[levels - lowest]


def _panel(histogram: Histogram, quantizer: Quantizer) -> Clustered:
    """Input for `stages.pictures`; an alpha for each channel is replaced by their mean."""
    now = Clusters(
        levels=quantizer.level_set,
        thresholds=tuple(quantizer.thresholds.tolist()),
        alpha=float(quantizer.alpha.detach().mean()),
        beta=float(quantizer.beta.detach().mean()),
        low=histogram.min,
        high=histogram.max,
        trimmed=0.0,
        inertia=0.0,
    )
    return Clustered(Coarse.of(histogram), now)


if __name__ == "__main__":
    run_tool(main)
