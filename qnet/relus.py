"""A ReLU that only quantizers read is left out while training.

Levels from 0 up, with thresholds that are not negative, make every negative value zero. So with a
hard forward a ReLU before them changes no output, only the gradient: it stops that of all negative
values, where the window alone stops it of values far below the thresholds. Without that stop a
value just below zero can learn its way up: with two levels that helps, with more it does not
(docs/screening.md). So of more levels the quantizer stops it itself (`Quantizer.rectifies`): the
numbers stay, and a pass over memory each way is saved. In eval mode the ReLU is there: the network
is the one that its checkpoint describes.
"""

from __future__ import annotations

import operator
import warnings
from collections import defaultdict

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qnet.batch_norm import is_plain
from qnet.errors import one_line
from qnet.layers import QuantizedLayer, SkippedReLU, has_hooks
from qnet.quantizer import Quantizer
from qnet.tracing import CalledWithImages, left_as_it_was


def skip_relus(model: nn.Module) -> list[str]:
    """Turn each nn.ReLU whose every reader makes its negative values zero into a `SkippedReLU`.

    In place, with quantizers inserted and before the model is compiled. Outputs stay as they are
    while beta is above zero. A ReLU stays if it, or what gives or reads its values, has hooks. What
    an earlier call has skipped is decided again. A network whose forward depends on the values it
    sees cannot be traced: it keeps all of its ReLUs, and a warning says so if it has binary
    quantizers, for which that makes a difference.

    Returns:
        Names of the skipped modules, in the order in which they are called.
    """
    everything = list(model.modules())
    for module in everything:
        if type(module) is SkippedReLU:
            module.__class__ = nn.ReLU  # type: ignore[assignment]
        elif isinstance(module, Quantizer):
            module.rectifies = False
    clipping = [quantizer for quantizer in map(_clipping, everything) if quantizer is not None]
    if not clipping:
        return []
    called = CalledWithImages(model)
    try:
        with left_as_it_was(model):
            model.train()  # a ReLU is left out only in training, so what reads it then decides
            graph = _Tracer().trace(called)
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        if any(map(_is_binary, clipping)):
            warnings.warn(
                f"The network cannot be traced ({one_line(error)}): ReLUs before binary quantizers "
                "stay while training.",
                stacklevel=2,
            )
        return []
    modules = dict(called.named_modules())
    calls: dict[str, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "call_module" and type(modules[str(node.target)]) is nn.ReLU:
            calls[str(node.target)].append(node)
    skipped = [
        name for name, nodes in calls.items() if all(_is_needless(node, modules) for node in nodes)
    ]
    for name in skipped:
        modules[name].__class__ = SkippedReLU
        for quantizer in (q for node in calls[name] for q in _readers(node, modules)):
            assert quantizer is not None
            quantizer.rectifies = not _is_binary(quantizer)
    return [name.removeprefix("network.") for name in skipped]


_COMPUTED_ANEW = (nn.Conv2d.forward, nn.Linear.forward, QuantizedLayer.forward)


class _Tracer(fx.Tracer):
    """Keeps layers whole, also quantized ones and batch norm over several processes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = isinstance(m, (nn.Conv2d, nn.Linear, nn.ReLU, _BatchNorm))
        return layer or super().is_leaf_module(m, module_qualified_name)


def _is_needless(relu: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether nothing would change without this call: all readers of its result make negative
    values zero, and nothing else uses its input, which this call or a later one may overwrite.
    """
    if has_hooks(modules[str(relu.target)]):
        return False
    alone = all(_is_new(node, modules) for node in relu.all_input_nodes)
    return alone and None not in _readers(relu, modules)


def _readers(relu: fx.Node, modules: dict[str, nn.Module]) -> list[Quantizer | None]:
    """The quantizers that make negative values of its result zero; None for each other reader."""
    readers: list[Quantizer | None] = []
    for reader in relu.users:
        quantizer = None
        if reader.op == "call_module":
            quantizer = _clipping(modules[str(reader.target)])
        if quantizer is not None and not _is_binary(quantizer):
            calls = [node for node in reader.graph.nodes if node.target == reader.target]
            quantizer = quantizer if len(calls) == 1 else None  # the others may have no ReLU
        readers.append(quantizer)
    return readers


def _is_new(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the memory of this result has one reader: it is not a view of what others read."""
    if len(node.users) > 1:
        return False
    if node.op == "call_module":
        module = modules[str(node.target)]
        # A subclass with a forward of its own may give back its input.
        known = type(module).forward in _COMPUTED_ANEW or is_plain(module)
        return known and not has_hooks(module)
    if node.target is operator.add:  # or `+=`, traced alike, which writes to its left side
        left = node.args[0]
        return not isinstance(left, fx.Node) or _is_new(left, modules)
    return node.target is torch.add or node.op == "placeholder"


def _clipping(layer: nn.Module) -> Quantizer | None:
    """The quantizer of the layer's input if it makes every negative value zero."""
    if not isinstance(layer, QuantizedLayer) or has_hooks(layer):
        return None
    quantizer = layer.input_quantizer
    if (
        isinstance(quantizer, Quantizer)
        and not has_hooks(quantizer)
        and quantizer.forward_mode == "hard"
        and quantizer.level_set.values[0] == 0
        and (quantizer.thresholds >= 0).all()
        and (quantizer.beta > 0).all()
    ):
        return quantizer
    return None


def _is_binary(quantizer: Quantizer) -> bool:
    return len(quantizer.level_set.values) == 2
