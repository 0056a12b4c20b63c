"""Every benchmark runs, at its smallest; no test here checks a time."""

import math
import sys
from importlib import import_module

import pytest
import torch

from benchmarks.all import BENCHMARKS, section
from benchmarks.common import epoch_seconds, extra_memory, figure, table, take_turns, timed
from benchmarks.pipeline import parse_lines

SMALLEST = {
    "clustering_error": "--count 2000",
    "clustering_speed": "--count 2000 --images 2 --bits 2 --sample 500 --repeats 1",
    "data_pipeline": "--images 24 --batch 8 --pictures 6 --picture-batch 2 --workers 1 --repeats 1",
    "inference": "--phases fp 2/32 2/2 --batches 2 --repeats 1 --threads 1",
    "step_function": "--thresholds 3 --values 2000 --repeats 1",
    "throughput": "--phases fp 1/2 --batches 2 --steps 1 --repeats 1 --device cpu --no-whole",
    "training_step": "--phases fp 2/2 --batch 2 --steps 1 --repeats 1 --threads 1 --no-whole",
}


UNKNOWN = {"inference": 2, "training_step": 5}  # cells without a figure, for variants not run


def run(name, monkeypatch, options):
    monkeypatch.setattr(sys, "argv", [name, *options.split()])
    import_module(f"benchmarks.{name}").main()


@pytest.mark.parametrize("name", SMALLEST)
def test_it_runs_and_prints_a_table(name, monkeypatch, capsys):
    if name == "inference":  # compiling four networks takes a minute
        monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    run(name, monkeypatch, SMALLEST[name])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) > 2
    assert len({line.count("|") for line in lines}) == 1
    cells = [cell.strip() for line in lines[2:] for cell in line.split("|")]
    assert "nan" not in cells
    if sys.platform == "linux":  # elsewhere memory is unknown
        assert cells.count("–") == UNKNOWN.get(name, 0)


@pytest.mark.parametrize(
    "name", [*BENCHMARKS, "clustering_error", "inference", "throughput", "all"]
)
def test_it_explains_itself(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(name, monkeypatch, "--help")
    assert end.value.code == 0
    assert "--" in capsys.readouterr().out


@pytest.mark.parametrize("name", BENCHMARKS)
def test_its_part_of_the_document_has_its_command_once(name):
    part = section(name, "Title", ["--quick"], "| table |")
    assert part.count(f"python -m benchmarks.{name}") == 1
    assert f"python -m benchmarks.{name} --quick\n```\n\n| table |" in part


def test_what_dvc_prints_becomes_times():
    lines = [
        (1.0, "Running stage 'train_fp':"),
        (2.0, "> python -m stages.train_fp"),
        (9.0, "train_fp epoch   1  lr 0.1  train loss 2.3 top-1 9.81 %  2.5 s *"),
        (11.0, "train_fp epoch   2  lr 0.1  train loss 2.2  2.0 s (data 12 %)"),
        (12.0, "Running stage 'cluster':"),
        (15.0, ""),
    ]
    found = parse_lines(lines)
    assert (found["train_fp"].start, found["train_fp"].end) == (1.0, 12.0)
    assert found["train_fp"].epochs == [(9.0, 2.5), (11.0, 2.0)]
    assert (found["cluster"].start, found["cluster"].end) == (12.0, 15.0)
    assert epoch_seconds("train_fp: resumed after epoch 3") is None


def test_turns_are_taken_and_the_warm_up_left_out():
    order = []
    names = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    assert {k: len(v) for k, v in take_turns(names, 2).items()} == {"a": 2, "b": 2}
    assert order == ["a", "b"] * 3


def test_all_but_the_first_batch_are_timed():
    seconds = []
    assert list(timed("abc", seconds)) == ["a", "b", "c"]
    assert len(seconds) == 2
    assert len(list(timed("abcdef", seconds, warm_up=4))) == 6
    assert len(seconds) == 2 + 2


def _hold(megabytes):
    return lambda: torch.ones(megabytes * 2**18).sum()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_what_is_held_at_once():
    large, small = extra_memory(_hold, [(64,), (16,)])
    assert large == pytest.approx(64, abs=8)
    assert small == pytest.approx(16, abs=8)


def test_figures_have_three_digits():
    found = [figure(x) for x in (0.00123456, 0.0995, 12.345, 1234.5, 0.0, math.nan)]
    assert found == ["0.00123", "0.0995", "12.3", "1,234", "0", "–"]
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | --: |\n| x | 1 |"
