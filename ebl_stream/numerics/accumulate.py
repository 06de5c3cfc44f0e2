"""Split-half Fourier accumulation: FBP that is always up to date.

A projection is filtered and spread onto the oversampled 2-D Fourier grid of each
slice the moment it arrives, see `fourier_plan`. What is left after the last angle is
one inverse FFT per slice. Two grids, A and B, share the projections: the volume is
A + B, the noise map A - B.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebl_stream.numerics.aligned import aligned_empty, aligned_zeros
from ebl_stream.numerics.fan import Common, check_common
from ebl_stream.numerics.fourier_plan import Footprint, FourierPlan
from ebl_stream.numerics.tiles import FLOATS, ROWS, tiles
from ebl_stream.numerics.windows import Window


class Accumulator:
    """Fourier grids of one slab, to which projections are added with a weight.

    Geometry: p(theta, s) is the integral along x cos(theta) + y sin(theta) = s with
    s = column - rotation_center; pixel (y, x) of a slice lies at
    (x - (n_columns - 1) / 2, y - (n_columns - 1) / 2) about the axis.

    One thread at a time may call its methods; different slabs do not share anything
    that is written. The result of a sequence of calls is the same to the last bit,
    whatever runs beside it.

    Parameters
    ----------
    plan : FourierPlan
    n_rows : int
        Detector rows of the slab; memory is taken for the next multiple of 32.
    rotation_center : float
        px, column of the projections.
    halves : bool
        Keep A and B apart. Without, one grid holds both: half the memory, no
        half difference.
    """

    def __init__(
        self,
        plan: FourierPlan,
        n_rows: int,
        rotation_center: float,
        *,
        halves: bool = True,
    ) -> None:
        if n_rows < 1:
            raise ValueError(f"n_rows must be 1 or more, not {n_rows}")
        self.plan = plan
        self.n_rows = n_rows
        self._tiles = tiles()
        n_tiles = -(-n_rows // ROWS)
        shape = (1 + halves, n_tiles, plan.stride, plan.stride, FLOATS)
        self.grids = aligned_zeros(shape)
        """``[half, tile, kx, ky, lane]``, see `tiles`; add with `add` only."""
        # Tables are made here, not while the first projection waits.
        _ = plan.table, plan.deapodization, plan.origin_phase, plan.edge_blend
        self._set_center(rotation_center)

    def _set_center(self, rotation_center: float) -> None:
        self.rotation_center = float(rotation_center)
        self._filter = self.plan.spoke_filter(rotation_center)

    @property
    def halves(self) -> bool:
        """Whether A and B are kept apart."""
        return len(self.grids) == 2

    @property
    def nbytes(self) -> int:
        """Bytes of the grids."""
        return self.grids.nbytes

    def reset(self, rotation_center: float | None = None) -> None:
        """Forget everything that was added; maybe turn about another center then."""
        self.grids.fill(0)
        if rotation_center is not None:
            self._set_center(rotation_center)

    def add(
        self,
        values: NDArray[np.float32],
        theta: ArrayLike,
        shares: ArrayLike,
        *,
        footprint: Footprint | None = None,
    ) -> None:
        """Add projections to the halves; negative shares take them back.

        Parameters
        ----------
        values : ndarray, [angle, row, column]
            Line integrals, 1/px times px.
        theta : array_like, (angle,)
            rad.
        shares : array_like, [angle, 2]
            rad; what is added to A and to B. Zero leaves that half alone.
        footprint : Footprint, optional
            ``plan.footprint(theta)``, where several slabs share it.

        Raises
        ------
        ValueError
            The shapes do not fit.
        """
        angles = np.atleast_1d(np.asarray(theta, np.float64))
        weights = np.atleast_2d(np.asarray(shares, np.float32))
        expected = (len(angles), self.n_rows, self.plan.n_columns)
        if values.shape != expected or weights.shape != (len(angles), 2):
            raise ValueError(
                f"values must be {expected} and shares {(len(angles), 2)}, not "
                f"{values.shape} and {weights.shape}"
            )
        if (
            values.dtype != np.float32
            or values.strides[-1] != 4
            or min(values.strides) < 0
        ):
            values = np.ascontiguousarray(values, np.float32)
        if footprint is None:
            footprint = self.plan.footprint(angles)
        if not self.halves:
            weights = weights.sum(1, keepdims=True)
        per_grid = np.ascontiguousarray(weights.T)
        for tile, rows in self._rows():
            self._tiles.add(
                self.plan,
                [grid[tile].reshape(-1) for grid in self.grids],
                values[:, rows],
                self._filter,
                footprint,
                per_grid,
            )

    def volume(
        self,
        *,
        window: Window = "ramp",
        shift: float = 0.0,
        first_theta: float = 0.0,
        less: Common | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return A + B as slices ``[row, y, x]``, 1/px.

        Parameters
        ----------
        window : str
            Low-pass on top of the ramp.
        shift, first_theta : float
            px and rad; correction of the rotation center, see
            `FourierPlan.grid_response`.
        less : Common, optional
            Is taken away: what every projection has too much, with the weights of
            A + B (in `half_difference` A - B, in `half` A or B).
        out : ndarray, [row, y, x], optional
            Where to write; x side by side in memory.

        Raises
        ------
        ValueError
            ``less`` or ``out`` do not fit.
        """
        response = self._response(window, shift, first_theta)
        return self._slices((1.0, 1.0), response, less, out)

    def half_difference(
        self,
        *,
        window: Window = "ramp",
        shift: float = 0.0,
        first_theta: float = 0.0,
        less: Common | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return A - B, a map of the volume's noise; arguments as of `volume`.

        Raises
        ------
        ValueError
            The halves are not kept apart, or ``less`` or ``out`` do not fit.
        """
        response = self._response(window, shift, first_theta)
        return self._slices((1.0, -1.0), response, less, out)

    def half(
        self,
        which: Literal["a", "b"],
        *,
        window: Window = "ramp",
        shift: float = 0.0,
        first_theta: float = 0.0,
        less: Common | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return A or B alone; arguments and errors as of `half_difference`."""
        response = self._response(window, shift, first_theta)
        signs = (1.0, 0.0) if which == "a" else (0.0, 1.0)
        return self._slices(signs, response, less, out)

    def _response(
        self, window: Window, shift: float, first_theta: float
    ) -> NDArray[np.complex64]:
        if window == "ramp" and shift == 0:
            return self.plan.origin_phase
        return grid_response(self.plan, window, shift, first_theta)

    def _slices(
        self,
        signs: tuple[float, float],
        response: NDArray[np.complex64],
        less: Common | None,
        out: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Transform the signed sum of both halves, minus ``less``."""
        out = self._room(out)
        if not self.halves and signs != (1.0, 1.0):
            raise ValueError("the halves are not kept apart (halves=False)")
        if less is not None:
            check_common(less, self.plan, self.n_rows, self.rotation_center)
        for tile, rows in self._rows():
            terms = self.terms(tile, signs)
            self._tiles.slices(
                self.plan,
                [grid for grid, _ in terms],
                [sign for _, sign in terms],
                response,
                out[rows],
                less and Common(less.profile[rows], less.fan),
            )
        return out

    def terms(
        self, tile: int, signs: Sequence[float]
    ) -> list[tuple[NDArray[np.float32], float]]:
        """Return a tile's flat grids, each with its sign; without those of sign 0."""
        pairs = zip(self.grids, signs, strict=False)
        return [(grid[tile].reshape(-1), sign) for grid, sign in pairs if sign]

    def _room(self, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
        shape = (self.n_rows, self.plan.n_columns, self.plan.n_columns)
        if out is None:
            return aligned_empty(shape)
        if out.shape != shape or out.dtype != np.float32 or out.strides[-1] != 4:
            raise ValueError(
                f"out must be float32 {shape} with x side by side, not {out.dtype} "
                f"{out.shape}"
            )
        return out

    def _rows(self) -> Iterator[tuple[int, slice]]:
        for tile, first in enumerate(range(0, self.n_rows, ROWS)):
            yield tile, slice(first, min(first + ROWS, self.n_rows))


@functools.lru_cache(maxsize=2)
def grid_response(
    plan: FourierPlan, window: Window, shift: float, first_theta: float
) -> NDArray[np.complex64]:
    """Keep the last ones: every slab of a look wants the same."""
    return plan.grid_response(window, shift, first_theta)
