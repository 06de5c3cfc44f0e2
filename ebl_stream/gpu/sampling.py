"""Where a look samples the slices: every pixel, or voxels of several."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics.fourier_plan import FourierPlan
from ebl_stream.numerics.windows import Window, window_response


@dataclass(frozen=True)
class Sampling:
    """Sizes of a look and what the grid is multiplied with."""

    n_out: int
    """Grid points along each axis that are transformed, even."""
    n_slice: int
    """Voxels along each side of a slice."""
    first: int
    """Index on the stored grid where ``response`` begins, both axes; 0: it is all."""
    response: NDArray[np.complex64]
    """``[kx, ky]``"""
    deapodization: NDArray[np.float32]
    """(n_slice,)"""


def every_pixel(
    plan: FourierPlan, window: Window, shift: float, first_theta: float
) -> Sampling:
    """Return the sampling of `FourierPlan` itself; see its `grid_response`."""
    response = plan.grid_response(window, shift, first_theta)
    return Sampling(plan.n_grid, plan.n_columns, 0, response, plan.deapodization)


def binned(
    plan: FourierPlan, factor: int, window: Window, shift: float, first_theta: float
) -> Sampling:
    """Return a sampling whose voxels are about ``factor`` px wide.

    Only the middle of the grid is transformed. The window's cutoff is the coarser
    sampling's. Voxels are ``plan.n_grid / n_out`` px wide, exactly, and lie about
    the axis as pixels do.

    Raises
    ------
    ValueError
        The factor leaves nothing.
    """
    n_out = 2 * round(plan.n_grid / factor / 2)
    if factor < 2 or n_out < 4:
        raise ValueError(f"factor must be from 2 to {plan.n_grid // 4}, not {factor}")
    voxel = plan.n_grid / n_out
    n_slice = max(int(plan.n_columns / voxel + 1e-9), 1)
    first = plan.margin + (plan.n_grid - n_out) // 2
    some = slice(first, first + n_out)
    # Instead of the phase that puts pixels about the axis, the one for voxels.
    frequency = plan.grid_frequency[some]
    middle = n_slice // 2 - (n_slice - 1) / 2
    phase = np.exp(2j * np.pi * frequency * middle * voxel)
    phase /= plan.origin_phase[some]
    radius = np.minimum(np.hypot(frequency[:, None], frequency) * voxel, 0.5)
    response = plan.grid_response("ramp", shift, first_theta)[some, some]
    response = response * phase[:, None] * phase * window_response(radius, window)
    return Sampling(
        n_out,
        n_slice,
        first,
        response.astype(np.complex64),
        _coarse(plan, n_slice, voxel),
    )


def _coarse(plan: FourierPlan, n_slice: int, voxel: float) -> NDArray[np.float32]:
    """Return the de-apodization, which is smooth, at the middles of voxels."""
    pixel = (np.arange(n_slice) - (n_slice - 1) / 2) * voxel
    fine = np.arange(plan.n_columns) - (plan.n_columns - 1) / 2
    size = np.interp(pixel, fine, np.abs(plan.deapodization))
    sign = 1 - 2 * ((np.arange(n_slice) - n_slice // 2) % 2)
    return (sign * size).astype(np.float32)
