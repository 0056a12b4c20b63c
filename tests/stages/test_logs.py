"""The line that each epoch prints."""

import time

import pytest
from torch import nn

from qnet.history import History
from stages.logs import Log
from tests.pipeline import chdir

ROW = {"epoch": 1.0, "lr": 0.1, "train_loss": 1.0, "train_top1": 50.0, "validation_top1": 40.0}


@pytest.mark.parametrize(
    ("waited", "end"),
    [(0.0, "s *"), (49.0, "s *"), (120.0, "s (data 12 %) *")],
)
def test_waiting_for_images_is_told_when_it_is_noticeable(waited, end, tmp_path, capsys):
    with chdir(tmp_path), Log("train_fp", nn.Linear(2, 2), lambda: waited) as log:
        log.started = time.monotonic() - 1000
        log.epoch(History([ROW], best_epoch=1))
    assert capsys.readouterr().out.endswith(f" {end}\n")
