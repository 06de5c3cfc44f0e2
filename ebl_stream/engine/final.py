"""The final volume, where the profile asks for more than can be had live.

Some stages need all angles of a row at once, and some backends the whole scan. They
work when the last projection is in, on line integrals that are made once more from
the window, slab by slab.
"""

from __future__ import annotations

import math
import os
import tempfile

import numpy as np
from numpy.typing import NDArray

from ebl_stream.engine.projections import ProjectionSum
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.schedule import BLOCK
from ebl_stream.stages.preprocess.rings import sinogram_order


class FinalPass:
    """Make the slabs of one run's final volume.

    Parameters
    ----------
    projections : ProjectionSum
        Settled: all projections stand in the grids with their final weights.
    rooms : Rooms
    rings : bool
        Whether what every angle sees alike is taken away.
    """

    def __init__(
        self, projections: ProjectionSum, rooms: Rooms, *, rings: bool
    ) -> None:
        self._projections = projections
        self._rooms = rooms
        self._order = sinogram_order(projections.window.theta)
        self.theta = projections.window.theta[self._order]
        """rad, (angle,), of what `sinograms` returns."""
        self._rings = projections.rings() if rings else None
        self._whole = self._spool() if rooms.preprocessor.whole_frame else None

    def refill_grids(self) -> None:
        """Let the grids hold projections that the whole-sinogram stages have seen."""
        if not self._rooms.final:
            return
        grids = self._projections.grids
        theta = self.theta
        shares = self._projections.window.applied[self._order]

        def one(slab: int) -> None:
            values = self.sinograms(slab)
            grids.empty(slab)
            for start in range(0, len(theta), BLOCK):
                some = slice(start, start + BLOCK)
                footprint = grids.footprint(theta[some])
                grids.add(slab, values[some], theta[some], shares[some], footprint)

        grids.each(one)

    def volume(
        self, slab: int, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return a slab as the profile's backend makes it, ``[z, y, x]``, 1/px."""
        backend = self._rooms.backend
        assert backend is not None  # noqa: S101  (whoever calls has looked)
        grids = self._projections.grids
        wide = grids.field.spread(self.sinograms(slab))
        if grids.field.offset:
            # A ray and its opposite share one weight.
            wide = wide * np.float32(2)
        center = grids.field.to_field(grids.rotation_center)
        volume = backend(wide, self.theta, center)
        if out is None:
            return volume
        out[:] = volume
        return out

    def sinograms(self, slab: int) -> NDArray[np.float32]:
        """Return a slab's line integrals ``[angle, row, column]``, angles in order."""
        rows = self._projections.grids.ranges[slab]
        if self._whole is not None:
            values = np.array(self._whole[:, slice(*rows)])
        else:
            values = np.concatenate(
                [self._projections.line_integrals(p, rows) for p in self._blocks()]
            )
        if self._rings is not None:
            values -= self._rings.profile[slice(*rows)]
        for stage in self._rooms.final:
            values = stage(values, self._projections.references)
        return values

    def _blocks(self) -> list[NDArray[np.intp]]:
        n = math.ceil(len(self._order) / BLOCK)
        return np.array_split(self._order, n)

    def _spool(self) -> NDArray[np.float32]:
        """Return all line integrals, in a file: whole frames are worked on once."""
        shape = self._projections.image_shape
        with tempfile.TemporaryFile(prefix="ebl_stream-") as file:
            # A full disk is an error now, not the end of the process later.
            os.posix_fallocate(
                file.fileno(), 0, 4 * len(self._order) * math.prod(shape)
            )
            whole = np.memmap(file, np.float32, "w+", shape=(len(self._order), *shape))
        start = 0
        for places in self._blocks():
            stop = start + len(places)
            whole[start:stop] = self._projections.line_integrals(
                places, (0, shape[0]), self._projections.grids.map
            )
            start = stop
        return whole
