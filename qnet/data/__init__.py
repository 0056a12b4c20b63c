"""Data sets, from files of any kind to batches on the device.

`sources` reads a data set as published, `splits` holds out validation images, `prepared` writes and
reads the result, and `batches` makes batches of it. If the images do not fit in memory, `imagenet`
lists them, `manifest` writes and reads the listing, and `streamed` makes batches of it. `opening`
chooses between the two.
"""

from __future__ import annotations

from qnet.data.batches import UNCHANGED, WHOLE, Augment, Batch, Batches, BatchSource, Shard
from qnet.data.dataset import DatasetInfo, Split
from qnet.data.imagenet import prepare_imagenet
from qnet.data.manifest import Listing, save_manifest
from qnet.data.opening import open_batches
from qnet.data.prepared import load_info, load_split, save_prepared
from qnet.data.raw import Raw
from qnet.data.sources import load_source
from qnet.data.splits import prepare

__all__ = [
    "UNCHANGED",
    "WHOLE",
    "Augment",
    "Batch",
    "BatchSource",
    "Batches",
    "DatasetInfo",
    "Listing",
    "Raw",
    "Shard",
    "Split",
    "load_info",
    "load_source",
    "load_split",
    "open_batches",
    "prepare",
    "prepare_imagenet",
    "save_manifest",
    "save_prepared",
]
