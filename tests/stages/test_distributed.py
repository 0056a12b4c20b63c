"""A training stage in two processes, from the command line: its result, and its failures."""

import csv
import json
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import stages.data
from qnet.params import load_params
from qnet.runtime import processes
from tests.pipeline import run, start, write_params

# Batches of 85 are split into 42 and 43. With a small rate, SGD does not amplify differences.
CHANGES = {"fp__batch_size": 85, "fp__lr": 0.01, "fp__epochs": 4}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    write_params(folder, **CHANGES)
    run("prepare", folder)
    return folder


@pytest.fixture
def workspace(prepared, tmp_path) -> Path:
    folder = Path(shutil.copytree(prepared, tmp_path / "copy"))
    write_params(folder, **CHANGES, runtime__processes=2)
    return folder


def figures(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics/train_fp/curves.csv").open() as file:
        return [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]


@pytest.fixture
def begun(workspace):
    """Start train_fp, wait for its first epoch, and return it and its processes in order."""
    started = []

    def begin() -> tuple["subprocess.Popen[str]", list[psutil.Process]]:
        process = start("train_fp", workspace)
        children: list[psutil.Process] = []
        started.append((process, children))
        assert process.stdout is not None
        output = []
        for line in process.stdout:
            output.append(line)
            if " epoch " in line:
                break
        else:
            pytest.fail("".join(output))
        children += psutil.Process(process.pid).children()
        return process, sorted(children, key=lambda child: int(child.environ()["RANK"]))

    yield begin
    for process, children in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        for child in filter(alive, children):
            child.kill()


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_two_processes_one_killed_then_resumed_end_as_one_process(prepared, workspace, begun):
    process, (first, second) = begun()
    second.kill()
    lines = process.communicate(timeout=240)[0].strip().splitlines()
    assert process.returncode == 1
    message = "error: process 2 of 2 ended by signal 9; if memory ran out, use fewer"
    assert lines[-1].startswith(message)
    assert lines[-1].endswith("batch_size; `dvc repro` resumes after the last saved epoch")
    assert [line for line in lines if " epoch " not in line] == lines[-1:]
    assert not alive(first)

    process = start("train_fp", workspace)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    assert output.count("resumed after epoch") == 1
    assert output.count("train_fp epoch   4") == 1
    assert not (workspace / ".resume").exists()

    run("train_fp", prepared)
    for found, expected in zip(figures(workspace), figures(prepared), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=0.1)
    found, expected = (
        load_file(folder / "checkpoints/fp.safetensors") for folder in (workspace, prepared)
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-3, msg=name)
    found, expected = (
        json.loads((folder / "metrics/train_fp/metrics.json").read_text())
        for folder in (workspace, prepared)
    )
    assert found["best_epoch"] == expected["best_epoch"]
    assert found["test"] == pytest.approx(expected["test"], rel=1e-2)


def test_a_mistake_is_one_line_once(workspace):
    write_params(workspace, runtime__processes=2, fp__lr=1e9, fp__clip_norm=0)
    process = start("train_fp", workspace)
    lines = process.communicate(timeout=240)[0].splitlines()
    assert process.returncode == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: fp.lr is 1000000000.0: the loss is ")


def test_processes_whose_launcher_is_killed_end(workspace, begun):
    write_params(workspace, **{**CHANGES, "fp__epochs": 10000}, runtime__processes=2)
    process, workers = begun()
    assert len(workers) == 2
    process.kill()
    deadline = time.monotonic() + 240
    while any(map(alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_fewer_images_than_processes(prepared, monkeypatch):
    monkeypatch.setattr(stages.data, "world_size", lambda: 86)
    assert "fp.batch_size is 85, and 86 processes share each batch" in run(
        "train_fp", prepared, status=2
    )


@pytest.mark.parametrize(
    ("device", "expected"), [("auto", 3), ("cuda", 3), ("cuda:1", 1), ("cpu", 1), ("mps", 1)]
)
def test_auto_is_one_process_for_each_cuda_device(device, expected, prepared, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    params = load_params(prepared / "params.yaml").runtime
    assert processes(params.model_copy(update={"device": device, "processes": "auto"})) == expected
    assert processes(params.model_copy(update={"device": device, "processes": 4})) == 4
