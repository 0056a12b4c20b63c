"""Running a network to find out whether it can be trained, saved and built again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qnet.errors import UserError, one_line
from qnet.machine_errors import is_out_of_memory
from qnet.modes import modes_kept


@torch.no_grad()
def computes_alike(model: nn.Module, other: nn.Module, channels: int, size: int) -> bool:
    """Whether two networks with the same weights give the same output for two random images.

    Both run in eval mode on the device of `model`; `other` stays there and in eval mode.
    """
    device = next((tensor.device for tensor in _state(model).values()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, channels, size, size, generator=generator).to(
        device, _input_dtype(model)
    )
    outputs = []
    with modes_kept(model):
        for network in (model.eval(), other.to(device).eval()):
            with (
                torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
                torch.backends.cudnn.flags(
                    enabled=True, benchmark=False, deterministic=True, allow_tf32=False
                ),
            ):
                torch.manual_seed(0)  # for networks that draw random numbers even in eval mode
                outputs.append(network(images).float())
    mine, theirs = outputs
    # Off the CPU the order of a sum may vary, which may push a value across a threshold.
    near = (1e-3 if device.type == "cpu" else 5e-2) * float(mine.abs().nan_to_num(0).max())
    return torch.allclose(mine, theirs, rtol=0, atol=near, equal_nan=True)


def check_shapes(model: nn.Module, name: str, classes: int, channels: int, size: int) -> None:
    """Raise a `UserError` unless two images give two rows of logits, in both modes."""
    shape = (2, channels, size, size)
    try:
        with modes_kept(model):
            for training in (False, True):
                logits = _logits(model.train(training), shape)
                if isinstance(logits, Tensor) and logits.shape == (2, classes):
                    continue
                got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                mode = " while training" if training else ""
                raise UserError(
                    f"model.name: {name!r} gives {got}{mode} for two images of data.size {size}, "
                    f"where [2, {classes}], one logit per class, is expected; choose another "
                    "data.size or model"
                )
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"model.name: {name!r} cannot take images of data.size {size} and data.channels "
            f"{channels} ({one_line(error)}); choose another data.size or another model"
        ) from error


def check_state(model: nn.Module, name: str) -> None:
    """Raise a `UserError` unless the model can be trained and saved."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"model.name: {name!r} returned a model without a parameter to train; return one whose "
            "parameters require a gradient"
        )
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"model.name: {name!r} returned a model whose state holds {key}, a "
                f"{type(value).__name__}; a checkpoint can hold only tensors: leave it out"
            )


@torch.no_grad()
def _logits(model: nn.Module, shape: tuple[int, ...]) -> object:
    """Output of `model` for images of this shape; its state is not changed."""
    try:
        return _run_on_meta(model, shape)
    except Exception:
        # Perhaps the meta device only lacks an operation: a real computation decides.
        state = {key: value.clone() for key, value in _state(model).items()}
        images = torch.zeros(shape, dtype=_input_dtype(model))
        return torch.func.functional_call(model, state, images, tie_weights=False)


def _run_on_meta(model: nn.Module, shape: tuple[int, ...]) -> object:
    """Propagate shapes without computing, in milliseconds even for a thousand layers."""
    state = {key: torch.empty_like(value, device="meta") for key, value in _state(model).items()}
    # tie_weights would leave a module that has two names on the meta device.
    images = torch.empty(shape, dtype=_input_dtype(model), device="meta")
    return torch.func.functional_call(model, state, images, tie_weights=False)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _input_dtype(model: nn.Module) -> torch.dtype:
    """The type of the model's input images: that of its first floating-point parameter."""
    types = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return next(types, torch.get_default_dtype())
