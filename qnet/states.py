"""State dicts: names, shapes and kinds of numbers compared, and loaded."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from qnet.errors import some


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


def other_type(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """The first of `tensors` that is whole numbers and not floating, or the reverse; "" if none."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            return f"{name} is {tensor.dtype} instead of {expected[name].dtype}"
    return ""


def load_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Have `model` take on the values of `tensors`, which fit it.

    They may come from a file or a copy, without the versions that PyTorch keeps beside a state
    dict; some modules do not load without.
    """
    state = model.state_dict()
    state.update(tensors)
    model.load_state_dict(state)
