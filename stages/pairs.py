"""W/A, the bits of weights and activations, of the networks that the stages train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qnet.levels import weight_levels

FULL = 32  # bits of what is not quantized


@dataclass(frozen=True)
class Pair:
    """W/A of a network.

    Attributes:
        name: such as 1/2 or 3pm4/32.
        weights: bits of a weight.
        activations: bits of an activation.
    """

    name: str
    weights: int
    activations: int


def pairs(levels: str | int | Sequence[int], bits: str | int) -> dict[str, Pair]:
    """Pair of each training stage, given `weights.levels` and `activations.bits`.

    A stage that quantizes nothing passes its network on and is left out.
    """
    level_set = weight_levels(levels)
    name, weights = (str(FULL), FULL) if level_set is None else (level_set.name, level_set.bits)
    activations = FULL if bits == "full" else int(bits)
    found = {"train_fp": Pair(f"{FULL}/{FULL}", FULL, FULL)}
    if weights != FULL:
        found["train_weights"] = Pair(f"{name}/{FULL}", weights, FULL)
    if activations != FULL:
        found["train_activations"] = Pair(f"{name}/{activations}", weights, activations)
    return found
