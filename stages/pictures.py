"""Plots of quantizers: the values that are quantized, thresholds and levels."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qnet.files import make_folder, write_bytes
from stages.cluster_files import Clustered

PANELS = 24  # layers on one page
FEW = 16  # at most this many levels have room for numbers
VALUES, TRIMMED, THRESHOLD, LEVEL = "#7fa8c9", "#e6e6e6", "#444444", "#d1495b"


def draw_clusters(folder: Path, layers: Mapping[str, Clustered]) -> None:
    """Draw each layer's histogram, trimmed range, thresholds and levels on pages in `folder`.

    Args:
        folder: replaced as a whole.
        layers: by name.
    """
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    names = iter(layers)
    page = 1
    while chunk := list(islice(names, PANELS)):
        path = folder / f"layers-{page}.png"
        draw_panels(path, {name: layers[name] for name in chunk}, columns=4)
        page += 1


def draw_panels(path: Path, layers: Mapping[str, Clustered], columns: int) -> None:
    """Draw layers, as `draw_clusters` takes them, side by side in one image."""
    columns = min(columns, len(layers))
    rows = -(-len(layers) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.1 * rows + 0.7))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (name, layer) in zip(axes.flat, layers.items(), strict=False):
        _panel(axis, name, layer)
    for axis in axes.flat[len(layers) :]:
        axis.axis("off")
    entries: dict[str, Any] = {}  # not every panel has all of them
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
    save(figure, path, dpi=100)


def draw_quantizer(
    path: Path, title: str, values: str, layer: Clustered, shares: Sequence[float]
) -> None:
    """Draw a quantizer's input values and, beside them, the levels that it maps them to.

    Args:
        path: the PNG file to write.
        title: of the whole image.
        values: what the values are, such as weights.
        layer: as `draw_clusters` takes it.
        shares: of the values at each level, 0 to 1.
    """
    clusters = layer.clusters
    figure = Figure(figsize=(11, 4))
    before, after = figure.subplots(1, 2)
    _distribution(before, layer)
    zeros = layer.histogram.zeros
    apart = f"; not drawn: {100 * zeros:.3g} % zeros" if zeros > 0.005 else ""
    before.set_title(f"before (β = {clusters.beta:.4g}{apart})", fontsize=11)
    before.set_xlabel(f"{values}, all but the outermost 0.1 %")
    before.set_ylabel(f"number of {values}")
    before.yaxis.set_major_formatter("{x:,.0f}")
    before.legend(frameon=False, fontsize=9)

    levels = clusters.levels.values
    few = len(levels) <= FEW
    bars = after.bar(levels, [100 * share for share in shares], 0.8 if few else 1.0, color=LEVEL)
    if few:
        after.set_xticks(levels)
        after.bar_label(bars, fmt="%.3g", fontsize=9)
    else:
        after.set_yscale("log")  # often half of the values are zero
    after.set_title(f"after (α = {clusters.alpha:.4g})", fontsize=11)
    after.set_xlabel("level, in units of α")
    after.set_ylabel(f"share of {values} in %")
    after.margins(y=0.1)
    for axis in (before, after):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=13)
    figure.tight_layout()
    save(figure, path, dpi=110)


def _panel(axis: Axes, name: str, layer: Clustered) -> None:
    _distribution(axis, layer)
    zeros = layer.histogram.zeros
    axis.set_title(f"{name}, {zeros:.0%} zeros" if zeros > 0.005 else name, fontsize=8)
    axis.set_yticks([])
    axis.tick_params(labelsize=7)
    axis.spines[["top", "left", "right"]].set_visible(False)


def _distribution(axis: Axes, layer: Clustered) -> None:
    """Draw values, the range left by trimming, thresholds, and levels times alpha."""
    histogram, clusters = layer.histogram, layer.clusters
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    axis.stairs(histogram.counts, edges, fill=True, color=VALUES, label="values")
    width = max(edges[-1] - edges[0], 1e-12)
    axis.set_xlim(edges[0] - 0.05 * width, edges[-1] + 0.05 * width)
    left, right = axis.get_xlim()
    if clusters.trimmed > 0:
        low = clusters.low if clusters.low > edges[0] else left
        axis.axvspan(left, low, color=TRIMMED, zorder=0, linewidth=0, label="trimmed")
        axis.axvspan(clusters.high, right, color=TRIMMED, zorder=0, linewidth=0)
    few = len(clusters.levels.values) <= FEW
    for number, threshold in enumerate(clusters.thresholds):
        axis.axvline(
            threshold / clusters.beta,
            ymin=0 if few else 0.94,  # many lines would hide the values
            color=THRESHOLD,
            linewidth=0.8 if few else 0.3,
            linestyle="--" if few else "-",
            snap=None if few else False,  # snapped to whole pixels, close lines would coincide
            label="threshold / β" if number == 0 else None,
        )
    levels = clusters.alpha * np.array(clusters.levels.values)
    axis.plot(
        levels,
        np.zeros_like(levels),
        "^" if few else "|",
        color=LEVEL,
        clip_on=False,
        markersize=5,
        label="level · α",
    )
    axis.set_xlim(min(left, levels.min()), max(right, levels.max()))
    axis.set_ylim(bottom=0)


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write the figure to `path` as PNG, the same bytes each time."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    write_bytes(path, content.getvalue())
