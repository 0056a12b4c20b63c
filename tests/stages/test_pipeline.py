"""The stages one after another, and stages killed at any moment."""

import csv
import json
import shutil
from pathlib import Path
from statistics import fmean

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qnet.checkpoint import load_model
from qnet.quantizer import quantizers
from stages.training import TrainingStage
from tests.pipeline import ROOT, kill_after, run, start, write_params

OUTPUT = {"train_fp": "fp", "train_weights": "weights", "train_activations": "activations"}


def results(folder: Path, stage: str) -> dict[str, bytes]:
    """Outputs of a training stage, except for the TensorBoard files, which contain clock times."""
    files = [folder / "checkpoints" / f"{OUTPUT[stage]}.safetensors"]
    files += sorted((folder / "metrics" / stage).glob("*.*"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, by column."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_stage_leaves_what_dvc_yaml_names(finished):
    for name in ("fp.safetensors", "weight_clusters.json", "activation_clusters.json"):
        assert (finished / "checkpoints" / name).stat().st_size > 0
    for stage in OUTPUT:
        metrics = json.loads((finished / "metrics" / stage / "metrics.json").read_text())
        assert set(metrics["test"]) == {"loss", "top1", "top5"}
        assert metrics["selected_on"] == "validation"
        assert metrics["best_epoch"] in (1, 2, 3)
        assert metrics["bytes"] > 0
        assert len(table(finished / "metrics" / stage / "curves.csv")) == 3
        confusion = table(finished / "metrics" / stage / "confusion.csv")
        assert list(confusion[0]) == ["actual", "predicted"]
        assert len(confusion) == 359
    assert not (finished / ".resume").exists()


def test_tensorboard_has_curves_scales_and_weights(finished):
    events = EventAccumulator(str(finished / "runs" / "train_activations"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "validation/top1", "validation/soft_top1", "lr", "temperature"} <= set(
        tags["scalars"]
    )
    for scale in ("alpha", "beta"):
        for place in ("weight_quantizer", "input_quantizer"):
            assert f"{scale}/3.{place}" in tags["scalars"]
    assert {"weights/3", "quantized_weights/3", "weights/0"} <= set(tags["histograms"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]


def test_quantizing_compresses(finished):
    compressions = [
        json.loads((finished / "metrics" / stage / "metrics.json").read_text())["compression"]
        for stage in OUTPUT
    ]
    assert compressions[0] == 1
    assert compressions[1] > compressions[2] > 1


def test_cluster_writes_every_layer_and_every_number_of_bits(finished):
    weights = table(finished / "metrics" / "cluster" / "weights.csv")
    activations = table(finished / "metrics" / "cluster" / "activations.csv")
    assert [row["layer"] for row in weights] == ["3", "6"]
    assert [(row["site"], row["bits"]) for row in activations] == [
        (site, str(bits)) for site in ("3", "6") for bits in range(1, 9)
    ]
    figures = ["inertia", "trimmed", "alpha", "beta"]
    assert list(weights[0]) == ["layer", *figures]
    assert list(activations[0]) == ["site", "bits", *figures]


def test_cluster_metrics_are_means_over_the_layers(finished):
    folder = finished / "metrics" / "cluster"
    metrics = json.loads((folder / "metrics.json").read_text())
    weights, activations = table(folder / "weights.csv"), table(folder / "activations.csv")
    for name in ("inertia", "trimmed"):
        mean = fmean(float(row[name]) for row in weights)
        assert metrics["weights"][name] == pytest.approx(mean, rel=1e-4)
    for bits, inertia in metrics["activations"]["inertia"].items():
        mean = fmean(float(row["inertia"]) for row in activations if row["bits"] == bits)
        assert inertia == pytest.approx(mean, rel=1e-4)
    trimmed = fmean(float(row["trimmed"]) for row in activations)
    assert metrics["activations"]["trimmed"] == pytest.approx(trimmed, rel=1e-4)


def test_the_report_prints_and_draws_the_three_networks(finished, tmp_path):
    lines = run("report", finished, "--picture", str(tmp_path / "result.png")).splitlines()
    assert (tmp_path / "result.png").stat().st_size > 1000
    assert len(lines) == 5
    assert "32/32" in lines[2]
    assert "1/32" in lines[3]
    assert "1/2" in lines[4]


def test_the_report_tells_of_networks_that_are_not_here(workspace):
    (workspace / "checkpoints" / "weights.safetensors").unlink()
    last = run("report", workspace).splitlines()[-1]
    assert last.startswith("not here: checkpoints/weights.safetensors; the figures are from git")


@pytest.mark.parametrize("stage", OUTPUT)
def test_a_stage_run_twice_gives_the_same_bytes(stage, workspace, finished):
    run(stage, workspace)
    assert results(workspace, stage) == results(finished, stage)


@pytest.mark.parametrize("stage", OUTPUT)
def test_a_stage_killed_twice_ends_with_the_same_bytes(stage, workspace, finished):
    for path in (workspace / "metrics" / stage).glob("*.csv"):
        path.unlink()  # as DVC does before it runs a stage
    kill_after(stage, workspace, epochs=1)
    kill_after(stage, workspace, epochs=1)
    assert len(list((workspace / ".resume").iterdir())) == 1

    assert "resumed after epoch 2" in run(stage, workspace)
    assert results(workspace, stage) == results(finished, stage)
    assert not (workspace / ".resume").exists()


def test_a_line_and_a_state_for_every_so_many_epochs(workspace, finished):
    write_params(workspace, runtime__print_every=2, runtime__save_every=2)
    lines = run("train_fp", workspace).splitlines()
    assert [line.split()[2] for line in lines] == ["2", "3"]
    kill_after("train_fp", workspace, epochs=2)
    assert "resumed after epoch 2" in run("train_fp", workspace)
    assert results(workspace, "train_fp") == results(finished, "train_fp")


def test_trained_in_bfloat16_a_network_is_scored_in_float32(workspace):
    write_params(workspace, runtime__precision="bfloat16")
    run("train_fp", workspace)
    metrics = json.loads((workspace / "metrics" / "train_fp" / "metrics.json").read_text())
    write_params(workspace)
    run("evaluate", workspace, "checkpoints/fp.safetensors", "--json", "scores.json")
    scores = json.loads((workspace / "scores.json").read_text())
    assert metrics["test"]["loss"] == pytest.approx(scores["loss"], rel=1e-5)


def test_a_run_killed_before_and_after_weights_thaw_ends_with_the_same_bytes(workspace):
    changes = {"epochs": 6, "frozen_epochs": 2, "weights": "soft"}
    write_params(workspace, **{f"activations__{name}": value for name, value in changes.items()})
    run("train_activations", workspace)
    expected = results(workspace, "train_activations")
    kill_after("train_activations", workspace, epochs=1)
    kill_after("train_activations", workspace, epochs=3)
    assert "resumed after epoch" in run("train_activations", workspace)
    assert results(workspace, "train_activations") == expected


def test_a_killed_run_is_not_resumed_with_other_parameters(workspace):
    kill_after("train_fp", workspace, epochs=1)
    write_params(workspace, fp__lr=0.01)
    assert "resumed" not in run("train_fp", workspace)


def test_a_killed_run_is_resumed_with_other_parameters_that_it_does_not_read(workspace):
    kill_after("train_fp", workspace, epochs=1)
    write_params(workspace, cluster__images=100, model__keep=["first"])
    assert "resumed after epoch 1" in run("train_fp", workspace)


def test_what_can_fail_beside_the_training_fails_before_it(workspace):
    pictures = workspace / "metrics" / "train_activations" / "pictures"
    shutil.rmtree(pictures)
    pictures.touch()
    assert " epoch " not in run("train_activations", workspace, status=2)


def test_a_killed_run_is_not_resumed_with_another_network(workspace):
    own = workspace / "own.py"
    own.write_text((ROOT / "tests" / "tiny.py").read_text())
    write_params(workspace, model__name="own:network")
    kill_after("train_fp", workspace, epochs=1)
    own.write_text(own.read_text().replace("ReLU", "SiLU"))
    output, _ = start("train_fp", workspace).communicate()
    assert " epoch   3 " in output
    assert "resumed" not in output


def test_full_passes_the_network_on(workspace):
    write_params(workspace, weights__levels="full", activations__bits="full")
    for stage in ("cluster", "train_weights", "train_activations"):
        run(stage, workspace)
    scores = [
        json.loads((workspace / "metrics" / stage / "metrics.json").read_text()) for stage in OUTPUT
    ]
    assert scores[0]["test"] == scores[1]["test"] == scores[2]["test"]
    assert scores[2]["compression"] == 1
    assert scores[2]["best_epoch"] == 0
    for stage in ("train_weights", "train_activations"):
        curves = (workspace / "metrics" / stage / "curves.csv").read_text()
        assert curves.startswith("epoch,lr,train_loss")
        assert curves.count("\n") == 1
    table = run("report", workspace, "--picture", str(workspace / "result.png")).splitlines()
    assert len(table) == 3  # nothing is quantized


def test_weights_in_full_precision_with_quantized_activations(workspace):
    write_params(workspace, weights__levels="full", activations__bits=2)
    for stage in ("cluster", "train_weights", "train_activations"):
        run(stage, workspace)
    assert "32/2" in run("report", workspace)


def test_published_sites_are_clustered_and_trained(workspace):
    write_params(workspace, activations__sites="relu", activations__bits=3)
    for stage in ("cluster", "train_weights", "train_activations"):
        run(stage, workspace)
    activations = table(workspace / "metrics" / "cluster" / "activations.csv")
    assert {row["site"] for row in activations} == {"2", "5", "8"}


@pytest.mark.parametrize("scales", [True, False])
@pytest.mark.parametrize("weights", ["frozen", "hard", "soft"])
def test_weights_while_activations_are_trained(weights, scales, workspace):
    write_params(workspace, activations__weights=weights, activations__weight_scales=scales)
    run("train_activations", workspace)
    before = load_model(workspace / "checkpoints" / "weights.safetensors")
    after = load_model(workspace / "checkpoints" / "activations.safetensors")
    moved = {
        name
        for name, parameter in before.named_parameters()
        if not torch.equal(parameter, after.get_parameter(name))
    }
    assert {"0.weight", "1.weight", "4.bias", "11.weight"} <= moved
    assert ("3.weight" in moved) == ("6.weight" in moved) == (weights != "frozen")
    for name in ("3.weight_quantizer.alpha", "6.weight_quantizer.beta"):
        assert (name in moved) == (scales and weights != "frozen")
    modes = [q.forward_mode for name, q in quantizers(after) if name.endswith("weight_quantizer")]
    assert modes == 2 * ["soft" if weights == "soft" else "hard"]


def test_thresholds_from_the_network_with_quantized_weights(workspace):
    changes = {"activations__bits": 3, "activations__epochs": 0, "activations__warmup_epochs": 0}
    found = {}
    for source in ("fp", "weights"):
        write_params(workspace, activations__thresholds_from=source, **changes)
        run("train_activations", workspace)
        found[source] = load_model(workspace / "checkpoints" / "activations.safetensors")
    fp, weights = (dict(quantizers(found[source])) for source in found)
    assert fp.keys() == weights.keys()
    assert fp["6.input_quantizer"].beta != weights["6.input_quantizer"].beta
    assert fp["6.weight_quantizer"].beta == weights["6.weight_quantizer"].beta

    # The network of fp, copied, gives the same clusters.
    shutil.copy(
        workspace / "checkpoints" / "fp.safetensors", workspace / "checkpoints/weights.safetensors"
    )
    run("train_activations", workspace)
    same = load_model(workspace / "checkpoints" / "activations.safetensors")
    for name, quantizer in quantizers(same):
        assert quantizer.beta == fp[name].beta
        assert torch.equal(quantizer.thresholds, fp[name].thresholds)


def test_shared_thresholds_are_those_of_all_layers(workspace):
    shared = {
        f"cluster__{kind}__{name}": value
        for kind in ("weights", "activations")
        for name, value in {"thresholds": "clustered", "shared": True}.items()
    }
    write_params(workspace, weights__levels=3, **shared)
    for stage in ("cluster", "train_weights", "train_activations"):
        run(stage, workspace)
    found = dict(quantizers(load_model(workspace / "checkpoints" / "activations.safetensors")))
    for kind in ("weight", "input"):
        first, second = (found[f"{layer}.{kind}_quantizer"] for layer in (3, 6))
        assert torch.equal(first.thresholds, second.thresholds)
        assert first.beta != second.beta


def test_selecting_on_test_is_said_in_the_metrics(workspace):
    write_params(workspace, fp__select_on="test")
    run("train_fp", workspace)
    metrics = json.loads((workspace / "metrics" / "train_fp" / "metrics.json").read_text())
    assert metrics["selected_on"] == "test"


def test_zero_epochs_only_evaluate(workspace):
    write_params(workspace, fp__epochs=0)
    run("train_fp", workspace)
    metrics = json.loads((workspace / "metrics" / "train_fp" / "metrics.json").read_text())
    assert metrics["best_epoch"] == 0


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("train_fp", {"start.safetensors"}),
        ("train_weights", {"fp.safetensors", "weight_clusters.json"}),
        (
            "train_activations",
            {"fp.safetensors", "activation_clusters.json", "weights.safetensors"},
        ),
    ],
)
def test_a_run_is_named_after_every_file_that_it_starts_from(
    stage, expected, workspace, monkeypatch
):
    shutil.copy(workspace / "checkpoints/fp.safetensors", workspace / "start.safetensors")
    write_params(workspace, model__pretrained="start.safetensors")
    seen = []
    monkeypatch.setattr(
        TrainingStage, "train", lambda self, inputs, teacher=None: seen.extend(inputs)
    )
    run(stage, workspace)
    assert {path.name for path in seen} == expected
