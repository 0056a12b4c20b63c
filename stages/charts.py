"""Charts of accuracy: during training, and against the number of bits."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.common import METRICS, reading
from stages.pairs import FULL
from stages.pictures import save

CURVES = ("#444444", "#2f6f9f", "#d1495b")
GRID = "#e6e6e6"
FULL_PRECISION = f"{FULL}/{FULL}"
LINES = ("--", ":", "-.")
MARKERS = "o^sDv"
DODGE = 0.18  # between settings of one W/A, in units of the spacing of W/A
GAP = 0.6  # between kinds of networks, in units of the spacing within a kind
LONGEST = 8  # characters of a W/A label that fit horizontally; [-4, -1, 0, 1, 4]/2 is longer


def draw_result(path: Path, stages: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
    """Draw the validation curves of the training stages end to end, and the test results.

    Args:
        path: the PNG file to write.
        stages: stage → its W/A and the content of its metrics.json.
    """
    figure = Figure(figsize=(8, 3.4))
    axis = figure.subplots()
    start = 0
    for color, (stage, (pair, metrics)) in zip(CURVES, stages.items(), strict=False):
        top1 = metrics["test"]["top1"]
        label = f"{pair}: {top1:.2f} % on test, {metrics['bytes'] / 1000:,.0f} kB"
        curve = _curve(METRICS / stage / "curves.csv")
        if not curve:
            continue
        epochs = [start + epoch for epoch, _ in curve]
        mark = "_" if len(curve) == 1 else None  # a line needs two points
        axis.plot(
            epochs, [validation for _, validation in curve], marker=mark, color=color, label=label
        )
        axis.plot(start + metrics["best_epoch"], top1, "o", color=color)
        start = epochs[-1]
    axis.set_xlabel("epoch")
    axis.set_ylabel("top-1 %")
    if start > 0:
        axis.legend(
            frameon=False,
            loc="best",
            title="validation, by weight/activation bits (dot: test, at the epoch kept)",
        )
    _plain(axis)
    figure.tight_layout()
    save(figure, path, dpi=110)


@dataclass(frozen=True)
class Point:
    """One network of `draw_comparison`.

    Attributes:
        pair: its W/A.
        top1: in percent, the mean over seeds.
        spread: standard deviation over seeds; None for one seed.
        setting: what distinguishes it from others of the same W/A.
    """

    pair: str
    top1: float
    spread: float | None
    setting: str


def draw_comparison(path: Path, points: Sequence[Point]) -> None:
    """Draw top-1 of each W/A, in the order given, with one colour per setting.

    Full precision is a line; the others are grouped by what is quantized, hollow if they have one
    seed, and labelled with their top-1 if there is only one per W/A.
    """
    others = [point for point in points if point.pair != FULL_PRECISION]
    places = _places([point.pair for point in others])
    figure = Figure(figsize=(max(8.0, 0.85 * len(places)), 4), layout="constrained")
    axis = figure.subplots()
    lines = cycle(LINES)
    for point in points:
        if point.pair != FULL_PRECISION:
            continue
        name = f"full precision {point.top1:.2f} {point.setting}".rstrip()
        axis.axhline(point.top1, color=CURVES[0], linestyle=next(lines), linewidth=1, label=name)
    settings = list(dict.fromkeys(point.setting for point in others))
    colors = (*CURVES[1:], "C1", "C2", "C4", "C5", "C6", "C7", "C8", "C9")
    dodge = min(DODGE, 0.8 / max(1, len(settings)))
    asides = {s: dodge * (n - (len(settings) - 1) / 2) for n, s in enumerate(settings)}
    for number, setting in enumerate(settings):
        color, marker = colors[number % len(colors)], MARKERS[number % len(MARKERS)]
        label = (setting or "alone of its W/A") if len(settings) > 1 else None
        for point in others:
            if point.setting != setting:
                continue
            axis.errorbar(
                places[point.pair] + asides[setting], point.top1, yerr=point.spread,
                fmt=marker, color=color, capsize=3, label=label,
                markerfacecolor="white" if point.spread is None else color,
            )  # fmt: skip
            label = None  # once for each setting
    if len(others) == len(places):
        top = max((point.top1 for point in points if point.pair == FULL_PRECISION), default=100.0)
        for point in others:
            side = 1 if point.top1 > top else -1  # away from the line
            x = places[point.pair] + asides[point.setting]
            axis.annotate(
                f"{point.top1:.2f}", (x, point.top1 + side * (point.spread or 0.0)), (0, 8 * side),
                textcoords="offset points", ha="center",
                va="bottom" if side > 0 else "top", fontsize=9,
            )  # fmt: skip
    axis.set_xticks(list(places.values()), list(places))
    if max(map(len, places), default=0) > LONGEST:
        for tick in axis.get_xticklabels():
            tick.set(rotation=30, ha="right")
    axis.set_xlabel("weight bits / activation bits")
    axis.set_ylabel("test top-1 %")
    axis.margins(x=0.05, y=0.12)
    if len(settings) > 1:  # their names are long
        figure.legend(frameon=False, loc="outside lower left", fontsize=9)
        figure.set_figheight(4 + 0.2 * len(axis.get_legend_handles_labels()[1]))
    elif axis.get_legend_handles_labels()[1]:
        axis.legend(frameon=False, loc="best", fontsize=9)
    _plain(axis)
    save(figure, path, dpi=110)


def _places(names: Sequence[str]) -> dict[str, float]:
    """Position of each W/A, in groups by what is quantized (weights, activations, both)."""
    full = str(FULL)
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for name in dict.fromkeys(names):
        weights, activations = name.rsplit("/", 1)
        kinds.setdefault((weights == full, activations == full), []).append(name)
    places, place = {}, 0.0
    for kind in sorted(kinds, key=lambda kind: (not kind[1], not kind[0])):
        for name in kinds[kind]:
            places[name] = place
            place += 1
        place += GAP
    return places


def _plain(axis: Axes) -> None:
    axis.grid(axis="y", color=GRID)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _curve(path: Path) -> list[tuple[int, float]]:
    """Epoch and validation top-1 of each row of curves.csv; empty if the network was passed on."""
    if not path.exists():
        return []
    with reading(path), path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [(int(row["epoch"]), float(row["validation_top1"])) for row in rows]
