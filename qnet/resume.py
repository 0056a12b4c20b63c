"""The state of an unfinished training run, so that a killed one continues where it was.

A safetensors file, replaced as a whole after an epoch. Its name contains a key that stands for
everything the run depends on; a run with other parameters never sees it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qnet.states import State, read_tensors, write_tensors


def run_key(values: Mapping[str, Any], inputs: Iterable[Path]) -> str:
    """A name for a run: a hash of its parameters, its input files and the code that runs it."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
    digest.update(torch.__version__.encode())
    code = Path(__file__).parent
    for root in (code, *inputs):
        files = sorted(root.rglob("*")) if root.is_dir() else [root]
        for path in files:
            if path.is_file() and not _is_clutter(path.relative_to(root)):
                digest.update(str(path.relative_to(root)).encode())
                _update(digest, path)
    return digest.hexdigest()[:16]


class ResumeFile:
    """Where a run keeps the tensors and the numbers it needs to continue."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, groups: Mapping[str, State], numbers: Mapping[str, Any]) -> None:
        """Replace the file by these named groups of tensors and JSON-able numbers."""
        tensors = {
            f"{group}/{name}": tensor
            for group, state in groups.items()
            for name, tensor in state.items()
        }
        write_tensors(self.path, tensors, {"run": json.dumps(numbers)})

    def load(self) -> tuple[dict[str, State], dict[str, Any]] | None:
        """What was saved last, or None if there is nothing (or nothing readable)."""
        if not self.path.exists():
            return None
        groups: dict[str, State] = {}
        try:
            tensors, metadata = read_tensors(self.path)
            numbers = json.loads(metadata["run"])
            for key, tensor in tensors.items():
                group, name = key.split("/", 1)
                groups.setdefault(group, {})[name] = tensor
        except (KeyError, ValueError):
            return None
        return groups, numbers

    def remove(self) -> None:
        """Delete the state of a run that has finished."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # there are others, or another process was first
            self.path.parent.rmdir()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> State:
    """The tensors of an optimizer's state, named `<parameter number>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: State) -> None:
    """The inverse of `optimizer_tensors`; parameter groups, and state that it lacks, stay."""
    content = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, State] = {number: dict(kept) for number, kept in content["state"].items()}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        like = parameters[int(number)].detach()
        if value.shape == like.shape:  # laid out as the parameter is: fused kernels insist on it
            value = torch.empty_like(like, dtype=value.dtype).copy_(value)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**content, "state": state})


def _is_clutter(path: Path) -> bool:
    """Whether this is a cache, editor or desktop file rather than code."""
    hidden = any(part.startswith(".") for part in path.parts)
    return hidden or "__pycache__" in path.parts or path.name.endswith("~")


def _update(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
