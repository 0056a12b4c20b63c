"""What PyTorch compiles, and what happens where it cannot: the same numbers, slower, and a word."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from qnet.errors import UserError
from qnet.memory import is_out_of_memory


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


def is_of_compiling(error: Exception) -> bool:
    """Whether to go on uncompiled may help: `error` is no mistake, nor did memory run out."""
    return not isinstance(error, UserError) and not is_out_of_memory(error)


def warn_uncompiled(what: str, error: Exception) -> None:
    """Say that `what` could not be compiled; a missing or failing compiler shows in many ways.

    To be called where `error` is caught.

    Raises:
        UserError, MemoryError, RuntimeError: `error` itself, a mistake or memory that ran out: not
            of compiling, and trying again would hide it, or fail.
    """
    if not is_of_compiling(error):
        raise error
    reason = str(error).strip().splitlines()
    warnings.warn(
        f"{what} could not be compiled and is computed uncompiled, which is slower: "
        f"{type(error).__name__}: {reason[0] if reason else 'no reason given'}",
        stacklevel=3,
    )
