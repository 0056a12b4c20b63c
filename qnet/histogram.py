"""A streaming histogram: millions of values in, a few thousand weighted points out.

Clustering (Yang et al., *Quantization Networks*, CVPR 2019, section 3.3) looks at every activation
of a sample of images. A histogram stands in for them, as one-dimensional k-means needs no more
than counts and means. Its bins are those of a floating-point number with few digits:

    [-top, top]                    top = 2^E, the power of two above all values seen so far
    the 12 octaves below top       2048 bins each, so that a bin is 1/2048 to 1/4096 of its values
    the rest, around zero          2048 bins of equal width on either side
    zero                           a bin of its own

so a few outliers, a hundred or a thousand times the bulk, cost the bulk no resolution. A bin
includes its edge away from zero. When top doubles, all bins move down one octave and the innermost
merge in pairs; edges only ever disappear, so the counts do not depend on the order or the batches
in which the values came.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from qnet.errors import UserError

_OCTAVES = 12
_DIGITS = 11  # binary; 2^11 bins in an octave
_PER_OCTAVE = 1 << _DIGITS
_SIDE = (_OCTAVES + 1) * _PER_OCTAVE  # bins on either side of zero
_SMALLEST_TOP = -100  # E of an empty histogram; keeps the scaling below inside float32
_FRACTION = 2.0**30  # sums are integers in units of 2^-30 of the innermost range
_SLICE = 1 << 20  # values whose integer sum cannot overflow 63 bits
_CHUNK = 1 << 14  # values that stay in a processor's cache, and that torch leaves to one thread
_FLOAT32_MAX = torch.finfo(torch.float32).max


class Histogram:
    """Counts and means of values that arrive in batches.

    Memory is constant (0.9 MB). Bins are no wider than 1/2048 of the values they hold, or, close to
    zero, 2^-22 of the largest magnitude. Values are represented by the mean of their bin, to the
    precision of float32 or 2^-41 of the largest magnitude, whichever is coarser.

    Args:
        name: what the values are, for example a layer; error messages begin with it.
    """

    def __init__(self, name: str = "values") -> None:
        self.name = name
        self.min = math.inf
        self.max = -math.inf
        self._exponent = _SMALLEST_TOP
        self._counts = np.zeros(2 * _SIDE + 1, dtype=np.int64)
        self._sums = np.zeros(2 * _SIDE + 1, dtype=np.float64)

    @property
    def count(self) -> int:
        """Number of values seen."""
        return int(self._counts.sum())

    def update(self, values: Tensor | np.ndarray) -> None:
        """Add a batch of values of any shape: floating-point, signed integers or uint8.

        They are binned as float32, on their device.

        Raises:
            UserError: a value is NaN, infinite or beyond float32; the histogram is then unchanged.
        """
        flat = _as_tensor(values).detach().reshape(-1)
        if flat.numel() == 0:
            return
        low, high = (float(extreme) for extreme in torch.aminmax(flat))
        if not -_FLOAT32_MAX <= low <= high <= _FLOAT32_MAX:  # also for NaN, which aminmax keeps
            raise UserError(
                f"{self.name}: values from {low:g} to {high:g}; only finite numbers in the range "
                "of float32 can be clustered; check that training has not diverged"
            )
        self.min, self.max = min(self.min, low), max(self.max, high)
        if low < 0 or high > 0:  # zeros alone fit any range
            self._grow(math.frexp(max(-low, high))[1])
        for part in flat.split(_SLICE):
            self._add(part)

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Means (float64, strictly increasing) and counts (int64) of the bins in use."""
        used = np.flatnonzero(self._counts)
        return self._sums[used] / self._counts[used], self._counts[used]

    def percentile(self, share: float) -> float:
        """The value below which lies this share of the values, to the width of a bin.

        As `numpy.quantile`: between two values, in proportion.

        Args:
            share: from 0 to 1.

        Raises:
            UserError: the histogram is empty, or share is not between 0 and 1.
        """
        if not 0 <= share <= 1:
            raise UserError(f"share: {share}; give a number from 0 to 1")
        if self.count == 0:
            raise UserError(f"{self.name}: no values, so no percentile; add some first")
        means, counts = self.points()
        rank = share * (self.count - 1)
        around = np.searchsorted(counts.cumsum(), [math.floor(rank), math.ceil(rank)], side="right")
        below, above = means[around]
        return float(np.clip(below + (above - below) * (rank % 1), self.min, self.max))

    def _add(self, values: Tensor) -> None:
        device = values.device
        counts = torch.zeros(2 * _SIDE + 1, dtype=torch.int64, device=device)
        sums = torch.zeros_like(counts)
        size = _CHUNK if device.type == "cpu" else _SLICE
        ones = torch.ones(min(size, len(values)), dtype=torch.int64, device=device)
        unit = 2.0 ** (self._exponent - _OCTAVES)
        for chunk in values.split(size):
            scaled = chunk.to(torch.float32) / unit
            magnitude = scaled.abs()
            bins = _bin(magnitude)
            bins = torch.where(scaled < 0, -bins, bins).add_(_SIDE)
            # Integers add up to the same sum in any order, on any device and number of threads.
            # Rounded away from zero, as bins are, a value never leaves its bin.
            counts.index_add_(0, bins, ones[: len(chunk)])
            sums.index_add_(0, bins, _ceil(magnitude * _FRACTION, torch.int64))
        self._counts += counts.cpu().numpy()
        signed = sums.cpu().numpy().astype(np.float64)
        signed[:_SIDE] *= -1
        self._sums += signed * (unit / _FRACTION)

    def _grow(self, exponent: int) -> None:
        """Double the range until it is [-2^exponent, 2^exponent], merging bins."""
        if self.count == self._counts[_SIDE]:  # nothing but zeros yet
            self._exponent = max(self._exponent, exponent)
        if exponent <= self._exponent:
            return
        side = np.arange(_SIDE + 1)
        moved = np.maximum((side + 1) // 2, side - _PER_OCTAVE)  # in pairs, or an octave down
        target = _SIDE + np.concatenate([-moved[:0:-1], moved])
        for _ in range(exponent - self._exponent):
            counts, sums = np.zeros_like(self._counts), np.zeros_like(self._sums)
            np.add.at(counts, target, self._counts)
            np.add.at(sums, target, self._sums)
            self._counts, self._sums = counts, sums
            self._exponent += 1


def condense(points: np.ndarray, weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge neighbours into at most `count` points, their means, with little squared error.

    Args:
        points: increasing [N].
        weights: positive [N].
        count: pieces into which the integral of density^(1/3) is cut: the best for many of them
            (Panter and Dite, *Quantization distortion in pulse-count modulation*, 1951).
    """
    if len(points) <= count:
        return points, weights
    mass = np.cbrt(weights * np.gradient(points) ** 2)
    piece = ((mass.cumsum() - mass / 2) / mass.sum() * count).astype(np.int64)
    first = np.flatnonzero(np.diff(piece, prepend=-1))
    merged = np.add.reduceat(weights, first)
    return np.add.reduceat(points * weights, first) / merged, merged


def _bin(magnitude: Tensor) -> Tensor:
    """Number of the bin on its side of zero, 0 to _SIDE, for magnitudes in units of top / 2^12.

    Up to 1, bins are equally wide. Beyond, the leading bits of a float32 (8 of the exponent, 11 of
    the fraction, rounded up) count the bins: 1.0 has the bits 127 << 23 and is the end of bin 2048.
    """
    drop = 23 - _DIGITS
    equal = _ceil(magnitude * _PER_OCTAVE, torch.int32)
    bits = magnitude.view(torch.int32) + ((1 << drop) - 1 - (126 << 23))
    return torch.where(magnitude < 1, equal, bits.bitwise_right_shift_(drop))


def _ceil(values: Tensor, dtype: torch.dtype) -> Tensor:
    """As torch.ceil, which however wakes every thread, even for tensors as small as these."""
    whole = values.to(dtype)
    return whole.add_(whole < values)


def _as_tensor(values: Tensor | np.ndarray) -> Tensor:
    if isinstance(values, Tensor):
        return values
    # torch needs memory it may write to, without negative strides
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))
