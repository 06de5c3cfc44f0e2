"""One and the same spoke at many angles, gathered instead of spread.

What every projection has too much (rings) stands in the grids once per angle. Spread
again, it would cost as much as the scan. But then each grid point holds a sum over
the few samples of one spoke that ever come near it, with factors that are the same
for all slices: they are added up once per look, and each slice only looks them up.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics.fourier_plan import FourierPlan
from ebl_stream.numerics.kernel_cache import kernel

ANGLES = 32
"""Angles whose footprint is held at a time."""

BANDS = 16
"""Parts of the grid that may be worked on side by side."""

Each = Callable[..., Iterable[Any]]
"""Does as the built-in ``map``."""


class FanTable(NamedTuple):
    """Which samples of the spoke make up each stored grid point.

    Point ``p`` is the sum over ``side`` and ``i < number[side, p]`` of
    ``coefficient[side, p, i]`` times the sample at ``± (first[p] + i)`` from the
    spoke's middle, + for side 0.
    """

    first: NDArray[np.int32]
    """(point,)"""
    number: NDArray[np.uint8]
    """``[side, point]``"""
    coefficient: NDArray[np.float32]
    """``[side, point, i]``"""


@dataclass(frozen=True, eq=False)
class Fan:
    """A spoke that is the same at all angles.

    Parameters
    ----------
    plan : FourierPlan
    rotation_center : float
        px, what the grids turn about.
    theta : ndarray, (angle,)
        rad.
    weights : ndarray, (angle,)
        rad, with which it stands in the grids.
    """

    plan: FourierPlan
    rotation_center: float
    theta: NDArray[np.float64]
    weights: NDArray[np.float64]
    _made: list[FanTable] = field(default_factory=list, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    @functools.cached_property
    def response(self) -> NDArray[np.complex64]:
        """The spoke's filter, (frequency,)."""
        return self.plan.spoke_filter(self.rotation_center)

    def table(self, each: Each = map) -> FanTable:
        """Return the factors; made at the first call.

        Parameters
        ----------
        each : callable
            As ``map``, maybe on several threads, none of which may be the caller's:
            parts of the grid are worked on side by side.
        """
        with self._lock:
            if not self._made:
                self._made.append(self._make(each))
            return self._made[0]

    def _make(self, each: Each) -> FanTable:
        plan = self.plan
        first, most = _reach(plan)
        shape = (2, plan.stride**2)
        table = FanTable(
            first, np.zeros(shape, np.uint8), np.zeros((*shape, most), np.float32)
        )
        edges = np.linspace(0, plan.stride, BANDS + 1).astype(int).tolist()
        for start in range(0, len(self.theta), ANGLES):
            some = slice(start, start + ANGLES)
            footprint = plan.footprint(self.theta[some])
            weights = self.weights[some].astype(np.float32)

            def band(low: int, high: int) -> None:
                _add_band(
                    *footprint,  # noqa: B023  (called at once)
                    plan.table,
                    weights,  # noqa: B023
                    (plan.stride, low, high),
                    *table,
                )

            for _ in each(band, edges[:-1], edges[1:]):
                pass
        return table


class Common(NamedTuple):
    """What every projection of one slab or tile has too much."""

    profile: NDArray[np.float32]
    """Line integrals, ``[row, column]``."""
    fan: Fan


def check_common(
    common: Common, plan: FourierPlan, n_rows: int, rotation_center: float
) -> None:
    """Check that something fits grids; raises ValueError if not."""
    fan, shape = common.fan, (n_rows, plan.n_columns)
    found = (fan.plan, fan.rotation_center, common.profile.shape)
    if found != (plan, rotation_center, shape):
        raise ValueError("less must have the same plan, rows and rotation center")


def nothing() -> FanTable:
    """Return a table without points."""
    return FanTable(
        np.empty(0, np.int32),
        np.empty((2, 0), np.uint8),
        np.empty((2, 0, 0), np.float32),
    )


@functools.lru_cache(maxsize=2)
def _reach(plan: FourierPlan) -> tuple[NDArray[np.int32], int]:
    """Return how near to the middle of the spoke each point's samples begin.

    And how many there are at most. A sample reaches points that are at most half of
    the kernel's width away along each axis.
    """
    step = plan.n_grid / plan.n_padded
    place = np.abs(np.arange(plan.stride) - plan.margin - plan.n_grid // 2)
    nearest = np.maximum(place - plan.taps / 2, 0)
    distance = np.hypot(nearest[:, None], nearest[None])
    first = np.floor(distance / step - 1e-6).astype(np.int32)
    most = int(np.sqrt(2) * plan.taps / step) + 3
    return np.maximum(first, 0).reshape(-1), most


@kernel()
def _add_band(  # type: ignore[no-untyped-def]
    corner, fraction, table, weights, band, first, number, coefficient
):
    """Add the angles' factors for the points of some rows of the grid."""
    stride, low, high = band
    taps, half = table.shape[1], corner.shape[1] // 2
    begin, end = max(low - taps + 1, 0) * stride, high * stride
    for a in range(corner.shape[0]):
        if weights[a] == 0:
            continue
        for n in range(corner.shape[1]):
            at = corner[a, n]
            if at < begin or at >= end:
                continue
            row = at // stride
            side, away = (0, n - half) if n >= half else (1, half - n)
            for i in range(max(low - row, 0), min(high - row, taps)):
                factor = weights[a] * table[fraction[a, n, 0], i]
                for j in range(taps):
                    point = at + i * stride + j
                    k = away - first[point]
                    coefficient[side, point, k] += factor * table[fraction[a, n, 1], j]
                    if k >= number[side, point]:
                        number[side, point] = k + 1
