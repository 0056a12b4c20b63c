"""Batch norm for data-parallel training, synchronised.

Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 1 and section 3, per channel and with
sums over the n values that all processes have in it:

    mean = Σ x / n    var = Σ (x - mean)² / n    x̂ = (x - mean) / sqrt(var + eps)    y = w x̂ + b

    ∂L/∂x = w / sqrt(var + eps) (g - Σ g / n - x̂ Σ g x̂ / n)    with g = ∂L/∂y

L is the sum of what the processes call backward on. `nn.SyncBatchNorm` needs CUDA; this does not,
and leaves passes over x to PyTorch's own kernels: each is given the moments of all processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from qnet.distributed import world_size
from qnet.errors import UserError


def synchronise_batch_norm(model: nn.Module) -> None:
    """Make every batch norm in `model` use statistics over all processes' images during training.

    A module stays the same object, with its name and parameters; only its class changes.

    Raises:
        UserError: a subclass of batch norm has a forward of its own.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or isinstance(module, _Synchronised):
            continue
        kind = type(module)
        if not is_plain(module):
            raise UserError(
                f"runtime.processes: {name} ({kind.__name__}) is batch norm with a forward of its "
                "own, which would see the images of one process only; use runtime.processes=1"
            )
        module.__class__ = type(kind.__name__, (_Synchronised, kind), {})


def is_plain(module: nn.Module) -> bool:
    """Whether this is batch norm, over several processes too, and computes nothing else."""
    known = (_BatchNorm.forward, nn.SyncBatchNorm.forward, _Synchronised.forward)
    return isinstance(module, _BatchNorm) and type(module).forward in known


class _Synchronised(_BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] -> the same."""
        if world_size() == 1 or not self.training:
            return super().forward(input)
        mean, var, count = _moments(input.detach())
        self._track(mean, var, count)
        dtype = torch.promote_types(input.dtype, torch.float32)
        weight, bias = mean.new_ones(len(mean)), mean.new_zeros(len(mean))
        weight = (weight if self.weight is None else self.weight).to(dtype)
        bias = (bias if self.bias is None else self.bias).to(dtype)
        moments = mean.to(dtype), var.to(dtype), count.to(dtype)
        return _Normalise.apply(input, weight, bias, *moments, self.eps)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = var * count / (count - 1)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        n: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, n)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, n = ctx.saved_tensors
        # w g / sqrt(var + eps), and this process's Σ g x̂ and Σ g: the gradients of w and b, which
        # are summed over the processes later, with all others.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([grad_weight, grad_bias])
        dist.all_reduce(sums)
        slope, level = sums * (-weight * (var + ctx.eps).rsqrt() / n)
        grad_x += F.batch_norm(x, mean, var, slope, level, training=False, eps=ctx.eps)
        return grad_x, grad_weight, grad_bias, None, None, None, None


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance [C] of each channel over all processes, and values per channel [1].

    In float64, in which the difference of two sums of [C] numbers loses nothing.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    one, zero = x.new_ones(x.shape[1], dtype=dtype), x.new_zeros(x.shape[1], dtype=dtype)
    _, mean, inverse = torch.native_batch_norm(x, one, zero, None, None, True, 0.0, 0.0)
    mean, inverse = mean.double(), inverse.double()
    var = inverse.pow(-2).where(inverse > 0, 0.0)  # some kernels give 0 if all values are equal
    count = x.numel() // x.shape[1]
    sums = torch.cat([mean, var + mean.square(), mean.new_ones(1)]) * count
    dist.all_reduce(sums)
    channels, count_of_all = sums[:-1].view(2, -1), sums[-1:]
    mean, square = channels / count_of_all
    return mean, square - mean.square(), count_of_all
