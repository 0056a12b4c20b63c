"""The IDX format of MNIST and its relatives, plain or gzipped.

Format (http://yann.lecun.com/exdb/mnist/): two zero bytes, the type (8: unsigned byte), the number
of dimensions, each dimension as a big-endian 32-bit integer, then the values in C order.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from qnet.errors import UserError


def find_idx(folder: Path, name: str) -> Path | None:
    """The file `name` or `name`.gz in a folder, or None."""
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an array of unsigned bytes with this many dimensions.

    Raises:
        UserError: if the file cannot be read, is truncated, or has other content.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, f"{error}") from error
    if content[:4] != bytes((0, 0, 8, dimensions)):
        raise _damaged(path, f"not an IDX file of bytes in {dimensions} dimensions")
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise _damaged(path, "it ends within its header")
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    values = np.frombuffer(content[start:], np.uint8)
    if values.size != math.prod(shape):
        raise _damaged(path, f"{values.size} values for the shape {list(shape)}")
    return values.reshape(shape)


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: damaged ({reason}): delete it, then download or copy it again")
