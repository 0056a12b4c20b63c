"""A stage runs again when code that shapes its outs has changed."""

import ast

import pytest
import yaml

from tests.pipeline import ROOT, STAGES

DEPS = {
    name: content["deps"]
    for name, content in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items()
}
NO_OUT = {"ahead", "resuming"}  # refuse mistakes, and keep what a killed run goes on from
PREPARE = {"common", "logs"}  # its paths and its bar


def imported(module: str) -> set[str]:
    """This module of `stages` and all that it imports of them, directly or not."""
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
