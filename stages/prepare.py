"""Stage prepare: a data set in; labels, a split, statistics, and pixels or a listing out.

Reads the data set that data.name and data.root tell,
and of params.yaml: seed, data.
Writes data/prepared.
"""

from __future__ import annotations

from qnet.data import (
    DatasetInfo,
    load_source,
    prepare,
    prepare_imagenet,
    save_manifest,
    save_prepared,
)
from qnet.params import Params
from stages.common import PREPARED, run
from stages.logs import counter


def main(params: Params) -> None:
    """Write data/prepared from the data set that `data` names."""
    write = _write_listing if params.data.name == "imagenet" else _write_pixels
    info = write(params)
    counts = ", ".join(f"{count} {name}" for name, count in info.counts.items())
    print(f"prepare: {info.name}, {len(info.classes)} classes, {counts} images")


def _write_pixels(params: Params) -> DatasetInfo:
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
    return info


def _write_listing(params: Params) -> DatasetInfo:
    data = params.data
    info, splits, notes = prepare_imagenet(
        data.root,
        size=None if data.size == "auto" else data.size,
        channels=None if data.channels == "auto" else data.channels,
        validation=data.validation,
        seed=params.seed,
        progress=counter("prepare"),
    )
    for note in notes:
        print(f"prepare: {note}")
    save_manifest(PREPARED, info, splits)
    return info


if __name__ == "__main__":
    run(main, __doc__)
