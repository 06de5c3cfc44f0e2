"""What every backend of the Fourier accumulation shares: lengths, filters, tables.

A projection is padded, filtered and spread as a spoke onto an oversampled 2-D
Fourier grid (adjoint non-uniform FFT with a Kaiser-Bessel kernel; Fessler &
Sutton, IEEE TSP 51, 560 (2003)). Everything here is NumPy and float64 where it
decides which grid point or table row is meant, so that all backends decide alike.

The grid is stored ``[kx, ky]`` with a margin, so that spreading never wraps:
stored index i stands for the frequency (i - margin - n_grid / 2) / n_grid cycles
per px, and what lies outside of n_grid indices is folded back at a look. With kx
slow, the transform's second axis is x, which is how a slice is written.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray
from scipy.special import i0

from ebl_stream.numerics.kernel_cache import kernel
from ebl_stream.numerics.windows import Window, ramp_response, window_response

Padding: TypeAlias = Literal["zero", "edge"]
"""What lies beyond the detector: nothing, or more of the same."""

TABLE_ROWS = 4096
"""Rows of the kernel table, one per fraction of a grid step."""

FEWEST_COLUMNS = 8
"""The grid of fewer would be narrower than the kernels."""

EDGE_COLUMNS = 4
"""Columns that are averaged for the value beyond the edge."""


class Footprint(NamedTuple):
    """Where the samples of some spokes go."""

    corner: NDArray[np.int32]
    """``[angle, frequency]``: flat index of the first of taps x taps grid points."""
    fraction: NDArray[np.uint16]
    """``[angle, frequency, 2]``: rows of the kernel table for kx and ky."""


@dataclass(frozen=True)
class FourierPlan:
    """Lengths, filters and tables for projections of ``n_columns``.

    Parameters
    ----------
    n_columns : int
        Columns of a projection, which are also the pixels of a slice's side.
    oversampling : float
        Grid points per pixel of the slice, above 1.
    taps : int
        Width of the Kaiser-Bessel kernel in grid points: 4 or 6.
    padding : str
        ``zero`` for an object inside the field; ``edge`` where it is cut off.

    Raises
    ------
    ValueError
        A setting is out of range.
    """

    n_columns: int
    oversampling: float = 1.25
    taps: int = 4
    padding: Padding = "zero"

    def __post_init__(self) -> None:
        if self.n_columns < FEWEST_COLUMNS:
            raise ValueError(
                f"n_columns must be {FEWEST_COLUMNS} or more, not {self.n_columns}"
            )
        if not 1 < self.oversampling <= 4:
            raise ValueError(f"oversampling must be in (1, 4], not {self.oversampling}")
        if self.taps not in (4, 6):
            raise ValueError(f"taps must be 4 or 6, not {self.taps}")
        if self.padding not in ("zero", "edge"):
            raise ValueError(f"padding must be zero or edge, not {self.padding!r}")

    @property
    def n_padded(self) -> int:
        """Length of a padded projection: even, and fast to transform."""
        return 2 * _fast_length(self.n_columns)

    @property
    def n_grid(self) -> int:
        """Grid points along each axis, without the margin: a multiple of 8, fast.

        So the middle half or quarter of the grid is one, too: a binned slice.
        """
        return 8 * _fast_length(self.oversampling * self.n_columns / 8)

    @property
    def margin(self) -> int:
        """Grid points stored before the first of ``n_grid``."""
        return self.taps // 2 - 1

    @property
    def stride(self) -> int:
        """Grid points stored along each axis."""
        return self.n_grid + self.taps

    @property
    def n_frequencies(self) -> int:
        """Samples of a spoke: Nyquist stands at both ends."""
        return self.n_padded + 1

    @property
    def frequency(self) -> NDArray[np.float64]:
        """Frequencies of a spoke, (n_frequencies,), -1/2 to 1/2 per px."""
        half = self.n_padded // 2
        return np.arange(-half, half + 1) / self.n_padded

    @property
    def grid_frequency(self) -> NDArray[np.float64]:
        """Frequencies of the stored grid points of an axis, (stride,), per px."""
        centered = np.arange(self.stride) - self.margin - self.n_grid // 2
        return centered / self.n_grid

    def spoke_filter(self, rotation_center: float) -> NDArray[np.complex64]:
        """Return ramp, scale and shift to the center, (n_frequencies,).

        It is without window: windows are applied at the look, see `grid_response`.

        Parameters
        ----------
        rotation_center : float
            px, column of the projection; column 0 is sample 0 of the padded one.
        """
        half = self.n_padded // 2
        response = ramp_response(self.n_padded)
        ordered = np.concatenate([response[half:], response[: half + 1]])
        # Nyquist stands at both ends: half each keeps packed slice pairs apart.
        ordered[[0, -1]] *= 0.5
        shift = np.exp(2j * np.pi * self.frequency * rotation_center)
        return (ordered * shift / self.n_padded).astype(np.complex64)

    @functools.cached_property
    def edge_blend(self) -> NDArray[np.float32]:
        """Share of the right edge in each padded sample, (n_padded - n_columns,).

        With ``edge`` padding, sample ``n_columns + i`` is ``blend[i]`` of the right
        edge and the rest of the left, each the mean of `EDGE_COLUMNS` columns: the
        padded projection is a circle, on which one side goes over into the other.
        Zero padding has none, (0,). On measured scans cropped on purpose, a straight
        line over one width of padding was better than holding the edges, than a
        cosine, and than more padding.
        """
        if self.padding == "zero":
            return np.empty(0, np.float32)
        n = self.n_padded - self.n_columns
        return (1 - (np.arange(n) + 0.5) / n).astype(np.float32)

    @property
    def beta(self) -> float:
        """Shape of the kernel with least aliasing (Beatty et al., TMI 24, 2005)."""
        width = self.taps * self.n_columns / self.n_grid
        inner = (width * (self.n_grid / self.n_columns - 0.5)) ** 2
        return float(np.pi * np.sqrt(inner - 0.8))

    @functools.cached_property
    def table(self) -> NDArray[np.float32]:
        """Kernel values, (TABLE_ROWS + 1, taps), for every fraction of a grid step."""
        fraction = np.arange(TABLE_ROWS + 1) / TABLE_ROWS
        tap = np.arange(self.taps) - self.margin
        values = _kaiser_bessel(tap - fraction[:, None], self.taps, self.beta)
        return values.astype(np.float32)

    @functools.cached_property
    def deapodization(self) -> NDArray[np.float32]:
        """What undoes the kernel at each pixel of an axis, (n_columns,).

        Its sign alternates, since zero frequency stands in the middle of the grid.
        """
        pixel = np.arange(self.n_columns)
        place = (pixel - (self.n_columns - 1) / 2) / self.n_grid
        node, node_weight = np.polynomial.legendre.leggauss(200)
        u = node * self.taps / 2
        values = _kaiser_bessel(u, self.taps, self.beta) * node_weight * self.taps / 2
        transform = np.cos(2 * np.pi * np.outer(place, u)) @ values
        sign = 1 - 2 * ((pixel - self.n_columns // 2) % 2)
        return (sign / transform).astype(np.float32)

    @functools.cached_property
    def origin_phase(self) -> NDArray[np.complex64]:
        """What each axis of the stored grid is multiplied with at a look, (stride,).

        The axis of an even slice lies between pixels. Applied before the margin is
        folded back, this shift is exact.
        """
        offset = self.n_columns // 2 - (self.n_columns - 1) / 2
        return np.exp(2j * np.pi * self.grid_frequency * offset).astype(np.complex64)

    def footprint(self, theta: ArrayLike) -> Footprint:
        """Return where the samples of spokes at angles ``theta`` go.

        Parameters
        ----------
        theta : ndarray, (angle,)
            rad.
        """
        angles = np.atleast_1d(np.asarray(theta, np.float64))
        shape = (len(angles), self.n_frequencies)
        corner = np.empty(shape, np.int32)
        fraction = np.empty((*shape, 2), np.uint16)
        scaled = self.frequency * self.n_grid
        direction = np.stack([np.cos(angles), np.sin(angles)], 1)
        _footprint(scaled, direction, self.n_grid, self.stride, corner, fraction)
        return Footprint(corner, fraction)

    def grid_response(
        self, window: Window = "ramp", shift: float = 0.0, first_theta: float = 0.0
    ) -> NDArray[np.complex64]:
        """Return what the stored grid is multiplied with at a look, ``[kx, ky]``.

        It is the outer product of `origin_phase` with itself, times a low-pass of
        |k|, times a correction of the rotation center.

        Parameters
        ----------
        window : str
            Low-pass on top of the ramp.
        shift : float
            px that the true rotation center lies beyond the one in the filter. Good
            to half a pixel, and only where all projections lie within half a turn.
        first_theta : float
            rad, where that half turn begins, see `half_turn_start`.
        """
        rows = 4 * self.n_grid
        frequency = np.arange(rows + 1) / rows
        low_pass = window_response(np.minimum(frequency, 0.5), window)
        turned = np.exp(2j * np.pi * frequency * shift)
        radial = (low_pass * turned).astype(np.complex64)
        response = np.empty((self.stride, self.stride), np.complex64)
        start = np.array([np.cos(first_theta), np.sin(first_theta)])
        _response(self.grid_frequency, self.origin_phase, radial, start, response)
        return response


def half_turn_start(theta: ArrayLike) -> float | None:
    """Return where a half turn begins that holds all directions, rad.

    Parameters
    ----------
    theta : ndarray, (angle,)
        rad, any order and any number of turns.

    Returns
    -------
    float or None
        None where they fill more than half a turn: a shift of the rotation center
        then turns opposite spokes against each other.
    """
    turn = np.sort(np.mod(np.atleast_1d(np.asarray(theta, np.float64)), 2 * np.pi))
    gaps = np.diff(turn, append=turn[0] + 2 * np.pi)
    widest = int(np.argmax(gaps))
    if gaps[widest] < np.pi - 1e-6:
        return None
    return float(turn[(widest + 1) % len(turn)])


def _fast_length(at_least: float) -> int:
    """Return the next length with no prime factor above 5."""
    return int(scipy.fft.next_fast_len(int(np.ceil(at_least - 1e-9)), real=True) or 0)


def _kaiser_bessel(
    u: NDArray[np.float64], taps: int, beta: float
) -> NDArray[np.float64]:
    """Return the Kaiser-Bessel kernel at ``u`` grid steps from its middle."""
    inside = np.maximum(0, 1 - (2 * u / taps) ** 2)
    # The rim is left out: else samples that fall on a grid point reach one side.
    return np.where(inside > 0, i0(beta * np.sqrt(inside)) / i0(beta), 0)


@kernel()
def _footprint(scaled, direction, n_grid, stride, corner, fraction):  # type: ignore[no-untyped-def]
    """Round the samples' places down to a grid point and a row of the table."""
    middle = n_grid / 2
    for a in range(direction.shape[0]):
        cos, sin = direction[a, 0], direction[a, 1]
        for n in range(scaled.size):
            kx, ky = scaled[n] * cos + middle, scaled[n] * sin + middle
            left, low = np.floor(kx), np.floor(ky)
            corner[a, n] = np.int32(left) * stride + np.int32(low)
            fraction[a, n, 0] = np.uint16(np.int32((kx - left) * TABLE_ROWS + 0.5))
            fraction[a, n, 1] = np.uint16(np.int32((ky - low) * TABLE_ROWS + 0.5))


@kernel()
def _response(frequency, phase, radial, start, response):  # type: ignore[no-untyped-def]
    """Look up the radial response; the half turn's other side is its conjugate."""
    step = radial.size - 1
    for i in range(frequency.size):
        for j in range(frequency.size):
            kx, ky = frequency[i], frequency[j]
            value = radial[int(np.sqrt(kx * kx + ky * ky) * step + 0.5)]
            # Positive spoke frequencies lie to the left of the first direction.
            side = start[0] * ky - start[1] * kx
            ahead = start[0] * kx + start[1] * ky
            if side < -1e-12 or (side < 1e-12 and ahead < 0):
                value = np.conj(value)
            response[i, j] = phase[i] * phase[j] * value
