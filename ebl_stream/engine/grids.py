"""The slabs' grids: projections go in with a weight, slabs come out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics.accumulate import Accumulator
from ebl_stream.stages.reconstruct import Fourier

T = TypeVar("T")

Shares = tuple[float, float]
"""Weights, rad, with which a projection is added to halves A and B."""

Look = list[tuple[NDArray[np.float32], NDArray[np.float32]]]
"""(A + B, A - B) of every slab, ``[z, y, x]``, 1/px."""


class Grids:
    """One accumulator per slab; slabs are independent, each on a thread of its own.

    Parameters
    ----------
    reconstruct : Fourier
    shape : (int, int)
        Rows and columns of a projection.
    slab_rows : int
        Rows reconstructed together.
    rotation_center : float
        px, column of the projection.
    """

    def __init__(
        self,
        reconstruct: Fourier,
        shape: tuple[int, int],
        slab_rows: int,
        rotation_center: float,
    ) -> None:
        n_rows, self.n_columns = shape
        self._reconstruct = reconstruct
        self.slabs = [
            (z, min(z + slab_rows, n_rows)) for z in range(0, n_rows, slab_rows)
        ]
        self._pool = ThreadPoolExecutor(os.cpu_count(), "slab")
        self._accumulators: list[Accumulator] = []
        self.reset(rotation_center)

    def reset(self, rotation_center: float) -> None:
        """Empty all grids; what is added from now on turns about the given center."""
        self.rotation_center = rotation_center
        self._accumulators.clear()
        self._accumulators.extend(map(self._empty, self.slabs))

    def _empty(self, slab: tuple[int, int]) -> Accumulator:
        z0, z1 = slab
        return self._reconstruct.accumulator(
            z1 - z0, self.n_columns, self.rotation_center
        )

    def add(
        self,
        values: NDArray[np.float32],
        theta: Sequence[float],
        shares: Sequence[Shares],
    ) -> None:
        """Add projections of line integrals with their weights.

        Parameters
        ----------
        values : ndarray, [angle, row, column]
        theta : sequence of float
            rad.
        shares : sequence of (float, float)
            rad, for halves A and B.
        """

        def one(slab: int) -> None:
            z0, z1 = self.slabs[slab]
            grids = self._accumulators[slab]
            spokes = grids.spokes(values[:, z0:z1])
            for spoke, angle, share in zip(spokes, theta, shares, strict=True):
                grids.add(spoke, angle, *share)

        self.each_slab(one, range(len(self.slabs)))

    def each_slab(self, work: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
        """Return ``work`` of every slab's arguments, on the slabs' threads."""
        return list(self._pool.map(work, *arguments))

    def look(
        self,
        constant: NDArray[np.float32] | None,
        theta: Sequence[float],
        shares: Sequence[Shares],
    ) -> Look:
        """Return (A + B, A - B) of every slab, ``[row, y, x]``, 1/px.

        Parameters
        ----------
        constant : ndarray, [row, column], optional
            What every projection has too much, in line integrals: by linearity it
            is taken away here, afresh at each look, so that the result does not
            depend on how many looks there were before.
        theta, shares
            Of the projections in the grids, see `add`.
        """

        def one(slab: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            grids, less = self._accumulators[slab], None
            if constant is not None:
                z0, z1 = self.slabs[slab]
                less = self._empty((z0, z1))
                (spoke,) = less.spokes(constant[None, z0:z1])
                for angle, share in zip(theta, shares, strict=True):
                    less.add(spoke, angle, *share)
            return grids.volume(less), grids.half_difference(less)

        return self.each_slab(one, range(len(self.slabs)))

    def close(self) -> None:
        """Free the grids and the threads."""
        self._accumulators.clear()
        self._pool.shutdown()
