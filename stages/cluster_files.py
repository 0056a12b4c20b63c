"""Content of the cluster files: a histogram of the values to quantize, and their clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import TypeAdapter

from qnet.clustering import Clusters
from qnet.histogram import Histogram
from qnet.params import QuantizedTrainingParams
from qnet.quantizer import Quantizer

BINS = 160


@dataclass(frozen=True)
class Coarse:
    """Histogram that fits in a text file, of all but the outermost 0.1 % of values.

    Attributes:
        low: the smallest value shown.
        high: the largest.
        zeros: share of the values that are zero, 0 to 1.
        counts: number of other values in each bin; bins of equal width from `low` to `high`.
    """

    low: float
    high: float
    zeros: float
    counts: tuple[int, ...]

    @classmethod
    def of(cls, histogram: Histogram) -> Coarse:
        """Reduce a histogram."""
        low, high = histogram.percentile(0.0005), histogram.percentile(0.9995)
        high = high if high > low else low + 1
        means, counts = histogram.points()
        zeros = float(counts[means == 0].sum() / counts.sum())
        others = means != 0
        shown, _ = np.histogram(means[others], BINS, range=(low, high), weights=counts[others])
        return cls(low, high, zeros, tuple(shown.tolist()))


@dataclass(frozen=True)
class Clustered:
    """Values to quantize, and their clusters."""

    histogram: Coarse
    clusters: Clusters

    def quantizer(self, params: QuantizedTrainingParams) -> Quantizer:
        """A quantizer that starts from the clusters, trained as `params` say."""
        return Quantizer.from_clusters(
            self.clusters,
            forward_mode=params.forward,
            backward_temperature=params.backward_temperature,
        )


@dataclass(frozen=True)
class ClusteredByBits:
    """Values to quantize, and their clusters at each number of bits."""

    histogram: Coarse
    clusters: dict[int, Clusters]

    def at(self, bits: int) -> Clustered:
        """The clusters at this number of bits."""
        return Clustered(self.histogram, self.clusters[bits])


LAYERS = TypeAdapter(dict[str, Clustered])
"""Reads and writes the clusters of weights, by layer."""

SITES = TypeAdapter(dict[str, ClusteredByBits])
"""Reads and writes the clusters of activations, by site."""
