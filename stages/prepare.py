"""Stage prepare: raw images in, uint8 arrays with labels, a split and their statistics out."""

from __future__ import annotations

from qnet.data import load_source, prepare, save_prepared
from qnet.params import Params
from stages.common import PREPARED, run
from stages.logs import counter


def main(params: Params) -> None:
    """Write data/prepared from the data set that `data` names."""
    data = params.data
    raw = load_source(
        data.name,
        data.root,
        size=None if data.size == "auto" else data.size,
        channels=None if data.channels == "auto" else data.channels,
        progress=counter("prepare"),
    )
    for note in raw.notes:
        print(f"prepare: {note}")
    info, splits = prepare(raw, validation=data.validation, seed=params.seed)
    save_prepared(PREPARED, info, splits)
    counts = ", ".join(f"{count} {name}" for name, count in info.counts.items())
    print(f"prepare: {info.name}, {len(info.classes)} classes, {counts} images")


if __name__ == "__main__":
    run(main)
