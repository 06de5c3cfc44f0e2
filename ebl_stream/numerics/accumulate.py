"""Split-half Fourier accumulation: FBP that is always up to date.

A projection is filtered and spread onto the oversampled 2-D Fourier grid of each
slice the moment it arrives (the adjoint non-uniform FFT with a Kaiser-Bessel
kernel; Fessler & Sutton, IEEE TSP 51, 560 (2003)). What is left after the last
angle is one inverse FFT per slice. Two grids, A and B, share the projections:
the volume is A + B, the noise map A - B.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import scipy.fft
from numba import njit
from numpy.typing import NDArray
from scipy.special import i0

Window: TypeAlias = Literal["ramp", "shepp_logan", "cosine", "hann"]
"""Low-pass on top of the ramp filter; ``ramp`` is none."""

TABLE_ROWS = 8192
"""Rows of the kernel table, one per fraction of a grid step."""


class Accumulator:
    """Fourier grids of one slab, to which projections are added with a weight.

    Geometry: p(theta, s) is the integral along x cos(theta) + y sin(theta) = s with
    s = column - rotation_center; pixel (y, x) of a slice lies at
    (x - (n_columns - 1) / 2, y - (n_columns - 1) / 2) about the axis.

    Parameters
    ----------
    n_rows, n_columns : int
        Detector rows of the slab, and columns; any number of either.
    rotation_center : float
        px, column of the stored frame.
    window : str
        Low-pass on top of the ramp.
    oversampling : float
        Grid points per pixel of the slice.
    taps : int
        Width of the Kaiser-Bessel kernel in grid points.
    """

    def __init__(
        self,
        n_rows: int,
        n_columns: int,
        rotation_center: float,
        *,
        window: Window = "ramp",
        oversampling: float = 1.25,
        taps: int = 4,
    ) -> None:
        self.n_rows = n_rows
        self.n_columns = n_columns
        self.n_grid = _fast_length(oversampling * n_columns)
        # Two real slices are the real and imaginary part of one complex grid.
        self._pairs = (n_rows + 1) // 2
        shape = (2, self.n_grid, self.n_grid, 2 * self._pairs)
        self.halves = np.zeros(shape, np.float32)
        """Grids A and B, ``[half, ky, kx, lane]``; lanes as in `spokes`."""
        self._n_padded = 2 * _fast_length(n_columns)
        self._frequency = np.arange(-self._n_padded // 2, self._n_padded // 2 + 1)
        self._frequency = self._frequency / self._n_padded
        self._filter = self._spoke_filter(rotation_center, window)
        # An even slice has its axis between pixels.
        self._origin = n_columns // 2 - (n_columns - 1) / 2
        beta = kaiser_bessel_beta(taps, self.n_grid / n_columns)
        self._table = kernel_table(taps, beta)
        self._apodization = self._deapodization(taps, beta)

    @property
    def nbytes(self) -> int:
        """Bytes of both grids."""
        return self.halves.nbytes

    def reset(self) -> None:
        """Forget everything that was added."""
        self.halves.fill(0)

    def spokes(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Filter projections; the result may be added any number of times.

        Parameters
        ----------
        values : ndarray, [angle, row, column]
            Line integrals, 1/px times px.

        Returns
        -------
        ndarray, [angle, frequency, lane]
            Real and imaginary parts of the packed slice pairs alternate in
            ``lane``; frequencies run from -1/2 to 1/2 per pixel, both included.
        """
        n_angles = len(values)
        padded = np.zeros((n_angles, self._pairs, self._n_padded), np.complex64)
        padded[:, :, : self.n_columns].real = values[:, 0::2]
        padded[:, : self.n_rows // 2, : self.n_columns].imag = values[:, 1::2]
        spectrum = np.asarray(scipy.fft.fft(padded, axis=-1, overwrite_x=True))
        half = self._n_padded // 2
        ordered = np.concatenate(
            [spectrum[..., half:], spectrum[..., : half + 1]], axis=-1
        )
        ordered *= self._filter
        return np.ascontiguousarray(ordered.transpose(0, 2, 1)).view(np.float32)

    def add(
        self,
        spoke: NDArray[np.float32],
        theta: float,
        weight_a: float,
        weight_b: float,
    ) -> None:
        """Add one filtered projection to the halves; negative weights take it back.

        Parameters
        ----------
        spoke : ndarray, [frequency, lane]
            One projection of ``spokes``.
        theta : float
            rad.
        weight_a, weight_b : float
            rad; what is added to each half. Zero leaves the half alone.
        """
        direction = np.array([np.cos(theta), np.sin(theta)])
        for half, weight in enumerate((weight_a, weight_b)):
            if weight != 0:
                _scatter(
                    self.halves[half],
                    spoke,
                    self._frequency,
                    direction,
                    self._origin,
                    self._table,
                    np.float32(weight),
                )

    def volume(self, less: Accumulator | None = None) -> NDArray[np.float32]:
        """Return A + B as slices ``[row, y, x]``, 1/px.

        ``less`` is taken away first: grids of the same slab that hold what every
        projection has too much.
        """
        total = self.halves[0] + self.halves[1]
        if less is not None:
            total -= less.halves[0]
            total -= less.halves[1]
        return self._slices(total)

    def half_difference(self, less: Accumulator | None = None) -> NDArray[np.float32]:
        """Return A - B, ``[row, y, x]``: a map of the volume's noise, 1/px."""
        difference = self.halves[0] - self.halves[1]
        if less is not None:
            difference -= less.halves[0]
            difference += less.halves[1]
        return self._slices(difference)

    def _slices(self, grid: NDArray[np.float32]) -> NDArray[np.float32]:
        spectrum = grid.view(np.complex64)
        image = np.asarray(scipy.fft.ifft2(spectrum, axes=(0, 1), norm="forward"))
        n = self.n_columns
        slices = np.empty((2 * self._pairs, n, n), np.float32)
        _unpack(image.view(np.float32), self._apodization, slices)
        return slices[: self.n_rows]

    def _spoke_filter(self, center: float, window: Window) -> NDArray[np.complex64]:
        """Ramp, window, shift to the rotation center and scale, in spoke order."""
        half = self._n_padded // 2
        response = ramp_response(self._n_padded)
        ordered = np.concatenate([response[half:], response[: half + 1]])
        ordered *= window_response(np.abs(self._frequency), window)
        # Nyquist stands at both ends: half each keeps the slice pairs apart.
        ordered[[0, -1]] *= 0.5
        shift = np.exp(2j * np.pi * self._frequency * center)
        return (ordered * shift / self._n_padded).astype(np.complex64)

    def _deapodization(self, taps: int, beta: float) -> NDArray[np.float32]:
        """Return the kernel's Fourier transform at the slice's pixels."""
        pixel = np.arange(self.n_columns) - self.n_columns // 2
        node, node_weight = np.polynomial.legendre.leggauss(200)
        u = node * taps / 2
        kernel = kaiser_bessel(u, taps, beta) * node_weight * taps / 2
        phase = np.cos(2 * np.pi * np.outer(pixel / self.n_grid, u))
        return (phase @ kernel).astype(np.float32)


def _fast_length(at_least: float) -> int:
    """Return the next length that the FFT is fast at."""
    return int(scipy.fft.next_fast_len(int(np.ceil(at_least))) or 0)


def ramp_response(n_padded: int) -> NDArray[np.float64]:
    """Return the DFT of the spatially sampled ramp, (frequency,), FFT order.

    Sampling |f| itself loses the mean of the object (Kak & Slaney, Principles of
    Computerized Tomographic Imaging, 1988, eq. 3.61).
    """
    # Whole numbers: a lag that rounding makes 0.999... is not odd.
    lag = np.minimum(np.arange(n_padded), n_padded - np.arange(n_padded))
    odd = lag % 2 == 1
    impulse = np.zeros(n_padded)
    impulse[odd] = -1 / (np.pi * lag[odd]) ** 2
    impulse[0] = 0.25
    return np.fft.fft(impulse).real


def window_response(
    frequency: NDArray[np.float64], window: Window
) -> NDArray[np.float64]:
    """Return a low-pass at ``frequency`` (cycles per px, 0 to 1/2)."""
    if window == "shepp_logan":
        return np.sinc(frequency)
    if window == "cosine":
        return np.cos(np.pi * frequency)
    if window == "hann":
        return 0.5 + 0.5 * np.cos(2 * np.pi * frequency)
    return np.ones_like(frequency)


def kaiser_bessel(
    u: NDArray[np.float64], taps: int, beta: float
) -> NDArray[np.float64]:
    """Return the Kaiser-Bessel kernel at ``u`` grid steps from its middle."""
    inside = np.maximum(0, 1 - (2 * u / taps) ** 2)
    return np.where(np.abs(u) <= taps / 2, i0(beta * np.sqrt(inside)) / i0(beta), 0)


def kaiser_bessel_beta(taps: int, oversampling: float) -> float:
    """Return the shape parameter of least aliasing (Beatty et al., TMI 24, 2005)."""
    return np.pi * np.sqrt((taps / oversampling * (oversampling - 0.5)) ** 2 - 0.8)


def kernel_table(taps: int, beta: float) -> NDArray[np.float32]:
    """Return kernel values ``[fraction, tap]`` for every fraction of a grid step."""
    fraction = np.arange(TABLE_ROWS + 1) / TABLE_ROWS
    tap = np.arange(taps) - taps // 2 + 1
    return kaiser_bessel(tap - fraction[:, None], taps, beta).astype(np.float32)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _scatter(grid, spoke, frequency, direction, origin, table, weight):  # type: ignore[no-untyped-def]
    """Spread one spoke onto one half, ``grid[ky, kx, lane] += ...``.

    The grid is periodic and holds k = 0 first, as the FFT wants it.
    """
    n_grid = grid.shape[0]
    taps = table.shape[1]
    n_lanes = spoke.shape[1]
    turned = np.empty(n_lanes, np.float32)
    shift = 2 * np.pi * origin * (direction[0] + direction[1])
    for n in range(spoke.shape[0]):
        cos, sin = np.cos(shift * frequency[n]), np.sin(shift * frequency[n])
        cos, sin = np.float32(cos * weight), np.float32(sin * weight)
        for lane in range(0, n_lanes, 2):
            re, im = spoke[n, lane], spoke[n, lane + 1]
            turned[lane] = re * cos - im * sin
            turned[lane + 1] = re * sin + im * cos
        kx = frequency[n] * n_grid * direction[0]
        ky = frequency[n] * n_grid * direction[1]
        left, low = int(np.floor(kx)), int(np.floor(ky))
        row_x = int((kx - left) * TABLE_ROWS + 0.5)
        row_y = int((ky - low) * TABLE_ROWS + 0.5)
        left, low = left - taps // 2 + 1, low - taps // 2 + 1
        for i in range(taps):
            y = (low + i) % n_grid
            for j in range(taps):
                x = (left + j) % n_grid
                value = table[row_y, i] * table[row_x, j]
                for lane in range(n_lanes):
                    grid[y, x, lane] += value * turned[lane]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _unpack(image, apodization, slices):  # type: ignore[no-untyped-def]
    """Crop ``image[y, x, lane]`` to ``slices[lane, y, x]`` and undo the kernel.

    The image is periodic and holds the pixel at the axis first. Blocks of columns
    keep what is read in the cache while every lane is written.
    """
    n_grid, n, block = image.shape[0], slices.shape[1], 16
    for y in range(n):
        from_y = (y - n // 2) % n_grid
        for x0 in range(0, n, block):
            for lane in range(slices.shape[0]):
                for x in range(x0, min(x0 + block, n)):
                    from_x = (x - n // 2) % n_grid
                    scale = apodization[y] * apodization[x]
                    slices[lane, y, x] = image[from_y, from_x, lane] / scale
