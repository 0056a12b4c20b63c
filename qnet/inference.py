"""A network that is only looked at: batch norm disappears into the layer before it.

In eval mode batch norm is one factor and one summand per channel, so a convolution can take them
into its weight and bias (Jacob et al., CVPR 2018, section 3.2): same outputs, one pass less.
"""

from __future__ import annotations

from collections import Counter

from torch import fx, nn
from torch.fx.experimental.optimization import fuse


def folded(network: nn.Module) -> nn.Module:
    """A copy of `network` in eval mode, for inference, without the batch norm that can be folded.

    The network itself, in eval mode, if that is not safe: its forward depends on the values it
    sees, so that it cannot be traced, it uses a weight in more than one place, or it has hooks.
    """
    network.eval()
    if any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()):
        return network
    try:
        traced = fx.symbolic_trace(network)
    except Exception:  # tracing runs the network's own code, which may raise anything
        return network
    modules, nodes = dict(traced.named_modules()), traced.graph.nodes
    calls = Counter(modules[str(node.target)] for node in nodes if node.op == "call_module")
    # A layer that is called twice would take in its batch norm twice.
    twice = any(count > 1 and list(module.parameters()) for module, count in calls.items())
    if twice or any(node.op == "get_attr" for node in nodes):
        return network
    return fuse(network).eval()
