"""The network that a student learns from, made ready to be computed in every step.

In eval mode batch norm is one factor and one summand per channel, so a convolution can take them
into its weight and bias (Jacob et al., CVPR 2018, section 3.2): same outputs, one pass less. And
weights that stay as they are need to be converted only once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from qnet.compiling import CompiledNetwork
from qnet.data import BatchSource
from qnet.distributed import sum_over_processes
from qnet.layers import has_hooks
from qnet.machine_errors import is_out_of_memory
from qnet.memory_format import channels_last
from qnet.runtime import Runtime
from qnet.tracing import CalledWithImages, left_as_it_was

_ROUNDING = 0.2  # of the logits' norm; in bfloat16 untrained ResNet-20 has 0.006, ResNet-18 0.04


class Teacher:
    """Logits [N, classes], in float32 and without gradient, of the network to distil from."""

    def __init__(self, network: nn.Module, runtime: Runtime) -> None:
        self.runtime = runtime
        self.original = network.eval()
        self._use(teaching(self.original, mixed=runtime.mixed))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits of images [N, C, H, W]."""
        with self.runtime.autocast():
            return self.network(images).float()

    @torch.no_grad()
    def check(self, batches: BatchSource) -> None:
        """Use the network as it is if folding has changed its logits of the first batch.

        A forward that asks `isinstance(x, Tensor)`, for example, takes another branch while traced.
        All processes decide alike: one that finds a difference decides for all.
        """
        if self.ready is self.original:
            return
        with self.runtime.autocast():
            agree = [self._agrees(images) for images, _ in islice(batches.ordered(), 1)]
        if sum_over_processes([not all(agree)])[0] > 0:
            self._use(channels_last(self.original))

    def _use(self, network: nn.Module) -> None:
        self.ready = network
        self.network: Callable[[Tensor], Tensor] = network
        if self.runtime.compile_network:
            self.network = CompiledNetwork(network)

    def _agrees(self, images: Tensor) -> bool:
        """Whether the logits are the same except for rounding."""
        try:
            logits = self.ready(images).float()
        except Exception as error:  # the network's own code, in a branch it may never have taken
            if is_out_of_memory(error):
                raise
            return False
        expected = self.original(images).float()
        return bool((logits - expected).norm() <= _ROUNDING * expected.norm())


def teaching(network: nn.Module, *, mixed: bool) -> nn.Module:
    """`network` in eval mode, folded and channels-last; or a copy of it.

    Args:
        network: on the device on which it is computed.
        mixed: it is computed under autocast to bfloat16; then a copy keeps its convolutions and
            linear layers in that type, which gives the same numbers.
    """
    ready = channels_last(folded(network))
    if mixed and ready is not network:
        for layer in ready.modules():
            if type(layer) in (nn.Conv2d, nn.Linear):
                layer.to(torch.bfloat16)
    return ready


def folded(network: nn.Module) -> nn.Module:
    """A copy of `network` in eval mode without the batch norm that can be folded.

    The network itself, in eval mode, if that is not safe: its forward depends on the values it
    sees, so that it cannot be traced; it uses a weight in more than one place; or it has hooks or
    an `nn.BatchNorm1d` (the features of a linear layer before it need not be its channels).
    """
    network.eval()
    if any(map(has_hooks, network.modules())):
        return network
    try:
        with left_as_it_was(network):
            traced = fx.symbolic_trace(CalledWithImages(network))
    except Exception:  # tracing runs the network's own code, which may raise anything
        return network
    modules, nodes = dict(traced.named_modules()), traced.graph.nodes
    calls = Counter(modules[str(node.target)] for node in nodes if node.op == "call_module")
    # A layer that is called twice would take in its batch norm twice.
    twice = any(count > 1 and list(module.parameters()) for module, count in calls.items())
    if twice or any(node.op == "get_attr" for node in nodes):
        return network
    if any(isinstance(module, nn.BatchNorm1d) for module in calls):
        return network
    return fuse(traced, no_trace=True).eval()
