"""Whether the sample jumped while it was scanned, seen between neighboring angles.

Projections at neighboring angles differ by a small, slowly changing shift. A jump
of the sample between two of them stands out, also where the field cuts the sample,
which the center of mass cannot judge. Projections that face each other cannot tell
a jump from a center that lies elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ebl_stream.stages.opposite import binned

Floats = NDArray[np.float64]

ROWS = 4
"""Rows that are compared."""

COLUMNS = 256
"""More columns are binned."""

SMOOTHING = 2.0
"""Bins, standard deviation of the Gaussian before the comparison."""

SIDE = 8
"""Projections on either side of a jump that must agree on it."""

MIN_JUMP_PX = 1.0

CLEAR = 8.0
"""A jump stands out of the scatter of the others by so many standard deviations."""


@dataclass(frozen=True)
class Motion:
    """How the sample moved along the columns, beyond its turning."""

    jump: float = 0.0
    """px, the largest that lasts; 0 when none stands out."""
    jitter: float = 0.0
    """px, standard deviation of single projections; 0 when rows do not share it."""


def motion_of(projections: NDArray[np.float32], theta: Floats) -> Motion:
    """Compare projections at neighboring angles.

    Parameters
    ----------
    projections : ndarray, [angle, row, column]
    theta : ndarray, (angle,)
        rad; in the order in which they were taken.
    """
    if len(theta) < 4 * SIDE:
        return Motion()
    phase = np.mod(theta, 2 * np.pi)
    order = np.argsort(phase, kind="stable")
    bins = -(-projections.shape[2] // COLUMNS)
    rows = binned(projections[:, :: -(-projections.shape[1] // ROWS)], bins)
    smooth = ndimage.gaussian_filter1d(rows[order], SMOOTHING, axis=2)
    moved = bins * _shifts(np.asarray(smooth, np.float32))
    gaps = np.diff(phase[order])
    moved[:, gaps > 3 * np.median(gaps)] = 0
    moved -= ndimage.median_filter(moved, (1, SIDE + 1))
    # Where the sample is seen, without slow changes, in the order of angles.
    place = np.concatenate([[0.0], np.cumsum(moved[0])])
    jump = _step(place)
    if np.count_nonzero(np.diff(order) < 0) > 1:
        # Not taken in the order of angles: neighbors come from different times.
        in_time = np.empty_like(place)
        in_time[order] = place - ndimage.median_filter(place, 2 * SIDE + 1)
        jump = max(jump, _step(in_time))
    return Motion(jump, _shared(*moved[1:]))


def _shifts(smooth: NDArray[np.float32]) -> Floats:
    """Return shifts between neighbors (bins): of all rows, of even ones, of odd ones.

    A single row stands in for both kinds.
    """
    slope = np.gradient(smooth, axis=2)
    slope = (slope[1:] + slope[:-1]) / 2
    energy = (slope**2).sum(axis=2, dtype=np.float64)
    product = -(np.diff(smooth, axis=0) * slope).sum(axis=2, dtype=np.float64)
    few = smooth.shape[1] < 2
    out = np.zeros((3, len(energy)))
    for k, rows in enumerate(
        (slice(None), slice(0, None, 2), slice(int(not few), None, 2))
    ):
        whole = energy[:, rows].sum(axis=1)
        np.divide(product[:, rows].sum(axis=1), whole, out=out[k], where=whole > 0)
    return out


def _shared(even: Floats, odd: Floats) -> float:
    """Return by how much single projections are off in both kinds of rows alike."""

    def spread(values: Floats) -> float:
        return 1.4826 * float(np.median(abs(values - np.median(values))))

    together = (spread(even + odd) ** 2 - spread(even - odd) ** 2) / 4
    # A neighbor's shift has the jitter of two projections.
    return float(np.sqrt(max(0.0, together) / 2))


def _step(place: Floats) -> float:
    """Return the largest step between the medians before and after, if it is clear."""
    windows = np.lib.stride_tricks.sliding_window_view(place, SIDE)
    medians = np.median(windows, axis=1)
    steps = medians[SIDE:] - medians[:-SIDE]
    if not steps.size:
        return 0.0
    usual = 1.4826 * float(np.median(abs(steps)))
    largest = float(abs(steps).max())
    return largest if largest > max(MIN_JUMP_PX, CLEAR * usual) else 0.0
