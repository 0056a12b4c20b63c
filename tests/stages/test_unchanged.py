"""Results are not written beside parameters that they were not made with."""

import pytest

from qnet.data import load_source
from stages.clustering import weight_clusters
from stages.logs import Log
from tests.pipeline import refused, run, write_params


def test_parameters_that_change_during_training(workspace, finished, monkeypatch):
    epoch, written = Log.epoch, workspace / "checkpoints" / "weights.safetensors"

    def edit(log, history):
        epoch(log, history)
        write_params(workspace, weights__lr=0.7)

    written.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Log, "epoch", edit)
        last = run("train_weights", workspace, status=2).splitlines()[-1]
    assert last.startswith(
        "error: weights.lr in params.yaml was 0.05 when this stage began and is 0.7"
    )
    assert not written.exists()
    write_params(workspace)
    # It only writes.
    assert run("train_weights", workspace) == "train_weights: resumed after epoch 3\n"
    assert written.read_bytes() == (finished / "checkpoints" / "weights.safetensors").read_bytes()


def test_parameters_of_other_stages_may_change(workspace, monkeypatch):
    epoch = Log.epoch

    def edit(log, history):
        epoch(log, history)
        write_params(workspace, activations__lr=0.7, fp__lr=0.7)

    monkeypatch.setattr(Log, "epoch", edit)
    run("train_weights", workspace)


@pytest.mark.parametrize(
    ("stage", "work", "change"),
    [
        ("prepare", load_source, {"data__size": 12}),
        ("cluster", weight_clusters, {"cluster__weights__gamma": 0.2}),
    ],
)
def test_parameters_that_change_during_a_short_stage(stage, work, change, workspace, monkeypatch):
    def edit(*arguments, **options):
        write_params(workspace, **change)
        return work(*arguments, **options)

    monkeypatch.setattr(f"stages.{stage}.{work.__name__}", edit)
    (name,) = change
    message = f"error: {name.replace('__', '.')} in params.yaml was "
    assert refused(stage, workspace).startswith(message)
