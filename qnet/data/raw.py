"""A data set as it was published, before the validation split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qnet.data.prepared import Split
from qnet.errors import UserError

Progress = Callable[[int, int], None]
"""Called now and then with the number of images done and of all images."""


@dataclass(frozen=True)
class Raw:
    """A labelled training and test set of square images.

    Attributes:
        name: of the data set, as in `data.name`.
        classes: name of each class; a label is an index into it.
        train, test: images uint8 [N, C, H, W] with H = W, labels int64 [N].
        flip: whether a mirrored image keeps its label.
        notes: what was done to the images that their owner may want to know, one line each.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    flip: bool
    notes: list[str] = field(default_factory=list)


def class_names(folder: Path) -> list[str]:
    """Names of the class folders in `folder`, which are those not hidden, in their order.

    Raises:
        UserError: a name is not in UTF-8.
    """
    names = sorted(
        path.name for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir()
    )
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{folder}: the name of the class folder {name!r} is not in UTF-8: rename it"
            ) from error
    return names
