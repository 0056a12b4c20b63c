"""Mean and variance of batch norm, measured anew once a network is trained."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def measure_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set batch norm's mean and variance to their averages over `batches`; nothing else changes.

    Batch norm that is not called, or that the model's own `train` keeps in eval mode, keeps what it
    has.

    During training they are running averages over the last few batches, of weights that still move
    and activations rounded to bfloat16. (Ioffe and Szegedy, 2015, algorithm 2, steps 8 to 12.)

    Args:
        model: left in eval mode, in which all of it but batch norm also sees the batches.
        batches: what the model is called with, one after another; at least one.
    """
    model.train()
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.training
    ]
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average over all batches
        norm.train()
    try:
        for images in batches:
            model(images)
    finally:
        for norm, momentum, buffers in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked == 0:
                norm.load_state_dict(buffers, strict=False)
        model.eval()
