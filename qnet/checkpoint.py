"""A network in one file that describes itself: safetensors, with one JSON metadata entry.

The entry holds all that is needed to build the network again (architecture, classes,
preprocessing, level sets, where they act), so nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qnet.data import DatasetInfo
from qnet.devices import device_named
from qnet.errors import UserError, one_line
from qnet.insertion import insert_quantizers
from qnet.levels import LevelSet
from qnet.machine_errors import is_out_of_memory
from qnet.models import build_model, computes_alike
from qnet.packing import packed_state, unpacked_state
from qnet.quantizer import Quantizer, quantizers
from qnet.states import State, dtype_mismatch, load_state, misfit, read_tensors, write_tensors
from qnet.tracing import left_as_it_was

FORMAT = 1
KEY = "qnet"


@dataclass(frozen=True)
class Checkpoint:
    """A network in eval mode, its architecture's name and the data it was trained on.

    `packed`: it was read from a packed file, so its quantized weights are bare levels.
    """

    model: nn.Module
    architecture: str
    dataset: DatasetInfo
    packed: bool = False


def save_checkpoint(path: str | Path, checkpoint: Checkpoint, *, packed: bool = False) -> None:
    """Write `checkpoint` to `path`, whole or not at all; the same network gives the same bytes.

    Args:
        path: the file.
        checkpoint: the network.
        packed: write what is deployed (`qnet.packing`), which computes the same but cannot be
            trained further, because the weights before quantization are not in it.

    Raises:
        UserError: the file cannot be written; it could not be read again, because the network is
            not the one that `architecture` names, with quantizers of `insert_quantizers`, or
            `dataset` is not valid; or the network cannot be packed.
    """
    if not isinstance(checkpoint, Checkpoint):
        raise UserError(
            f"save_checkpoint: got a {type(checkpoint).__name__}; give a qnet.Checkpoint, which "
            "also says what the network is"
        )
    if checkpoint.packed and not packed:
        raise UserError(
            f"{path}: this network was loaded from a packed file, and its weights are bare levels; "
            "save it with packed=True"
        )
    description = {
        "format": FORMAT,
        "architecture": checkpoint.architecture,
        "dataset": _checked(path, checkpoint.dataset).to_dict(),
        "quantizers": _described(checkpoint.model),
    }
    check_rebuilt(path, checkpoint)
    state = checkpoint.model.state_dict()
    if packed:
        description["packed"] = True
        state = packed_state(checkpoint.model)
    write_tensors(path, state, {KEY: json.dumps(description, sort_keys=True)})


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a network that `save_checkpoint` wrote, packed or not: on `device`, in eval mode.

    Nothing is unpickled, but an architecture `package.module:function` is imported and called.

    Raises:
        UserError: the file is missing, truncated, foreign, of another format, or does not fit the
            architecture that it names; or the device is not there.
        OSError: the file cannot be read.
    """
    path, device = Path(path), device_named(device)
    description, tensors = _read(path)
    checkpoint = _rebuilt(path, description)
    _load(path, checkpoint, tensors)
    checkpoint.model.to(device).eval()
    return checkpoint


def _read(path: Path) -> tuple[dict[str, Any], State]:
    """The description of the network in the file, and its tensors."""
    if not path.exists():
        raise UserError(f"{path} does not exist; train the network first, or fix the path")
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file in it")
    try:
        tensors, metadata = read_tensors(path)
    except ValueError as error:
        raise UserError(
            f"{path} is not a checkpoint, or not a complete one ({error}); give a .safetensors "
            "file that qnet wrote, or write this one again"
        ) from None
    return _description(path, metadata), tensors


def _rebuilt(path: Path, description: dict[str, Any]) -> Checkpoint:
    """The described network, with its quantizers, before its tensors are loaded."""
    try:
        dataset = DatasetInfo.from_dict(description["dataset"])
        architecture = description["architecture"]
        model = _build(architecture, dataset)
        _quantize(model, description["quantizers"])
    except UserError as error:
        raise UserError(f"{path} cannot be built: {error}") from error
    except (ArithmeticError, LookupError, AttributeError, RuntimeError, TypeError, ValueError) as e:
        if is_out_of_memory(e):
            raise
        raise UserError(
            f"{path} has an incomplete description ({one_line(e)}); write it again"
        ) from e
    return Checkpoint(model, architecture, dataset, bool(description.get("packed")))


def _load(path: Path, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors into the network."""
    model = checkpoint.model
    if checkpoint.packed:
        try:
            tensors = unpacked_state(model, tensors)
        except UserError as error:
            raise _damaged(path, error) from None
    if differences := misfit(model.state_dict(), tensors):
        raise UserError(
            f"{path} does not fit {checkpoint.architecture}: {differences}; use the code that it "
            "was trained with, or train it again"
        )
    if difference := dtype_mismatch(model.state_dict(), tensors):
        raise _damaged(path, difference)
    try:
        load_state(model, tensors)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise _damaged(path, one_line(error)) from None


def _damaged(path: Path, reason: object) -> UserError:
    return UserError(f"{path} is damaged: {reason}; write it again")


def load_model(path: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """The network in the file at `path`, ready for inference; see `load_checkpoint`."""
    return load_checkpoint(path, device).model


def _checked(path: str | Path, dataset: DatasetInfo) -> DatasetInfo:
    """`dataset` as it will be read, or an error."""
    try:
        return DatasetInfo.from_dict(dataset.to_dict())
    except ValueError as error:
        raise UserError(f"{path} could not be read again: dataset: {error}; fix it") from None


def check_rebuilt(path: str | Path, checkpoint: Checkpoint) -> None:
    """Raise a `UserError` if a file of `checkpoint`, at `path`, would load as another network.

    `save_checkpoint` calls this; calling it before training avoids training a network that cannot
    be saved.
    """
    model, architecture = checkpoint.model, checkpoint.architecture
    described = _described(model)
    itself = "give the network itself, not compiled, averaged or otherwise wrapped"
    try:
        with torch.random.fork_rng(devices=[]):  # a new network draws random weights
            again = _build(architecture, checkpoint.dataset)
        _quantize(again, described)
    except UserError as error:
        remedy = f"; {itself}" if described else ""
        raise UserError(f"{path} could not be read again: {error}{remedy}") from error
    if differences := misfit(again.state_dict(), model.state_dict()):
        raise UserError(
            f"{path} could not be read again: {architecture} makes another network than this: "
            f"{differences}; {itself}"
        )
    if difference := dtype_mismatch(again.state_dict(), model.state_dict()):
        raise UserError(
            f"{path} could not be read again: {difference}; give the network as it was trained, "
            "not what to_int8 made of it"
        )
    again.load_state_dict(model.state_dict(), assign=True)
    with left_as_it_was(model):
        alike = computes_alike(model, again, checkpoint.dataset.channels, checkpoint.dataset.size)
    if not alike:
        raise UserError(
            f"{path} could not be read again: {architecture} makes a network with these weights "
            "that computes something else than this; name what builds it as it is now, such as a "
            "function of your own (package.module:function), the same each time it is called"
        )


def _described(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {name: _describe(quantizer) for name, quantizer in quantizers(model)}


def _describe(quantizer: Quantizer) -> dict[str, Any]:
    return {
        "levels": quantizer.level_set.name,
        "values": list(quantizer.level_set.values),
        "alpha_shape": list(quantizer.alpha.shape),
        "beta_shape": list(quantizer.beta.shape),
        "forward": quantizer.forward_mode,
        "temperature": float(quantizer.temperature),
        "backward_temperature": quantizer.backward_temperature,
    }


def _build(architecture: str, dataset: DatasetInfo) -> nn.Module:
    """A network of this kind, without quantizers; its values are yet to be loaded."""
    return build_model(
        architecture,
        classes=len(dataset.classes),
        channels=dataset.channels,
        size=dataset.size,
    )


def _quantize(model: nn.Module, described: Mapping[str, Mapping[str, Any]]) -> None:
    """Insert quantizers as `described`; their values are yet to be loaded."""
    inserted: dict[str, dict[str, Quantizer]] = {"weights": {}, "activations": {}}
    for name, description in described.items():
        layer, _, attribute = name.rpartition(".")
        kind = "weights" if attribute == "weight_quantizer" else "activations"
        inserted[kind][layer] = Quantizer(
            LevelSet(description["levels"], tuple(description["values"])),
            alpha=torch.ones(description["alpha_shape"]),
            beta=torch.ones(description["beta_shape"]),
            forward_mode=description["forward"],
            temperature=description["temperature"],
            backward_temperature=description["backward_temperature"],
        )
    insert_quantizers(model, **inserted)


def _description(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if KEY not in metadata:
        raise UserError(f"{path} was not written by qnet: it has no {KEY} entry in its metadata")
    try:
        description = json.loads(metadata[KEY])
        version = description["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} has a damaged description; write it again") from None
    if version != FORMAT:
        raise UserError(
            f"{path} has format {version}, and this qnet reads format {FORMAT}; write it again, or "
            "use the version of qnet that wrote it"
        )
    return dict(description)
