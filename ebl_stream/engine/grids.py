"""The slabs' grids: projections go in with a weight, slabs come out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ebl_stream.engine.field import Field
from ebl_stream.engine.memory import MemoryPlan, n_threads
from ebl_stream.engine.schedule import Timings
from ebl_stream.numerics.accumulate import Accumulator
from ebl_stream.numerics.aligned import aligned_empty
from ebl_stream.numerics.fan import Common, Fan
from ebl_stream.numerics.fourier_plan import Footprint, Padding
from ebl_stream.numerics.tiles import tiles
from ebl_stream.numerics.windows import Window
from ebl_stream.stages.reconstruct import Fourier

T = TypeVar("T")

MakeAccumulator = Callable[..., Accumulator]
"""Takes what `Accumulator` takes, and returns what can do the same."""


Signs: TypeAlias = tuple[int, int]
"""Of A and B in what is looked at."""

SUM: Signs = (1, 1)
DIFFERENCE: Signs = (1, -1)


@dataclass(frozen=True, eq=False)
class Rings:
    """What every projection has too much, and with which weights it is in the grids."""

    profile: NDArray[np.float32]
    """Line integrals, [row, column]."""
    theta: NDArray[np.float64]
    """rad, (place,)."""
    shares: NDArray[np.float64]
    """rad, (place, half)."""
    fans: dict[Signs, Fan] = field(default_factory=dict)
    """Where the profile goes in the grids, by the signs of A and B; made at a look."""


@dataclass(frozen=True, eq=False)
class Lens:
    """How grids are looked at; what they hold stays as it is."""

    window: Window = "ramp"
    """Low-pass on top of the ramp filter."""
    rings: Rings | None = None
    """What every projection has too much: by linearity it is taken away at each look
    afresh, so that no look depends on those before it."""
    shift: float = 0.0
    """px; how far the rotation center is from where the grids turn."""
    first_theta: float = 0.0
    """rad, where the half turn begins that holds all projections; for ``shift``."""


class Grids:
    """One accumulator per slab; slabs are independent, each on a thread of its own.

    Parameters
    ----------
    reconstruct : Fourier
    n_rows : int
        Of a projection.
    field : Field
        Its columns, and those that are reconstructed.
    slab_rows : int
        Rows reconstructed together.
    rotation_center : float
        px, column of the projection.
    plan : MemoryPlan
        Which slabs are held together, and which keep both halves.
    make : callable, optional
        What stands in for the class `Accumulator`: another device's.
    """

    def __init__(
        self,
        reconstruct: Fourier,
        n_rows: int,
        field: Field,
        slab_rows: int,
        rotation_center: float,
        plan: MemoryPlan,
        make: MakeAccumulator | None = None,
    ) -> None:
        self.field = field
        self.n_columns = field.n_columns
        self.ranges = [
            (z, min(z + slab_rows, n_rows)) for z in range(0, n_rows, slab_rows)
        ]
        """Half-open ranges of rows, by slab."""
        self.timings = Timings()
        self.rotation_center = rotation_center
        """px: what the grids turn about."""
        self._reconstruct = replace(reconstruct, oversampling=plan.oversampling)
        self._fourier = self._reconstruct.plan(self.n_columns)
        self._plan = plan
        self._make = make or Accumulator
        self.can_peek = make is None
        """Whether `peek` works: the grids lie in this machine's memory."""
        # A device works in its own order, whoever asks.
        self.n_threads = 1 if make else n_threads()
        self._pool = ThreadPoolExecutor(self.n_threads, "slab")
        self._scratch = threading.local()
        self._fan_lock = threading.Lock()
        self._accumulators: dict[int, Accumulator] = {}
        self._coming: dict[int, Future[Accumulator]] = {}
        if self.can_peek:
            tiles().reserve(self._fourier, self.n_threads)
        self.held = range(0)
        """Slabs that are in memory."""
        self.hold(range(*plan.passes[0]))

    def hold(self, slabs: range) -> None:
        """Let go of the slabs in memory, and begin others.

        Memory is taken, and touched, on the slabs' threads: nobody waits for it
        before it is needed.
        """
        self._accumulators.clear()
        self._coming.clear()
        self.held = slabs
        self._coming.update({k: self._pool.submit(self._empty, k) for k in slabs})

    @property
    def is_ready(self) -> bool:
        """Whether the memory of the slabs held is there."""
        return all(future.done() for future in self._coming.values())

    def _wait(self) -> None:
        while self._coming:
            slab, future = self._coming.popitem()
            self._accumulators[slab] = future.result()

    def reset(self, rotation_center: float) -> None:
        """Empty all grids; what is added from now on turns about the given center."""
        self.rotation_center = rotation_center
        self._wait()
        if any(grid.plan != self._fourier for grid in self._accumulators.values()):
            self.hold(self.held)
            return
        center = self.field.to_field(rotation_center)
        self.each(lambda slab: self._accumulators[slab].reset(center))

    def pad(self, padding: Padding) -> bool:
        """Take zeros or the edges for what lies beyond the detector.

        From the next reset on; returns whether that is something new.
        """
        before, self._fourier = (
            self._fourier,
            self._reconstruct.plan(self.n_columns, padding),
        )
        self._scratch = threading.local()
        return self._fourier != before

    @property
    def padding(self) -> Padding:
        """What lies beyond the detector: zeros, or what its edges see."""
        return self._fourier.padding

    def empty(self, slab: int) -> None:
        """Empty the grids of one slab."""
        self._accumulators[slab].reset()

    def has_halves(self, slab: int) -> bool:
        """Whether a slab keeps A and B apart."""
        monitors = self._plan.monitors
        return monitors is None or slab in monitors

    def _empty(self, slab: int) -> Accumulator:
        z0, z1 = self.ranges[slab]
        return self._make(
            self._fourier,
            z1 - z0,
            self.field.to_field(self.rotation_center),
            halves=self.has_halves(slab),
        )

    def add(
        self,
        slab: int,
        values: NDArray[np.float32],
        theta: NDArray[np.float64],
        shares: NDArray[np.float64],
        footprint: Footprint,
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
        footprint : Footprint
            Of ``theta``, see `footprint`.
        """
        begun = time.perf_counter()
        wide = self.field.spread(values)
        self._accumulators[slab].add(wide, theta, shares, footprint=footprint)
        self.timings.note("accumulate", slab, time.perf_counter() - begun)

    @property
    def nbytes(self) -> int:
        """Bytes of the grids that are held."""
        return sum(grid.nbytes for grid in self._accumulators.values())

    def footprint(self, theta: NDArray[np.float64]) -> Footprint:
        """Return where projections at ``theta`` (rad) go: the same for every slab."""
        return self._fourier.footprint(theta)

    def each(self, work: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
        """Return ``work(slab, ...)`` of every slab held, on the slabs' threads."""
        self._wait()
        return list(self._pool.map(work, self.held, *arguments))

    def map(self, work: Callable[..., T], *arguments: Iterable[Any]) -> Iterable[T]:
        """Do as the built-in ``map``, on the slabs' threads."""
        return self._pool.map(work, *arguments)

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Begin work on the slabs' threads; waits for the grids' memory."""
        self._wait()
        return self.begin(work, *arguments)

    def begin(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Begin work that needs no grids, on the slabs' threads."""
        return self._pool.submit(work, *arguments)

    def volume(
        self, slab: int, lens: Lens, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return A + B of a slab, ``[row, y, x]``, 1/px; into ``out`` where given."""
        begun = time.perf_counter()
        volume = self._accumulators[slab].volume(
            window=lens.window,
            shift=lens.shift,
            first_theta=lens.first_theta,
            less=self._less(slab, lens.rings, SUM),
            out=out,
        )
        self.timings.note("reconstruct", slab, time.perf_counter() - begun)
        return volume

    def peek(
        self, slab: int, look: Callable[[Accumulator], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Return what ``look`` makes of a slab's grids, which it only reads."""
        return look(self._accumulators[slab])

    def half_difference(self, slab: int, lens: Lens) -> NDArray[np.float32]:
        """Return A - B of a slab, ``[row, y, x]``, 1/px; good until the next call."""
        z0, z1 = self.ranges[slab]
        shape = (z1 - z0, self.n_columns, self.n_columns)
        out = getattr(self._scratch, "out", None)
        if out is None or out.shape != shape:
            self._scratch.out = out = aligned_empty(shape)
        return self._accumulators[slab].half_difference(
            out=out,
            window=lens.window,
            shift=lens.shift,
            first_theta=lens.first_theta,
            less=self._less(slab, lens.rings, DIFFERENCE),
        )

    def share(self, lens: Lens, signs: Signs) -> None:
        """Make, on the slabs' threads, what all slabs of a look share."""
        if lens.rings is not None and self.can_peek:
            self._fan(lens.rings, signs).table(self._pool.map)

    def _less(self, slab: int, rings: Rings | None, signs: Signs) -> Common | None:
        """Return what is to be taken away from a slab."""
        if rings is None:
            return None
        profile = self.field.spread(rings.profile[None, slice(*self.ranges[slab])])
        return Common(profile[0], self._fan(rings, signs))

    def _fan(self, rings: Rings, signs: Signs) -> Fan:
        with self._fan_lock:
            fan = rings.fans.get(signs)
            if fan is None:
                center = self.field.to_field(self.rotation_center)
                weights = rings.shares @ np.array(signs)
                fan = Fan(self._fourier, center, rings.theta, weights)
                rings.fans[signs] = fan
            return fan

    def close(self) -> None:
        """Free the grids and the threads."""
        self._pool.shutdown()
        self._coming.clear()
        self._accumulators.clear()
        if self.can_peek:
            tiles().release()
