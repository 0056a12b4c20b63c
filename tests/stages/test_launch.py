"""Detection of whether a training stage was started alone or as one of several processes."""

import signal
import sys

import pytest
from torch.distributed.elastic.multiprocessing import SignalException

from stages import launch
from tests.pipeline import chdir, write_params

MASTER = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture
def how(monkeypatch, tmp_path):
    """Role of a stage with these environment variables: alone, a launcher, or one of many."""

    def find(processes: int, **environment: str) -> str:
        found: list[str] = []
        write_params(tmp_path, runtime__processes=processes)
        for name in ("RANK", "WORLD_SIZE", *MASTER):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(launch, "_work", lambda stage, params: found.append("one of many"))
        monkeypatch.setattr(
            "torch.distributed.launcher.api.elastic_launch",
            lambda *_: lambda *_: found.append("launcher"),
        )
        monkeypatch.setattr(launch.logging, "disable", lambda: None)
        monkeypatch.setattr(sys, "argv", ["train_fp.py"])
        with chdir(tmp_path):
            launch.run(lambda params: found.append("alone"), "")
        return " ".join(found)

    return find


def test_alone_or_a_launcher_as_params_say(how):
    assert how(1) == "alone"
    assert how(2) == "launcher"


def test_torchrun_has_started_it_among_others(how):
    assert how(1, RANK="0", WORLD_SIZE="2", **MASTER) == "one of many"
    assert how(2, RANK="0", WORLD_SIZE="1", **MASTER) == "alone"


@pytest.mark.parametrize(
    "exported", [{"WORLD_SIZE": "2"}, {"RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "2"}]
)
def test_a_cluster_that_exports_half_of_it_changes_nothing(exported, how):
    assert how(1, **exported) == "alone"
    assert how(2, **exported) == "launcher"


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_says_that_training_continues(processes, monkeypatch, tmp_path, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    def launched(*_):
        raise SignalException("told to end", signal.SIGINT)

    write_params(tmp_path, runtime__processes=processes)
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: launched)
    monkeypatch.setattr(launch.logging, "disable", lambda: None)
    monkeypatch.setattr(sys, "argv", ["train_fp.py"])
    with chdir(tmp_path), pytest.raises(SystemExit) as end:
        launch.run(interrupted, "")
    assert end.value.code == 130
    words = "interrupted; `dvc repro` resumes after the last saved epoch\n"
    assert capsys.readouterr().err == words
