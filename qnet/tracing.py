"""A network as `torch.fx` should see it, and unharmed by being traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def left_as_it_was(network: nn.Module) -> Iterator[None]:
    """After the context no module of `network` has another mode, attribute or buffer than before.

    Tracing runs the network's own code, which may keep what it computes: proxies, no tensors.
    """
    modules = list(network.modules())
    kept = [(vars(module).copy(), module._buffers.copy()) for module in modules]
    values = [(buffer, buffer.clone()) for buffer in network.buffers() if not buffer.is_meta]
    try:
        yield
    finally:
        for module, (attributes, buffers) in zip(modules, kept, strict=True):
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


class CalledWithImages(nn.Module):
    """Calls `network` with images, as training does: its other arguments have their defaults.

    Traced directly, a network would get an unknown value for every argument, so that
    `if mask is None` would take the wrong branch.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """The network's output."""
        output: Tensor = self.network.forward(images)  # as a root is traced: without its hooks
        return output
