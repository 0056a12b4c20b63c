"""Initial weights, from torchvision or a file, loaded completely or not at all.

Files are read without unpickling anything but tensors: safetensors, or state dicts of `torch.save`.
"""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qnet.errors import UserError, one_line
from qnet.files import check_readable
from qnet.machine_errors import is_out_of_memory
from qnet.models.resnet import STAGES
from qnet.states import State, load_state, misfit, read_tensors

TORCHVISION_ALIKE = (*(f"resnet{depth}" for depth in STAGES), "alexnet")
"""Models of this package whose layers have torchvision's names and shapes."""
RANDOM_HEAD = "starts from random weights"
"""What a note of `load_pretrained` says of a last layer for another number of classes."""
_TORCH_SUFFIXES = (".pth", ".pt", ".th")


def is_file(source: str) -> bool:
    """Whether `source`, as in `model.pretrained`, names a file."""
    from_torchvision = source == "torchvision" or re.fullmatch(r"torchvision/\w+", source)
    return source != "none" and not from_torchvision


def load_pretrained(model: nn.Module, source: str, *, name: str) -> list[str]:
    """Load weights into `model`, in place; on an error none are loaded.

    Weights for another number of classes fit except for the last layer, which then keeps its
    initial weights. The prefix of `nn.DataParallel` is ignored, and the classifier of a CIFAR
    ResNet may be called `linear` or `fc`.

    Args:
        model: an unquantized network, as made by `qnet.models.build_model`.
        source: `none`; `torchvision` for its best weights, or `torchvision/<weights>` such as
            `torchvision/IMAGENET1K_V1`; or a file: safetensors (a checkpoint of
            `qnet.save_checkpoint` is one), or a .pth, .pt or .th of `torch.save` with a state dict,
            alone or under `state_dict` or `model`.
        name: of the model, as in `model.name`.

    Returns:
        What was done, one line each: the origin of the weights, a layer that was not loaded.

    Raises:
        UserError: the file is missing, damaged, or does not fit; the download fails; torchvision
            has no weights for such a model, or none of that name.
    """
    if source == "none":
        return []
    if is_file(source):
        origin, state = source, _from_file(Path(source))
    else:
        origin, state = _from_torchvision(name, source)
    if any("_quantizer." in key for key in state):
        raise UserError(
            f"model.pretrained: {origin} is a quantized network; give one of full precision"
        )
    expected = model.state_dict()
    state = _renamed(state, expected)
    notes = [f"starts with the weights of {origin}"]
    if head := _other_head(model, state, expected):
        theirs, ours = (len(tensors[f"{head}.weight"]) for tensors in (state, expected))
        notes.append(f"{head} {RANDOM_HEAD}: {origin} has {theirs} classes, the data {ours}")
        state |= _below(head, expected)
    # Missing before PyTorch 0.4.1, and used only by batch norm without a momentum.
    state = {k: v for k, v in expected.items() if k.endswith(".num_batches_tracked")} | state
    if differences := misfit(expected, state):
        raise UserError(
            f"model.pretrained: {origin} does not fit {name}: {differences}; nothing was loaded, "
            f"set {_remedy(state, expected)}, or another file"
        )
    for key, tensor in state.items():
        if expected[key].is_floating_point() and not _is_usable(tensor, expected[key].dtype):
            raise UserError(
                f"model.pretrained: {key} of {origin} is {tensor.dtype}, and must be finite "
                "floating-point numbers; give a network of full precision"
            )
    load_state(model, state)
    return notes


def _is_usable(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether it can be a weight: dense, and real floating-point numbers, finite in `dtype`."""
    dense = tensor.layout == torch.strided and tensor.device.type != "meta"
    return dense and tensor.is_floating_point() and bool(tensor.to(dtype).isfinite().all())


def _from_torchvision(name: str, source: str) -> tuple[str, State]:
    """Name and tensors of torchvision's weights for a model."""
    if name not in TORCHVISION_ALIKE and not name.startswith("torchvision/"):
        raise UserError(
            f"model.pretrained is {source}, and torchvision has no weights for {name}, only for "
            f"{', '.join(TORCHVISION_ALIKE)} and torchvision/<name>; set it to none or a file"
        )
    import torchvision  # takes a second, and only this function needs it

    known = torchvision.models.get_model_weights(name.removeprefix("torchvision/"))
    wanted = source.partition("/")[2]
    if wanted and wanted not in known.__members__:
        names = [weights.name for weights in known]
        raise UserError(
            f"model.pretrained is {source}, and torchvision's weights for {name} are "
            f"{', '.join(names)}; set it to torchvision/{names[0]}, or to torchvision for the best "
            f"of them ({known.DEFAULT.name})"
        )
    weights = known[wanted or "DEFAULT"]
    try:
        state = weights.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as error:  # of the connection, the disk, or a damaged file
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"model.pretrained: {weights} could not be downloaded ({one_line(error)}); run it "
            f"again while online, or put {weights.url} into {torch.hub.get_dir()}/checkpoints"
        ) from error
    return f"{weights} of torchvision", {
        # DenseNet's date from when module names could have dots.
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): tensor
        for key, tensor in state.items()
        if not key.startswith(("aux1.", "aux2.", "AuxLogits."))  # which `build_model` leaves out
    }


def _from_file(path: Path) -> State:
    """Read the tensors in a file."""
    if not path.exists():
        raise UserError(
            f"model.pretrained: {path} does not exist; give a file that does, torchvision or none"
        )
    if path.is_dir():
        raise UserError(f"model.pretrained: {path} is a folder; give a file in it")
    if path.suffix == ".safetensors":
        try:
            return read_tensors(path)[0]
        except ValueError as error:
            raise UserError(
                f"model.pretrained: {path} is not a complete safetensors file ({error}); download "
                "or copy it again"
            ) from error
    if path.suffix in _TORCH_SUFFIXES:
        return _state_dict(path, _load(path))
    raise UserError(
        f"model.pretrained: {path} must end in .safetensors, {', '.join(_TORCH_SUFFIXES)}; "
        "rename it to match its format"
    )


def _load(path: Path) -> Any:
    """Load what `torch.save` wrote, if nothing in it requires running code."""
    check_readable(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises a dozen kinds
        if is_out_of_memory(error):
            raise
        other = re.search(r"Unsupported (?:global|class)\W+(?:GLOBAL )?([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and other:
            raise UserError(
                f"model.pretrained: {path} holds more than tensors ({other[1]}), which is not "
                "unpickled; save only model.state_dict() where it was made"
            ) from error
        raise UserError(
            f"model.pretrained: {path} is not a complete file of torch.save; download or "
            "copy it again"
        ) from error


def _state_dict(path: Path, content: Any) -> State:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise UserError(
            f"model.pretrained: {path} holds no state dict, neither alone nor under state_dict or "
            "model; save model.state_dict()"
        )
    return dict(content)


def _renamed(state: State, expected: State) -> State:
    """Rename the tensors of `state` to the names that the model uses."""
    prefix = "module."
    if all(key.startswith(prefix) for key in state) and not _below("module", expected):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    if "linear.weight" in expected and not _below("linear", state):
        state = {re.sub(r"^fc\.", "linear.", key): tensor for key, tensor in state.items()}
    return state


def _other_head(model: nn.Module, state: State, expected: State) -> str:
    """Name of the last layer, if it differs from that in `state` in its number of outputs only."""
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for name in layers[-1:]:
        key = f"{name}.weight"
        if key in state:
            theirs, ours = state[key].shape, expected[key].shape
            return name if theirs[1:] == ours[1:] and theirs != ours else ""
    return ""


def _remedy(state: State, expected: State) -> str:
    """Parameters to set so that `state` fits, for a message."""
    first = next((name for name, tensor in expected.items() if tensor.dim() == 4), "")
    if first in state and not misfit(expected, state | {first: expected[first]}):
        theirs, ours = state[first].shape, expected[first].shape
        if theirs == (ours[0], 4 - ours[1], *ours[2:]):  # 1 and 3 channels
            into = "gray images then have three equal ones" if theirs[1] == 3 else "all become gray"
            return f"data.channels to {theirs[1]} ({into})"
    return "model.name and data.channels to those it was made with"


def _below(name: str, state: State) -> State:
    return {key: tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
