"""Batch norm over the parts of a batch that several processes hold, as over the whole batch.

Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 1 and section 3, per channel and with
sums over the n values that all processes have in it:

    mean = Σ x / n    var = Σ (x - mean)² / n    x̂ = (x - mean) / sqrt(var + eps)    y = w x̂ + b

    ∂L/∂x = w / sqrt(var + eps) (g - Σ g / n - x̂ Σ g x̂ / n)    with g = ∂L/∂y

L is the sum of what the processes call backward on. `nn.SyncBatchNorm` needs CUDA; this does not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from qnet.distributed import world


def synchronise_batch_norm(model: nn.Module) -> None:
    """Have all batch norm of `model` look at the images of all processes while training.

    A module stays the same object, with its name and parameters; only its class changes.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, _Synchronised):
            kind = type(module)
            module.__class__ = type(kind.__name__, (_Synchronised, kind), {})


class _Synchronised(_BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] -> the same."""
        if world() == 1 or not self.training:
            return super().forward(input)
        mean, var, count = _moments(input.detach())
        self._track(mean, var, count)
        dtype = torch.promote_types(input.dtype, torch.float32)
        inverse = (var + self.eps).rsqrt().to(dtype)
        one, zero = torch.ones_like(inverse), torch.zeros_like(inverse)
        weight = one if self.weight is None else self.weight
        bias = zero if self.bias is None else self.bias
        return _Normalise.apply(input, weight, bias, mean.to(dtype), inverse, count.to(dtype))

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
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, n: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, inverse, n)
        scale = weight * inverse
        return torch.addcmul(_wide(bias - mean * scale, x), x, _wide(scale, x)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, n = ctx.saved_tensors
        normal = (x - _wide(mean, x)) * _wide(inverse, x)
        sums = torch.stack([grad.sum(_rest(x), dtype=mean.dtype), (grad * normal).sum(_rest(x))])
        grad_bias, grad_weight = sums.clone()  # of this process; summed later, with all others
        dist.all_reduce(sums)
        level, slope = (_wide(part / n, x) for part in sums)
        grad_x = (grad - level - normal * slope) * _wide(weight * inverse, x)
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None, None


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance [C] of each channel over all processes, and values to a channel [1].

    In float64, in which the difference of two sums of [C] numbers loses nothing.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(wide, _rest(x), correction=0)
    var, mean = var.double(), mean.double()
    count = x.numel() // x.shape[1]
    sums = torch.cat([mean, var + mean.square(), mean.new_ones(1)]) * count
    dist.all_reduce(sums)
    channels, count_of_all = sums[:-1].view(2, -1), sums[-1:]
    mean, square = channels / count_of_all
    return mean, square - mean.square(), count_of_all


def _rest(x: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [0, *range(2, x.ndim)]


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """One number to a channel [C], to broadcast against x."""
    return values.view(1, -1, *[1] * (x.ndim - 2))
