"""Tiles by SciPy and plain compiled loops: where the vector kernels do not run.

Same layout, same footprints, same results but for rounding; a few times slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ebl_stream.numerics.fan import Common
from ebl_stream.numerics.fourier_plan import EDGE_COLUMNS, Footprint, FourierPlan
from ebl_stream.numerics.kernel_cache import kernel

LANES = 16


def add(
    plan: FourierPlan,
    grids: Sequence[NDArray[np.float32]],
    values: NDArray[np.float32],
    response: NDArray[np.complex64],
    footprint: Footprint,
    shares: NDArray[np.float32],
) -> None:
    """Filter projections of one tile and spread them, see `tiles_simd.add`."""
    for k, projection in enumerate(values):
        spoke = _spoke(plan, projection, response)
        for grid, share in zip(grids, shares, strict=True):
            if share[k] != 0:
                _spread(
                    grid,
                    plan.stride,
                    spoke,
                    footprint.corner[k],
                    footprint.fraction[k],
                    plan.table,
                    share[k],
                )


def _spoke(
    plan: FourierPlan,
    projection: NDArray[np.float32],
    response: NDArray[np.complex64],
) -> NDArray[np.float32]:
    """Filter one projection, ``[frequency, lane of the tile]``."""
    padded = np.zeros((2 * LANES, plan.n_padded), np.float32)
    padded[: len(projection), : plan.n_columns] = projection
    if plan.padding == "edge":
        n_edge = min(EDGE_COLUMNS, plan.n_columns)
        left = projection[:, :n_edge].mean(1, keepdims=True)
        right = projection[:, -n_edge:].mean(1, keepdims=True)
        blend = left + (right - left) * plan.edge_blend
        padded[: len(projection), plan.n_columns :] = blend
    pairs = padded[0::2] + 1j * padded[1::2]
    spectrum = np.asarray(scipy.fft.fft(pairs, axis=1))
    half = plan.n_padded // 2
    ordered = np.concatenate([spectrum[:, half:], spectrum[:, : half + 1]], axis=1)
    ordered = (ordered * response).T
    return np.concatenate([ordered.real, ordered.imag], axis=1)


@kernel()
def _spread(grid, stride, spoke, corner, fraction, table, share):  # type: ignore[no-untyped-def]
    """Add one spoke to a tile's flat grid."""
    taps, n_lanes = table.shape[1], spoke.shape[1]
    for n in range(spoke.shape[0]):
        row_x, row_y = fraction[n, 0], fraction[n, 1]
        for i in range(taps):
            value_x = table[row_x, i] * share
            at = (np.int64(corner[n]) + i * stride) * n_lanes
            for j in range(taps):
                value = value_x * table[row_y, j]
                for lane in range(n_lanes):
                    grid[at + j * n_lanes + lane] += value * spoke[n, lane]


def slices(
    plan: FourierPlan,
    grids: Sequence[NDArray[np.float32]],
    signs: Sequence[float],
    response: NDArray[np.complex64],
    out: NDArray[np.float32],
    less: Common | None = None,
) -> None:
    """Transform the signed sum of one tile's grids, see `tiles_simd.slices`."""
    shape = (plan.stride, plan.stride, 2, LANES)
    total = np.zeros(shape, np.float32)
    for grid, sign in zip(grids, signs, strict=True):
        total += np.float32(sign) * grid.reshape(shape)
    if less is not None:
        spoke = _spoke(plan, less.profile, less.fan.response)
        _take_away(total.reshape(-1, 2 * LANES), spoke, *less.fan.table())
    if response.ndim == 1:
        response = np.outer(response, response)
    spectrum = (total[:, :, 0] + 1j * total[:, :, 1]) * response[:, :, None]
    pixel = (np.arange(plan.n_columns) - plan.n_columns // 2) % plan.n_grid
    scale = plan.deapodization[:, None]
    image = np.asarray(spectrum)
    for axis in (1, 0):
        folded = _fold(plan, image, axis)
        image = np.asarray(scipy.fft.ifft(folded, axis=axis, norm="forward"))
        image = np.take(image, pixel, axis=axis)
        image = image * (scale if axis == 1 else scale[:, None])
    lanes = np.stack([image.real, image.imag], axis=-1).reshape(*image.shape[:2], -1)
    out[...] = lanes.transpose(2, 1, 0)[: len(out)]


@kernel()
def _take_away(total, spoke, nearest, count, coefficient):  # type: ignore[no-untyped-def]
    """Take a spoke that is the same at all angles from a tile's grid points."""
    middle = spoke.shape[0] // 2
    for point in range(total.shape[0]):
        for side in range(2):
            step = 1 - 2 * side
            for i in range(count[side, point]):
                sample = middle + step * (nearest[point] + i)
                for lane in range(total.shape[1]):
                    value = coefficient[side, point, i] * spoke[sample, lane]
                    total[point, lane] -= value


def _fold(plan: FourierPlan, stored: NDArray[Any], axis: int) -> NDArray[Any]:
    """Add the margin of one axis to where it belongs on the periodic grid."""
    moved = np.moveaxis(stored, axis, 0)
    first, last = plan.margin, plan.margin + plan.n_grid
    folded = moved[first:last].copy()
    folded[: plan.stride - last] += moved[last:]
    folded[plan.n_grid - first :] += moved[:first]
    return np.moveaxis(folded, 0, axis)


def reserve(plan: FourierPlan, n_threads: int) -> None:
    """Take nothing: nothing is kept."""


def release() -> None:
    """Free nothing: nothing is kept."""
