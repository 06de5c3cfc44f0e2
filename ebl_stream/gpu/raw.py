"""The accumulation fed with what the detector counted: all work is the device's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ebl_stream.gpu.accumulator import GpuAccumulator, checked
from ebl_stream.gpu.ring import Slot
from ebl_stream.numerics.fourier_plan import Footprint


class RawGpuAccumulator(GpuAccumulator):
    """A `GpuAccumulator` that also takes raw counts.

    Flat field, logarithm and the sum for the ring profile are part of the first
    kernel, so that a projection travels in the detector's dtype: half the bytes or
    less.
    """

    _reserved: Slot | None = None

    def reset(self, rotation_center: float | None = None) -> None:
        """Forget everything that was added, and perhaps move the rotation center."""
        references = self._spreader.references
        if references is not None:
            with self._memory.work:
                self._memory.device.clear(references.total)
        super().reset(rotation_center)

    def set_references(
        self, dark: ArrayLike, flat: ArrayLike, *, clip: float = 1e-5
    ) -> None:
        """Set what `add_raw` makes line integrals with.

        Parameters
        ----------
        dark, flat : ndarray, [row, column]
            Mean counts without and with beam.
        clip : float
            Smallest transmission; less counts as this.

        Raises
        ------
        ValueError
            Shapes do not match, or pixels see no beam: preprocess such projections
            on the host and `add` them.
        """
        shape = (self.n_rows, self.plan.n_columns)
        dark_ = np.ascontiguousarray(dark, np.float32)
        beam = np.ascontiguousarray(np.subtract(flat, dark), np.float32)
        if dark_.shape != shape or beam.shape != shape:
            raise ValueError(f"dark and flat must be {shape}, not {dark_.shape}")
        n_dead = np.count_nonzero(~(np.isfinite(beam) & (beam > 0)))
        if n_dead:
            raise ValueError(f"{n_dead} pixels see no beam (flat <= dark)")
        self._spreader.set_references(dark_, beam, float(clip))

    def add_raw(
        self,
        raw: NDArray[Any],
        theta: ArrayLike,
        shares: ArrayLike,
        *,
        footprint: Footprint | None = None,
        in_total: bool = True,
    ) -> None:
        """Add what the detector counted; flat field and logarithm are the device's.

        Parameters
        ----------
        raw : ndarray, [angle, row, column]
            uint8, uint16 or float32.
        theta, shares, footprint
            See `add`.
        in_total : bool
            Add the line integrals to `total`: when a projection comes, but not when
            it is taken back or its shares change.

        Raises
        ------
        ValueError
            There are no references, another dtype came, or shapes do not match.
        """
        self._spreader.raw_kernel(raw.dtype)
        self._add(raw, theta, shares, footprint, raw=True, in_total=in_total)

    def reserve(self, dtype: DTypeLike) -> NDArray[Any]:
        """Return pinned memory ``[batch, row, column]`` for raw projections.

        What a reader writes there is not copied again on the host. `add_reserved`
        adds it; what is not added by then is forgotten.
        """
        self._spreader.raw_kernel(np.dtype(dtype))
        self._reserved = self._spreader.ring(np.dtype(dtype)).acquire()
        return self._reserved.host["frames"]

    def add_reserved(
        self,
        theta: ArrayLike,
        shares: ArrayLike,
        *,
        footprint: Footprint | None = None,
        in_total: bool = True,
    ) -> None:
        """Add the first projections of what `reserve` returned, one for each theta.

        Raises
        ------
        ValueError
            Nothing is reserved, or more is added than was.
        """
        slot, (angles, parts) = self._reserved, checked(theta, shares)
        if slot is None or len(angles) > self.layout.batch:
            room = 0 if slot is None else self.layout.batch
            raise ValueError(f"{len(angles)} angles, but {room} are reserved")
        self._reserved = None
        if footprint is None:
            footprint = self.plan.footprint(angles)
        self._spreader.spread(slot, footprint, parts, raw=True, in_total=in_total)

    def total(self) -> NDArray[np.float64]:
        """Return the sum of the line integrals that came raw, ``[row, column]``."""
        total = np.zeros((self.n_rows, self.plan.n_columns))
        if self._spreader.references is not None:
            with self._memory.work:
                source = self._spreader.references.total
                self._memory.device.download(total, source)
            self.synchronize()
        return total
