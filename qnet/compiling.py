"""What PyTorch compiles, and what happens where it cannot: the same numbers, slower, and a word."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from qnet.errors import UserError

NOT_OF_COMPILING = (torch.OutOfMemoryError, UserError)
"""What a compiled call raises as an uncompiled one would: trying again would hide it, or fail."""


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
                warn_uncompiled("the network", error)
                self.works = False
        return self.network(images)


def warn_uncompiled(what: str, error: Exception) -> None:
    """Say that `what` could not be compiled; a missing or failing compiler shows in many ways.

    To be called where `error` is caught.

    Raises:
        torch.OutOfMemoryError, UserError: `error` is one of these, and so not of compiling.
    """
    if isinstance(error, NOT_OF_COMPILING):
        raise error
    reason = str(error).strip().splitlines()
    warnings.warn(
        f"{what} could not be compiled and is computed uncompiled, which is slower: "
        f"{type(error).__name__}: {reason[0] if reason else 'no reason given'}",
        stacklevel=3,
    )
