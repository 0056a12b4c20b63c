"""ImageNet as published: a tree of images, listed but not read.

`root/train/<wnid>/*.JPEG` with either `root/val/<wnid>/*.JPEG`, or a flat `root/val/` and Caffe's
lists beside it, `train.txt` and `val.txt`: one line for each image, with its name below train/ or
val/ and its label. Without `train.txt`, labels number the class folders in the order of their
names, as Caffe's lists do. The official validation images are the test split.

Only names and sizes are read, so a million images take less than a minute; an unreadable image is
found only while training.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from qnet.data.dataset import DatasetInfo
from qnet.data.manifest import Listing
from qnet.data.raw import Progress, class_names, require_same_classes, unlisted
from qnet.data.splits import hold_out
from qnet.errors import UserError, some

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the training images; nearly every published ImageNet network was trained with these."""

_SUFFIXES = (b".jpeg", b".jpg", b".png")
_LAYOUT = (
    "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, or a flat val/ with the lists train.txt and val.txt"
)


def prepare_imagenet(
    root: str | Path,
    *,
    size: int | None,
    channels: int | None,
    validation: float,
    seed: int,
    progress: Progress | None = None,
) -> tuple[DatasetInfo, dict[str, Listing], list[str]]:
    """List the images, hold out validation images as `prepare` does, and describe the data set.

    Args:
        root: folder of train/ and val/.
        size: side in pixels that the images are cropped to; None: 224.
        channels: 3, or None, which means 3.
        validation: share of each class of the training images that is held out.
        seed: for the choice of images and their order.
        progress: called with the number of files listed so far and an estimate of all.

    Returns:
        The description, a listing for each split, and notes for the owner, one line each.

    Raises:
        UserError: if the tree or a list is not as described above.
    """
    if channels == 1:
        raise UserError("data.channels: 1 is not possible with imagenet: set it to 3 or auto")
    classes, train, test, notes = _find(Path(root), progress)
    kept, held = hold_out(train.labels, validation=validation, seed=seed)
    splits = {"train": train.take(kept), "validation": train.take(held), "test": test}
    info = DatasetInfo(
        name="imagenet",
        classes=tuple(classes),
        size=size or SIZE,
        channels=3,
        mean=MEAN,
        std=STD,
        counts={name: len(split) for name, split in splits.items()},
        flip=True,
    )
    return info, splits, notes


@dataclass
class _Files:
    """Images below a folder, in the order in which they were found."""

    folder: Path
    names: list[bytes] = field(default_factory=list)  # relative to the folder
    sizes: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("q"))
    ignored: list[bytes] = field(default_factory=list)  # not images

    def add(self, below: str, label: int) -> None:
        """List the images directly in the folder `below`, relative to `folder`."""
        prefix = os.fsencode(f"{below}/" if below else "")
        try:
            with os.scandir(os.fsencode(self.folder / below)) as entries:
                listed = sorted(
                    (entry.name, entry.stat().st_size)
                    for entry in entries
                    if not entry.name.startswith(b".")
                    and (entry.is_file() or (entry.is_symlink() and not entry.is_dir()))
                )
        except OSError as error:  # includes dangling links, so that no image goes missing
            raise unlisted(error) from error
        for name, size in listed:
            if name.lower().endswith(_SUFFIXES):
                self.names.append(prefix + name)
                self.sizes.append(size)
                self.labels.append(label)
            else:
                self.ignored.append(prefix + name)

    def listing(
        self, indices: np.ndarray | None = None, labels: np.ndarray | None = None
    ) -> Listing:
        """All images, or those at `indices` with other labels, named relative to the root."""
        prefix = os.fsencode(f"{self.folder.name}/")
        paths = np.array([prefix + name for name in self.names])
        sizes = np.array(self.sizes, dtype=np.int64)
        if indices is None or labels is None:
            labels = np.array(self.labels, dtype=np.int64)
        else:
            paths, sizes = paths[indices], sizes[indices]
        return Listing(str(self.folder.parent), paths, torch.from_numpy(labels), sizes)


def _find(
    root: Path, progress: Progress | None
) -> tuple[Sequence[str], Listing, Listing, list[str]]:
    """Classes, training and test images, and notes."""
    for folder in (root, root / "train", root / "val"):
        if not folder.is_dir():
            where = "is not a folder" if folder == root else f"has no folder {folder.name}"
            raise UserError(f"data.root: {root} {where}: it must hold {_LAYOUT}")
    classes, test_classes = class_names(root / "train"), class_names(root / "val")
    if len(classes) < 2:
        raise UserError(
            f"{root / 'train'}: has {len(classes)} class folders, and at least two are needed: "
            f"data.root must hold {_LAYOUT}"
        )
    lists = [root / name for name in ("train.txt", "val.txt") if (root / name).is_file()]
    if test_classes:
        require_same_classes(classes, root / "train", test_classes, root / "val")
    elif root / "val.txt" not in lists:
        raise UserError(
            f"{root / 'val'}: has no class folders, and {root / 'val.txt'} is missing: "
            f"data.root must hold {_LAYOUT}"
        )
    total = len(classes) + max(len(test_classes), 1)
    train = _scan(root / "train", classes, progress, 0, total)
    test = _scan(root / "val", test_classes, progress, len(train.names), total)
    notes = []
    if ignored := [*train.ignored, *test.ignored]:
        notes.append(f"{len(ignored)} files are not images and were ignored, such as "
                     f"{os.fsdecode(ignored[0])}")  # fmt: skip
    if empty := train.sizes.count(0) + test.sizes.count(0):
        notes.append(f"{empty} files are empty: each counts as a bad image when it is read")
    if test_classes:
        notes += [f"{path} is not used: val has class folders" for path in lists]
        return classes, train.listing(), test.listing(), notes

    listing = train.listing()
    if root / "train.txt" in lists:
        classes, indices, labels = _ordered_as_listed(root / "train.txt", train, classes)
        notes += _unlisted(root / "train.txt", train, indices)
        listing = train.listing(indices, labels)
    indices, labels = _read_list(root / "val.txt", test, len(classes))
    lacking = sorted(set(range(len(classes))) - set(labels.tolist()))
    if lacking:
        raise UserError(
            f"{root / 'val.txt'}: names no image of {some([classes[k] for k in lacking])} "
            f"(label {lacking[0]}): every class needs images in both lists"
        )
    notes += _unlisted(root / "val.txt", test, indices)
    return classes, listing, test.listing(indices, labels), notes


def _unlisted(file: Path, there: _Files, indices: np.ndarray) -> list[str]:
    """A note if the list in `file` leaves out some of the images, those not at `indices`."""
    left = len(there.names) - len(indices)
    return [f"images ignored, as they are not in {file}: {left}"] if left else []


def _scan(
    folder: Path, classes: Sequence[str], progress: Progress | None, before: int, total: int
) -> _Files:
    """The images in each class folder, or in the folder itself if there are no classes.

    `before` images were listed already; `total` is the number of folders of both halves.
    """
    files = _Files(folder)
    done = total - max(len(classes), 1) if before else 0
    for label, name in enumerate(classes or [""]):
        count = len(files.names)
        files.add(name, label)
        if len(files.names) == count:
            raise UserError(f"{folder / name}: holds no images (.JPEG, .jpg or .png): add some")
        if progress is not None:
            listed, done = before + len(files.names), done + 1
            progress(listed, round(listed * total / done))  # as if all folders were equally large
    return files


def _ordered_as_listed(
    file: Path, train: _Files, folders: Sequence[str]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Class names by label in train.txt, indices of its images, and their labels."""
    indices, labels = _read_list(file, train, len(folders))
    pairs = np.unique(np.stack([labels, np.array(train.labels)[indices]]), axis=1)
    for here, what in ((pairs[0], "label"), (pairs[1], "class")):
        values, counts = np.unique(here, return_counts=True)
        if (counts > 1).any():
            value = int(values[counts > 1][0])
            name = value if what == "label" else folders[value]
            other = "folder" if what == "label" else "label"
            raise UserError(
                f"{file}: {what} {name} has more than one {other}: a class is one folder of train "
                "and one label"
            )
    missing = [name for k, name in enumerate(folders) if k not in pairs[1]]
    if missing:
        raise UserError(
            f"{file}: names no image of {some(missing)}: add some, or remove the folder from "
            f"{train.folder}"
        )
    return [folders[k] for k in pairs[1]], indices, labels


def _read_list(file: Path, files: _Files, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices in `files` of the images named in one of Caffe's lists, and their labels."""
    index_of = {name: index for index, name in enumerate(files.names)}
    indices, labels = array("q"), array("q")
    taken = bytearray(len(files.names))
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            name, label = _entry(f"{file}: line {number}", line, classes)
            index = index_of.get(name)
            if index is None:
                raise UserError(
                    f"{file}: line {number} names {os.fsdecode(name)}, which is not in "
                    f"{files.folder}: add the image, or remove the line"
                )
            if taken[index]:
                raise UserError(
                    f"{file}: line {number} names {os.fsdecode(name)} again: remove one line"
                )
            taken[index] = 1
            indices.append(index)
            labels.append(label)
    if not indices:
        raise UserError(f"{file}: is empty: it must have a line `name label` for each image")
    return np.array(indices, dtype=np.int64), np.array(labels, dtype=np.int64)


def _entry(where: str, line: bytes, classes: int) -> tuple[bytes, int]:
    """Name and label in a line of a list."""
    name, *rest = line.strip().rsplit(None, 1)
    if not rest or not rest[0].removeprefix(b"-").isdigit():
        shown = line[:60].decode(errors="replace").strip()
        raise UserError(
            f"{where} is {shown!r}: it must be `name label`, such as n01440764/a.JPEG 0"
        )
    label = int(rest[0][:12])
    if not 0 <= label < classes:
        raise UserError(
            f"{where} has the label {label}: labels are 0 to {classes - 1}, as train has "
            f"{classes} class folders"
        )
    return name, label
