"""Every recipe is a whole params.yaml that the schema accepts."""

import pytest

from qnet.params import load_params
from tests.pipeline import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_valid_params_file(recipe):
    load_params(recipe)


def test_there_are_recipes():
    assert RECIPES
