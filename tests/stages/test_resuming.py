"""A killed training stage is resumed, even if DVC deletes the folder that it ran in."""

import shutil
from pathlib import Path

import pytest
import torch

from stages.resuming import KeptFile, resume_file
from tests.pipeline import chdir, kill_after, run, write_params


def save(file, epoch: int) -> None:
    file.save({"model": {"weight": torch.full((3,), float(epoch))}}, {"rows": epoch * [{}]})


def epochs(file) -> int:
    found = file.load()
    if found is None:
        return 0
    groups, numbers = found
    assert groups["model"]["weight"].tolist() == 3 * [float(len(numbers["rows"]))]
    return len(numbers["rows"])


@pytest.fixture
def experiment(tmp_path):
    """Resume file of a run in an experiment's folder, as made by DVC."""

    def start(name: str) -> KeptFile:
        folder = tmp_path / ".dvc" / "tmp" / "exps" / name
        folder.mkdir(parents=True)
        with chdir(folder):
            file = resume_file("train_fp-1234")
        assert isinstance(file, KeptFile)
        file.path = folder / file.path  # the stage stays in its folder
        return file

    return start


def test_in_the_projects_folder_it_lies_there(tmp_path):
    with chdir(tmp_path):
        file = resume_file("train_fp-1234")
        save(file, 1)
        assert [path.name for path in Path(".resume").iterdir()] == ["train_fp-1234.safetensors"]
        file.remove()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["tmp1", "standalone/tmp2"])
def test_an_experiment_whose_folder_is_deleted_is_resumed_in_another(folder, experiment, tmp_path):
    first = experiment(folder)
    assert epochs(first) == 0
    save(first, 1)
    save(first, 2)
    shutil.rmtree(first.path.parent.parent)
    with chdir(tmp_path):  # even outside an experiment
        assert epochs(resume_file("train_fp-1234")) == 2
    again = experiment("tmp3")
    assert epochs(again) == 2
    again.remove()
    assert epochs(again) == 0
    assert list((tmp_path / ".resume").iterdir()) == []


def test_the_same_run_twice_at_a_time(experiment):
    first, second = experiment("tmp1"), experiment("tmp2")
    save(first, 1)
    assert epochs(second) == 1
    save(first, 2)
    save(second, 2)
    save(first, 3)
    first.remove()
    assert epochs(second) == 0
    save(second, 3)
    first.remove()
    second.remove()
    save(second, 4)
    assert epochs(first) == 4


def test_where_it_cannot_be_kept_training_goes_on(experiment, tmp_path):
    (tmp_path / ".resume").touch()  # no folder
    file = experiment("tmp1")
    save(file, 1)
    assert epochs(file) == 0
    file.remove()


def test_a_stage_killed_in_one_experiment_is_resumed_in_the_next(tmp_path):
    folders = [tmp_path / ".dvc" / "tmp" / "exps" / name for name in ("tmp1", "tmp2")]
    folders[0].mkdir(parents=True)
    write_params(folders[0])
    run("prepare", folders[0])
    shutil.copytree(folders[0], folders[1])
    kill_after("train_fp", folders[0], epochs=1)
    shutil.rmtree(folders[0])
    assert "train_fp: resumed after epoch 1" in run("train_fp", folders[1])
    assert list((tmp_path / ".resume").iterdir()) == []
