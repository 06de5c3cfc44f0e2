"""The slabs' grids: projections go in with a weight, slabs come out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ebl_stream.engine.memory import MemoryPlan
from ebl_stream.engine.schedule import Timings
from ebl_stream.numerics.accumulate import Accumulator
from ebl_stream.stages.reconstruct import Fourier

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Rings:
    """What every projection has too much, and with which weights it is in the grids."""

    profile: NDArray[np.float32]
    """Line integrals, [row, column]."""
    theta: NDArray[np.float64]
    """rad, (place,)."""
    shares: NDArray[np.float64]
    """rad, (place, half)."""


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
    plan : MemoryPlan
        Which slabs are held together, and which keep both halves.
    """

    def __init__(
        self,
        reconstruct: Fourier,
        shape: tuple[int, int],
        slab_rows: int,
        rotation_center: float,
        plan: MemoryPlan,
    ) -> None:
        n_rows, self.n_columns = shape
        self.ranges = [
            (z, min(z + slab_rows, n_rows)) for z in range(0, n_rows, slab_rows)
        ]
        """Half-open ranges of rows, by slab."""
        self.timings = Timings()
        self.rotation_center = rotation_center
        """px: what the grids turn about."""
        self._reconstruct = reconstruct
        self._plan = plan
        self.n_threads = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self.n_threads, "slab")
        self._scratch = threading.local()
        self._accumulators: dict[int, Accumulator] = {}
        self.held = range(0)
        """Slabs that are in memory."""
        self.hold(range(*plan.passes[0]))

    def hold(self, slabs: range) -> None:
        """Let go of the slabs in memory, and begin others."""
        self._accumulators.clear()
        self.held = slabs
        made = self.each(lambda slab: self._empty(slab))
        self._accumulators.update(zip(slabs, made, strict=True))

    def reset(self, rotation_center: float) -> None:
        """Empty all grids; what is added from now on turns about the given center."""
        self.rotation_center = rotation_center
        self.hold(self.held)

    def has_halves(self, slab: int) -> bool:
        """Whether a slab keeps A and B apart."""
        monitors = self._plan.monitors
        return monitors is None or slab in monitors

    def _empty(self, slab: int) -> Accumulator:
        z0, z1 = self.ranges[slab]
        return self._reconstruct.accumulator(
            z1 - z0, self.n_columns, self.rotation_center
        )

    def add(
        self,
        slab: int,
        values: NDArray[np.float32],
        theta: NDArray[np.float64],
        shares: NDArray[np.float64],
    ) -> None:
        """Add a slab's rows of projections with their weights.

        Parameters
        ----------
        slab : int
        values : ndarray, [angle, row, column]
            Line integrals.
        theta : ndarray, (angle,)
            rad.
        shares : ndarray, (angle, 2)
            rad, for halves A and B.
        """
        begun = time.perf_counter()
        grids = self._accumulators[slab]
        for spoke, angle, share in zip(
            grids.spokes(values), theta, shares, strict=True
        ):
            grids.add(spoke, angle, *share)
        self.timings.note("accumulate", slab, time.perf_counter() - begun)

    def each(self, work: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
        """Return ``work(slab, ...)`` of every slab held, on the slabs' threads."""
        return list(self._pool.map(work, self.held, *arguments))

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Begin work on the slabs' threads."""
        return self._pool.submit(work, *arguments)

    def volume(
        self,
        slab: int,
        rings: Rings | None,
        shift: float = 0.0,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return A + B of a slab, ``[row, y, x]``, 1/px.

        Parameters
        ----------
        slab : int
        rings : Rings, optional
            What every projection has too much: by linearity it is taken away here,
            afresh at each look, so that the result does not depend on how many looks
            there were before.
        shift : float
            px; how far the rotation center is from where the grids turn.
        out : ndarray, [row, y, x], optional
            Where to put it.
        """
        begun = time.perf_counter()
        volume = self._accumulators[slab].volume(self._less(slab, rings))
        if out is not None:
            out[...] = volume
            volume = out
        self.timings.note("reconstruct", slab, time.perf_counter() - begun)
        return volume

    def half_difference(
        self, slab: int, rings: Rings | None, shift: float = 0.0
    ) -> NDArray[np.float32]:
        """Return A - B of a slab, ``[row, y, x]``, 1/px; see `volume`."""
        return self._accumulators[slab].half_difference(self._less(slab, rings))

    def _less(self, slab: int, rings: Rings | None) -> Accumulator | None:
        if rings is None:
            return None
        z0, z1 = self.ranges[slab]
        less = self._empty(slab)
        (spoke,) = less.spokes(rings.profile[None, z0:z1])
        for angle, share in zip(rings.theta, rings.shares, strict=True):
            less.add(spoke, angle, *share)
        return less

    def close(self) -> None:
        """Free the grids and the threads."""
        self._accumulators.clear()
        self._pool.shutdown()
