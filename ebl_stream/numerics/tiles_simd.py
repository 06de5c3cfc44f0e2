"""Tiles by the vector kernels: the fast backend."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics.aligned import LINE, aligned_zeros
from ebl_stream.numerics.fan import Common, nothing
from ebl_stream.numerics.fourier_plan import EDGE_COLUMNS, Footprint, FourierPlan
from ebl_stream.numerics.lane_fft import plan_fft
from ebl_stream.numerics.simd import LANES, WIDTH
from ebl_stream.numerics.slice_kernels import (
    SIDE_BY_SIDE,
    transform_columns,
    transform_rows,
)
from ebl_stream.numerics.spoke_kernels import CHUNK, filter_spokes, spread_spokes

_NOTHING = (np.empty(0, np.float32), *nothing())

ANGLES = 32
"""Projections that are filtered before they are spread."""


class _Workspace:
    """Buffers that one thread needs for a plan; those of a look only when asked for."""

    def __init__(self, plan: FourierPlan) -> None:
        self._plan = plan
        length = max(plan.n_padded, plan.n_grid)
        self.block = aligned_zeros((LANES * WIDTH,))
        self.a, self.b = (aligned_zeros((length * WIDTH,)) for _ in range(2))

    @functools.cached_property
    def spokes(self) -> NDArray[np.float32]:
        return aligned_zeros((_spoke_floats(self._plan),))

    @functools.cached_property
    def several(self) -> NDArray[np.float32]:
        return aligned_zeros((SIDE_BY_SIDE * self._plan.n_grid * WIDTH,))

    @functools.cached_property
    def rows(self) -> NDArray[np.float32]:
        return aligned_zeros((self._plan.n_grid * _row_stride(self._plan) * WIDTH,))


def _spoke_floats(plan: FourierPlan) -> int:
    n_chunks = -(-plan.n_frequencies // CHUNK)
    return ANGLES * n_chunks * CHUNK * WIDTH


def _row_stride(plan: FourierPlan) -> int:
    # Not a power of two: lines a power of two apart share a place in the cache.
    return plan.n_columns + 5


class _Tables:
    """What the kernels look up for a plan, and workspaces that are not in use."""

    def __init__(self, plan: FourierPlan) -> None:
        half = plan.n_padded // 2
        turn = np.exp(-2j * np.pi * np.arange(half) / plan.n_padded)
        self.turn = turn.astype(np.complex64)
        self.padded, self.grid = plan_fft(half), plan_fft(plan.n_grid)
        self._plan = plan
        self._lock = threading.Lock()
        self._free: list[_Workspace] = []

    def reserve(self, count: int) -> None:
        """Have ``count`` workspaces, with all their memory really there."""
        with self._lock:
            while len(self._free) < count:
                self._free.append(_Workspace(self._plan))
            for work in self._free[-count:]:
                _ = work.spokes, work.several, work.rows

    @contextmanager
    def workspace(self) -> Iterator[_Workspace]:
        """Lend a workspace; the one used last is warm in the cache."""
        with self._lock:
            lent = self._free.pop() if self._free else None
        lent = lent or _Workspace(self._plan)
        try:
            yield lent
        finally:
            with self._lock:
                self._free.append(lent)


@functools.lru_cache(maxsize=4)
def _tables(plan: FourierPlan) -> _Tables:
    return _Tables(plan)


class _Memory:
    """Memory of an array as NumPy's array interface describes it, to be written."""

    def __init__(self, array: NDArray[np.float32], size: int) -> None:
        self.array = array
        self.__array_interface__: dict[str, Any] = {
            "shape": (size,),
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "version": 3,
        }


def _flat(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return all memory that a strided array spans, (float,).

    One type for all layouts and for read-only arrays means one compilation.
    """
    reach = sum(
        (n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)
    )
    return np.asarray(_Memory(array, reach // array.itemsize + 1))


def add(
    plan: FourierPlan,
    grids: Sequence[NDArray[np.float32]],
    values: NDArray[np.float32],
    response: NDArray[np.complex64],
    footprint: Footprint,
    shares: NDArray[np.float32],
) -> None:
    """Filter projections of one tile and spread them onto its grids.

    Parameters
    ----------
    plan : FourierPlan
    grids : sequence of ndarray, (float,)
        One or two, flat.
    values : ndarray, [angle, row, column]
        At most 32 rows; columns side by side in memory.
    response : ndarray, (frequency,)
        The spokes' filter.
    footprint : Footprint
    shares : ndarray, [grid, angle]
        Weights, rad.
    """
    with _tables(plan).workspace() as work:
        for k in range(0, len(values), ANGLES):
            n_angles = min(ANGLES, len(values) - k)
            some = slice(k, k + n_angles)
            _filter(plan, values[some], response, work)
            for grid, share in zip(grids, shares, strict=True):
                if share[some].any():
                    spread_spokes(
                        grid,
                        plan.stride,
                        work.spokes,
                        footprint.corner[some],
                        footprint.fraction[some],
                        plan.table,
                        share[some],
                    )


def _filter(
    plan: FourierPlan,
    values: NDArray[np.float32],
    response: NDArray[np.complex64],
    work: _Workspace,
) -> None:
    """Fill ``work.spokes``, ``[chunk, angle, sample]``."""
    tables = _tables(plan)
    n_angles, n_rows, n_columns = values.shape
    filter_spokes(
        _flat(values),
        (0, values.strides[0] // 4, values.strides[1] // 4, n_rows),
        n_angles,
        n_columns,
        plan.edge_blend,
        min(EDGE_COLUMNS, n_columns),
        tables.turn,
        *tables.padded,
        response,
        work.block,
        work.a,
        work.b,
        work.spokes,
    )


def _gathered(
    plan: FourierPlan, less: Common | None, work: _Workspace
) -> tuple[NDArray[Any], ...]:
    """Return the spoke that is taken away, and where it goes; or empty arrays."""
    if less is None:
        return _NOTHING
    _filter(plan, less.profile[None], less.fan.response, work)
    # A single spoke's chunks lie side by side.
    return (work.spokes[: plan.n_frequencies * WIDTH], *less.fan.table())


def slices(
    plan: FourierPlan,
    grids: Sequence[NDArray[np.float32]],
    signs: Sequence[float],
    response: NDArray[np.complex64],
    out: NDArray[np.float32],
    less: Common | None = None,
) -> None:
    """Transform the signed sum of one tile's grids to slices.

    Parameters
    ----------
    plan : FourierPlan
    grids : sequence of ndarray, (float,)
        One or two, flat.
    signs : sequence of float
        The first is 1.
    response : ndarray, (stride,) or [kx, ky]
        What the stored grid is multiplied with, see `FourierPlan.grid_response`.
    out : ndarray, [row, y, x]
        At most 32 rows; x side by side in memory.
    less : Common, optional
        Is taken away: what every projection has too much.
    """
    tables = _tables(plan)
    both = (grids[0], grids[-1])
    slice_stride, y_stride = out.strides[0] // 4, out.strides[1] // 4
    whole_lines = plan.n_columns % LANES == 0 and out.strides[1] % LINE == 0
    aligned = whole_lines and out.ctypes.data % LINE == out.strides[0] % LINE == 0
    with tables.workspace() as work:
        transform_rows(
            both,
            np.asarray(signs, np.float32),
            _gathered(plan, less, work),
            (plan.n_grid, plan.taps),
            response.reshape(-1),
            plan.n_columns,
            *tables.grid,
            work.a,
            work.b,
            work.rows,
            _row_stride(plan),
        )
        transform_columns(
            work.rows,
            _row_stride(plan),
            plan.n_grid,
            plan.deapodization,
            *tables.grid,
            work.several,
            work.a,
            work.b,
            _flat(out),
            (slice_stride, y_stride, len(out), aligned),
        )


def reserve(plan: FourierPlan, n_threads: int) -> None:
    """Take scratch memory for so many threads, so that the first call is no slower."""
    _tables(plan).reserve(n_threads)


def release() -> None:
    """Free the scratch memory that is kept for the next call."""
    _tables.cache_clear()
