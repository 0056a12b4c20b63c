"""Each ablation in docs/parameters.md is a command that changes the paper's training."""

import re
import shlex

import pytest
import torch
import yaml
from dvc.utils.hydra import get_hydra_sweeps

from qnet.clustering import Clusters
from qnet.histogram import Histogram
from qnet.levels import activation_levels, weight_levels
from qnet.params import Params, load_params
from stages.clustering import _clusters
from tests.pipeline import ROOT, overridden
from tests.test_docs_parameters import rows

RECIPE = ROOT / "recipes" / "resnet18-imagenet.yaml"
TABLE = [cells for _, cells in rows("ablation")]


def command(text: str) -> list[str]:
    """The overrides in the code of a table cell."""
    found = re.match(r"`(-S [^`]+)`", text)
    assert found is not None, text
    return shlex.split(found[1].replace("-S ", ""))


def value(params: Params, name: str) -> object:
    for part in name.split("."):
        params = getattr(params, part)
    return params


def starts(params: Params) -> list[Clusters]:
    """Initial quantizers of two layers, from random weights and activations."""
    found: list[Clusters] = []
    generator = torch.Generator().manual_seed(0)
    for levels, rule in (
        (weight_levels(params.weights.levels), params.cluster.weights),
        (activation_levels(params.activations.bits), params.cluster.activations),
    ):
        histograms = {name: Histogram(name) for name in ("one", "two")}
        for power, histogram in enumerate(histograms.values(), 1):
            values = torch.randn(5000, generator=generator)
            values = values.sign() * values.abs() ** power
            histogram.update(values if rule is params.cluster.weights else values.relu())
        found += _clusters(histograms, levels, rule).values()
    return found


def test_there_is_a_table():
    assert len(TABLE) > 25
    assert all(len(cells) == 3 for cells in TABLE)


@pytest.mark.parametrize("cells", TABLE, ids=lambda cells: cells[2].split("`")[1])
def test_an_ablation_is_one_change_or_says_why_it_is_two(cells, tmp_path):
    overrides = command(cells[2])
    assert len(overrides) == (2 if "`. Two: " in cells[2] else 1)
    assert len(get_hydra_sweeps({"params.yaml": overrides})) == 1
    params, recipe = overridden(RECIPE, overrides, tmp_path), load_params(RECIPE)
    for override in overrides:
        name, _, given = override.partition("=")
        assert value(params, name) != value(recipe, name)
        written = yaml.safe_load(given)
        assert value(params, name) == (tuple(written) if isinstance(written, list) else written)


@pytest.mark.parametrize(
    "overrides", [c for c in (command(cells[2]) for cells in TABLE) if c[0].startswith("cluster.")]
)
def test_another_start_is_another_start(overrides, tmp_path):
    changed, *beside = overrides
    before = overridden(RECIPE, beside, tmp_path)
    assert starts(overridden(RECIPE, overrides, tmp_path)) != starts(before)
    if beside:  # it would change nothing alone
        assert starts(overridden(RECIPE, [changed], tmp_path)) == starts(load_params(RECIPE))
