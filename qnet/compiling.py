"""Compiling with PyTorch; where that fails, a warning and the same results, computed uncompiled."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch._functorch import config

from qnet.errors import UserError
from qnet.machine_errors import is_out_of_memory


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
                # Compile backward in this call too: an error in a later one would not be caught.
                with config.patch(force_non_lazy_backward_lowering=True):
                    return self.compiled(images)
            except Exception as error:
                warn_slower("the network could not be compiled and is computed uncompiled", error)
                self.works = False
        return self.network(images)


def warn_slower(what: str, error: Exception) -> None:
    """Warn that `what` happened, and why; a missing or failing compiler shows in many ways.

    Call it where `error` is caught.

    Raises:
        UserError, MemoryError, RuntimeError: `error` itself, if it is a user's mistake or memory
            ran out: computing uncompiled would hide the former and repeat the latter.
    """
    if isinstance(error, UserError) or is_out_of_memory(error):
        raise error
    lines = str(error).strip().splitlines() or ["no reason given"]
    reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    warnings.warn(f"{what}, which is slower: {type(error).__name__}: {reason}", stacklevel=3)
