"""How much of what a slab needs on the GPU: said before any of it is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ebl_stream.numerics.fourier_plan import FourierPlan

Shapes: TypeAlias = dict[str, tuple[tuple[int, ...], type]]
"""Shape and dtype of arrays, by name."""

ENOUGH_PAIRS = 64
"""Of a chunk; more would only take memory."""


@dataclass(frozen=True)
class Layout:
    """Arrays of one `GpuAccumulator`.

    Parameters
    ----------
    plan : FourierPlan
        Of the projections.
    n_rows : int
        Detector rows of the slab.
    halves : bool
        Two grids, or one.
    batch : int
        Projections that are uploaded, transformed and spread together.
    n_slots : int
        Batches that may be under way between the host and the device.
    look_bytes : int
        What a look may take beside the grids. It works through the slab in chunks
        of row pairs, at least one.

    Raises
    ------
    ValueError
        A setting is out of range.
    """

    plan: FourierPlan
    n_rows: int
    halves: bool = True
    batch: int = 16
    n_slots: int = 3
    look_bytes: int = 8 * 2**30

    def __post_init__(self) -> None:
        if self.n_rows < 1:
            raise ValueError(f"n_rows must be 1 or more, not {self.n_rows}")
        if not 1 <= self.batch <= 1024:
            raise ValueError(f"batch must be from 1 to 1024, not {self.batch}")
        if self.n_slots < 2:
            raise ValueError(f"n_slots must be 2 or more, not {self.n_slots}")

    @property
    def n_pairs(self) -> int:
        """Row pairs: two slices are one complex grid."""
        return (self.n_rows + 1) // 2

    @property
    def chunk(self) -> int:
        """Row pairs of one step of a look."""
        n, m = self.plan.n_columns, self.plan.n_grid
        # The plane and the turned one, cuFFT's work areas, two buffers of slices.
        per_pair = 16 * (m * m + m * n + n * n)
        fitting = self.look_bytes // per_pair
        # Whole warps read the grid at full speed.
        fitting = fitting // 32 * 32 if fitting >= 32 else max(fitting, 1)
        return int(min(fitting, ENOUGH_PAIRS, self.n_pairs))

    @property
    def resident(self) -> Shapes:
        """Arrays that stay on the device, but for slots."""
        plan, stride = self.plan, self.plan.stride
        n, m = plan.n_columns, plan.n_grid
        return {
            "grid": ((1 + self.halves, stride, stride, self.n_pairs), np.complex64),
            "spectrum": ((self.batch, self.n_pairs, plan.n_padded), np.complex64),
            "factor": ((plan.n_frequencies,), np.complex64),
            "table": (plan.table.shape, np.float32),
            "edge_blend": (plan.edge_blend.shape, np.float32),
            "deapodization": ((n,), np.float32),
            "response": ((stride, stride), np.complex64),
            "coarse_response": ((m // 2 + 2, m // 2 + 2), np.complex64),
            "coarse_deapodization": ((n,), np.float32),
            "plane": ((self.chunk, m, m), np.complex64),
            "turned": ((self.chunk, n, m), np.complex64),
            "slices": ((2, 2 * self.chunk, n, n), np.float32),
        }

    def slot(self, frames: type) -> Shapes:
        """Return the arrays of one slot, on the host and again on the device.

        Parameters
        ----------
        frames : type
            NumPy type of the projections: float32 line integrals or raw counts.
        """
        per_sample = (self.batch, self.plan.n_frequencies)
        return {
            "frames": ((self.batch, self.n_rows, self.plan.n_columns), frames),
            "corner": (per_sample, np.int32),
            "fraction": ((*per_sample, 2), np.uint16),
            "shares": ((self.batch, 2), np.float32),
        }

    def device_bytes(self, frames: type = np.float32) -> int:
        """Return the bytes that are taken on the device, all in all.

        cuFFT's work areas are counted as large as what they transform, which is the
        most seen for lengths without prime factors above 5.
        """
        transforms = {k: self.resident[k] for k in ("spectrum", "plane", "turned")}
        slots = self.n_slots * _bytes(self.slot(frames))
        return _bytes(self.resident) + _bytes(transforms) + slots

    def pinned_bytes(self, frames: type = np.float32) -> int:
        """Return the bytes of pinned memory on the host."""
        return self.n_slots * _bytes(self.slot(frames))

    @property
    def grid_bytes(self) -> int:
        """Bytes of the grids alone."""
        return _bytes({"grid": self.resident["grid"]})


def _bytes(shapes: Shapes) -> int:
    return sum(math.prod(s) * np.dtype(t).itemsize for s, t in shapes.values())
