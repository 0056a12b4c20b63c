"""Metrics of each epoch, and the epoch that is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

Row = dict[str, float]
"""The metrics of an epoch, by name."""


@dataclass
class History:
    """The metrics of a training run so far."""

    rows: list[Row] = field(default_factory=list)  # one per epoch
    best_epoch: int = 0  # counted from 1; 0: the network as it was given

    def add(self, row: Row, select_on: str) -> bool:
        """Add an epoch; return whether it is the one to keep so far.

        Args:
            row: with `<select_on>_top1` and `<select_on>_loss`.
            select_on: where the highest top-1 is looked for; among equal ones the lowest loss
                decides, then the first epoch. "last": the newest epoch is kept.
        """
        self.rows.append(row)
        newest = len(self.rows)
        better = (
            select_on == "last"
            or self.best_epoch == 0
            or self._score(newest, select_on) > self._score(self.best_epoch, select_on)
        )
        if better:
            self.best_epoch = newest
        return better

    def _score(self, epoch: int, select_on: str) -> tuple[float, float]:
        row = self.rows[epoch - 1]
        return row[f"{select_on}_top1"], -row[f"{select_on}_loss"]


def is_due(epoch: int, every: int, epochs: int) -> bool:
    """Whether `epoch`, counted from 1, is a multiple of `every` or the last of `epochs`."""
    return epoch % every == 0 or epoch == epochs
