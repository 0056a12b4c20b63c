"""The pictures: what is quantized and where its thresholds lie; how accuracy went."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from qnet.clustering import Clusters
from qnet.histogram import Histogram
from stages.common import METRICS

BINS = 160
PANELS = 24  # layers on one page
CURVES = ("#444444", "#2f6f9f", "#d1495b")
VALUES, TRIMMED, THRESHOLD, LEVEL = "#7fa8c9", "#e6e6e6", "#444444", "#d1495b"


def coarse(histogram: Histogram) -> dict[str, Any]:
    """A histogram small enough to keep in a text file: all but the outermost 0.1 % of values."""
    low, high = histogram.percentile(0.0005), histogram.percentile(0.9995)
    high = high if high > low else low + 1
    means, counts = histogram.points()
    zeros = float(counts[means == 0].sum() / counts.sum())
    others = means != 0
    shown, _ = np.histogram(means[others], BINS, range=(low, high), weights=counts[others])
    return {"low": low, "high": high, "zeros": zeros, "counts": shown.tolist()}


def draw_clusters(folder: Path, layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw each layer's histogram, trimmed range, thresholds and levels on pages in `folder`.

    Args:
        folder: replaced as a whole.
        layers: name → `histogram` (as `coarse` gives it) and `clusters` (as a dict).
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = iter(layers)
    page = 1
    while chunk := list(islice(names, PANELS)):
        columns = min(4, len(chunk))
        rows = -(-len(chunk) // columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(3.6 * columns, 2.1 * rows + 0.7), squeeze=False
        )
        for axis, name in zip(axes.flat, chunk, strict=False):
            _panel(axis, name, layers[name])
        for axis in axes.flat[len(chunk) :]:
            axis.axis("off")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
        figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
        figure.savefig(folder / f"layers-{page}.png", dpi=100, metadata={"Software": None})
        plt.close(figure)
        page += 1


def _panel(axis: Axes, name: str, layer: Mapping[str, Any]) -> None:
    histogram, clusters = layer["histogram"], Clusters.from_dict(layer["clusters"])
    edges = np.linspace(histogram["low"], histogram["high"], BINS + 1)
    axis.stairs(histogram["counts"], edges, fill=True, color=VALUES, label="values")
    width = max(edges[-1] - edges[0], 1e-12)
    axis.set_xlim(edges[0] - 0.05 * width, edges[-1] + 0.05 * width)
    left, right = axis.get_xlim()
    if clusters.trimmed > 0:
        low = clusters.low if clusters.low > edges[0] else left
        axis.axvspan(left, low, color=TRIMMED, zorder=0, linewidth=0, label="trimmed")
        axis.axvspan(clusters.high, right, color=TRIMMED, zorder=0, linewidth=0)
    for number, threshold in enumerate(clusters.thresholds):
        label = "threshold" if number == 0 else None
        axis.axvline(
            threshold / clusters.beta, color=THRESHOLD, linewidth=0.8, linestyle="--", label=label
        )
    levels = clusters.alpha * np.array(clusters.levels.values)
    axis.plot(
        levels, np.zeros_like(levels), "^", color=LEVEL, clip_on=False, markersize=5, label="level"
    )
    axis.set_xlim(min(left, levels[0]), max(right, levels[-1]))
    axis.set_ylim(bottom=0)
    zeros = f", {histogram['zeros']:.0%} zeros" if histogram["zeros"] > 0.005 else ""
    axis.set_title(f"{name}{zeros}", fontsize=8)
    axis.set_yticks([])
    axis.tick_params(labelsize=7)
    for side in ("top", "left", "right"):
        axis.spines[side].set_visible(False)


def draw_result(path: Path, stages: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
    """Draw the validation curves of the training stages one after another, and the test results.

    Args:
        path: of the PNG.
        stages: stage → its W/A and the content of its metrics.json.
    """
    figure, axis = plt.subplots(figsize=(8, 3.4))
    start = 0
    for color, (stage, (pair, metrics)) in zip(CURVES, stages.items(), strict=True):
        top1 = metrics["test"]["top1"]
        label = f"{pair}: {top1:.2f} % on test, {metrics['bytes'] / 1000:,.0f} kB"
        rows = _curve(METRICS / stage / "curves.csv")
        epochs = [start + int(row["epoch"]) for row in rows]
        axis.plot(epochs, [float(row["validation_top1"]) for row in rows], color=color, label=label)
        if rows:
            axis.plot(start + metrics["best_epoch"], top1, "o", color=color)
            start = epochs[-1]
    axis.set_xlabel("epoch")
    axis.set_ylabel("validation top-1 %")
    axis.grid(axis="y", color=TRIMMED)
    axis.legend(frameon=False, loc="lower right", title="weight/activation bits (dot: test)")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _curve(path: Path) -> list[dict[str, str]]:
    """Rows of a curves.csv; none where the stage passed its network on."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
