"""Every recipe is a complete params.yaml, its phases run, and its commands match its table."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import get_hydra_sweeps

import stages.cluster
import stages.train_activations
from qnet.data import Raw, Split, load_source, prepare, save_prepared
from qnet.params import TrainingParams, load_params
from tests.pipeline import ROOT, overridden, run

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
IMAGES, SIZE = 60, 14  # SimpleNet needs 13 pixels
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


def table(first: str) -> dict[str, dict[str, str]]:
    """Table in docs/method.md whose first column has this title, by row title and column."""
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    found = re.search(rf"^\| {re.escape(first)} \|.*\|$\n(?:^\|.*\|$\n)+", text, re.M)
    assert found is not None, first
    (_, *names), _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()
    )
    return {
        title: {name: cell for name, cell in zip(names, cells, strict=True) if cell}
        for title, *cells in lines
    }


def published(recipe: Path) -> dict[str, float]:
    """Top-1 by W/A in docs/method.md for the network and data set in a recipe's head."""
    title = recipe.read_text(encoding="utf-8").split(" as the ")[0].removeprefix("# ")
    network, _, images = title.partition(" on ")
    row: dict[str, str] = {}
    if images in ("CIFAR-10", "ImageNet"):
        row = table(images)[network]
    if title in (others := table("full precision")):  # of the fork; * where the paper has one too
        row |= {"fp*" if row else "fp": others[title]["top-1"]}
    return {name: float(cell.split()[0]) for name, cell in row.items()}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_valid_params_file(recipe):
    load_params(recipe)


@pytest.mark.parametrize("recipe", [r for r in RECIPES if rows(r)], ids=lambda path: path.stem)
def test_every_published_row_is_one_command(recipe):
    assert {row: top1 for row, (top1, _) in rows(recipe).items()} == published(recipe)


def test_every_published_network_has_a_recipe():
    titles = {recipe.read_text(encoding="utf-8").split(" as the ")[0] for recipe in RECIPES}
    expected = {
        *(f"# {network} on CIFAR-10" for network in ("ResNet-20", "SimpleNet")),
        *(f"# {network} on ImageNet" for network in table("ImageNet")),
        *(f"# {title}" for title in table("full precision")),
    }
    assert expected <= titles


@pytest.mark.parametrize(("recipe", "row", "overrides"), COMMANDS)
def test_a_command_is_one_experiment_of_its_row(recipe, row, overrides, tmp_path):
    assert len(get_hydra_sweeps({"params.yaml": overrides})) == 1
    params = overridden(recipe, overrides, tmp_path)
    levels, bits = ("32", "32") if row.startswith("fp") else row.split("/")
    assert str(params.weights.levels) == levels.replace("32", "full")
    assert str(params.activations.bits) == bits.replace("32", "full")
    if levels not in ("1", "32"):
        assert params.weights.backward_temperature == "exact"
    assert {getattr(params, section).select_on for section in SECTIONS} == {"test"}
    if recipe.stem == "resnet20-cifar10":
        section = "fp" if row == "fp" else "weights" if bits == "32" else "activations"
        trained = getattr(params, section)
        assert trained.lr == float(table("CIFAR-10")["its learning rate"][row])
        assert decays(trained) == table("CIFAR-10")["… divided by ten at epochs"][row]


@pytest.mark.parametrize(
    ("name", "row", "title"),
    [
        ("resnet20-mnist", "fp", "ResNet-20 on MNIST"),
        ("resnet18-imagenet", "fp*", "ResNet-18 on ImageNet"),
    ],
)
def test_what_the_fork_trains_in_full_precision(name, row, title, tmp_path):
    recipe = ROOT / "recipes" / f"{name}.yaml"
    params = overridden(recipe, rows(recipe)[row][1], tmp_path)
    expected = table("full precision")[title]
    assert params.model.pretrained == "none"
    assert params.fp.lr == 0.1
    assert params.fp.epochs == int(expected["epochs"])
    assert decays(params.fp) == expected["learning rate divided by ten at epochs"]
    assert f"top-5 {expected['top-5']}" in recipe.read_text(encoding="utf-8")


def decays(params: TrainingParams) -> str:
    """Epochs after which the learning rate falls, counted from 0 as in the fork."""
    return ", ".join(str(epoch - 1) for epoch in params.decay_epochs)


def tiny(split: Split) -> Split:
    return Split(split.images[:IMAGES], split.labels[:IMAGES])


@pytest.fixture(scope="module")
def raw() -> Raw:
    """A few colour images of digits."""
    digits = load_source("digits", "", size=SIZE, channels=3)
    return Raw(digits.name, digits.classes, tiny(digits.train), tiny(digits.test), digits.flip)


def shorten(path: Path) -> None:
    """Shorten each phase to two steps: two epochs of one batch, with the decay between them."""
    tree = yaml.safe_load(path.read_text())
    short: dict[str, Any] = {"epochs": 2, "warmup_epochs": 0, "batch_size": IMAGES // 3 * 2}
    for section in SECTIONS:
        tree[section] |= short
        if tree[section]["schedule"] == "step":
            tree[section]["decay_epochs"] = [1]
    tree["activations"]["frozen_epochs"] = min(1, tree["activations"]["frozen_epochs"])
    tree["runtime"] |= {"threads": 1, "precision": "float32", "device": "cpu"}
    if tree["data"]["name"] == "imagenet":  # too large for a test, and a download
        tree["model"] |= {"name": "tests.tiny:network", "pretrained": "none"}
    tree["data"] |= {"name": "digits", "size": SIZE, "channels": 3}  # as prepared below
    path.write_text(yaml.safe_dump(tree))


# The best recipe is the short one but for its epochs (test_own_recipes.py).
TRAINED = [recipe for recipe in RECIPES if recipe.stem != "resnet20-cifar10-best"]


@pytest.mark.parametrize("recipe", TRAINED, ids=lambda path: path.stem)
def test_two_steps_of_every_phase(recipe, raw, tmp_path, monkeypatch):
    params = Path(shutil.copy(recipe, tmp_path / "params.yaml"))
    shorten(params)
    monkeypatch.setattr(stages.cluster, "BITS", [load_params(params).activations.bits])
    for module in (stages.cluster, stages.train_activations):  # it takes half of the time
        monkeypatch.setattr(module, "draw_clusters", lambda *arguments: None)

    save_prepared(tmp_path / "data/prepared", *prepare(raw, validation=0.1, seed=0))
    for stage in ("train_fp", "cluster", "train_weights", "train_activations"):
        run(stage, tmp_path)
    for stage in ("train_fp", "train_weights", "train_activations"):
        metrics = json.loads((tmp_path / "metrics" / stage / "metrics.json").read_text())
        assert metrics["best_epoch"] in (1, 2)
