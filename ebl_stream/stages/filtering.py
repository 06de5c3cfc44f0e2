"""Ramp-filtered rows for back-projectors that bring no filter of ours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics.fourier_plan import EDGE_COLUMNS, FourierPlan, Padding
from ebl_stream.numerics.windows import Window, ramp_response, window_response


def filtered_rows(
    values: Any,
    shift: NDArray[np.float64],
    weights: NDArray[np.float64],
    *,
    window: Window = "ramp",
    padding: Padding = "zero",
    xp: Any = np,
) -> Any:
    """Filter rows for FBP, weigh them, and sample them anew beside their columns.

    Parameters
    ----------
    values : ndarray, [..., angle, column] float32
        Line integrals.
    shift : ndarray, (angle,)
        px; what column c of the result shows stood at column c + shift.
    weights : ndarray, (angle,)
        rad, or whatever the back-projector multiplies by what is missing.
    window : str
        Low-pass on top of the ramp.
    padding : str
    xp : module
        NumPy or CuPy, whichever the values belong to.

    Returns
    -------
    ndarray, [..., angle, column] float32
        A back-projector that only adds up makes slices in 1/px of them.
    """
    n = values.shape[-1]
    plan = FourierPlan(n, padding=padding)
    padded = xp.zeros((*values.shape[:-1], plan.n_padded), np.float32)
    padded[..., :n] = values
    if plan.edge_blend.size:
        right = xp.asarray(plan.edge_blend)
        padded[..., n:] = values[..., -EDGE_COLUMNS:].mean(-1, keepdims=True) * right
        left = values[..., :EDGE_COLUMNS].mean(-1, keepdims=True)
        padded[..., n:] += left * (1 - right)
    frequency = np.arange(plan.n_padded // 2 + 1) / plan.n_padded
    response = ramp_response(plan.n_padded)[: frequency.size]
    response = response * window_response(frequency, window)
    turned = np.exp(2j * np.pi * np.outer(shift, frequency))
    turned *= response * weights[:, None]
    spectrum = xp.fft.rfft(padded, axis=-1)
    spectrum *= xp.asarray(turned.astype(np.complex64))
    rows = xp.fft.irfft(spectrum, plan.n_padded, axis=-1)[..., :n]
    return xp.ascontiguousarray(rows, np.float32)
