"""Comparison of experiments."""

import copy
import json
import subprocess
from typing import Any

import pytest
import yaml

from stages import charts, compare
from stages.compare import groups_of
from tests.pipeline import ROOT, refused, run

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())


def experiment(fp: float, weights: float, activations: float, **changes: Any) -> dict[str, Any]:
    """Experiment with this top-1 in each stage; `changes` are `section__name=value`."""
    tree = copy.deepcopy(PARAMS)
    for name, value in changes.items():
        *parents, leaf = name.split("__")
        node = tree
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    metrics = {
        stage: {"test": {"top1": top1}, "bytes": size, "selected_on": tree[section]["select_on"]}
        for stage, section, top1, size in (
            ("train_fp", "fp", fp, 4000),
            ("train_weights", "weights", weights, 200),
            ("train_activations", "activations", activations, 210),
        )
    }
    return {"params": tree, "metrics": metrics}


def test_experiments_that_differ_in_the_seed_only_are_one_row():
    found = groups_of(
        [experiment(90, 89, 86), experiment(92, 91, 87, seed=1), experiment(90, 89, 86)]
    )
    assert [row.pair.name for row in found] == ["32/32", "1/32", "1/2"]
    full, weights, both = found
    assert (full.top1, weights.top1, both.top1) == (91, 90, 86.5)
    assert (full.loss, weights.loss, both.loss) == (0, 1, 4.5)
    assert both.spread == pytest.approx(0.5**0.5)
    assert len(both.by_seed) == 2


def test_a_number_written_otherwise_is_the_same_setting():
    found = groups_of([experiment(90, 89, 86), experiment(92, 91, 87, seed=1, fp__clip_norm=5)])
    assert PARAMS["fp"]["clip_norm"] == 5
    assert len(found) == 3
    assert {len(row.by_seed) for row in found} == {2}


def test_a_parameter_of_a_later_stage_does_not_part_the_networks_before_it():
    found = groups_of([experiment(90, 89, 86), experiment(90, 89, 80, activations__bits=1)])
    assert [row.pair.name for row in found] == ["32/32", "1/32", "1/2", "1/1"]
    assert found[0].spread is None


def test_what_is_not_quantized_has_no_row():
    found = groups_of(
        [
            experiment(90, 90, 86, weights__levels="full"),
            experiment(90, 89, 89, activations__bits="full"),
            experiment(90, 89, 88, weights__levels="3pm4", activations__bits=4),
        ]
    )
    assert [row.pair.name for row in found] == ["32/32", "3pm4/32", "32/2", "1/32", "3pm4/4"]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Output of `dvc exp show --json` for a commit and the experiments started from it."""

    def data(found: dict[str, Any] | None) -> dict[str, Any]:
        if found is None:  # queued
            return {"params": {"params.yaml": {"data": PARAMS}}, "metrics": None}
        files = {f"metrics/{k}/metrics.json": {"data": v} for k, v in found["metrics"].items()}
        return {"params": {"params.yaml": {"data": found["params"]}}, "metrics": files}

    def lock(revision: str) -> dict[str, Any]:
        stages: dict[str, Any] = {stage: {} for stage in compare.DEPENDS}
        if revision == "partly":
            stages["train_weights"] = {"params": {"params.yaml": {"weights.lr": 7.0}}}
        return {"stages": stages}

    monkeypatch.setattr(compare, "_lock", lock)
    runs = [
        experiment(90, 89, 86),
        experiment(90, 89, 84, activations__lr=0.1),
        experiment(90, 89, 80, activations__bits=1, activations__select_on="test"),
        None,
    ]
    stale = experiment(99, 99, 99)  # metrics and parameters that do not belong together
    done = {"state": "success", "name": "dvc-task"}

    def revision(found: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
        return {"revs": [{"rev": "whole", "data": data(found)}], **more}

    content = [
        {"data": data(stale), "experiments": None},
        {
            "data": data(stale),
            "experiments": [
                *(revision(found, executor=None) for found in runs[:2]),
                *(revision(found, executor=done) for found in runs[2:]),  # as from the queue
                revision(stale, executor={"state": "running"}),
            ],
        },
    ]
    answer = subprocess.CompletedProcess([], 0, json.dumps(content), "")
    monkeypatch.setattr(compare.subprocess, "run", lambda *args, **kwargs: answer)
    return content


def test_the_table_names_what_differs_and_a_picture_is_drawn(shown, tmp_path):
    lines = run("compare", tmp_path, "--picture", str(tmp_path / "bits.png")).splitlines()
    assert lines[0] == "resnet20 on digits, test set"
    assert lines[1].split() == ["W/A", "top-1", "%", "±", "seeds", "loss", "bytes"]
    rows = [line.split() for line in lines[2:-1]]
    assert [row[0] for row in rows] == ["32/32", "1/32", "1/2", "1/2", "1/1"]
    assert rows[2][-1] == "activations.lr=0.05"
    assert rows[3] == ["1/2", "84.00", "1", "6.00", "210", "activations.lr=0.1"]
    assert rows[4][-1] == "*"
    assert lines[-1] == "* the test set chose the epochs: too high"
    assert (tmp_path / "bits.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_parts_networks_by_what_is_quantized():
    places = charts._places(["4/32", "32/2", "4/4", "1/32", "4/4", "1/2"])
    assert list(places) == ["4/32", "1/32", "32/2", "4/4", "1/2"]
    assert list(places.values()) == pytest.approx([0, 1, 2.6, 4.2, 5.2])


def test_without_an_experiment_it_says_what_to_do(shown, tmp_path):
    shown.clear()
    compare.subprocess.run().stdout = "[]"
    assert "; look further back with a higher -n" in run("compare", tmp_path, status=2)


def test_outside_a_repository_it_says_so(tmp_path):
    output = refused("compare", tmp_path)
    assert output.startswith("error: `dvc exp show` failed (ERROR: ")


def test_of_one_network_at_several_commits_the_newest_is_told():
    newest, older = experiment(90, 89, 86), experiment(80, 79, 70)
    assert [row.top1 for row in groups_of([newest, older])] == [90, 89, 86]


def test_experiments_of_other_versions_are_left_out_and_counted(shown, tmp_path):
    older = shown[1]["experiments"][0]["revs"][0]["data"]["params"]["params.yaml"]["data"]
    del older["weights"]["levels"]
    compare.subprocess.run().stdout = json.dumps(shown)
    output = run("compare", tmp_path)
    assert "experiments of another version of this code, left out: 1" in output
    assert "84.00" in output


def test_experiments_that_did_not_run_every_stage_they_change_are_left_out(shown, tmp_path):
    shown[1]["experiments"][1]["revs"][0]["rev"] = "partly"
    compare.subprocess.run().stdout = json.dumps(shown)
    output = run("compare", tmp_path)
    assert "experiments that ran only some of the stages they change, left out: 1" in output
    assert "84.00" not in output


def test_rows_that_differ_are_told_apart():
    changes = {"fp__lr": 0.2, "fp__epochs": 80, "augment__pad": 2}
    groups = groups_of([experiment(90, 89, 86), experiment(90, 89, 85, **changes),
                        experiment(90, 89, 84, **changes, weights__lr=0.5)])  # fmt: skip
    texts = compare._differences(groups)
    both = [text for found, text in zip(groups, texts, strict=True) if found.pair.name == "1/2"]
    assert len(set(both)) == 3
    assert "weights.lr=0.5" in both[2]


def test_each_network_and_data_set_has_a_table_of_its_own(capsys):
    groups = groups_of([experiment(90, 89, 86), experiment(80, 79, 70, data__name="mnist"),
                        experiment(91, 88, 85, seed=1)])  # fmt: skip
    settings = compare._differences(groups)
    assert not any(settings)
    compare._print_tables(groups, settings)
    titles = [line for line in capsys.readouterr().out.splitlines() if "test set" in line]
    assert titles == ["resnet20 on digits, test set", "resnet20 on mnist, test set"]
    assert [len(found.by_seed) for found in groups] == [2, 2, 2, 1, 1, 1]


def test_what_comes_of_epochs_chosen_on_test_is_marked():
    groups = groups_of([experiment(90, 89, 86, fp__select_on="test")])
    assert all(found.on_test for found in groups)
    groups = groups_of([experiment(90, 89, 86, weights__select_on="test")])
    assert [found.on_test for found in groups] == [False, True, True]


@pytest.mark.parametrize("change", [{"activations__bits": "8b"}, {"weights__levels": 9}])
def test_experiments_of_another_version_are_left_out(change):
    assert not compare._is_known(experiment(90, 89, 86, **change))
    assert compare._is_known(experiment(90, 89, 86))
