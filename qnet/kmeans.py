"""Exact k-means of points on a line.

In one dimension clusters are intervals, and dynamic programming finds the best ones (Wang and Song,
*Ckmeans.1d.dp: Optimal k-means Clustering in One Dimension*, The R Journal, 2011) without starts,
seed or local optima. The least inertia is the largest sum over clusters of (Σ w y)² / Σ w;
`gain[j]` is that sum for the first j points.
"""

from __future__ import annotations

import numpy as np


def kmeans(y: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    """Index of the first point of each of the k clusters that have the least inertia.

    Args:
        y: points, increasing [N].
        weights: of the points, positive [N].
        k: number of clusters, at most N.

    Returns:
        Increasing int64 [k], the first of them 0.
    """
    mass = np.append(0.0, weights.cumsum())
    moment = np.append(0.0, (weights * (y - np.average(y, weights=weights))).cumsum())
    gain = np.append(0.0, np.full(len(y), -np.inf))
    starts = []  # of the last cluster, for each number of clusters and of points
    for _ in range(k):
        gain, start = _one_cluster_more(gain, mass, moment)
        starts.append(start)
    firsts = [len(y)]
    for start in reversed(starts):
        firsts.append(start[firsts[-1]])
    return np.array(firsts[:0:-1])


def _one_cluster_more(
    gain: np.ndarray, mass: np.ndarray, moment: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each j, the largest gain[i] + that of a cluster of points i to j − 1, and its i.

    The best i never falls as j rises, so the j already known bound those halfway between them: all
    of these are searched at once, in arrays of about len(gain), and with half the stride the next.
    """
    n = len(gain) - 1
    best = np.full(n + 1, -np.inf)
    start = np.zeros(n + 1, dtype=np.int64)
    for stride in (1 << power for power in reversed(range(n.bit_length()))):
        j = np.arange(stride, n + 1, 2 * stride)
        low = start[j - stride]
        high = np.where(j + stride <= n, start[np.minimum(j + stride, n)], n)
        length = np.minimum(high, j - 1) - low + 1
        begin = length.cumsum() - length
        i = np.arange(length.sum()) - np.repeat(begin - low, length)
        end = np.repeat(j, length)
        total = gain[i] + (moment[end] - moment[i]) ** 2 / (mass[end] - mass[i])
        best[j] = np.maximum.reduceat(total, begin)
        hits = np.flatnonzero(total == best[end])[::-1]
        start[end[hits]] = i[hits]  # of several, the smallest: it is written last
    return best, start
