"""The optimizer: which parameters decay, and which learn at a rate of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qnet.params import TrainingParams
from qnet.quantizer import quantizers


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, scale_lr: float = 0.01
) -> list[dict[str, Any]]:
    """The parameters of `model` that require a gradient, in groups for a `torch.optim.Optimizer`.

    Weight matrices and kernels decay: all parameters of two dimensions or more. Batch norm and
    biases do not. alpha and beta of quantizers do not either.

    Args:
        model: with its quantizers.
        lr: the learning rate.
        weight_decay: of weight matrices and kernels.
        scale_lr: alpha and beta learn at `scale_lr` times `lr`.

    Returns:
        Groups that are not empty, each with its `params`, `weight_decay`, `lr_factor`, and `lr`
        already multiplied by that factor.
    """
    scales = {id(p) for _, q in quantizers(model) for p in (q.alpha, q.beta)}
    trained = [p for p in model.parameters() if p.requires_grad]
    others = [p for p in trained if id(p) not in scales]
    groups = [
        ([p for p in others if p.ndim > 1], weight_decay, 1.0),
        ([p for p in others if p.ndim <= 1], 0.0, 1.0),
        ([p for p in trained if id(p) in scales], 0.0, scale_lr),
    ]
    return [
        {"params": params, "weight_decay": decay, "lr": lr * factor, "lr_factor": factor}
        for params, decay, factor in groups
        if params
    ]


def build_optimizer(model: nn.Module, params: TrainingParams) -> torch.optim.Optimizer:
    """SGD or Adam of the `parameter_groups` of `model`.

    On CUDA one kernel updates all of a group, and the learning rate is a tensor there, which a
    recorded step reads (`qnet.graphs`).
    """
    groups = parameter_groups(
        model, lr=params.lr, weight_decay=params.weight_decay, scale_lr=params.scale_lr
    ) or [{"params": [], "lr_factor": 1.0}]
    trained = [p for group in groups for p in group["params"]]
    on_cuda = bool(trained) and all(p.is_cuda for p in trained)
    if on_cuda:
        for group in groups:
            group["lr"] = torch.full((), group["lr"], device=trained[0].device)
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
        # Zeros act as no buffer does, but let one kernel update both the parameters that learn from
        # the start and those that are frozen at first.
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
