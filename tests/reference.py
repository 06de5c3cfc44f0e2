"""Independent references: slow, readable, and not ours."""

from __future__ import annotations

from collections.abc import Callable

import finufft
import numpy as np
from numpy.typing import NDArray


def voronoi_weights(
    theta: NDArray[np.float64], cap: float = 6.0
) -> NDArray[np.float64]:
    """Half the gaps to both neighbors on the half circle, by brute force."""
    direction = np.mod(theta, np.pi)
    weights = np.empty(len(theta))
    rank = np.argsort(direction, kind="stable")
    ordered = direction[rank]
    gaps = np.append(np.diff(ordered), ordered[0] + np.pi - ordered[-1])
    typical = np.median(gaps[gaps > 1e-5])
    gaps = np.minimum(gaps, cap * typical)
    for k, place in enumerate(rank):
        weights[place] = 0.5 * (gaps[k] + gaps[k - 1])
    return weights


def nufft_fbp(
    sinogram: NDArray[np.float64],
    theta: NDArray[np.float64],
    center: float,
    weights: NDArray[np.float64] | None = None,
    n_padded: int | None = None,
    low_pass: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> NDArray[np.float64]:
    """FBP of one sinogram [angle, column] by the exact adjoint NUFFT, [y, x]."""
    if weights is None:
        weights = voronoi_weights(theta)
    n = sinogram.shape[1]
    padded = n_padded or 4 * n
    lag = np.minimum(np.arange(padded), padded - np.arange(padded))
    ramp = np.where(lag % 2 == 1, -1 / (np.pi * np.maximum(lag, 1)) ** 2, 0.0)
    ramp[0] = 0.25
    spectrum = np.fft.fft(sinogram, padded, axis=1) * np.fft.fft(ramp).real
    f = np.fft.fftfreq(padded)
    if low_pass is not None:
        spectrum = spectrum * low_pass(np.abs(f))
    half_pixel = n // 2 - (n - 1) / 2
    cos, sin = np.cos(theta)[:, None], np.sin(theta)[:, None]
    shift = f * center + f * half_pixel * (cos + sin)
    spectrum = spectrum * np.exp(2j * np.pi * shift) * weights[:, None]
    return (
        finufft.nufft2d1(
            (2 * np.pi * f * sin).ravel(),
            (2 * np.pi * f * cos).ravel(),
            np.ascontiguousarray(spectrum.ravel()),
            (n, n),
            isign=1,
            eps=1e-8,
        ).real
        / padded
    )


def circle(n: int, fraction: float = 0.9) -> NDArray[np.bool_]:
    """Pixels within ``fraction`` of the reconstruction circle."""
    x = np.arange(n) - (n - 1) / 2
    return np.hypot(x[:, None], x) < fraction * n / 2


def nrmse(
    image: NDArray[np.floating], truth: NDArray[np.floating], fit: bool = False
) -> float:
    """RMS error inside 0.9 of the circle over the standard deviation there."""
    inside = circle(truth.shape[-1])
    a, b = image[..., inside].astype(float), truth[..., inside].astype(float)
    a, b = a.ravel(), b.ravel()
    if fit:
        slope, offset = np.polyfit(a, b, 1)
        a = slope * a + offset
    return float(np.sqrt(np.mean((a - b) ** 2)) / b.std())


def band_limited_fbp(
    sinogram: NDArray[np.float64],
    theta: NDArray[np.float64],
    center: float,
    fine: int = 8,
) -> NDArray[np.float64]:
    """FBP by back-projection of rows upsampled ``fine`` times, [y, x]."""
    n = sinogram.shape[1]
    padded = 4 * n
    lag = np.minimum(np.arange(padded), padded - np.arange(padded))
    ramp = np.where(lag % 2 == 1, -1 / (np.pi * np.maximum(lag, 1)) ** 2, 0.0)
    ramp[0] = 0.25
    spectrum = (
        np.fft.rfft(sinogram, padded, axis=1) * np.fft.fft(ramp).real[: padded // 2 + 1]
    )
    spectrum[:, -1] *= 0.5
    rows = np.fft.irfft(spectrum, padded * fine, axis=1) * fine
    x = np.arange(n) - (n - 1) / 2
    column = np.arange(padded * fine) / fine
    image = np.zeros((n, n))
    for row, angle, weight in zip(rows, theta, voronoi_weights(theta), strict=True):
        s = x[None, :] * np.cos(angle) + x[:, None] * np.sin(angle) + center
        image += weight * np.interp(s, column, row)
    return image
