"""What PyTorch compiles, and what happens where it cannot: the same numbers, slower, and a word."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn


class CompiledNetwork:
    """A network as one compiled function of images, or as it is once compiling has failed."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.compiled = torch.compile(network)
        self.works = True

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, C, H, W]."""
        if self.works:
            try:
                return self.compiled(images)
            except Exception as error:
                self.works = False
                warn_uncompiled("the network", error)
        return self.network(images)


def warn_uncompiled(what: str, error: Exception) -> None:
    """Say that `what` could not be compiled; a missing or failing compiler shows in many ways."""
    reason = str(error).strip().splitlines()
    warnings.warn(
        f"{what} could not be compiled and is computed uncompiled, which is slower: "
        f"{type(error).__name__}: {reason[0] if reason else 'no reason given'}",
        stacklevel=3,
    )
