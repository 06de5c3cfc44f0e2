"""A filter learned from the halves themselves: the linear member of Noise2Inverse.

Noise2Filter (Lagerwerf, Hendriksen, Buurlage and Batenburg, Mach. Learn.: Sci.
Technol. 2, 015012 (2020), arXiv:2007.01636) learns the filter of filtered
back-projection on pairs of reconstructions with independent noise. A filter along the
detector acts on the slices as one along every radius of their spectra, so all that its
normal equations need of a slice are two powers per ring: they add up over slices,
slabs and halves, and solving them takes no time.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from ebl_stream.numerics.quality import rings, soft_circle

FINE_TAPS = 4
"""Taps about the middle with a weight each; beyond them bins double in width."""

RIDGE = 1e-9
"""Of the largest eigenvalue: keeps what the data do not decide near zero."""


class NormalEquations:
    """Sums over slices, from which the filter follows.

    Parameters
    ----------
    n : int
        Columns of a slice, px.
    """

    def __init__(self, n: int) -> None:
        self._circle = soft_circle((n, n))
        self._rings = rings((n, n), half=True)
        self._basis = _responses(n)
        n_rings = self._basis.shape[1]
        self._own = np.zeros(n_rings)
        self._shared = np.zeros(n_rings)

    def add(
        self, volume: NDArray[np.float32], half_difference: NDArray[np.float32]
    ) -> None:
        """Add slices: each half is to be made from the other.

        Parameters
        ----------
        volume, half_difference : ndarray, [z, y, x]
            A + B and A - B.
        """
        for whole, difference in zip(volume, half_difference, strict=True):
            power = _power(whole * self._circle, self._rings, len(self._own))
            noise = _power(difference * self._circle, self._rings, len(self._own))
            if not math.isfinite((power + noise).sum()):
                continue  # a slice that nothing is known of
            # 2A = V + D and 2B = V - D: |2A|^2 + |2B|^2 = 2 (|V|^2 + |D|^2), and
            # twice the real part of their product is 2 (|V|^2 - |D|^2).
            self._own += power + noise
            self._shared += power - noise

    def solve(self) -> NDArray[np.float32]:
        """Return the filter's response, (ring,): 1 lets a frequency pass.

        Rings are those of `ebl_stream.numerics.quality.rings`.
        """
        matrix = (self._basis * self._own) @ self._basis.T
        largest = float(np.linalg.eigvalsh(matrix)[-1]) if self._own.any() else 0.0
        if not (largest > 0 and math.isfinite(largest)):
            return np.ones(len(self._own), np.float32)
        matrix += RIDGE * largest * np.eye(len(matrix))
        weights = np.linalg.solve(matrix, self._basis @ self._shared)
        return (weights @ self._basis).astype(np.float32)


def filter_slices(
    volume: NDArray[np.float32], response: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Filter every slice of ``[z, y, x]``, of any size, by a response per ring.

    Values that are not finite are taken for zero.
    """
    n_y, n_x = volume.shape[1:]
    frequency = np.hypot(np.fft.fftfreq(n_y)[:, None], np.fft.rfftfreq(n_x))
    last = len(response) - 2
    ring = np.minimum(np.rint(frequency * 2 * last), last + 1).astype(np.intp)
    out = np.empty_like(volume, np.float32)
    for k, plane in enumerate(volume):
        known = np.nan_to_num(plane, nan=0.0, posinf=0.0, neginf=0.0)
        spectrum = np.asarray(fft.rfft2(known)) * response[ring]
        out[k] = np.asarray(fft.irfft2(spectrum, plane.shape))
    return out


def _responses(n: int) -> NDArray[np.float64]:
    """Return what each bin of taps does to a ring, [bin, ring]."""
    last = n // 2
    # The corners, beyond the last ring, are the ring after it.
    frequency = np.minimum(np.arange(last + 2), last) / (2 * max(last, 1))
    waves = 2 * np.cos(2 * np.pi * np.outer(np.arange(n), frequency))
    waves[0] /= 2
    edges = [*range(min(FINE_TAPS, n)), *_doubling(min(FINE_TAPS, n), n)]
    return np.add.reduceat(waves, edges, axis=0)


def _doubling(start: int, stop: int) -> list[int]:
    edges: list[int] = []
    while start < stop:
        edges.append(start)
        start *= 2
    return edges


def _power(
    plane: NDArray[np.float32], ring: NDArray[np.intp], n: int
) -> NDArray[np.float64]:
    """Return the power on each ring: of both half planes, of which one is kept."""
    power = abs(np.asarray(fft.rfft2(plane))) ** 2
    power[:, 1 : (plane.shape[1] + 1) // 2] *= 2
    summed = np.bincount(ring.ravel(), power.ravel(), minlength=n)
    return np.asarray(summed, np.float64)
