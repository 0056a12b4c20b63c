"""A network that is only looked at: batch norm disappears into the layer before it.

In eval mode batch norm is one factor and one summand per channel, so a convolution can take them
into its weight and bias (Jacob et al., CVPR 2018, section 3.2): same outputs, one pass less.
"""

from __future__ import annotations

from torch import nn
from torch.fx.experimental.optimization import fuse


def folded(network: nn.Module) -> nn.Module:
    """A copy of `network` in eval mode, for inference, without the batch norm that can be folded.

    A network that cannot be traced (its forward depends on the values it sees) is given back as it
    is, in eval mode.
    """
    network.eval()
    try:
        return fuse(network).eval()
    except Exception:  # tracing runs the network's own code, which may raise anything
        return network
