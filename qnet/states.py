"""State dicts: compared, loaded into a network, and kept in safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from qnet.errors import one_line, some
from qnet.files import check_readable, write_bytes

State = dict[str, Tensor]
"""Tensors by name, as in a state dict."""


def misfit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """Up to three names or shapes in which `tensors` differ from `expected`; "" if they fit."""
    differences = [f"{name} is missing" for name in expected if name not in tensors]
    differences += [f"{name} is unknown" for name in tensors if name not in expected]
    differences += [
        f"{name} is {list(tensors[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    return some(differences)


def dtype_mismatch(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """The first of `tensors` that is integer instead of floating, or the reverse; "" if none."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            return f"{name} is {tensor.dtype} instead of {expected[name].dtype}"
    return ""


def load_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give `model` the values of `tensors`, which fit it.

    They may come from a file or a copy, without the versions that PyTorch keeps beside a state
    dict and that some modules need for loading.
    """
    state = model.state_dict()
    state.update(tensors)
    model.load_state_dict(state)


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, whole or not at all; see `qnet.files.write_bytes`."""
    # Copies, because safetensors refuses shared memory.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_bytes(path, save(copies, metadata=dict(metadata)))


def read_tensors(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors of a safetensors file, and its metadata.

    Raises:
        ValueError: it is not a safetensors file, or not a complete one.
        OSError: it cannot be read.
    """
    check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(one_line(error)) from error
