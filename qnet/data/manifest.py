"""Prepared format of a data set that is too large for memory: a listing of image files, no pixels.

A folder with `dataset.json` (a `DatasetInfo`), `manifest.json` (where the images are, and a
checksum of each split's listing) and, for each split, `<split>_paths.npy` (names below the root, as
bytes), `<split>_labels.npy` (int64 [N]) and `<split>_bytes.npy` (size of each file, int64 [N]).
Nothing in the folder is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from qnet.data.dataset import DatasetInfo
from qnet.data.prepared import (
    PREPARE,
    SPLITS,
    labels_file,
    load_array,
    load_info,
    load_labels,
    save_info,
    whole_folder,
)
from qnet.errors import UserError

_FILE = "manifest.json"


@dataclass(frozen=True)
class Listing:
    """Image files and their labels.

    Attributes:
        root: the folder that the names are relative to.
        paths: name of each file, bytes of a fixed width [N].
        labels: int64 [N].
        sizes: of each file in bytes, int64 [N].
    """

    root: str
    paths: np.ndarray
    labels: Tensor
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Path of an image."""
        return os.path.join(self.root, os.fsdecode(self.paths[index]))  # noqa: PTH118 - a hot loop

    def take(self, indices: Tensor) -> Listing:
        """The images at these indices, int64 [n]."""
        rows = indices.numpy()
        return Listing(self.root, self.paths[rows], self.labels[indices], self.sizes[rows])

    def checksum(self) -> str:
        """SHA-256 of names, labels and sizes; not of the images themselves."""
        digest = hashlib.sha256(str(self.paths.dtype).encode())
        for column in (self.paths, self.labels.numpy(), self.sizes):
            digest.update(np.ascontiguousarray(column).view(np.uint8).data)
        return digest.hexdigest()


def save_manifest(folder: str | Path, info: DatasetInfo, splits: Mapping[str, Listing]) -> None:
    """Write a listing for each split, all or nothing; an existing folder is replaced.

    Raises:
        UserError: if the folder cannot be written.
    """
    with whole_folder(folder) as partial:
        for name in SPLITS:
            np.save(partial / f"{name}_paths.npy", splits[name].paths)
            np.save(labels_file(partial, name), splits[name].labels.numpy())
            np.save(partial / f"{name}_bytes.npy", splits[name].sizes)
        content = {
            "root": splits["train"].root,
            "width": {name: splits[name].paths.itemsize for name in SPLITS},
            "bytes": {name: int(splits[name].sizes.sum()) for name in SPLITS},
            "sha256": {name: splits[name].checksum() for name in SPLITS},
        }
        (partial / _FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_info(partial, info)


def has_manifest(folder: str | Path) -> bool:
    """Whether the prepared data set is a listing of images rather than their pixels."""
    return (Path(folder) / _FILE).is_file()


def load_listing(folder: str | Path, name: str) -> Listing:
    """Read one split, `name` being train, validation or test.

    Raises:
        UserError: if a file is missing, damaged, or not what `dataset.json` says it is, or if the
            images are no longer there.
    """
    folder = Path(folder)
    info = load_info(folder)
    labels = load_labels(folder, name, info)
    file = folder / _FILE
    try:
        content = json.loads(file.read_bytes())
        root, width = str(content["root"]), int(content["width"][name])
        expected = content["sha256"][name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: missing or damaged: {PREPARE}") from error
    paths = load_array(folder / f"{name}_paths.npy", f"S{width}", (len(labels),))
    sizes = load_array(folder / f"{name}_bytes.npy", np.int64, (len(labels),))
    listing = Listing(root, paths, labels, sizes)
    if listing.checksum() != expected:
        raise UserError(f"{file}: the {name} files beside it do not match its checksum: {PREPARE}")
    if not Path(root).is_dir():
        raise UserError(
            f"data.root: {root}, where the images were, is not there: put it back, or set "
            "data.root to where they are now and run `dvc repro prepare`"
        )
    return listing
