"""Stage prepare: split a data set, compute statistics, and write labels and pixels or a listing.

Reads the data set named by data.name and data.root,
and of params.yaml: seed, data.
Writes data/prepared. Before that it refuses a wrong model.name.
"""

from __future__ import annotations

from qnet.data import load_source, prepare, prepare_imagenet, save_manifest, save_prepared
from qnet.files import make_folder
from qnet.models.building import find_model
from qnet.params import Params
from stages.bars import counter
from stages.common import PREPARED, on_one_line, run
from stages.unchanged import check_unchanged

READS = {"seed": True, "data": True}


def main(params: Params) -> None:
    """Write data/prepared from the data set that `data` names."""
    find_model(params.model.name)  # fail now, not after the work
    make_folder(PREPARED.parent)
    data, bar = params.data, counter("prepare")
    size = None if data.size == "auto" else data.size
    channels = None if data.channels == "auto" else data.channels
    if data.name == "imagenet":
        info, listings, notes = prepare_imagenet(
            data.root, size=size, channels=channels,
            validation=data.validation, seed=params.seed, progress=bar,
        )  # fmt: skip
        check_unchanged(params, READS)
        save_manifest(PREPARED, info, listings)
    else:
        raw = load_source(data.name, data.root, size=size, channels=channels, progress=bar)
        info, splits = prepare(raw, validation=data.validation, seed=params.seed)
        notes = raw.notes
        check_unchanged(params, READS)
        save_prepared(PREPARED, info, splits)
    for note in notes:
        print(f"prepare: {on_one_line(note)}")
    counts = ", ".join(f"{count} {name}" for name, count in info.counts.items())
    print(f"prepare: {info.name}, {len(info.classes)} classes, {counts} images")


if __name__ == "__main__":
    run(main, __doc__)
