"""A small ImageNet through the stages: listed by prepare, decoded by worker processes."""

import json

import numpy as np
import pytest

from tests.pictures import corrupt, write_tree
from tests.pipeline import run, write_params

PARAMS = {
    "data__name": "imagenet",
    "data__root": "imagenet",
    "data__size": 32,
    "data__validation": 0.25,
    "fp__epochs": 1,
    "fp__batch_size": 9,
    "weights__epochs": 1,
    "weights__batch_size": 9,
    "activations__epochs": 1,
    "activations__batch_size": 9,
    "cluster__images": 10,
}


@pytest.fixture
def workspace(tmp_path):
    write_tree(tmp_path / "imagenet", flat=True)
    write_params(tmp_path, **PARAMS, runtime__workers=0)
    return tmp_path


def outs(folder):
    return [
        (folder / name).read_bytes()
        for name in ("checkpoints/fp.safetensors", "metrics/train_fp/curves.csv")
    ]


def test_resnet18_learns_from_a_listing(workspace):
    write_params(workspace, **PARAMS, runtime__workers=2, model__name="resnet18")
    output = run("prepare", workspace)
    assert "prepare: imagenet, 3 classes, 27 train, 9 validation, 12 test images" in output
    prepared = workspace / "data" / "prepared"
    assert not list(prepared.glob("*_images.npy"))
    assert json.loads((prepared / "manifest.json").read_text())["root"] == "imagenet"
    corrupt(workspace / "imagenet" / np.load(prepared / "train_paths.npy")[0].decode())
    output = run("train_fp", workspace)
    assert output.count(" cannot be read (") == 1
    metrics = json.loads((workspace / "metrics/train_fp/metrics.json").read_text())
    assert 0 <= metrics["test"]["top1"] <= 100


def test_every_stage_runs_and_workers_change_nothing(workspace):
    run("prepare", workspace)
    run("train_fp", workspace)
    alone = outs(workspace)
    write_params(workspace, **PARAMS, runtime__workers=2)
    run("train_fp", workspace)
    assert outs(workspace) == alone

    output = run("evaluate", workspace, "checkpoints/fp.safetensors", "--split", "validation")
    assert "may be split differently (cannot be checked) than when this network was" in output
    output = run("evaluate", workspace, "checkpoints/fp.safetensors")
    assert "split differently" not in output
    assert "data/prepared, test: 12 images" in output
    write_tree(workspace / "in_folders")
    of_folder = run(
        "evaluate", workspace, "checkpoints/fp.safetensors", "--folder", "in_folders/val"
    )
    assert "in_folders/val: 12 images" in of_folder  # cropped as in the stages
    assert of_folder.split("\n\n", 1)[1] == output.split("\n\n", 1)[1]
    for stage in ("cluster", "train_weights", "train_activations"):
        run(stage, workspace)
    assert (workspace / "checkpoints" / "activations.safetensors").exists()


def test_too_many_bad_images_stop_the_training(workspace):
    write_params(workspace, **PARAMS, runtime__workers=0, data__bad_images=0)
    run("prepare", workspace)
    for path in (workspace / "imagenet" / "train").rglob("*_0.JPEG"):
        corrupt(path)
    output = run("train_fp", workspace, status=2)
    assert "error: data.bad_images is 0, and this is number 1: imagenet/train/" in output


@pytest.mark.parametrize(
    ("split", "folder", "changes"),
    [
        ("training", "train", {"data__bad_images": 30}),
        ("validation", "train", {"data__bad_images": 30, "fp__epochs": 0}),
        ("test", "val", {"data__bad_images": 12, "fp__epochs": 0}),
    ],
)
def test_a_split_without_a_picture_that_can_be_read_is_one_line(split, folder, changes, workspace):
    write_params(workspace, **PARAMS | changes, runtime__workers=0)
    run("prepare", workspace)
    for path in (workspace / "imagenet" / folder).rglob("*.JPEG"):
        corrupt(path)
    output = run("train_fp", workspace, status=2).splitlines()
    errors = [line for line in output if " cannot be read (" not in line]
    assert errors == [
        f"error: data.bad_images: no {split} image could be read, and there are no more than it "
        "allows; put back the files that the warnings name, or set it to 0 to stop at the first"
    ]


def test_a_mistake_in_a_list_is_one_line(workspace):
    (workspace / "imagenet" / "val.txt").write_text("none.JPEG 0\n")
    output = run("prepare", workspace, status=2)
    assert output.startswith("error: imagenet/val.txt: line 1 names none.JPEG, which is not in")
    assert not (workspace / "data" / "prepared").exists()
