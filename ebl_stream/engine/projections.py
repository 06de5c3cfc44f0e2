"""Keep the grids equal to the weighted sum over the projections in the window.

One rule covers arrivals, losses, any order, rewinds and rebuilds: every projection has
weights that it should have and weights with which it was added; `settle` adds the
difference. Sums are linear, so the grids are exact after every settle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream import audit
from ebl_stream.engine.center_rows import CenterRows
from ebl_stream.engine.grids import Grids, Rings
from ebl_stream.engine.preprocessing import Prepared
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.schedule import BLOCK
from ebl_stream.engine.window import Window
from ebl_stream.frames import Frame
from ebl_stream.numerics.weights import HalfSplit, angular_weights, rebalanced
from ebl_stream.stages import References

CENTER_ROWS = 16
"""Detector rows kept as line integrals for the center finder, at most."""

AT_ONCE = BLOCK + 8
"""Projections added together: a block, and neighbors whose weights it changed."""

NEGLIGIBLE = 1e-6
"""Relative change of a weight that is not worth a scatter."""


def center_bytes(n_columns: int) -> int:
    """Return the bytes that are kept of each projection for the center finder."""
    return 4 * CENTER_ROWS * n_columns


Places = NDArray[np.intp]

Each = Callable[..., Iterable[Any]]
"""Does as the built-in ``map``."""


class ProjectionSum:
    """The projections of one run, and their weighted sum in the grids."""

    def __init__(
        self, rooms: Rooms, window: Window, grids: Grids, shape: tuple[int, int]
    ) -> None:
        self.window = window
        self.grids = grids
        self.references: References | None = None
        self._rooms = rooms
        self._period = grids.field.period
        self._split = HalfSplit(self._period)
        self._scratch = threading.local()
        self._total = np.zeros(shape)
        first, stop = grids.ranges[grids.held[0]][0], grids.ranges[grids.held[-1]][1]
        step = max(1, (stop - first) // CENTER_ROWS)
        rows = np.arange(first + step // 2, stop, step)
        self._center_rows = rows[:CENTER_ROWS]
        self._is_first_pass = True
        self._center_values = CenterRows()
        self.angular_coverage = 0.0
        """Share of the needed circle that the angles present stand for, 0..1."""

    def put(self, frame: Frame) -> None:
        """Take a projection in; one that it replaces leaves the grids at once."""
        if frame.index in self.window:
            self._retract(self.window.place_of(frame.index))
        self.window.put(frame, self._split.assign(frame.theta))

    def settle(self) -> None:
        """Bring the grids to the exact weights of the angles present."""
        weights = angular_weights(self.window.theta, self._period)
        self.angular_coverage = float(weights.sum() / self._period)
        target = np.zeros_like(self.window.applied)
        target[np.arange(len(target)), self.window.half] = weights
        change = target - self.window.applied
        is_due = (np.abs(change) > NEGLIGIBLE * weights[:, None]).any(axis=1)
        for places in self._blocks(np.flatnonzero(is_due)):
            self._add(places, change[places])
            self.window.applied[places] = target[places]

    def _blocks(self, places: Places) -> list[Places]:
        """Split places into blocks, those that were added before first."""
        is_old = self.window.summed[places]
        ordered = np.concatenate([places[is_old], places[~is_old]])
        return [ordered[k : k + AT_ONCE] for k in range(0, len(ordered), AT_ONCE)]

    def _add(self, places: Places, shares: NDArray[np.float64]) -> None:
        """Add projections to the grids of every slab that is held."""
        prepared = self._prepare(places)
        theta = self.window.theta[places]
        footprint = self.grids.footprint(theta)
        is_new = ~self.window.summed[places]
        signs = is_new.astype(int).tolist()
        n_new = int(is_new.sum())
        found = np.zeros(
            (n_new, len(self._center_rows), self.image_shape[1]), np.float32
        )

        def one(slab: int) -> None:
            z0, z1 = self.grids.ranges[slab]
            begun = time.perf_counter()
            room = self._room(z1 - z0)[: len(places)]
            values = prepared.rows((z0, z1), total=self._total, signs=signs, out=room)
            self.grids.timings.note("preprocess", slab, time.perf_counter() - begun)
            if n_new:
                mine = (self._center_rows >= z0) & (self._center_rows < z1)
                rows = self._center_rows[mine] - z0
                found[:, mine] = values[np.ix_(is_new, rows)]
            self.grids.add(slab, values, theta, shares, footprint)

        self.grids.each(one)
        audit.added(self.window, places, shares)
        self.window.summed[places] = True
        if self._is_first_pass:
            for place, rows in zip(places[is_new], found, strict=True):
                self._center_values.add(int(place), rows)

    def _room(self, n_rows: int) -> NDArray[np.float32]:
        """Return where a thread puts a slab's line integrals, again and again."""
        shape = (AT_ONCE, n_rows, self.image_shape[1])
        kept = getattr(self._scratch, "room", None)
        if kept is None or kept.shape != shape:
            self._scratch.room = kept = np.empty(shape, np.float32)
        return kept

    def _prepare(self, places: Places, each: Each | None = None) -> Prepared:
        """Do with raw frames what concerns more than their rows."""
        images = [self.window.image(place) for place in places]
        positions = [self.window.indices[place] for place in places]
        return self._rooms.preprocessor.prepare(
            images, self.references, positions, each=each or self.grids.map
        )

    def line_integrals(
        self, places: Places, rows: tuple[int, int], each: Each = map
    ) -> NDArray[np.float32]:
        """Return some projections' rows ``[angle, row, column]`` once more.

        ``each`` may be the slabs' threads only where none of them calls: they would
        wait for themselves.
        """
        return self._prepare(places, each).rows(rows)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Rows and columns of a projection."""
        return self._total.shape[0], self._total.shape[1]

    def reset(
        self, rotation_center: float, references: References | None = None
    ) -> None:
        """Empty the grids; the next settle adds everything anew.

        New references also make new line integrals, so sums over them start anew.
        """
        self.grids.reset(rotation_center)
        self.window.applied[:] = 0
        audit.reset(self.window)
        if references is not None:
            self.references = references
            self._center_values.clear()
            self._forget_sums()

    def hold(self, slabs: range) -> None:
        """Go on with other slabs: the next settle adds everything to theirs."""
        self._is_first_pass = False
        self.grids.hold(slabs)
        self.window.applied[:] = 0
        audit.reset(self.window)
        self._forget_sums()

    def _forget_sums(self) -> None:
        self.window.summed[:] = False
        self._total[:] = 0

    def balance_halves(self) -> None:
        """Move projections between the halves where that makes them more alike.

        A + B stays as it is.
        """
        half = self.window.half
        half[:] = rebalanced(self.window.theta, half, self._period)
        self.settle()

    def rings(self) -> Rings | None:
        """Return what every angle sees alike; None where it is not removed."""
        n_summed = int(self.window.summed.sum())
        if self._rooms.rings is None or not n_summed:
            return None
        mean = (self._total / n_summed).astype(np.float32)
        profile = self._rooms.rings.profile(mean)
        return Rings(profile, self.window.theta, self.window.applied)

    @property
    def center_theta(self) -> NDArray[np.float64]:
        """rad, of the projections in `center_rows`."""
        return self.window.theta[self._center_values.places]

    def sample_rows(self, n: int) -> NDArray[np.float32]:
        """Return the rows of `center_rows` of at most ``n`` projections, evenly."""
        return self._center_values.every(-(-len(self._center_values.places) // n))

    def center_rows(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return some rows' line integrals ``[angle, row, column]``, and theta, rad."""
        return self._center_values.every(), self.center_theta

    def _retract(self, place: int) -> None:
        places = np.array([place])
        theta, half = self.window.theta[place], self.window.half[place]
        self._split.remove(float(theta), int(half))
        if self.window.applied[place].any():
            self._add(places, -self.window.applied[places])
            self.window.applied[place] = 0
        if self.window.summed[place]:
            self.window.summed[place] = False
            prepared = self._prepare(places)
            for slab in self.grids.held:
                rows = self.grids.ranges[slab]
                prepared.rows(rows, total=self._total, signs=[-1])
        self._center_values.remove(place)
