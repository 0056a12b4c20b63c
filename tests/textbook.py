"""Plain version of the quantizer's formula, one level at a time, and values to test it on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qnet.levels import LevelSet, activation_levels, weight_levels

WEIGHT_SPECS: list[str | list[int]] = ["1", "2", "3pm2", "3", "3pm4", "4", "5", "8", [-9, -1, 1, 9]]
WEIGHTS = [levels for spec in WEIGHT_SPECS if (levels := weight_levels(spec))]
ACTIVATIONS = [levels for bits in (1, 2, 3, 4, 6, 8) if (levels := activation_levels(bits))]
LEVEL_SETS = WEIGHTS + ACTIVATIONS
SMALL_SETS = [levels for levels in LEVEL_SETS if len(levels.values) <= 16]


def named(levels: object) -> str:
    return levels.name if isinstance(levels, LevelSet) else str(levels)


every_set = pytest.mark.parametrize("levels", LEVEL_SETS, ids=named)
small_sets = pytest.mark.parametrize("levels", SMALL_SETS, ids=named)


def textbook_soft(
    x: Tensor, alpha: Tensor, beta: Tensor, thresholds: Tensor, levels: LevelSet, temperature: float
) -> Tensor:
    total = torch.zeros_like(x)
    for threshold, step in zip(thresholds, levels.steps, strict=True):
        total = total + step * torch.sigmoid(temperature * (beta * x - threshold))
    return alpha * (total - levels.offset)


def textbook_hard(
    x: Tensor, alpha: Tensor, beta: Tensor, thresholds: Tensor, levels: LevelSet
) -> Tensor:
    total = torch.zeros_like(x)
    for threshold, step in zip(thresholds, levels.steps, strict=True):
        total = total + step * (beta * x > threshold).to(x.dtype)
    return alpha * (total - levels.offset)


def halfway(levels: LevelSet) -> Tensor:
    values = torch.tensor(levels.values, dtype=torch.float64)
    return (values[1:] + values[:-1]) / 2


def uneven(levels: LevelSet) -> Tensor:
    """Thresholds that are not an arithmetic progression."""
    return halfway(levels) + 0.2 * torch.sin(torch.arange(len(levels.steps)) + 1.0)


def values_for(levels: LevelSet, *shape: int) -> Tensor:
    """Values over the whole range of the levels and slightly beyond, in float64."""
    low, high = levels.values[0] - 1.5, levels.values[-1] + 1.5
    generator = torch.Generator().manual_seed(7)
    return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)


def scale(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return 0.6 + torch.rand(shape, dtype=torch.float64, generator=generator)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, check_dtype=False)
