"""A data set in memory: what a model has to know about it, and its images with their labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor


@dataclass(frozen=True)
class DatasetInfo:
    """Properties of a data set that a model depends on.

    Attributes:
        name: of the data set, as in `data.name`; imagenet also selects its way of cropping.
        classes: name of each class; a label is an index into it.
        size: side of the square images, in pixels.
        channels: 1 gray, 3 colour.
        mean: of each channel over the training images; 0 is black and 1 is full intensity.
        std: standard deviation, in the same units as `mean`.
        counts: number of images per split.
        flip: whether a mirrored image keeps its label.
    """

    name: str
    classes: tuple[str, ...]
    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: dict[str, int]
    flip: bool

    def __post_init__(self) -> None:
        if not self.channels == len(self.mean) == len(self.std):
            raise ValueError(
                f"{self.channels} channels need as many means and stds, "
                f"not {len(self.mean)} and {len(self.std)}"
            )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            raise ValueError(f"mean {self.mean} and std {self.std} must be finite")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be above zero")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {self.classes} must have different names")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` turns it back into an equal `DatasetInfo`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DatasetInfo:
        """The inverse of `to_dict`.

        Raises:
            ValueError: if a field is missing or of the wrong type.
        """
        try:
            return _INFO.validate_python(dict(fields))
        except ValidationError as error:
            raise ValueError(_first(error)) from error

    @classmethod
    def from_json(cls, text: bytes) -> DatasetInfo:
        """`from_dict` of its JSON.

        Raises:
            ValueError: it is not JSON, or a field is missing or of the wrong type.
        """
        try:
            return _INFO.validate_json(text)
        except ValidationError as error:
            raise ValueError(_first(error)) from error


_INFO = TypeAdapter(DatasetInfo)


def _first(error: ValidationError) -> str:
    """The first problem, and where it is."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


@dataclass(frozen=True)
class Split:
    """Images and their labels: uint8 [N, C, H, W] and int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Split:
        """The images at these indices, int64 [n]."""
        return Split(self.images[indices], self.labels[indices])
