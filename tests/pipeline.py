"""A folder in which stages run: params.yaml for a small experiment, and a way to start a stage."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent

QUICK = {
    "data.size": 8,
    "model.name": "tests.tiny:network",
    "cluster.images": 200,
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


def start(stage: str, folder: Path) -> "subprocess.Popen[str]":
    """Start `python -m stages.<stage>` in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(stage: str, folder: Path, status: int = 0) -> str:
    """Run a stage to its end, check its exit status, and give what it printed."""
    process = start(stage, folder)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status, output
    return output
