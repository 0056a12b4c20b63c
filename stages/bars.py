"""Progress bars where standard error is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

from qnet.distributed import rank


def bar(batches: Iterable[Any], count: int, title: str) -> Iterable[Any]:
    """A progress bar with rate and remaining time, if standard error is a terminal."""
    off = True if rank() > 0 else None  # None: not on a terminal
    return tqdm(batches, total=count, desc=title, unit="batch", leave=False, disable=off)


def counter(title: str) -> Callable[[int, int], None]:
    """A progress bar, updated by calling the result with the number done and the total."""
    line = tqdm(desc=title, unit="image", leave=False, disable=None)

    def update(done: int, total: int) -> None:
        line.total = total
        line.update(done - line.n)

    return update
