"""Output of a training run: a line per epoch, TensorBoard, curves."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from qnet.files import make_folder
from qnet.history import History, Row
from qnet.layers import quantized_weights
from qnet.quantizer import quantizers
from stages.common import METRICS, write_csv

RUNS = Path("runs")
NOTICEABLE = 0.05  # share of an epoch spent waiting for images
NAMES = [
    "epoch",
    "lr",
    *(f"{split}_{name}" for split in ("train", "validation") for name in ("loss", "top1", "top5")),
    "validation_soft_top1",
]


class Log:
    """Context manager that logs each epoch to the terminal, curves.csv and TensorBoard.

    The curves go to metrics/<stage>/curves.csv for `dvc plots`, and with alpha, beta and weight
    histograms to runs/<stage> for TensorBoard. `waited` returns the seconds of an epoch spent
    waiting for images; wall-clock times are only printed. `shown` returns whether an epoch, counted
    from 1, gets a line.
    """

    def __init__(
        self,
        stage: str,
        model: nn.Module,
        waited: Callable[[], float] = lambda: 0.0,
        shown: Callable[[int], bool] = lambda epoch: True,
    ) -> None:
        self.stage = stage
        self.model = model
        self.waited = waited
        self.shown = shown
        self.writer: SummaryWriter | None = None
        self.started = time.monotonic()

    def __enter__(self) -> Log:
        make_folder(RUNS / self.stage)  # fail now, not after the first epoch
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def resume(self, history: History) -> None:
        """Say after which epoch an earlier run is continued."""
        print(f"{self.stage}: resumed after epoch {len(history.rows)}", flush=True)

    def epoch(self, history: History) -> None:
        """Log the last epoch of `history`; what an earlier run logged is kept if it resumes one."""
        row = history.rows[-1]
        if self.writer is None:
            self.writer = self._open(int(row["epoch"]))
        write_curves(self.stage, history.rows)
        self._print(row, history.best_epoch)
        self._tensorboard(self.writer, row)

    def _open(self, first_epoch: int) -> SummaryWriter:
        folder = RUNS / self.stage
        if first_epoch == 1:
            shutil.rmtree(folder, ignore_errors=True)
            return SummaryWriter(str(folder))
        return SummaryWriter(str(folder), purge_step=first_epoch)

    def _print(self, row: Row, best_epoch: int) -> None:
        now = time.monotonic()
        seconds, self.started = now - self.started, now
        if not self.shown(int(row["epoch"])):
            return
        mark = " *" if best_epoch == row["epoch"] else ""
        soft = (
            f" (soft {row['validation_soft_top1']:5.2f} %)" if "validation_soft_top1" in row else ""
        )
        share = self.waited() / max(seconds, 1e-9)
        wait = f" (data {100 * share:.0f} %)" if share > NOTICEABLE else ""
        line = (
            f"{self.stage} epoch {int(row['epoch']):3d}  lr {row['lr']:.4f}  "
            f"train loss {row['train_loss']:.3f} top-1 {row['train_top1']:5.2f} %  "
            f"validation top-1 {row['validation_top1']:5.2f} %{soft}  {seconds:.1f} s{wait}{mark}"
        )
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def _tensorboard(self, writer: SummaryWriter, row: Row) -> None:
        epoch = int(row["epoch"])
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name.replace("_", "/", 1), value, epoch)
        for name, quantizer in quantizers(self.model):
            for scale in ("alpha", "beta"):
                writer.add_scalar(f"{scale}/{name}", getattr(quantizer, scale).mean(), epoch)
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                writer.add_histogram(f"weights/{name}", module.weight, epoch)
        for name, weight, quantizer in quantized_weights(self.model):
            layer = name.removesuffix(".weight")
            writer.add_histogram(f"quantized_weights/{layer}", quantizer(weight), epoch)


def write_curves(stage: str, rows: Sequence[Row]) -> None:
    """Write one line per epoch to metrics/<stage>/curves.csv; without epochs, only the header."""
    names = list(rows[0]) if rows else NAMES
    values = ([row[name] for name in names] for row in rows)
    write_csv(METRICS / stage / "curves.csv", names, values)


def write_confusion(stage: str, classes: Sequence[str], actual: Tensor, predicted: Tensor) -> None:
    """Write the true and the predicted class of each image to metrics/<stage>/confusion.csv."""
    pairs = zip(actual.tolist(), predicted.tolist(), strict=True)
    rows = ([classes[label] for label in pair] for pair in pairs)
    write_csv(METRICS / stage / "confusion.csv", ["actual", "predicted"], rows)
