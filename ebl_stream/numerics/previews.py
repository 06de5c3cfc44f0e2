"""Quick looks into an accumulator: binned volume, single planes; it only reads.

All of them are parts of the volume that `Accumulator.volume` would return at that
moment, and cost a small part of it: the transform is linear, so a plane is a sum
over one frequency and a short transform along the other.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from ebl_stream.numerics.accumulate import Accumulator, grid_response
from ebl_stream.numerics.aligned import aligned_empty
from ebl_stream.numerics.fourier_plan import FEWEST_COLUMNS, FourierPlan
from ebl_stream.numerics.kernel_cache import kernel
from ebl_stream.numerics.tiles import FLOATS, ROWS, tiles
from ebl_stream.numerics.windows import Window, window_response

LANES = FLOATS // 2


@dataclass(frozen=True)
class _BinnedPlan(FourierPlan):
    """The middle of another plan's grid: slices with pixels ``factor`` times wider."""

    n_full_grid: int = 0
    """Of the other plan."""
    factor: int = 2

    full_beta: float = 0.0
    """Of the other plan, whose kernel filled the grid."""

    @property
    def n_grid(self) -> int:
        return self.n_full_grid // self.factor

    @property
    def beta(self) -> float:
        return self.full_beta


def binned(
    accumulator: Accumulator,
    factor: int = 4,
    *,
    window: Window = "shepp_logan",
    shift: float = 0.0,
    first_theta: float = 0.0,
) -> NDArray[np.float32]:
    """Return A + B with voxels ``factor`` times wider in all directions, 1/px.

    Parameters
    ----------
    accumulator : Accumulator
    factor : int
        2 or 4. Rows are averaged in groups of it, the last group may be smaller;
        columns that do not fill a voxel are left out on both sides alike.
    window : str
        Low-pass with its cutoff at the Nyquist frequency of the wide voxels; nothing
        beyond it is kept. ``shepp_logan`` is nearest to the mean over a voxel.
    shift, first_theta : float
        See `Accumulator.volume`.

    Returns
    -------
    ndarray, [z, y, x]

    Raises
    ------
    ValueError
        The factor is neither 2 nor 4, or leaves no pixels.
    """
    plan = accumulator.plan
    n_pixels = plan.n_columns // factor
    if factor not in (2, 4) or n_pixels < FEWEST_COLUMNS:
        raise ValueError(
            f"factor must be 2 or 4 and leave {FEWEST_COLUMNS} pixels, not {factor}"
        )
    small, response = _coarse(plan, factor, window, shift, first_theta)
    first = (plan.n_grid - small.n_grid) // 2
    middle = slice(first, first + small.stride)
    fine = aligned_empty((ROWS, n_pixels, n_pixels))
    # Pages of this buffer are touched once, not once a tile.
    grid = aligned_empty((small.stride, small.stride, FLOATS))
    parts = []
    for tile in range(accumulator.grids.shape[1]):
        np.sum(accumulator.grids[:, tile, middle, middle], axis=0, out=grid)
        n_rows = min(ROWS, accumulator.n_rows - tile * ROWS)
        tiles().slices(small, [grid.reshape(-1)], [1.0], response, fine[:n_rows])
        rows = np.arange(0, n_rows, factor)
        counts = np.minimum(factor, n_rows - rows)
        sums = np.add.reduceat(fine[:n_rows], rows, axis=0)
        parts.append(sums / counts[:, None, None].astype(np.float32))
    return np.concatenate(parts)


@functools.lru_cache(maxsize=2)
def _coarse(
    plan: FourierPlan, factor: int, window: Window, shift: float, first_theta: float
) -> tuple[_BinnedPlan, NDArray[np.complex64]]:
    """Return the plan of wide pixels, and what the middle of the grid is times."""
    small = _BinnedPlan(
        plan.n_columns // factor,
        plan.oversampling,
        plan.taps,
        n_full_grid=plan.n_grid,
        factor=factor,
        full_beta=plan.beta,
    )
    frequency = small.grid_frequency
    radius = np.hypot(frequency[:, None], frequency)
    low_pass = window_response(np.minimum(radius, 0.5), window) * (radius <= 0.5)
    turned = small.grid_response("ramp", shift / factor, first_theta)
    return small, (turned * low_pass).astype(np.complex64)


def plane_z(
    accumulator: Accumulator,
    row: int,
    *,
    window: Window = "ramp",
    shift: float = 0.0,
    first_theta: float = 0.0,
) -> NDArray[np.float32]:
    """Return one slice of A + B, ``[y, x]``, 1/px; other arguments as of `volume`.

    Raises
    ------
    IndexError
        There is no such row.
    """
    plan = accumulator.plan
    _check("row", row, accumulator.n_rows)
    tile, place = divmod(row, ROWS)
    lane = place // 2
    pair = accumulator.grids[:, tile, :, :, lane::LANES].sum(axis=0)
    spectrum = pair[..., 0] + 1j * pair[..., 1]
    spectrum *= grid_response(plan, window, shift, first_theta)
    image = _transform(plan, _transform(plan, spectrum, 1), 0)
    part = image.imag if place % 2 else image.real
    return np.ascontiguousarray(part.T)


def plane_x(
    accumulator: Accumulator,
    index: int,
    *,
    window: Window = "ramp",
    shift: float = 0.0,
    first_theta: float = 0.0,
) -> NDArray[np.float32]:
    """Return the plane x = index of A + B through all rows, ``[row, y]``, 1/px.

    Raises
    ------
    IndexError
        There is no such pixel.
    """
    response = grid_response(accumulator.plan, window, shift, first_theta)
    return _upright(accumulator, index, 0, response)


def plane_y(
    accumulator: Accumulator,
    index: int,
    *,
    window: Window = "ramp",
    shift: float = 0.0,
    first_theta: float = 0.0,
) -> NDArray[np.float32]:
    """Return the plane y = index of A + B through all rows, ``[row, x]``, 1/px.

    Raises
    ------
    IndexError
        There is no such pixel.
    """
    response = grid_response(accumulator.plan, window, shift, first_theta)
    return _upright(accumulator, index, 1, response)


def oblique(
    volume: NDArray[np.float32],
    origin: Sequence[float],
    u: Sequence[float],
    v: Sequence[float],
    shape: tuple[int, int],
) -> NDArray[np.float32]:
    """Return any plane through a volume, whole or `binned`, by linear interpolation.

    Parameters
    ----------
    volume : ndarray, [z, y, x]
    origin : (float, float, float)
        Voxel (z, y, x) of the plane's first pixel; of a binned volume, its voxels.
    u, v : (float, float, float)
        Step (z, y, x) from one pixel to the next, down and to the right.
    shape : (int, int)
        Pixels down and to the right.

    Returns
    -------
    ndarray, [u, v]
        Zero outside of the volume.
    """
    down, right = (np.arange(n)[:, None] for n in shape)
    place = down[:, None] * np.asarray(u, float) + right * np.asarray(v, float)
    place = np.moveaxis(place + np.asarray(origin, float), -1, 0)
    plane = ndimage.map_coordinates(volume, place, order=1, output=np.float32)
    return np.asarray(plane, np.float32)


def _check(name: str, index: int, size: int) -> None:
    if not 0 <= index < size:
        raise IndexError(f"{name} {index} is not within 0 and {size - 1}")


def _upright(
    accumulator: Accumulator,
    index: int,
    axis: Literal[0, 1],
    response: NDArray[np.complex64],
) -> NDArray[np.float32]:
    """Sum over the frequencies of one axis, then transform along the other."""
    plan = accumulator.plan
    _check("xy"[axis], index, plan.n_columns)
    wave = plan.grid_frequency * (index - plan.n_columns // 2)
    # The grid's zero frequency is in its middle, see `FourierPlan.deapodization`.
    phase = np.exp(2j * np.pi * wave) * np.abs(plan.deapodization[index])
    parts = []
    for tile in range(accumulator.grids.shape[1]):
        line = np.zeros((plan.stride, FLOATS), np.float32)
        for grid in accumulator.grids:
            _collapse(grid[tile], response, phase.astype(np.complex64), axis, line)
        spectrum = line[:, :LANES] + 1j * line[:, LANES:]
        image = _transform(plan, spectrum, 0)
        pairs = np.stack([image.real, image.imag], axis=2)
        parts.append(pairs.reshape(plan.n_columns, ROWS).T)
    return np.concatenate(parts)[: accumulator.n_rows].astype(np.float32)


def _transform(
    plan: FourierPlan, stored: NDArray[np.complexfloating], axis: Literal[0, 1]
) -> NDArray[np.complex64]:
    """Transform one axis of the stored grid to pixels, and undo the kernel there."""
    moved = np.moveaxis(np.asarray(stored, np.complex64), axis, -1)
    first, last = plan.margin, plan.margin + plan.n_grid
    folded = moved[..., first:last].copy()
    folded[..., : plan.stride - last] += moved[..., last:]
    folded[..., plan.n_grid - first :] += moved[..., :first]
    image = np.asarray(scipy.fft.ifft(folded, axis=-1, norm="forward"))
    pixel = (np.arange(plan.n_columns) - plan.n_columns // 2) % plan.n_grid
    image = np.take(image, pixel, axis=-1) * plan.deapodization
    return np.moveaxis(np.asarray(image, np.complex64), -1, axis)


@kernel(fastmath=True)
def _collapse(grid, response, phase, axis, line):  # type: ignore[no-untyped-def]
    """Add to ``line[frequency, lane]`` the sum over the frequencies of ``axis``."""
    stride, half = phase.size, line.shape[1] // 2
    for i in range(stride):
        for j in range(stride):
            along, across = (i, j) if axis == 0 else (j, i)
            factor = response[i, j] * phase[along]
            c, s = factor.real, factor.imag
            for lane in range(half):
                re, im = grid[i, j, lane], grid[i, j, half + lane]
                line[across, lane] += re * c - im * s
                line[across, half + lane] += re * s + im * c


def oblique_frame(
    normal: ArrayLike,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return unit steps ``u`` and ``v`` (z, y, x) of the plane with this normal.

    ``v`` lies in a slice, so that it is level on the screen.

    Raises
    ------
    ValueError
        The normal has no direction.
    """
    n = np.asarray(normal, np.float64)
    length = np.linalg.norm(n)
    if not length > 0:
        raise ValueError("the normal of a plane must not be zero")
    n = n / length
    level = np.array([0.0, n[2], -n[1]])
    # A plane seen along z has no level of its own.
    v = level / np.linalg.norm(level) if level.any() else np.array([0.0, 0.0, 1.0])
    return np.cross(n, v), v
