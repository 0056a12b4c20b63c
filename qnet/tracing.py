"""A network as `torch.fx` should see it: called with images and nothing else."""

from __future__ import annotations

from torch import Tensor, nn


class CalledWithImages(nn.Module):
    """Calls `network` with images, as training does: its other arguments have their defaults.

    Traced itself, a network has an unknown value for every argument, so that `if mask is None`
    takes the branch that is never taken.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """What the network gives."""
        output: Tensor = self.network.forward(images)  # as a root is traced: without its hooks
        return output
