"""A stage runs again, and does not resume, when something that shapes its outputs has changed."""

import ast

import pytest
import yaml

from stages import cluster, prepare
from stages.training import READS
from tests.pipeline import ROOT, STAGES

CONTENT = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
DEPS = {name: content["deps"] for name, content in CONTENT.items()}
NO_OUT = {"ahead", "bars", "resuming", "unchanged"}  # refuse, show progress, keep the state
PREPARE = {"common"}  # its paths


def imported(module: str) -> set[str]:
    """This module of `stages` and those it imports, directly or indirectly."""
    tree = ast.parse((ROOT / "stages" / f"{module}.py").read_text(encoding="utf-8"))
    found = {module}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("stages"):
            parts = str(node.module).split(".")[1:] or [alias.name for alias in node.names]
            found = found.union(*map(imported, parts))
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_what_a_stage_imports(stage):
    expected = imported(stage) - NO_OUT - (PREPARE if stage == "prepare" else set())
    listed = {name for name in DEPS[stage] if name.startswith("stages/")}
    assert listed == {f"stages/{module}.py" for module in expected}
    assert ("qnet/data" if stage == "prepare" else "qnet") in DEPS[stage]


@pytest.mark.parametrize("section", READS)
def test_a_run_is_resumed_for_the_parameters_that_its_stage_reads(section):
    others = {f"{other}.{name}" for other, names in READS[section].items() for name in names}
    assert {"seed", "augment", section, *others} == {*CONTENT[f"train_{section}"]["params"]}


@pytest.mark.parametrize("stage", [prepare, cluster])
def test_what_must_not_change_meanwhile_is_what_a_stage_reads(stage):
    names = set()
    for section, found in stage.READS.items():
        names |= {section} if found is True else {f"{section}.{name}" for name in found}
    assert names == {*CONTENT[stage.__name__.removeprefix("stages.")]["params"]}
