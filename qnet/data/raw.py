"""A data set as published, before the validation split."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qnet.data.dataset import Split
from qnet.errors import UserError, some

Progress = Callable[[int, int], None]
"""Called from time to time with the number of images done and the total."""
Warn = Callable[[str], None]
"""Called with one line for each problem that was worked around."""


@dataclass(frozen=True)
class Raw:
    """A labelled training and test set of square images.

    Attributes:
        name: of the data set, as in `data.name`.
        classes: name of each class; a label is an index into it.
        train, test: images uint8 [N, C, H, W] with H = W, labels int64 [N].
        flip: whether a mirrored image keeps its label.
        notes: for the owner, on what was done to the images, one line each.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    flip: bool
    notes: list[str] = field(default_factory=list)


def to_stderr(line: str) -> None:
    """Print a line to standard error."""
    print(line, file=sys.stderr)


def class_names(folder: Path) -> list[str]:
    """Sorted names of the class folders in `folder`: those that are not hidden.

    Raises:
        UserError: the folder cannot be listed, or a name is not in UTF-8.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    except OSError as error:
        raise unlisted(error) from error
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{folder}: the name of the class folder {name!r} is not in UTF-8: rename it"
            ) from error
    return names


def require_same_classes(
    train: Sequence[str], train_folder: Path, test: Sequence[str], test_folder: Path
) -> None:
    """Raise a `UserError` if one of two folders lacks a class folder of the other."""
    for missing, here, there in (
        (set(train) - set(test), train_folder, test_folder),
        (set(test) - set(train), test_folder, train_folder),
    ):
        if missing:
            raise UserError(
                f"{there}: lacks the class folder {some(sorted(missing))} that {here} has: "
                "every class needs images in both"
            )


def unlisted(error: OSError) -> UserError:
    """The error for a file or folder that could not be accessed."""
    where = os.fsdecode(error.filename)
    return UserError(
        f"{where}: cannot be accessed ({error.strerror}): fix it or its permissions, or remove it"
    )
