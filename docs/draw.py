"""Draw the charts of the documents from the tables in docs/experiments.md.

    python docs/draw.py

writes docs/bits.png and docs/published.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from stages.charts import Point, draw_comparison  # noqa: E402
from stages.pairs import FULL  # noqa: E402

Row = dict[str, str]


def main() -> None:
    """Draw both."""
    text = (DOCS / "experiments.md").read_text(encoding="utf-8")
    rows = table(text, "ResNet-20 on CIFAR-10 images, short schedule")
    draw_comparison(DOCS / "bits.png", [point(row["W/A"], row["top-1 %"], "") for row in rows])
    rows = table(text, "On the quarter, all pairs")
    settings = [name for name in rows[0] if name != "W/A"]
    points = [point(row["W/A"], row[name], name) for name in settings for row in rows if row[name]]
    draw_comparison(DOCS / "published.png", points)


def table(text: str, heading: str) -> list[Row]:
    """The first table below a heading, a dictionary for each row."""
    lines = text[text.index(f"# {heading}\n") :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    cells = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip(" †‡*") for cell in line.strip("|").split("|")])
    names, _, *rows = cells
    return [dict(zip(names, row, strict=True)) for row in rows]


def point(pair: str, top1: str, setting: str) -> Point:
    """A cell such as `75.52 ± 0.50`, or `75.52` of one seed."""
    mean, _, spread = top1.partition(" ± ")
    pair = f"{FULL}/{FULL}" if pair == "full precision" else pair
    return Point(pair, float(mean), float(spread) if spread else None, setting)


if __name__ == "__main__":
    main()
