"""The optimizer: which parameters decay, and which learn at a rate of their own."""

from __future__ import annotations

import torch
from torch import nn

from qnet.params import QuantizedTrainingParams, TrainingParams
from qnet.quantizer import quantizers


def build_optimizer(model: nn.Module, params: TrainingParams) -> torch.optim.Optimizer:
    """SGD or Adam with one group for each way to learn.

    Weight matrices and kernels decay: all parameters of two dimensions or more. Batch norm and
    biases do not. alpha and beta do not either, and learn at `scale_lr` times the learning rate.
    Parameters that do not require a gradient are left out. On CUDA all of a group learn in one
    kernel, and the learning rate is a tensor there: a recorded step reads it (`qnet.graphs`).
    """
    scales = {id(p) for _, q in quantizers(model) for p in (q.alpha, q.beta)}
    scale_lr = params.scale_lr if isinstance(params, QuantizedTrainingParams) else 0.0
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in trained if id(p) not in scales and p.ndim > 1],
            "weight_decay": params.weight_decay,
            "lr_factor": 1.0,
        },
        {
            "params": [p for p in trained if id(p) not in scales and p.ndim <= 1],
            "weight_decay": 0.0,
            "lr_factor": 1.0,
        },
        {
            "params": [p for p in trained if id(p) in scales],
            "weight_decay": 0.0,
            "lr_factor": scale_lr,
        },
    ]
    groups = [group for group in groups if group["params"]] or groups[:1]
    on_cuda = bool(trained) and all(p.is_cuda for p in trained)
    if on_cuda:
        for group in groups:
            group["lr"] = torch.full((), params.lr, device=trained[0].device)
    if params.optimizer == "adam":
        return torch.optim.AdamW(
            groups, lr=params.lr, betas=(params.momentum, 0.999),
            fused=on_cuda, capturable=on_cuda,
        )  # fmt: skip
    nesterov = params.nesterov and params.momentum > 0  # without it they are the same
    optimizer = torch.optim.SGD(
        groups, lr=params.lr, momentum=params.momentum, nesterov=nesterov, fused=on_cuda
    )
    if on_cuda and params.momentum > 0:
        # Zeros are the same as none, but that one kernel can go over those that learn from the
        # start and those that are frozen at first.
        for p in trained:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group of `optimizer` its share of `lr`."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr * group["lr_factor"])
        else:
            group["lr"] = lr * group["lr_factor"]
