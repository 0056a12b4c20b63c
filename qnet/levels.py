"""Level sets: the small integers that a quantized weight or activation may be.

Yang et al., "Quantization Networks", CVPR 2019, section 3: a quantizer with levels
Y_1 < ... < Y_{n+1} is a sum of n steps of height s_i = Y_{i+1} - Y_i that starts at Y_1 = -o.

    name     values                         stored in
    1        -1, 1                          1 bit
    2        -1, 0, 1                       2 bits
    3pm2     -2 ... 2                       3 bits
    3pm4     -4, -2, -1, 0, 1, 2, 4         3 bits   (multiplication is a shift)
    k >= 2   -(2^(k-1) - 1) ... 2^(k-1) - 1 k bits
    ak       0 ... 2^k - 1                  k bits   (activations)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral

from qnet.errors import UserError

_MAX_BITS = 8
_MAX_VALUE = 2**15 - 1  # a level is stored in at most an int16


@dataclass(frozen=True)
class LevelSet:
    """The integers a quantizer can give, times its alpha.

    Args:
        name: what the set is called in params.yaml ("1", "2", "3pm2"), "a" and the bits for
            unsigned activations ("a2"), or the list itself ("[-4, -1, 1, 4]").
        values: at least two integers, strictly increasing, either symmetric about zero or
            starting at zero.

    Raises:
        UserError: if the values are not such a set.
    """

    name: str
    values: tuple[int, ...]

    def __post_init__(self) -> None:
        values = self.values
        if not isinstance(values, tuple) or any(type(value) is not int for value in values):
            problem = "a tuple of whole numbers"
        elif len(values) < 2 or any(low >= high for low, high in pairwise(values)):
            problem = "at least two values, strictly increasing"
        elif values[0] != 0 and any(a != -b for a, b in zip(values, reversed(values), strict=True)):
            problem = "values symmetric about zero, or starting at zero"
        elif self.max_abs > _MAX_VALUE:
            problem = f"values no larger than {_MAX_VALUE}"
        else:
            return
        raise UserError(f"levels {list(values)}: a level set needs {problem}")

    @property
    def steps(self) -> tuple[int, ...]:
        """Heights s_i between neighbouring levels, one fewer than there are levels."""
        return tuple(high - low for low, high in pairwise(self.values))

    @property
    def offset(self) -> float:
        """The o of the paper: half the sum of the steps if symmetric, 0 if starting at zero."""
        return float(-self.values[0])

    @property
    def bits(self) -> int:
        """Bits that tell the levels apart."""
        return math.ceil(math.log2(len(self.values)))

    @property
    def max_abs(self) -> int:
        """The largest magnitude."""
        return max(abs(self.values[0]), abs(self.values[-1]))


def _signed(bits: int) -> LevelSet:
    top = 2 ** (bits - 1) - 1
    return LevelSet(str(bits), tuple(range(-top, top + 1)) if bits > 1 else (-1, 1))


_WEIGHT_SETS = {
    level_set.name: level_set
    for level_set in (
        *map(_signed, range(1, _MAX_BITS + 1)),
        LevelSet("3pm2", (-2, -1, 0, 1, 2)),
        LevelSet("3pm4", (-4, -2, -1, 0, 1, 2, 4)),
    )
}


def weight_levels(spec: str | int | Sequence[int]) -> LevelSet | None:
    """The level set of weights for an entry of params.yaml.

    Args:
        spec: bits from 1 to 8, "3pm2", "3pm4", "full", or a list of increasing integers that is
            symmetric about zero. A number and its text mean the same.

    Returns:
        The level set; None for "full", which means no quantization.

    Raises:
        UserError: if spec is none of these.
    """
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        return _listed(spec)
    name = _name(spec)
    if name == "full":
        return None
    if name not in _WEIGHT_SETS:
        raise UserError(
            f"weights.levels {spec!r}: not a level set; use 1 ... {_MAX_BITS} (bits), 3pm2, 3pm4, "
            "full (32 bits), or a list of integers such as [-4, -1, 0, 1, 4]"
        )
    return _WEIGHT_SETS[name]


def require_levels(levels: object, of: str) -> None:
    """Raise a `UserError` if `levels` is not a level set."""
    if not isinstance(levels, LevelSet):
        raise UserError(
            f"{of}: levels {levels!r} are not a level set; make one with weight_levels or "
            "activation_levels, other than full"
        )


def activation_levels(spec: str | int, signed: bool = False) -> LevelSet | None:
    """The level set of activations for an entry of params.yaml.

    Args:
        spec: bits from 1 to 8, or "full". A number and its text mean the same.
        signed: whether the activations go below zero; then the weights' set of as many bits.

    Returns:
        The level set 0 ... 2^bits - 1 or its signed counterpart; None for "full".

    Raises:
        UserError: if spec is none of these.
    """
    name = _name(spec)
    if name == "full":
        return None
    if name not in map(str, range(1, _MAX_BITS + 1)):
        raise UserError(
            f"activations.bits {spec!r}: not a number of bits; use 1 ... {_MAX_BITS}, or full "
            "(32 bits)"
        )
    bits = int(name)
    return _signed(bits) if signed else LevelSet(f"a{bits}", tuple(range(2**bits)))


def _name(spec: object) -> str:
    """The text of a number or a name; empty, so no set's name, for anything else (True, 2.5)."""
    if isinstance(spec, bool) or not isinstance(spec, (str, Integral)):
        return ""
    return str(spec).strip()


def _listed(spec: Sequence[int]) -> LevelSet:
    if any(isinstance(value, bool) or not isinstance(value, Integral) for value in spec):
        raise UserError(f"weights.levels {list(spec)}: not all integers; use integers only")
    values = tuple(int(value) for value in spec)
    if values and values[0] >= 0:
        raise UserError(
            f"weights.levels {list(values)}: not symmetric about zero; "
            "use for each value its negative too"
        )
    named = (known for known in _WEIGHT_SETS.values() if known.values == values)
    return next(named, None) or LevelSet(str(list(values)), values)
