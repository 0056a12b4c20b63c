"""User mistakes, missing or damaged files and machine failures are reported in one line each."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from qnet.models import build_model
from tests.pipeline import refused, run, write_params


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights__levels": 9}, "weights.levels"),
        ({"fp__epochs": "many"}, "fp.epochs"),
        ({"model__name": "resnet21"}, "model.name"),
        ({"model__keep": ["nowhere"]}, "model.keep"),
        ({"fp__batch_size": 5000}, "fp.batch_size"),
        ({"runtime__device": "cuda:7"}, "runtime.device"),
        ({"fp__lr": 1e9, "fp__clip_norm": 0}, "fp.lr"),
        # Refused before training, though only later stages need it:
        (
            {"model__quantize": ["firts"]},
            "model.quantize: 'firts' fits no layer, nearest is 'first'",
        ),
        ({"augment__pad": 8}, "augment.pad is 8; it must be below 8, the size of the images"),
        (
            {"fp__batch_size": 5000, "weights__batch_size": 4000, "activations__batch_size": 3000},
            "fp.batch_size is 5000, weights.batch_size is 4000, activations.batch_size is 3000; "
            "each must be at most",
        ),
        ({"weights__batch_size": 5000}, "weights.batch_size is 5000; it must be at most"),
        ({"activations__batch_size": 5000}, "activations.batch_size is 5000; it must be at most"),
        ({"weights__batch_size": 1}, "weights.batch_size is 1; batch norm needs the statistics"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(changes, message, workspace):
    write_params(workspace, **changes)
    output = run("train_fp", workspace, status=2).strip().splitlines()
    assert output[-1].startswith("error: ")
    assert message in output[-1]
    assert not any("Traceback" in line for line in output)


@pytest.mark.parametrize("name", ["resnet21", "torchvision/resnet", "tests.tiny:none", "no:one"])
def test_a_model_that_is_not_there_is_told_before_images_are_read(name, workspace):
    write_params(workspace, model__name=name, data__name="image_folder", data__root="nowhere")
    output = run("prepare", workspace, status=2)
    assert output.startswith(f"error: model.name: {name!r}")


@pytest.mark.parametrize("stage", ["cluster", "train_weights"])
def test_a_mistake_in_a_later_section_is_told_before_training(stage, workspace):
    write_params(workspace, activations__batch_size=5000)
    output = run(stage, workspace, status=2)
    assert "activations.batch_size is 5000; it must be at most" in output


@pytest.mark.parametrize(
    ("changes", "stage", "words"),
    [
        (
            {"data__name": "cifar10"},
            "train_fp",
            "data.name is cifar10, and data/prepared holds dig",
        ),
        ({"data__size": 32}, "train_fp", "data.size is 32, and data/prepared holds 8; run `dvc"),
        ({"data__channels": 3}, "train_fp", "data.channels is 3, and data/prepared holds 1; run"),
        ({"weights__levels": 2}, "train_weights", "weights.levels is 2, and checkpoints/weight_cl"),
        ({"weights__levels": "full"}, "train_weights", "run `dvc repro cluster`"),
        ({"activations__sites": "relu"}, "train_activations", "activations.sites is relu, "),
        (
            {"model__keep": ["first"]},
            "train_activations",
            "model.keep is ['first'], model.quantize is ",
        ),
    ],
)
def test_files_made_for_other_parameters_are_refused(changes, stage, words, workspace):
    write_params(workspace, **changes)
    output = run(stage, workspace, status=2).strip()
    assert words in output
    assert "\n" not in output


@pytest.mark.parametrize("stage", ["cluster", "train_weights", "train_activations"])
def test_images_of_another_kind_than_the_network_takes_are_refused(stage, workspace):
    write_params(workspace, data__channels=3)
    run("prepare", workspace)
    output = run(stage, workspace, status=2).strip()
    assert output.endswith(
        "they differ in channels; set data to what it was trained on and run `dvc repro prepare`, "
        "or train it again with `dvc repro`"
    )
    assert "\n" not in output


def test_clusters_of_another_network_are_named(workspace):
    path = workspace / "checkpoints" / "weight_clusters.json"
    clusters = json.loads(path.read_text())
    path.write_text(json.dumps({"elsewhere": clusters["3"]}))
    output = run("train_weights", workspace, status=2).strip()
    assert output.startswith("error: checkpoints/weight_clusters.json is damaged (weights: 'elsew")
    assert output.endswith("; delete it and run `dvc repro`")


def test_a_name_with_a_line_break_stays_on_one_line(tmp_path):
    for half in ("train", "test"):
        for name in "ab":
            (tmp_path / half / name).mkdir(parents=True)
            (tmp_path / half / name / "bad\nname.png").write_text("x")
    write_params(tmp_path, data__name="image_folder", data__root=str(tmp_path))
    output = run("prepare", tmp_path, status=2).strip()
    assert "bad\\nname.png: not an image" in output
    assert "\n" not in output


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"3": {}}', '{"3": {"clusters": {}}}'])
@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("checkpoints/weight_clusters.json", "train_weights"),
        ("checkpoints/activation_clusters.json", "train_activations"),
        ("metrics/train_fp/metrics.json", "report"),
    ],
)
def test_a_damaged_input_is_named(file, stage, content, workspace):
    (workspace / file).write_text(content)
    output = run(stage, workspace, status=2).strip()
    assert output == f"error: {file} is damaged; delete it and run `dvc repro`"


def test_a_damaged_curve_is_named(workspace):
    (workspace / "metrics" / "train_fp" / "curves.csv").write_text("<<<<<<< HEAD\n1,2\n")
    output = run("report", workspace, "--picture", "x.png", status=2).strip()
    assert output.splitlines()[-1].startswith("error: metrics/train_fp/curves.csv is damaged")


def test_the_report_tells_of_parameters_that_have_changed(workspace):
    lock = {"stages": {"train_weights": {"params": {"params.yaml": {"weights.levels": 1}}}}}
    (workspace / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert "changed" not in run("report", workspace)
    text = (workspace / "params.yaml").read_text()
    lock["stages"]["train_weights"]["params"]["params.yaml"]["weights.nesterov"] = True
    lock["stages"]["one_of_their_own"] = {"cmd": "true"}
    (workspace / "dvc.lock").write_text(yaml.safe_dump(lock))
    (workspace / "params.yaml").write_text(text.replace("nesterov: true", "nesterov: True"))
    assert "changed" not in run("report", workspace)
    write_params(workspace, weights__levels=2)
    assert "changed since a stage read it: weights.levels; the" in run("report", workspace)


def test_the_report_tells_of_stages_that_have_not_run_again(workspace):
    def lock(trained: str, read: str) -> str:
        path = "checkpoints/weights.safetensors"
        return yaml.safe_dump(
            {
                "stages": {
                    "train_weights": {"outs": [{"path": path, "md5": trained}]},
                    "train_activations": {"deps": [{"path": path, "md5": read}]},
                }
            }
        )

    (workspace / "dvc.lock").write_text(lock("a", "a"))
    assert "changed" not in run("report", workspace)
    (workspace / "dvc.lock").write_text(lock("b", "a"))
    assert "read it: checkpoints/weights.safetensors; the figures" in run("report", workspace)


DOUBLE = """
import tests.tiny


def network(**kinds):
    return tests.tiny.network(**kinds).double()
"""
DICE = """
import random

from torch import nn

import tests.tiny


class Scaled(nn.Module):
    def forward(self, x):
        return x * self.factor


def network(**kinds):
    scaled = Scaled()
    scaled.factor = random.random()
    return nn.Sequential(tests.tiny.network(**kinds), scaled)
"""


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        (
            "double",
            DOUBLE,
            "model.name: 'double:network' returned a network in torch.float64; return it in "
            "torch.float32: runtime.precision sets the type it is computed in",
        ),
        (
            "dice",
            DICE,
            "checkpoints/fp.safetensors could not be read again: dice:network makes a network "
            "with these weights that computes something else than this; name what builds it as it "
            "is now, such as a function of your own (package.module:function), the same each time "
            "it is called",
        ),
    ],
)
def test_a_network_that_is_not_usable_is_refused_before_training(
    name, code, message, workspace, monkeypatch
):
    (workspace / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(workspace)
    write_params(workspace, model__name=f"{name}:network")
    assert run("train_fp", workspace, status=2).strip() == f"error: {message}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_not_called_damaged(workspace):
    (workspace / "checkpoints" / "fp.safetensors").chmod(0)
    output = run("cluster", workspace, status=2).strip()
    assert output.startswith("error: checkpoints/fp.safetensors: Permission denied; fix")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_clusters_that_may_not_be_read_are_not_called_damaged(workspace):
    (workspace / "checkpoints" / "weight_clusters.json").chmod(0)
    output = run("train_weights", workspace, status=2).strip()
    assert "checkpoints/weight_clusters.json: Permission denied" in output


def test_a_head_with_random_weights_needs_training(workspace, tmp_path):
    content = build_model("resnet20", classes=7, channels=1).state_dict()
    torch.save(content, tmp_path / "other.pth")
    changes = {"model__name": "resnet20", "model__pretrained": str(tmp_path / "other.pth")}
    write_params(workspace, **changes, fp__epochs=0)
    output = run("train_fp", workspace, status=2).strip().splitlines()[-1]
    assert output.startswith("error: fp.epochs is 0, and linear starts from random weights: ")


def test_the_network_that_a_stage_writes_is_not_what_it_starts_from(workspace):
    write_params(workspace, model__pretrained="checkpoints/fp.safetensors")
    output = refused("train_fp", workspace)
    assert "model.pretrained is checkpoints/fp.safetensors, which this stage writes" in output


def test_a_name_that_is_taken_is_told_before_training(workspace):
    (workspace / "runs").mkdir(exist_ok=True)
    shutil.rmtree(workspace / "runs")
    (workspace / "runs").touch()
    output = refused("train_fp", workspace)
    assert output.startswith("error: runs/train_fp is not a writable folder (")


def test_memory_that_runs_out_is_said_in_one_line(workspace, monkeypatch):
    def no_memory(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1")

    monkeypatch.setattr("qnet.loss.F.cross_entropy", no_memory)
    output = run("train_fp", workspace, status=2).strip()
    assert output.splitlines()[-1].startswith(
        "error: fp.batch_size is 128, and memory ran out; use"
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "memory ran out; use smaller images (data.size), fewer processes"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "runtime.workers: one of them died (DataLoader worker (pid 7) is killed by signal",
        ),
        (
            PermissionError(13, "Permission denied", "some/file"),
            "some/file: Permission denied; fix the path, its permissions or the disk",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_machine_that_fails_while_scoring_is_one_line(error, message, workspace, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("stages.training.evaluate_classes", fail)
    output = run("train_fp", workspace, status=2).strip()
    assert output.splitlines()[-1].startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("missing", "stage"),
    [
        ("data/prepared/dataset.json", "train_fp"),
        ("data/prepared/train_images.npy", "train_fp"),
        ("checkpoints/fp.safetensors", "cluster"),
        ("checkpoints/weight_clusters.json", "train_weights"),
        ("checkpoints/activation_clusters.json", "train_activations"),
        ("checkpoints/weights.safetensors", "train_activations"),
        ("metrics/train_fp/metrics.json", "report"),
    ],
)
def test_a_missing_input_is_named(missing, stage, workspace):
    (workspace / missing).unlink()
    assert Path(missing).name in refused(stage, workspace)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("train_fp", "metrics/train_fp"),
        ("train_fp", ".resume"),
        ("train_fp", "runs"),
        ("cluster", "metrics/cluster"),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_told_before_training(stage, name, workspace):
    place = workspace / name
    if place.exists():
        place.rename(workspace / "moved")
    place.touch()
    output = run(stage, workspace, status=2)
    assert "epoch" not in output
    assert output.splitlines()[-1].startswith(f"error: {name}")
