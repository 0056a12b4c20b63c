"""Recipes of our own rows: each command trains its W/A, and the two differ only in epochs."""

import re
import shlex

import pytest

from qnet.params import Params, load_params
from tests.pipeline import ROOT, overridden

NAMES = ("resnet20-cifar10-best", "resnet20-cifar10-short")
WEIGHTS_ONLY = ["1/32", "2/32", "3pm2/32", "3/32", "3pm4/32", "4/32"]
ROWS = ["fp", *WEIGHTS_ONLY, "32/1", "32/2", "1/1", "1/2", "1/3", "1/4", "2/2", "3/3", "4/4"]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_one_command(name, tmp_path):
    recipe = ROOT / "recipes" / f"{name}.yaml"
    commands = re.findall(r"^# (\S+) +dvc exp run --queue (.*)$", recipe.read_text(), re.M)
    assert [row for row, _ in commands] == ROWS
    for row, options in commands:
        params = overridden(recipe, shlex.split(options)[1::2], tmp_path)
        levels, bits = ("32", "32") if row == "fp" else row.split("/")
        assert str(params.weights.levels) == levels.replace("32", "full")
        assert str(params.activations.bits) == bits.replace("32", "full")


def test_they_differ_in_epochs_only_and_are_the_defaults():
    best, short = (load_params(ROOT / "recipes" / f"{name}.yaml") for name in NAMES)
    assert timeless(best) == timeless(short)
    assert timeless(best) == timeless(load_params(ROOT / "params.yaml"))


def timeless(params: Params) -> Params:
    """The parameters, except data set, batch size and epochs."""
    sections = {
        name: getattr(params, name).model_copy(update={"epochs": 0, "batch_size": 1})
        for name in ("fp", "weights", "activations")
    }
    data = params.data.model_copy(update={"name": "cifar10"})
    return params.model_copy(update={"data": data, **sections})
