"""A floor under the scales of quantizers while they learn."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qnet.quantizer import quantizers

_SHARE = 0.01


class ScaleFloor:
    """Keeps each alpha and beta that learns above 1 % of what it is now, if that is above zero.

    Make one before training, and call `apply` after each step.

    A layer before batch norm does not depend on its alpha, which then drifts; below zero all levels
    of the layer would change their sign.
    """

    def __init__(self, model: nn.Module) -> None:
        self.scales: list[Tensor] = [
            scale
            for _, quantizer in quantizers(model)
            for scale in (quantizer.alpha, quantizer.beta)
            if scale.requires_grad
        ]
        self.floors = [
            torch.where(scale > 0, _SHARE * scale, -math.inf).detach() for scale in self.scales
        ]

    @torch.no_grad()
    def apply(self) -> None:
        """Lift what has fallen below its floor; after each step of the optimizer."""
        if self.scales:
            torch._foreach_maximum_(self.scales, self.floors)
