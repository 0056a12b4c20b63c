"""What one process among several needs: its rank, sums over all, gradients of the whole batch.

The processes train one network, each on its part of every batch, and end up with the same weights
as one process would. A process that never calls `join` is alone, and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def join(device: str) -> None:
    """Join the group of the processes that torchrun has started.

    Args:
        device: `runtime.device`; for `cpu`, CUDA is left alone.
    """
    cuda = device != "cpu" and torch.cuda.is_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")


def leave() -> bool:
    """Wait for all processes, then shut down the process group.

    Returns:
        Whether this is the first process, which continues alone.
    """
    first = rank() == 0
    if world_size() > 1:
        sum_over_processes([])
        dist.destroy_process_group()
    return first


def rank() -> int:
    """The number of this process, from 0; the first one writes and prints for all."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """How many processes train together, on all machines."""
    return dist.get_world_size() if _joined() else 1


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0)) if _joined() else 0


def local_world_size() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if _joined() else 1


def sum_over_processes(numbers: Sequence[float]) -> list[float]:
    """Each number summed over all processes; all wait for each other."""
    if world_size() == 1:
        return list(numbers)
    sums = torch.tensor([*numbers, 0.0], dtype=torch.float64)  # never empty
    dist.all_reduce(sums)
    return sums.tolist()[:-1]


def broadcast_state(model: nn.Module) -> None:
    """Give all processes the parameters and buffers of the first."""
    if world_size() == 1:
        return
    for tensor in model.state_dict().values():
        values = tensor.detach().contiguous()  # channels_last is not
        dist.broadcast(values, src=0)
        tensor.copy_(values)


def backward(loss: Tensor, share: float, parameters: Iterable[Tensor]) -> None:
    """Give each of `parameters` the gradient of the mean over the whole batch.

    Args:
        loss: the mean over this process's part of the batch, [].
        share: that part as a share of the whole batch.
        parameters: the same in all processes. Those without a gradient stay without.
    """
    if world_size() == 1:
        loss.backward()
        return
    (loss * share).backward()
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    sums = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(sums)
    parts = sums.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
