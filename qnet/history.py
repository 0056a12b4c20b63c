"""The epochs of a training run, and which of them is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

Row = dict[str, float]
"""What was measured in an epoch, by name."""


@dataclass
class History:
    """What came of a training run."""

    rows: list[Row] = field(default_factory=list)  # one per epoch
    best_epoch: int = 0  # counted from 1; 0: the network as it was given

    def add(self, row: Row, select_on: str) -> bool:
        """Add an epoch; whether it is the one to keep so far.

        Args:
            row: with `<select_on>_top1` and `<select_on>_loss`.
            select_on: of epochs the highest top-1 there counts, of equal ones the lowest loss, of
                equal ones the first; "last": the newest.
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
    """Whether `epoch`, counted from 1, is one of every so many, or the last of `epochs`."""
    return epoch % every == 0 or epoch == epochs
