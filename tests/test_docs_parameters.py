"""docs/parameters.md describes every parameter of params.yaml and dvc.yaml, and no other."""

import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from qnet.models.building import MODELS
from qnet.params import Params

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
TREE = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"), yaml.BaseLoader)
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def parameters(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted names in a tree of sections."""
    names = []
    for name, value in tree.items():
        nested = isinstance(value, dict)
        names += parameters(value, f"{prefix}{name}.") if nested else [prefix + name]
    return names


PARAMETERS = parameters(TREE)
SECTIONS = {name.rpartition(".")[0] for name in PARAMETERS} - {""}


def rows(title: str) -> list[tuple[str, list[str]]]:
    """Section heading and cells of each row of the tables whose first column has this title."""
    heading, inside, found = "", False, []
    for line in PAGE.splitlines():
        if line.startswith("#"):
            heading = line
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == title:
            inside = True
        elif inside and not line.startswith("|--"):
            found.append((heading, cells))
    return found


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def described() -> list[str]:
    """Parameters on the page; a row counts once for each section in its heading."""
    names = []
    for heading, cells in rows("name"):
        (name,) = code(cells[0])
        sections = code(heading)
        names += [f"{section}.{name}" for section in sections] or [name]
    return names


def test_every_parameter_is_described_once():
    counts = Counter(described())
    assert sorted(set(PARAMETERS) - set(counts)) == [], "docs/parameters.md lacks these"
    assert sorted(set(counts) - set(PARAMETERS)) == [], "params.yaml has no such parameters"
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("page", ["parameters.md", "method.md"])
def test_every_parameter_that_is_mentioned_exists(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    sections = "|".join(name for name, value in TREE.items() if isinstance(value, dict))
    dotted = set(re.findall(rf"(?<![\w/.-])(?:{sections})(?:\.[a-z_]+)+", text))
    assert len(dotted) > 5
    assert sorted(dotted - set(PARAMETERS) - SECTIONS) == []
    # `forward: soft` may be written without its section.
    short = {part for name in PARAMETERS for part in (name, name.rpartition(".")[2])}
    assert sorted(set(re.findall(r"`([a-z_.]+): [^`]+`", text)) - short) == []


def readers(name: str) -> set[str]:
    """The stages that read a parameter, as dvc.yaml says."""
    return {
        stage
        for stage, content in STAGES.items()
        if any(f"{name}.".startswith(f"{read}.") for read in content["params"])
    }


def later(stages: set[str]) -> set[str]:
    """These stages and all that read their outputs, directly or indirectly."""
    written = {out for stage in stages for out in STAGES[stage]["outs"]}
    more = {stage for stage, content in STAGES.items() if written & set(content["deps"])}
    return stages if more <= stages else later(stages | more)


def test_what_runs_again_is_what_dvc_runs():
    table = {code(cells[0])[0]: cells[1:] for _, cells in rows("parameter")}
    assert sorted(set(table) - set(PARAMETERS) - SECTIONS) == []
    for name in PARAMETERS:
        fitting = [row for row in table if f"{name}.".startswith(f"{row}.")]
        assert fitting, f"{name} is in no row of the table"
        row = max(fitting, key=len)
        read_by, run = table[row]
        assert set(code(read_by)) == readers(name), f"{row}, for {name}"
        expected = set(STAGES) - set(code(run)) if run.startswith("all") else set(code(run))
        assert expected == later(readers(name)), f"{row}, for {name}"


def words(kind: Any) -> set[str]:
    """The words that a parameter of this type may be."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return {word for word in arguments if isinstance(word, str)}
    return set().union(*map(words, arguments))


def test_every_word_that_a_parameter_may_be_is_described():
    for heading, (first, allowed, *_) in rows("name"):
        (name,) = code(first)
        for path in [f"{section}.{name}" for section in code(heading)] or [name]:
            kind: Any = Params
            for part in path.split("."):
                kind = kind.model_fields[part].annotation
            assert words(kind) <= {*code(allowed), "true", "false"}, path


def test_every_model_is_described():
    (description,) = (cells[2] for _, cells in rows("name") if cells[1] == "a model")
    assert set(MODELS) <= set(code(description))
