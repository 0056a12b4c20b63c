"""Helpers to run stages in a folder: params.yaml for a small experiment, starting a stage."""

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from dvc.utils.hydra import apply_overrides

from qnet.params import Params, load_params
from stages import common

ROOT = Path(__file__).parent.parent
STAGES = ("prepare", "train_fp", "cluster", "train_weights", "train_activations")

QUICK = {
    "data.size": 8,
    "model.name": "tests.tiny:network",
    "cluster.images": 200,
    "runtime.device": "cpu",
    "runtime.threads": 1,
    "runtime.precision": "float32",
    **{
        f"{section}.{name}": value
        for section in ("fp", "weights", "activations")
        for name, value in {"epochs": 3, "warmup_epochs": 0, "batch_size": 128}.items()
    },
}


def write_params(folder: Path, **changes: Any) -> None:
    """Write the project's params.yaml to `folder`, made quick, with `section__name=value` set."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, value in {**QUICK, **{k.replace("__", "."): v for k, v in changes.items()}}.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


def overridden(recipe: Path, overrides: list[str], folder: Path) -> Params:
    """Parameters that `dvc exp run -S` makes of a recipe, in a copy that it leaves in `folder`."""
    path = Path(shutil.copy(recipe, folder / "params.yaml"))
    if overrides:
        apply_overrides(path, overrides)
    return load_params(path)


# Ends a stage by signal 9 after this many more epochs.
_KILLED = """
import os, runpy, sys
from stages.logs import Log

epoch, left, stage = Log.epoch, [int(sys.argv.pop(1))], sys.argv.pop(1)

def epoch_and_end(log, history):
    epoch(log, history)
    left[0] -= 1
    if left[0] == 0:
        sys.stdout.flush()
        os.kill(os.getpid(), 9)

Log.epoch = epoch_and_end
runpy.run_module(stage, run_name="__main__", alter_sys=True)
"""


def start(stage: str, folder: Path) -> "subprocess.Popen[str]":
    """Start `python -m stages.<stage>` in `folder`, as DVC does; importing takes seconds."""
    return _start(folder, "-m", f"stages.{stage}")


def kill_after(stage: str, folder: Path, epochs: int) -> None:
    """Run a training stage that is killed (signal 9) after this many more epochs."""
    process = _start(folder, "-c", _KILLED, str(epochs), f"stages.{stage}")
    output = process.communicate(timeout=240)[0]
    assert process.returncode == -signal.SIGKILL, output


def _start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(stage: str, folder: Path, *arguments: str, status: int = 0) -> str:
    """Run a stage or tool in this process, check its exit status, and return its output."""
    module = import_module(f"stages.{stage}")
    output = io.StringIO()
    found = 0
    argv = mock.patch.object(sys, "argv", [stage, *arguments])
    with chdir(folder), argv, redirect_stdout(output), redirect_stderr(output):
        try:
            if stage in STAGES:
                common.run(module.main, module.__doc__)
            else:
                common.run_tool(module.main)
        except SystemExit as end:
            found = int(end.code or 0)
        finally:
            torch.set_flush_denormal(False)
            torch.use_deterministic_algorithms(False)
    assert found == status, output.getvalue()
    return output.getvalue()


def refused(stage: str, folder: Path, *arguments: str) -> str:
    """Run a stage or tool that ends with an error, and return that error: its only line."""
    output = run(stage, folder, *arguments, status=2)
    assert output.startswith("error: ")
    assert output.endswith("\n")
    assert output.count("\n") == 1
    return output.strip()


@contextmanager
def chdir(folder: Path) -> Iterator[None]:
    """Change to `folder` for a while (contextlib has this from Python 3.11)."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
