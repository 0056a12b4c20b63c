"""Every recipe is a whole params.yaml, its phases run, and its commands say what they are for."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps

import stages.cluster
import stages.train_activations
from qnet.data import Raw, Split, load_source, prepare, save_prepared
from qnet.params import Params, load_params
from tests.pipeline import ROOT, run

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
IMAGES, SIZE = 60, 14  # SimpleNet needs 13 pixels
PUBLISHED = {  # the rows that a recipe has
    "resnet20-cifar10": "fp 1/32 2/32 3pm2/32 3/32 3pm4/32 4/32 1/1 1/2 1/3 1/4 32/1",
    "simplenet-cifar10": "fp 1/32 1/1 1/2",
    "resnet20-mnist": "fp",
    "alexnet-imagenet": "fp 1/32 2/32 3pm2/32 3pm4/32 1/1 1/2",
    "resnet18-imagenet": "fp 1/32 2/32 3pm2/32 3pm4/32 1/1 1/2 32/2",
    "resnet50-imagenet": "fp 1/32 2/32 3pm2/32 3pm4/32",
}
TITLES = {"resnet20": "ResNet-20", "simplenet": "SimpleNet", "alexnet": "AlexNet",
          "resnet18": "ResNet-18", "resnet50": "ResNet-50"}  # fmt: skip
SECTIONS = ("fp", "weights", "activations")


def rows(recipe: Path) -> dict[str, tuple[float, list[str]]]:
    """Published top-1 and the overrides of each command in the recipe's head, by W/A."""
    head = recipe.read_text(encoding="utf-8").split("\nseed:")[0]
    found = {}
    for row, top1, command in re.findall(r"^# (\S+) +([\d.]+) +(dvc exp run .*)$", head, re.M):
        start, *pairs = shlex.split(command.removeprefix("dvc exp run "))
        assert start == "--queue", command
        assert set(pairs[::2]) <= {"-S"}, command
        found[row] = float(top1), pairs[1::2]
    return found


COMMANDS = [
    pytest.param(recipe, row, overrides, id=f"{recipe.stem} {row}")
    for recipe in RECIPES
    for row, (_, overrides) in rows(recipe).items()
]


def published(title: str, table: str = "CIFAR-10") -> dict[str, str]:
    """A row of the fork's table in docs/method.md, or of the paper's ("ImageNet"), by W/A."""
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    names, row = (
        re.search(rf"^\| {re.escape(name)} \|(.*)\|$", text, re.M) for name in (table, title)
    )
    assert names is not None
    assert row is not None
    cells = zip(names[1].split("|"), row[1].split("|"), strict=True)
    return {name.strip(): cell.strip() for name, cell in cells if cell.strip()}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_valid_params_file(recipe):
    load_params(recipe)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_row_is_one_command(name):
    found = {row: top1 for row, (top1, _) in rows(ROOT / "recipes" / f"{name}.yaml").items()}
    assert list(found) == PUBLISHED[name].split()
    if name == "resnet20-mnist":
        assert found == {"fp": 99.38}
    else:
        network, _, images = name.partition("-")
        table = published(TITLES[network], "ImageNet" if images == "imagenet" else "CIFAR-10")
        assert found == {row: float(cell.split()[0]) for row, cell in table.items()}


@pytest.mark.parametrize(("recipe", "row", "overrides"), COMMANDS)
def test_a_command_is_one_experiment_of_its_row(recipe, row, overrides, tmp_path):
    assert len(get_hydra_sweeps({"params.yaml": overrides})) == 1
    params = overridden(recipe, overrides, tmp_path)
    levels, bits = ("32", "32") if row == "fp" else row.split("/")
    assert str(params.weights.levels) == levels.replace("32", "full")
    assert str(params.activations.bits) == bits.replace("32", "full")
    if levels not in ("1", "32"):
        assert params.weights.backward_temperature == "exact"
    assert {getattr(params, section).select_on for section in SECTIONS} == {"test"}
    if recipe.stem == "resnet20-cifar10":
        section = "fp" if row == "fp" else "weights" if bits == "32" else "activations"
        trained = getattr(params, section)
        assert trained.lr == float(published("its learning rate")[row])
        decays = ", ".join(str(epoch - 1) for epoch in trained.decay_epochs)
        assert decays == published("… divided by ten at epochs")[row]


def overridden(recipe: Path, overrides: list[str], folder: Path) -> Params:
    """The parameters that `dvc exp run -S` makes of a recipe."""
    path = Path(shutil.copy(recipe, folder / "params.yaml"))
    if overrides:
        apply_overrides(path, overrides)
    return load_params(path)


def tiny(split: Split) -> Split:
    return Split(split.images[:IMAGES], split.labels[:IMAGES])


@pytest.fixture(scope="module")
def raw() -> Raw:
    """A few digits, in colour."""
    digits = load_source("digits", "", size=SIZE, channels=3)
    return Raw(digits.name, digits.classes, tiny(digits.train), tiny(digits.test), digits.flip)


def shorten(path: Path) -> None:
    """Two steps for each phase: two epochs of one batch, with the decay between them."""
    tree = yaml.safe_load(path.read_text())
    short: dict[str, Any] = {"epochs": 2, "warmup_epochs": 0, "batch_size": IMAGES // 3 * 2}
    for section in SECTIONS:
        tree[section] |= short
        if tree[section]["schedule"] == "step":
            tree[section]["decay_epochs"] = [1]
    tree["activations"]["frozen_epochs"] = min(1, tree["activations"]["frozen_epochs"])
    tree["runtime"] |= {"threads": 1, "precision": "float32", "device": "cpu"}
    if tree["data"]["name"] == "imagenet":  # the network is too large for a test, and far away
        tree["model"] |= {"name": "tests.tiny:network", "pretrained": "none"}
    path.write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_two_steps_of_every_phase(recipe, raw, tmp_path, monkeypatch):
    params = Path(shutil.copy(recipe, tmp_path / "params.yaml"))
    shorten(params)
    monkeypatch.setattr(stages.cluster, "BITS", [load_params(params).activations.bits])
    for module in (stages.cluster, stages.train_activations):  # half of the time
        monkeypatch.setattr(module, "draw_clusters", lambda *arguments: None)

    save_prepared(tmp_path / "data/prepared", *prepare(raw, validation=0.1, seed=0))
    for stage in ("train_fp", "cluster", "train_weights", "train_activations"):
        run(stage, tmp_path)
    for stage in ("train_fp", "train_weights", "train_activations"):
        metrics = json.loads((tmp_path / "metrics" / stage / "metrics.json").read_text())
        assert metrics["best_epoch"] in (1, 2)


def test_there_are_recipes():
    assert {recipe.stem for recipe in RECIPES} >= PUBLISHED.keys()
