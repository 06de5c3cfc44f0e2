"""Which kernels work on the tiles: vector kernels, or plain ones where those fail."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import threading
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics import tiles_plain
from ebl_stream.numerics.aligned import aligned_empty, aligned_zeros
from ebl_stream.numerics.fan import Common, Fan
from ebl_stream.numerics.fourier_plan import Footprint, FourierPlan, Padding
from ebl_stream.numerics.windows import ramp_response

CHOICE = "EBL_STREAM_KERNELS"
"""Environment variable: ``simd`` or ``plain``; without it, what works."""

ROWS = 32
"""Slices of a tile."""

FLOATS = 32
"""Of each grid point of a tile: 16 real parts, then 16 imaginary parts."""

log = logging.getLogger(__name__)
_lock = threading.Lock()


class Tiles(Protocol):
    """What a backend does with one tile; see `tiles_simd` for the arguments."""

    def add(
        self,
        plan: FourierPlan,
        grids: Sequence[NDArray[np.float32]],
        values: NDArray[np.float32],
        response: NDArray[np.complex64],
        footprint: Footprint,
        shares: NDArray[np.float32],
    ) -> None:
        """Filter projections and spread them onto the grids."""
        ...

    def slices(
        self,
        plan: FourierPlan,
        grids: Sequence[NDArray[np.float32]],
        signs: Sequence[float],
        response: NDArray[np.complex64],
        out: NDArray[np.float32],
        less: Common | None = None,
    ) -> None:
        """Transform the signed sum of the grids to slices."""
        ...

    def reserve(self, plan: FourierPlan, n_threads: int) -> None:
        """Take scratch memory for so many threads, before it is needed."""
        ...

    def release(self) -> None:
        """Free the scratch memory that is kept for the next call."""
        ...


def tiles() -> Tiles:
    """Return the backend, chosen once: the first call compiles and tests it.

    Raises
    ------
    ValueError
        ``EBL_STREAM_KERNELS`` names no backend.
    """
    with _lock:
        return choose(os.environ.get(CHOICE, ""))


@functools.cache
def choose(choice: str) -> Tiles:
    """Return the backend for a value of ``EBL_STREAM_KERNELS``."""
    if choice not in ("", "simd", "plain"):
        raise ValueError(f"{CHOICE} must be simd or plain, not {choice!r}")
    plain = cast(Tiles, tiles_plain)
    if choice == "plain":
        log.warning("plain kernels, slower: %s asks for them", CHOICE)
        return plain
    try:
        # Imported here: where the vector type cannot be made, the import fails.
        name = "ebl_stream.numerics.tiles_simd"
        vector = cast(Tiles, importlib.import_module(name))
        for padding in ("zero", "edge"):
            for taps in (4, 6):
                self_test(vector, taps, padding)
    except Exception as error:
        if choice == "simd":
            raise
        log.warning("plain kernels, slower: vector kernels do not run here: %s", error)
        return plain
    return vector


def self_test(backend: Tiles, taps: int, padding: Padding) -> None:
    """Reconstruct a few tiny slices; every kernel is compiled and run.

    Raises
    ------
    ArithmeticError
        They differ from FBP written out as sums.
    """
    plan = FourierPlan(20, taps=taps, padding=padding)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, ROWS, plan.n_columns)).astype(np.float32)
    theta = np.arange(5, dtype=np.float64) * 0.7
    shares = np.full((2, 5), 0.25, np.float32)
    expected = _direct(plan, values, theta)
    for n_rows in (ROWS, 3):
        grids = [aligned_zeros((plan.stride**2 * FLOATS,)) for _ in range(2)]
        center = (plan.n_columns - 1) / 2
        footprint = plan.footprint(theta)
        rows, spoke_filter = values[:, :n_rows], plan.spoke_filter(center)
        backend.add(plan, grids, rows, spoke_filter, footprint, shares)
        separable, whole = plan.origin_phase, plan.grid_response()
        fan = Fan(plan, center, theta, 2 * shares[0].astype(float))
        less = Common(rows[0], fan)
        rest = expected - _direct(plan, np.broadcast_to(values[0], values.shape), theta)
        for response, taken, right in (
            (separable, None, expected),
            (whole, None, expected),
            (separable, less, rest),
            (whole, less, rest),
        ):
            out = aligned_empty((n_rows, plan.n_columns, plan.n_columns))
            backend.slices(plan, grids, [1.0, 1.0], response, out, taken)
            error = float(np.abs(out - right[:n_rows]).max())
            if not error < 0.03 * np.abs(expected).max():
                raise ArithmeticError(f"{n_rows} slices are off by {error:.2g}")


def _direct(
    plan: FourierPlan, values: NDArray[np.float32], theta: NDArray[np.floating]
) -> NDArray[np.float64]:
    """FBP with weights of 1/2 as sums over frequencies, ``[row, y, x]``."""
    padded = np.zeros((*values.shape[:2], plan.n_padded))
    padded[..., : plan.n_columns] = values
    if plan.padding == "edge":
        left = values[..., :4].mean(-1, keepdims=True)
        right = values[..., -4:].mean(-1, keepdims=True)
        padded[..., plan.n_columns :] = left + (right - left) * plan.edge_blend
    spectrum = np.fft.fft(padded) * ramp_response(plan.n_padded)
    x = np.arange(plan.n_columns) - (plan.n_columns - 1) / 2
    result = np.zeros((values.shape[1], plan.n_columns, plan.n_columns))
    for k, angle in enumerate(theta):
        s = x[None] * np.cos(angle) + x[:, None] * np.sin(angle) - x[0]
        wave = np.exp(2j * np.pi * np.fft.fftfreq(plan.n_padded)[:, None, None] * s)
        result += 0.5 * np.real(np.tensordot(spectrum[k], wave, 1)) / plan.n_padded
    return result
