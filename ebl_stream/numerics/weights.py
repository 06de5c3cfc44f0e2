"""Angular weights of the angles present, and the split into two halves.

FBP integrates over directions in [0, pi). A projection stands for the part of the
half circle that is nearer to it than to any other: its Voronoi cell. Weights are
therefore right for any order, any losses and any number of turns.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

GAP_CAP = 4.0
"""Widest gap that neighbors share, in units of the typical gap."""

SAME_DIRECTION = 1e-5
"""rad; closer directions count as one when the typical gap is measured."""


def angular_weights(theta: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each projection's share of the half circle.

    Parameters
    ----------
    theta : ndarray, (angle,)
        rad, any order, any number of turns.

    Returns
    -------
    ndarray, (angle,)
        rad; half the gaps to both neighbors (mod pi), each gap capped at
        ``GAP_CAP`` typical gaps so that a missing wedge is not spread over the
        projections at its edges. They add up to pi where no gap is capped.
    """
    n = len(theta)
    if n == 0:
        return np.zeros(0)
    direction = np.mod(theta, np.pi)
    order = np.argsort(direction, kind="stable")
    ahead = np.diff(direction[order], append=direction[order[0]] + np.pi)
    capped = np.minimum(ahead, GAP_CAP * _typical_gap(ahead))
    weights = np.empty(n)
    weights[order] = _shared((capped + np.roll(capped, 1)) / 2, ahead)
    return weights


def _shared(
    weights: NDArray[np.float64], ahead: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Let projections of one direction share its weight equally.

    Parameters
    ----------
    weights, ahead : ndarray, (angle,)
        In order of direction; the gap to the next direction.
    """
    group = np.concatenate([[0], np.cumsum(ahead[:-1] > SAME_DIRECTION)])
    if ahead[-1] <= SAME_DIRECTION:
        group[group == group[-1]] = 0  # the half circle closes within a direction
    mean = np.bincount(group, weights) / np.maximum(np.bincount(group), 1)
    return mean[group]


def _typical_gap(gaps: NDArray[np.float64]) -> float:
    """Median of the gaps between different directions.

    Repeated directions (a second turn, a doubled end point, with encoder noise) leave
    gaps near zero, which must not pull the median down; the widest gap is the missing
    wedge where there is one, and says nothing of the others.
    """
    real = np.sort(gaps[gaps > SAME_DIRECTION])
    if len(real) < 2:
        return np.pi
    wide = np.quantile(real[:-1], 0.875, method="lower")
    return float(np.median(real[:-1][real[:-1] > 0.1 * wide]))


class HalfSplit:
    """Assign projections to the halves A (0) and B (1) as they arrive.

    A projection joins the half that does not hold its nearest direction so far, so
    that both halves sample the half circle evenly at every moment. A split by
    chance or by time makes the halves up to 5 dB worse and A - B up to three times
    too large.
    """

    def __init__(self) -> None:
        self._directions: list[tuple[float, int]] = []

    def assign(self, theta: float) -> int:
        """Return the half, 0 or 1, of a new projection at ``theta`` rad."""
        direction = float(np.mod(theta, np.pi))
        held = self._directions
        half = 0
        if held:
            place = bisect_left(held, (direction, -1))
            before, after = held[place - 1], held[place % len(held)]
            half = 1 - min((before, after), key=lambda d: _apart(d[0], direction))[1]
        insort(held, (direction, half))
        return half


def _apart(a: float, b: float) -> float:
    """Return the angle between two directions, rad."""
    gap = abs(a - b)
    return min(gap, np.pi - gap)


def alternate(theta: NDArray[np.float64]) -> NDArray[np.int8]:
    """Return halves that alternate in sorted direction: the best final split."""
    order = np.argsort(np.mod(theta, np.pi), kind="stable")
    halves = np.empty(len(theta), np.int8)
    halves[order] = np.arange(len(theta)) % 2
    return halves
