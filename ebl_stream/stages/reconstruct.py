"""Reconstruct: line integrals to slices."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics.accumulate import Accumulator
from ebl_stream.numerics.aligned import aligned_empty
from ebl_stream.numerics.fourier_plan import Footprint, FourierPlan, Padding
from ebl_stream.numerics.truncation import truncation
from ebl_stream.numerics.weights import angular_weights
from ebl_stream.numerics.windows import Window

SLAB_ROWS = 32
"""Detector rows that one thread reconstructs at a time."""

BLOCK = 32
"""Projections that are added together."""


@dataclass(frozen=True)
class Fourier:
    """Filtered back-projection by accumulation on the Fourier grid."""

    linear: ClassVar[bool] = True
    """Projections may be added and taken back one by one."""

    window: Window = "ramp"
    """Low-pass on top of the ramp filter."""
    oversampling: float = 1.25
    """Grid points per pixel; 1.125 saves memory."""
    taps: Literal[4, 6] = 4
    """Width of the gridding kernel, grid points."""
    padding: Literal["auto", "zero", "edge"] = "auto"
    """What lies beyond the detector: nothing, or more of what its edges see;
    ``auto``: the latter where the object leaves the field (see `truncation`)."""

    def plan(self, n_columns: int, padding: Padding | None = None) -> FourierPlan:
        """Return the lengths and tables for projections of ``n_columns``.

        ``padding`` is what ``auto`` came to; nothing but zeros until that is known.
        """
        if self.padding != "auto":
            padding = self.padding
        return FourierPlan(n_columns, self.oversampling, self.taps, padding or "zero")

    def accumulator(
        self, n_rows: int, n_columns: int, rotation_center: float
    ) -> Accumulator:
        """Return empty grids for one slab; the window is for its looks."""
        return Accumulator(self.plan(n_columns), n_rows, rotation_center)

    def __call__(
        self,
        values: NDArray[np.float32],
        theta: NDArray[np.float64],
        rotation_center: float,
    ) -> NDArray[np.float32]:
        """Reconstruct a whole scan at once: the batch twin of the live path.

        The result does not depend on the number of threads.

        Parameters
        ----------
        values : ndarray, [angle, row, column]
            Line integrals.
        theta : ndarray, (angle,)
            rad.
        rotation_center : float
            px, column of the stored frame.

        Returns
        -------
        ndarray, [z, y, x]
            1/px.
        """
        _, n_rows, n_columns = values.shape
        volume = aligned_empty((n_rows, n_columns, n_columns))
        plan = self.plan(n_columns)
        if self.padding == "auto" and truncation(values).truncated:
            plan = self.plan(n_columns, "edge")
        slabs = [
            (values[:, z : z + SLAB_ROWS], volume[z : z + SLAB_ROWS])
            for z in range(0, n_rows, SLAB_ROWS)
        ]
        n_threads = min(os.cpu_count() or 1, len(slabs))
        with ThreadPoolExecutor(n_threads, "batch") as pool:
            blocks = list(pool.map(_block(plan, theta), _starts(len(theta))))
            some = partial(self._slabs, plan, blocks, rotation_center)
            list(pool.map(some, (slabs[k::n_threads] for k in range(n_threads))))
        return volume

    def _slabs(
        self,
        plan: FourierPlan,
        blocks: list[_Block],
        rotation_center: float,
        slabs: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    ) -> None:
        """Reconstruct slabs ``(values, volume)`` one after the other, on one grid."""
        grids = None
        for values, out in slabs:
            n_rows = values.shape[1]
            if grids is None or grids.n_rows != n_rows:
                grids = Accumulator(plan, n_rows, rotation_center, halves=False)
            else:
                grids.reset()
            for block in blocks:
                part = values[block.angles]
                grids.add(part, block.theta, block.shares, footprint=block.footprint)
            grids.volume(window=self.window, out=out)


class _Block(NamedTuple):
    """Projections that are added together, and what all slabs share of them."""

    angles: slice
    theta: NDArray[np.float64]
    shares: NDArray[np.float64]
    footprint: Footprint


def _starts(n_angles: int) -> range:
    return range(0, n_angles, BLOCK)


def _block(plan: FourierPlan, theta: NDArray[np.float64]) -> Callable[[int], _Block]:
    """Return what makes the block that starts at an angle."""
    shares = np.stack([angular_weights(theta), np.zeros(len(theta))], axis=1)

    def block(start: int) -> _Block:
        angles = slice(start, start + BLOCK)
        part = theta[angles]
        return _Block(angles, part, shares[angles], plan.footprint(part))

    return block
