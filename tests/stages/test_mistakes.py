"""A mistake, a file that is missing or damaged, a machine that fails: one line each."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.pipeline import run, write_params


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
        # What later stages would refuse, before the network is trained:
        (
            {"model__quantize": ["firts"]},
            "model.quantize: 'firts' fits no layer, nearest is 'first'",
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


@pytest.mark.parametrize(
    ("changes", "stage", "words"),
    [
        (
            {"data__name": "cifar10"},
            "train_fp",
            "data.name is cifar10, and data/prepared holds dig",
        ),
        ({"weights__levels": 2}, "train_weights", "weights.levels is 2, and checkpoints/weight_cl"),
        ({"weights__levels": "full"}, "train_weights", "run `dvc repro cluster`"),
        ({"activations__sites": "relu"}, "train_activations", "activations.sites is relu, "),
        ({"model__keep": ["first"]}, "train_activations", "model.keep is ['first'], and checkp"),
    ],
)
def test_files_made_for_other_parameters_are_refused(changes, stage, words, workspace):
    write_params(workspace, **changes)
    output = run(stage, workspace, status=2).strip()
    assert words in output
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


def test_a_name_that_is_taken_is_told_before_training(workspace):
    (workspace / "runs").mkdir(exist_ok=True)
    shutil.rmtree(workspace / "runs")
    (workspace / "runs").touch()
    output = run("train_fp", workspace, status=2).strip()
    assert output.startswith("error: runs/train_fp could not be made (")
    assert "\n" not in output


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
            "some/file: Permission denied; mend the path, its permissions or the disk",
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
    output = run(stage, workspace, status=2).strip()
    assert output.startswith("error: ")
    assert Path(missing).name in output
    assert "\n" not in output
