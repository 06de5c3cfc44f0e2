"""Quality of a slab, from its two halves: resolution and noise, without a reference.

The halves A and B are independent measurements of the same thing, and the volume
is A + B. What they share is signal; what they differ in is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

INSIDE = 0.9
"""Radius of what is judged, over that of the reconstructed circle."""

SMOOTHING = 5
"""Rings that the correlation is averaged over."""

FIRST_RING = 3
"""Rings below it hold the mask and the mean, not detail."""

WEDGE_TOO_WIDE = 0.3
"""Share of the directions below which halves say nothing about resolution."""


def inside_circle(shape: Sequence[int], fraction: float = 1.0) -> NDArray[np.bool_]:
    """Return which pixels of a slice lie inside the reconstructed circle.

    Parameters
    ----------
    shape : sequence of int
        ``(..., y, x)``; only the last two count.
    fraction : float
        Radius over the radius of the inscribed circle.

    Returns
    -------
    ndarray of bool, (y, x)
    """
    n_y, n_x = shape[-2:]
    y = np.arange(n_y)[:, None] - (n_y - 1) / 2
    x = np.arange(n_x)[None, :] - (n_x - 1) / 2
    return y**2 + x**2 <= (fraction * min(n_y, n_x) / 2) ** 2


def soft_circle(shape: Sequence[int]) -> NDArray[np.float32]:
    """Return a mask ``(y, x)``: 1 inside, falling to 0 at the circle's rim."""
    n_y, n_x = shape[-2:]
    radius = min(n_y, n_x) / 2
    y = np.arange(n_y)[:, None] - (n_y - 1) / 2
    x = np.arange(n_x)[None, :] - (n_x - 1) / 2
    rim = np.clip((np.hypot(y, x) / radius - INSIDE) / (1 - INSIDE), 0, 1)
    return (np.cos(0.5 * np.pi * rim) ** 2).astype(np.float32)


def rings(shape: Sequence[int], *, half: bool = False) -> NDArray[np.intp]:
    """Return the ring that each spatial frequency of a slice lies on.

    Parameters
    ----------
    shape : sequence of int
        ``(..., y, x)``.
    half : bool
        For the half plane of a real transform.

    Returns
    -------
    ndarray of int, (y, x) or (y, x // 2 + 1)
        0 to ``min(y, x) // 2``, the Nyquist frequency; the corners beyond it
        belong to the last ring but one of them: ``min(y, x) // 2 + 1``.
    """
    n_y, n_x = shape[-2:]
    last = min(n_y, n_x) // 2
    along_x = np.fft.rfftfreq(n_x) if half else np.fft.fftfreq(n_x)
    frequency = np.hypot(np.fft.fftfreq(n_y)[:, None], along_x[None, :])
    return np.minimum(np.rint(frequency * 2 * last), last + 1).astype(np.intp)


def frc(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Correlate two slabs ring by ring of spatial frequency, over all slices.

    Fourier ring correlation (Saxton and Baumeister, J. Microsc. 127, 127 (1982);
    van Heel, Ultramicroscopy 21, 95 (1987)).

    Parameters
    ----------
    a, b : ndarray, [z, y, x]

    Returns
    -------
    ndarray, (ring,)
        Correlation -1..1; ring i of n lies at ``0.5 i / (n - 1)`` cycles/px. NaN
        where there is nothing to correlate.
    """
    circle = soft_circle(a.shape)
    ring = rings(a.shape, half=True).ravel()
    n = min(a.shape[-2:]) // 2 + 1
    sums = np.zeros((3, n + 1))
    for one, two in zip(a, b, strict=True):
        p, q = _spectrum(one * circle), _spectrum(two * circle)
        shared = p.real * q.real + p.imag * q.imag
        for k, power in enumerate((shared, abs(p) ** 2, abs(q) ** 2)):
            sums[k] += np.bincount(ring, power, minlength=n + 1)
    shared, power_a, power_b = sums[:, :n]
    scale = np.sqrt(power_a * power_b)
    curve = np.full(n, np.nan)
    np.divide(shared, scale, out=curve, where=scale > 0)
    return _smooth(curve)


def split_threshold(angular_coverage: float) -> float:
    """Return the correlation of halves at which a volume is half right.

    Halves that correlate with F make a volume that correlates with the truth with
    C, where C^2 = c 2 F / (1 + F) and c is the share of directions that were seen:
    the halves cannot differ in what neither has seen. C = 1/2 gives 1 / (8 c - 1),
    which is 1/7 for all directions (Rosenthal and Henderson, J. Mol. Biol. 333, 721
    (2003)).

    Parameters
    ----------
    angular_coverage : float
        Share of the directions that the angular weights stand for, 0..1.

    Returns
    -------
    float
        1/7 for all directions, 1 (which no measurement reaches) below
        ``WEDGE_TOO_WIDE``.
    """
    if angular_coverage < WEDGE_TOO_WIDE:
        return 1.0
    return 1 / (8 * min(angular_coverage, 1.0) - 1)


def resolution_px(curve: NDArray[np.float64], threshold: float = 1 / 7) -> float:
    """Return the finest period that the halves agree on.

    Parameters
    ----------
    curve : ndarray, (ring,)
        From `frc`.
    threshold : float
        Of the correlation; for halves see `split_threshold`.

    Returns
    -------
    float
        px (one over the frequency where the curve first falls below the threshold);
        2 when it never does; NaN when the curve says nothing.
    """
    if not np.isfinite(curve[FIRST_RING:]).any():
        return float("nan")
    below = np.flatnonzero(~(curve[FIRST_RING:] >= threshold)) + FIRST_RING
    if below.size == 0:
        return 2.0
    k = int(below[0])
    place = float(k)
    if k > FIRST_RING and np.isfinite(curve[k]):
        place -= (threshold - curve[k]) / (curve[k - 1] - curve[k])
    return float(2 * (len(curve) - 1) / place)


def split_noise(half_difference: NDArray[np.float32]) -> float:
    """Return the noise of the volume (RMS, its unit): that of A - B is as large.

    Parameters
    ----------
    half_difference : ndarray, [z, y, x]
        A - B; judged inside 0.9 of the circle.
    """
    inside = half_difference[:, inside_circle(half_difference.shape, INSIDE)]
    return float(np.sqrt(np.mean(np.square(inside, dtype=np.float64))))


def quality_row(
    slab: int,
    z0: int,
    z1: int,
    volume: NDArray[np.float32],
    half_difference: NDArray[np.float32],
    *,
    version: int,
    n_used: int,
    coverage: float,
    angular_coverage: float = 1.0,
) -> dict[str, Any]:
    """Return one slab's row of the quality table.

    Parameters
    ----------
    slab : int
        Its number.
    z0, z1 : int
        Half-open range of z.
    volume, half_difference : ndarray, [z, y, x]
        A + B and A - B, 1/px.
    version, n_used, coverage
        As published with the slab.
    angular_coverage : float
        Share of the directions that the angular weights stand for, 0..1: halves of a
        scan with a missing wedge agree on more than is true.

    Returns
    -------
    dict
        Plain numbers; ``resolution_px`` and ``frc_mean`` are None while the halves
        hold nothing.
    """
    a, b = 0.5 * (volume + half_difference), 0.5 * (volume - half_difference)
    curve = frc(a, b)
    resolution = resolution_px(curve, split_threshold(angular_coverage))
    known = curve[FIRST_RING:][np.isfinite(curve[FIRST_RING:])]
    inside = volume[:, inside_circle(volume.shape, INSIDE)]
    return {
        "slab": int(slab),
        "z0": int(z0),
        "z1": int(z1),
        "version": int(version),
        "n_used": int(n_used),
        "coverage": float(coverage),
        "resolution_px": resolution if np.isfinite(resolution) else None,
        "frc_mean": float(known.mean()) if known.size else None,
        "split_noise": split_noise(half_difference),
        "mean": float(inside.mean(dtype=np.float64)),
        "std": float(inside.std(dtype=np.float64)),
    }


def _spectrum(image: NDArray[np.float32]) -> NDArray[np.complex64]:
    return np.asarray(fft.rfft2(image)).ravel()


def _smooth(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over neighboring rings, as many as there are."""
    known = np.isfinite(curve)
    box = np.ones(min(SMOOTHING, len(curve)))
    total = np.convolve(np.where(known, curve, 0), box, "same")
    count = np.convolve(known.astype(float), box, "same")
    return np.where(known, total / np.maximum(count, 1), np.nan)
