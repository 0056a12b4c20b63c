"""Stages and tools have a help text; a stage takes no arguments."""

import re
import runpy
import sys

import pytest
import yaml

from tests.pipeline import ROOT, chdir

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Exit status and output of `python -m stages.<stage>` in an empty folder."""

    def start(stage: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{ROOT}/stages/{stage}.py", *arguments])
        monkeypatch.delitem(sys.modules, f"stages.{stage}", raising=False)
        with chdir(tmp_path), pytest.raises(SystemExit) as end:
            runpy.run_module(f"stages.{stage}", run_name="__main__")
        return (int(end.value.code or 0), *capsys.readouterr())

    return start


def files(stage: str) -> set[str]:
    """Files except code that dvc.yaml says a stage reads and writes; for metrics/, folders."""
    content = STAGES[stage]
    listed = [content[kind] for kind in ("deps", "outs", "metrics", "plots") if kind in content]
    names = [next(iter(entry)) if isinstance(entry, dict) else entry for group in listed
             for entry in group]  # fmt: skip
    names = [name for name in names if name.startswith(("data/", "checkpoints/", "metrics/"))]
    return {re.sub(r"^(metrics/\w+)/.*", r"\1", name) for name in names}


@pytest.mark.parametrize("stage", STAGES)
def test_help_tells_what_it_reads_and_writes(stage, command):
    status, output, _ = command(stage, "--help")
    assert status == 0
    assert output.startswith(f"usage: python -m stages.{stage} [-h]\n\nStage {stage}: ")
    paths = set(re.findall(r"\b(?:data|checkpoints|metrics)/[\w/.]*\w", output))
    assert paths == files(stage)
    read = re.search(r"params\.yaml:(.*?)\.\n", output, re.DOTALL)
    assert read is not None
    unwatched = [] if stage == "prepare" else ["data.bad_images", "runtime"]  # change no result
    expected = [*STAGES[stage]["params"], *unwatched]
    assert read[1].replace(",", " ").split() == expected


@pytest.mark.parametrize("tool", ["report", "compare", "evaluate", "visualize", "pack"])
def test_a_tool_tells_its_arguments_whatever_params_yaml_holds(tool, command, tmp_path):
    (tmp_path / "params.yaml").write_text("seed: wrong")
    status, output, _ = command(tool, "--help")
    assert status == 0
    assert output.startswith(f"usage: python -m stages.{tool} [-h]")


@pytest.mark.parametrize("stage", STAGES)
def test_an_argument_is_refused_before_anything_is_read(stage, command):
    status, output, error = command(stage, "--epochs", "3")
    assert status == 2
    assert output == ""
    assert error == (
        f"error: unrecognized arguments: --epochs 3; see python -m stages.{stage} --help\n"
    )
