"""Custom data set: a tree of image files, one folder per class.

`root/train/<class>/*` and `root/test/<class>/*` (or `val` in place of `test`), in any format PIL
reads, at any depth below the class folder. Hidden files are ignored. Classes and files are sorted
by name, so the same tree gives the same arrays on every machine.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from qnet.data.dataset import Split
from qnet.data.manifest import Listing
from qnet.data.pixels import fill, for_each, to_pixels
from qnet.data.raw import Progress, Raw, class_names, require_same_classes, unlisted
from qnet.errors import UserError, one_line, some
from qnet.machine_errors import is_machine_failure

_LAYOUT = "train/<class>/ and test/<class>/ with images in them"
SIZES = range(4, 4097)  # allowed values of data.size
_GRAY = ("1", "L", "LA")  # and I, I;16, ...: 16 bits

T = TypeVar("T")


def load_image_folder(
    root: Path, size: int | None, channels: int | None, progress: Progress | None
) -> Raw:
    """Read a tree of images.

    If no size is given, it is the most common one in train (its shorter side, if not square). If no
    number of channels is given, it is gray if every training image is, else colour.

    Raises:
        UserError: if the tree is not as described above, its classes differ between train and test,
            a class has no images, or an image cannot be read.
    """
    train_folder, test_folder, notes = _halves(root)
    train, classes = _tree(train_folder)
    test, test_classes = _tree(test_folder)
    require_same_classes(classes, train_folder, test_classes, test_folder)
    if len(classes) < 2:
        raise UserError(f"{train_folder}: has only the class {classes[0]}: at least two are needed")

    paths = [*train.paths, *test.paths]
    heads = _survey(paths)
    if size is None:
        common = Counter(head.sides for head in heads[: len(train.paths)])
        size = min(common.most_common(1)[0][0])
        if size not in SIZES:
            raise UserError(
                f"data.size is auto, and most images in {train_folder} have {size} pixels to a "
                f"side; set it, from {SIZES[0]} to {SIZES[-1]}"
            )
    if channels is None:
        channels = 1 if all(head.gray for head in heads[: len(train.paths)]) else 3
    notes += _notes(heads, size, [*train.ignored, *test.ignored])

    images = torch.from_numpy(_read_all(paths, size, channels, progress))
    count = len(train.paths)
    return Raw(
        name="image_folder",
        classes=tuple(classes),
        train=Split(images[:count], torch.tensor(train.labels)),
        test=Split(images[count:], torch.tensor(test.labels)),
        flip=True,
        notes=notes,
    )


def load_class_folders(
    folder: Path,
    classes: Sequence[str],
    size: int,
    channels: int,
    progress: Progress | None = None,
) -> tuple[Split, list[str]]:
    """Read the images in `folder/<class>/*`; labels are indices into `classes`.

    Returns:
        The images, and notes for their owner on what was done to them, one line each.

    Raises:
        UserError: if the class folders are not those of `classes`, a class has no images, or an
            image cannot be read.
    """
    files, labels = _of_classes(folder, classes)
    notes = _notes(_survey(files.paths), size, files.ignored)
    images = torch.from_numpy(_read_all(files.paths, size, channels, progress))
    return Split(images, labels), notes


def list_class_folders(folder: Path, classes: Sequence[str]) -> Listing:
    """List the images in `folder/<class>/*`, for a network that was trained on a listing.

    Raises:
        UserError: if the class folders are not those of `classes`, or a class has no images.
    """
    files, labels = _of_classes(folder, classes)
    names = [os.fsencode(path.relative_to(folder)) for path in files.paths]
    try:
        sizes = [path.stat().st_size for path in files.paths]
    except OSError as error:  # includes dangling links, so that no image goes missing
        raise unlisted(error) from error
    return Listing(str(folder), np.array(names), labels, np.array(sizes, dtype=np.int64))


def _of_classes(folder: Path, classes: Sequence[str]) -> tuple[_Files, Tensor]:
    """Image files in the class folders of `folder`, which must be `classes`, and their labels."""
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder: give one that holds <class>/ with images")
    present = class_names(folder)
    lacking = [name for name in classes if name not in present]
    others = [name for name in present if name not in classes]
    if lacking or others:
        differences = [f"lacks {some(lacking)}"] if lacking else []
        differences += [f"also has {some(others)}"] if others else []
        raise UserError(
            f"{folder}: {' and '.join(differences)}: it must hold one folder for each of the "
            f"{len(classes)} classes, with its name"
        )
    files, names = _tree(folder, "as every class of the network needs some")
    positions = torch.tensor([classes.index(name) for name in names])
    return files, positions[files.labels]


@dataclass(frozen=True)
class _Files:
    paths: list[Path]
    labels: list[int]
    ignored: list[Path]  # not images


@dataclass(frozen=True)
class _Head:
    sides: tuple[int, int]  # shorter, longer
    gray: bool


def _halves(root: Path) -> tuple[Path, Path, list[str]]:
    """Training folder, test folder, and notes."""
    if not root.is_dir():
        where = "" if root.is_absolute() else f" in {Path.cwd()}"
        raise UserError(
            f"data.root: {root} is not a folder{where}: give the one that holds {_LAYOUT}"
        )
    if not (root / "train").is_dir():
        raise UserError(f"data.root: {root} has no folder train: it must hold {_LAYOUT}")
    both = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not both:
        raise UserError(f"data.root: {root} has no folder test or val: it must hold {_LAYOUT}")
    notes = []
    if len(both) == 2:
        notes.append(f"{both[1]} is not used: validation images are taken from train")
    return root / "train", both[0], notes


def _tree(folder: Path, otherwise: str = "or remove the class") -> tuple[_Files, list[str]]:
    """Image files below a folder of class folders, and the class names."""
    classes = class_names(folder)
    if not classes:
        raise UserError(f"{folder}: has no class folders: data.root must hold {_LAYOUT}")
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = _Files([], [], [])
    for label, name in enumerate(classes):
        visible = _visible(folder / name)
        images = [path for path in visible if path.suffix.lower() in known]
        if not images:
            raise UserError(
                f"{folder / name}: holds no images (links to folders are not followed): put some "
                f"there, {otherwise}"
            )
        files.paths.extend(images)
        files.labels.extend([label] * len(images))
        files.ignored.extend(path for path in visible if path.suffix.lower() not in known)
    return files, classes


def _visible(folder: Path) -> list[Path]:
    """The files and links below a folder, sorted by name; links to folders, which are not followed,
    and dangling ones are included, so that no image goes missing silently."""

    def fail(error: OSError) -> None:
        raise error

    visible: list[Path] = []
    try:
        for parent, folders, files in os.walk(folder, onerror=fail):
            folders[:] = [name for name in folders if not name.startswith(".")]
            names = [*folders, *files]  # links to folders are among the folders
            paths = [Path(parent, name) for name in names if not name.startswith(".")]
            visible.extend(path for path in paths if path.is_file() or path.is_symlink())
    except OSError as error:
        raise unlisted(error) from error
    return sorted(visible, key=lambda path: path.relative_to(folder).as_posix())


def _survey(paths: Sequence[Path]) -> list[_Head]:
    """Size and colour of each image, from its header alone."""

    heads = [_Head((0, 0), False)] * len(paths)

    def head(image: Image.Image) -> _Head:
        gray = image.mode in _GRAY or image.mode.startswith("I")
        return _Head((min(image.size), max(image.size)), gray)

    def work(index: int) -> None:
        heads[index] = _open(paths[index], head)

    for_each(len(paths), work)
    return heads


def _notes(heads: Sequence[_Head], size: int, ignored: Sequence[Path]) -> list[str]:
    notes = []
    other = sum(head.sides != (size, size) for head in heads)
    if other:
        notes.append(
            f"{other} of {len(heads)} images are not {size}×{size}: scaled to it, and "
            "cropped at the centre if not square"
        )
    for reason, paths in (
        ("they are not named like images", [path for path in ignored if not path.is_dir()]),
        ("links to folders are not followed", [path for path in ignored if path.is_dir()]),
    ):
        if paths:
            notes.append(f"ignored, as {reason}: {some([str(path) for path in paths])}")
    return notes


def _read_all(
    paths: Sequence[Path], size: int, channels: int, progress: Progress | None
) -> np.ndarray:
    """The pixels of all images, uint8 [N, channels, size, size]."""

    def pixels(image: Image.Image) -> np.ndarray:
        return to_pixels(image, size, channels)

    return fill(len(paths), size, channels, lambda index: _open(paths[index], pixels), progress)


def _open(path: Path, use: Callable[[Image.Image], T]) -> T:
    """Open an image file and return what `use` makes of it."""
    try:
        with Image.open(path) as image:
            return use(image)
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image: replace or remove it") from error
    except Exception as error:  # PIL raises a dozen kinds for damaged files
        if is_machine_failure(error):
            raise
        raise UserError(
            f"{path}: cannot be read ({one_line(error)}): replace or remove it"
        ) from error
