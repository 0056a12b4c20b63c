"""Data sets: from files of any kind to batches on the device.

`sources` reads a data set as published, `splits` holds out validation images, `prepared` writes and
reads the result, `batches` trains from it.
"""

from __future__ import annotations

from qnet.data.batches import Augment, Batches
from qnet.data.prepared import DatasetInfo, Split, load_info, load_split, save_prepared
from qnet.data.raw import Raw
from qnet.data.sources import load_source
from qnet.data.splits import prepare

__all__ = [
    "Augment",
    "Batches",
    "DatasetInfo",
    "Raw",
    "Split",
    "load_info",
    "load_source",
    "load_split",
    "prepare",
    "save_prepared",
]
