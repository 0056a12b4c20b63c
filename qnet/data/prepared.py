"""Prepared format, which the stage `prepare` writes and every later stage reads.

A folder with `dataset.json` (a `DatasetInfo`) and, for each of the splits train, validation and
test, `<split>_images.npy` (uint8 [N, C, H, W]) and `<split>_labels.npy` (int64 [N]). The same
splits give the same bytes, and nothing in the folder is ever unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qnet.data.dataset import DatasetInfo, Split
from qnet.errors import UserError
from qnet.machine_errors import is_machine_failure

SPLITS = ("train", "validation", "test")
_INFO_FILE = "dataset.json"
PREPARE = "run `dvc repro prepare`"


def save_prepared(folder: str | Path, info: DatasetInfo, splits: Mapping[str, Split]) -> None:
    """Write a prepared data set, all or nothing; an existing folder is replaced.

    Raises:
        UserError: if the folder cannot be written.
    """
    with whole_folder(folder) as partial:
        for name in SPLITS:
            np.save(_images_file(partial, name), splits[name].images.contiguous().numpy())
            np.save(labels_file(partial, name), splits[name].labels.contiguous().numpy())
        save_info(partial, info)


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Context with a folder to write to, which becomes `folder` or is deleted on an exception.

    Raises:
        UserError: if the folder cannot be written.
    """
    folder = Path(folder)
    partial, old = (folder.with_name(f".{folder.name}.{part}") for part in ("partial", "old"))
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        try:
            partial.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}): free some space or "
            "fix the permissions, then run it again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_info(folder: Path, info: DatasetInfo) -> None:
    """Write the description of a prepared data set."""
    text = json.dumps(info.to_dict(), indent=2, ensure_ascii=False)
    (folder / _INFO_FILE).write_text(text + "\n", encoding="utf-8")


def load_info(folder: str | Path) -> DatasetInfo:
    """Read the description of a prepared data set.

    Raises:
        UserError: if the file is missing or damaged.
    """
    path = Path(folder) / _INFO_FILE
    try:
        return DatasetInfo.from_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): {PREPARE}") from error
    except ValueError as error:
        raise UserError(f"{path}: not a data set description ({error}): {PREPARE}") from error


def load_split(folder: str | Path, name: str) -> Split:
    """Read one split, `name` being train, validation or test.

    Raises:
        UserError: if a file is missing, truncated, or not what `dataset.json` says it is.
    """
    folder = Path(folder)
    info = load_info(folder)
    labels = load_labels(folder, name, info)
    images = load_array(
        _images_file(folder, name), np.uint8, (len(labels), info.channels, info.size, info.size)
    )
    return Split(torch.from_numpy(images), labels)


def load_labels(folder: Path, name: str, info: DatasetInfo) -> Tensor:
    """Read the labels of one split, int64 [N].

    Raises:
        UserError: as `load_split` does.
    """
    if name not in info.counts:
        raise UserError(
            f"{folder / _INFO_FILE}: has no split {name!r}, only "
            f"{', '.join(info.counts)}: {PREPARE}"
        )
    path = labels_file(folder, name)
    labels = load_array(path, np.int64, (info.counts[name],))
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(info.classes):
        raise UserError(f"{path}: holds labels outside 0 to {len(info.classes) - 1}: {PREPARE}")
    return torch.from_numpy(labels)


def _images_file(folder: Path, split: str) -> Path:
    return folder / f"{split}_images.npy"


def labels_file(folder: Path, split: str) -> Path:
    """File with the labels of a split."""
    return folder / f"{split}_labels.npy"


def load_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
    """Read an array that must have this type and shape; nothing is unpickled.

    Raises:
        UserError: if the file is missing, truncated, or has other content.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing: {PREPARE}") from error
    except Exception as error:  # NumPy raises a dozen kinds for damaged files
        if is_machine_failure(error):
            raise
        raise UserError(f"{path}: truncated or not an array file: {PREPARE}") from error
    if not isinstance(array, np.ndarray):  # an .npz archive
        raise UserError(f"{path}: holds several arrays instead of one: {PREPARE}")
    if array.dtype != dtype or array.shape != shape:
        raise UserError(
            f"{path}: holds {array.dtype} {list(array.shape)} instead of "
            f"{np.dtype(dtype)} {list(shape)}: {PREPARE}"
        )
    return array
