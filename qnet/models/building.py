"""Building networks by name.

A name is one of `MODELS`, `torchvision/<name>` for any classifier of torchvision, or
`package.module:function` for a custom function that returns a model.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from torch import nn

from qnet.errors import UserError, nearest, one_line
from qnet.models.alexnet import AlexNet
from qnet.models.probing import check_shapes, check_state
from qnet.models.resnet import STAGES, ResNet
from qnet.models.resnet_cifar import CIFAR_DEPTHS, CifarResNet
from qnet.models.simplenet import SimpleNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in CIFAR_DEPTHS},
    **{f"resnet{depth}": partial(ResNet, depth) for depth in STAGES},
    "alexnet": AlexNet,
    "alexnet_small": partial(AlexNet, small=True),
    "simplenet": SimpleNet,
}

Builder = Callable[[int, int, int], nn.Module]

# Without these options they return a tuple in training, and warn about slow initialisation.
_TORCHVISION_EXTRAS = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}


def build_model(name: str, *, classes: int, channels: int = 3, size: int = 32) -> nn.Module:
    """Build a network with random weights: [N, channels, size, size] -> logits [N, classes].

    Args:
        name: one of `MODELS`, `torchvision/<name>`, or `package.module:function`; the function is
            called with the keywords classes, channels and size.
        classes: number of classes.
        channels: of the images; if not 3, a torchvision model's first convolution is replaced.
        size: side of the square images in pixels.

    Raises:
        UserError: there is no such model, or it cannot take such images.
    """
    model = find_model(name)(classes, channels, size)
    check_shapes(model, name, classes, channels, size)
    check_state(model, name)
    return model


def find_model(name: str) -> Builder:
    """Function of classes, channels and size, as in `build_model`, that builds this network.

    Raises:
        UserError: there is no such model.
    """
    if name in MODELS:
        return lambda classes, channels, size: MODELS[name](classes=classes, channels=channels)
    if name.startswith("torchvision/"):
        return _torchvision_builder(name)
    if ":" in name:
        return partial(_own_model, name, _own_function(name))
    other = f"torchvision/{name}"
    known = [other] if name in _classifiers() else list(MODELS)
    raise UserError(
        f"model.name: {name!r} is not a model, {nearest(name, known)}; "
        f"allowed: {', '.join(MODELS)}, torchvision/<name> or package.module:function"
    )


def source_files(name: str) -> list[Path]:
    """Source files of a network named `package.module:function`; empty for other names.

    They are those of the whole package, since its modules use each other.
    """
    spec = importlib.util.find_spec(re.split("[.:]", name)[0]) if ":" in name else None
    if spec is None:
        return []
    if spec.submodule_search_locations is None:  # a module alone
        return [Path(spec.origin)] if spec.origin is not None else []
    folders = map(Path, spec.submodule_search_locations)
    return sorted(file for folder in folders for file in folder.rglob("*.py"))


def _torchvision_builder(name: str) -> Builder:
    import torchvision  # takes a second, and only these names need it

    known = _classifiers()
    short = name.removeprefix("torchvision/")
    if short not in known:
        raise UserError(
            f"model.name: {name!r} is not a classifier of torchvision {torchvision.__version__}; "
            f"the nearest are {', '.join(get_close_matches(short, known, 3, 0.0))}; for all names "
            "see torchvision.models.list_models()"
        )
    return partial(_torchvision_model, short)


def _torchvision_model(short: str, classes: int, channels: int, size: int) -> nn.Module:
    import torchvision

    extras = _TORCHVISION_EXTRAS.get(short, {})
    model = torchvision.models.get_model(short, weights=None, num_classes=classes, **extras)
    if extras and channels == 3:
        model.transform_input = True  # as their weights were trained: (x - 0.5) / 0.5
    if channels != 3:
        _replace_first_convolution(model, channels)
    return model


def _classifiers() -> list[str]:
    """Names of torchvision's classifiers."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _replace_first_convolution(model: nn.Module, channels: int) -> None:
    name, old = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        kernel_size=old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


def _own_function(name: str) -> Callable[..., nn.Module]:
    module, _, attribute = name.partition(":")
    if module == "__main__":
        raise UserError(
            f"model.name: {name!r} is known only to the program that runs; put {attribute} into a "
            "module of its own and write package.module:function"
        )
    try:
        function: Callable[..., nn.Module] = getattr(importlib.import_module(module), attribute)
        signature = inspect.signature(function)
    except (Exception, SystemExit) as error:  # importing runs the module, which may do anything
        raise UserError(
            f"model.name: {name!r} cannot be imported ({type(error).__name__}: "
            f"{one_line(error)}); write package.module:function, with a module that Python can "
            "find from here"
        ) from error
    try:
        signature.bind(classes=10, channels=3, size=32)
    except TypeError as error:
        raise UserError(
            f"model.name: {name!r} has the signature {signature}; it must accept the "
            "keywords classes, channels and size"
        ) from error
    return function


def _own_model(
    name: str, function: Callable[..., nn.Module], classes: int, channels: int, size: int
) -> nn.Module:
    try:
        model = function(classes=classes, channels=channels, size=size)
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"model.name: {name!r} failed ({type(error).__name__}: {one_line(error)}, in "
            f"{where.filename}, line {where.lineno}); fix it, or choose another model"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model.name: {name!r} returned {type(model).__name__}; "
            "return the model, a torch.nn.Module"
        )
    return model
