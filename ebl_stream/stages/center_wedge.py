"""Center: the one that makes a whole turn of the sinogram hang together.

A sinogram over half a turn and its mirror image make one over a whole turn. Its
Fourier transform vanishes outside of a double wedge, because a body of radius r
shows no faster change with the angle than ``frequency * r``; a wrong center breaks
the seams and fills the rest (Vo, Drakopoulos, Atwood and Reinhard, Opt. Express 22,
19078 (2014)). There, both halves must cancel. How well they do at every shift is a
correlation, so that one transform answers for all shifts at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, interpolate

from ebl_stream.stages import CenterVerdict
from ebl_stream.stages.opposite import binned

Floats = NDArray[np.float64]

ROWS = 4
"""Rows that are asked, at most."""

MAX_ANGLES = 400
"""More are thinned out."""

COLUMNS = 512
"""More columns are binned."""

MIN_ANGLES = 45

WIDEST_GAP_DEG = 3.0
"""The half turn may have no wider gap."""

DROP = 0.05
"""Fraction of the highest angular frequency next to the wedge, left out."""

TAPER = 0.1
"""Fraction of the columns over which each end is faded."""

UPSAMPLING = 16

MIN_CONTRAST = 1.4
"""The halves must cancel so many times better than anywhere else."""

CLEAR = 6.0
"""And stand out of chance by so many standard deviations."""


@dataclass(frozen=True)
class DoubleWedge:
    """Look for the center that keeps the sinogram's spectrum in its double wedge.

    It needs half a turn. Less exact than opposite projections, so it serves as a
    check of them; it looks at all directions at once.
    """

    min_overlap: float = 0.34
    """Fraction of the columns that both halves must see."""
    max_spread_px: float = 0.75
    """The center must be known so well."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.min_overlap <= 1:
            raise ValueError("min_overlap must be from 0.1 to 1")
        if not self.max_spread_px > 0:
            raise ValueError("max_spread_px must be above 0")

    def __call__(
        self, projections: NDArray[np.float32], theta: NDArray[np.float64]
    ) -> CenterVerdict:
        """Judge where the axis is.

        Parameters
        ----------
        projections : ndarray, [angle, row, column]
            Line integrals; any order of angles, rows may be a sample of all.
        theta : ndarray, (angle,)
            rad.

        Returns
        -------
        CenterVerdict
        """
        theta = np.asarray(theta, np.float64)
        chosen, turned = _half_turn(theta)
        gaps = np.diff(turned, append=np.pi)
        if len(chosen) < MIN_ANGLES or np.degrees(gaps.max()) > WIDEST_GAP_DEG:
            return _no("there is no half turn without wide gaps to look at")
        bins = -(-projections.shape[2] // COLUMNS)
        n_columns = projections.shape[2] // bins
        rows = projections[:, :: -(-projections.shape[1] // ROWS), : n_columns * bins]
        crosses, scales = zip(
            *(
                _cross(_even(binned(rows[chosen, k], bins), turned), n_columns)
                for k in range(rows.shape[1])
            ),
            strict=True,
        )
        if not sum(scales) > 0:
            return _no("the projections show nothing")
        reach = int((1 - self.min_overlap) * n_columns)
        curves = np.stack([_curve(cross, n_columns, reach) for cross in crosses])
        return self._judge(curves / sum(scales), n_columns, bins)

    def _judge(self, curves: Floats, n_columns: int, bins: int) -> CenterVerdict:
        """Judge the curves ``[row, shift]``; shifts and columns are binned ones."""
        curve = curves.sum(axis=0)
        shifts = (np.arange(curve.size) - curve.size // 2) / UPSAMPLING
        best = int(np.argmax(curve))
        far = abs(shifts - shifts[best]) > max(6.0, 0.03 * n_columns)
        alone = shifts[~far][np.argmax(curves[:, ~far], axis=1)]
        spread = float(np.std(alone) / np.sqrt(max(len(alone) - 1, 1)))
        spread = max(spread, 1 / UPSAMPLING) * bins / 2
        center = bins * float(shifts[best] + n_columns - 1) / 2 + (bins - 1) / 2
        clear = curve[best] > CLEAR * np.std(curve[far])
        if not clear or curve[best] < MIN_CONTRAST * curve[far].max():
            why = "no center keeps the spectrum to its double wedge better than others"
        elif spread > self.max_spread_px:
            why = f"the double wedge tells it to {spread:.2g} px only"
        else:
            why = "the spectrum keeps to its double wedge"
            return CenterVerdict(center, True, spread, why, "double_wedge")
        return CenterVerdict(center, False, spread, why, "double_wedge")


def _half_turn(theta: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Return projections over half a turn, sorted, and how far each is turned."""
    phase = np.mod(theta, 2 * np.pi)
    order = np.argsort(phase, kind="stable")
    if not order.size:
        return order, np.zeros(0)
    ahead = np.diff(phase[order], append=phase[order[0]] + 2 * np.pi)
    # Begin behind the widest gap; a whole turn has none.
    begin = phase[order[(int(np.argmax(ahead)) + 1) % len(order)]]
    turned = np.mod(phase - begin, 2 * np.pi)
    order = np.argsort(turned, kind="stable")
    order = order[turned[order] < np.pi]
    return order, turned[order]


def _even(sinogram: NDArray[np.float32], turned: Floats) -> Floats:
    """Return the gradient along the columns, at even steps of half a turn."""
    slope = np.diff(sinogram.astype(np.float64), axis=1)
    keep = np.flatnonzero(np.diff(turned, prepend=-1.0) > 1e-9)
    n = min(len(turned), MAX_ANGLES)
    even = np.arange(n) * np.pi / n
    at = np.clip(even, turned[keep[0]], turned[keep[-1]])
    return interpolate.make_interp_spline(turned[keep], slope[keep], k=1)(at)


def _cross(slope: Floats, n_columns: int) -> tuple[NDArray[np.complex128], float]:
    """Return both halves' cross spectrum outside of the wedge, and its largest sum.

    Parameters
    ----------
    slope : ndarray, [angle, column]
        Over half a turn, even.
    n_columns : int
        Of the sinogram.
    """
    n = len(slope)
    window = np.ones(slope.shape[1])
    edge = max(2, int(TAPER * window.size))
    window[:edge] = np.sin(np.pi / 2 * (np.arange(edge) + 0.5) / edge) ** 2
    window[-edge:] = window[edge - 1 :: -1]
    slope = slope * window
    length = fft.next_fast_len(2 * n_columns, real=True)
    halves = np.zeros((2, 2 * n, slope.shape[1]))
    halves[0, :n] = slope
    halves[1, n:] = -slope[:, ::-1]
    lines = np.asarray(fft.rfft(halves, length, axis=2))
    # The highest frequency whose wedge leaves room for anything.
    frequency = np.arange(lines.shape[2]) * 2 * np.pi / length
    room = int(np.count_nonzero(frequency * n_columns / 2 < (1 - DROP) * n))
    one, two = np.asarray(fft.fft(lines[:, :, :room], axis=1))
    harmonic = abs(fft.fftfreq(2 * n, 1 / (2 * n)))[:, None]
    outside = harmonic > frequency[:room] * n_columns / 2 + DROP * n
    size = np.abs(one) + np.abs(two) + 1e-30
    cross = np.zeros(lines.shape[2], np.complex128)
    # Divided by the size: many weak waves shall count as much as few strong ones.
    cross[:room] = np.where(outside, one * np.conj(two) / size, 0).sum(axis=0)
    largest = np.where(outside, np.abs(one) * np.abs(two) / size, 0)[:, 1:].sum()
    cross[0] = 0
    return cross, float(largest)


def _curve(cross: NDArray[np.complex128], n_columns: int, reach: int) -> Floats:
    """Return how well the halves cancel at every shift, finely."""
    length = int(fft.next_fast_len(2 * n_columns, real=True) or 0)
    fine = np.asarray(fft.irfft(cross, length * UPSAMPLING)) * length * UPSAMPLING / 2
    places = np.arange(-reach * UPSAMPLING, reach * UPSAMPLING + 1)
    return -fine[places]


def _no(why: str) -> CenterVerdict:
    return CenterVerdict(None, False, float("nan"), why)
