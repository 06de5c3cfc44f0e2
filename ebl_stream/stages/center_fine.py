"""The shift of mirrored projections, as finely as noise allows.

Where directions and mirrored directions meet (a *seam*), the projections on one
side predict those on the other. At every spatial frequency the scan is a function
of the angle whose band is known: it cannot change faster than a body at the
farthest depth turns. So each frequency is a Gaussian process of known covariance
over the angle, and the likelihood of a shift is a closed form: a cross spectrum of
both sides, weighted by the inverse covariance. Low frequencies thereby use many
projections on either side of the seam, high ones only the nearest, and no depth
has to be fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, special

from ebl_stream.stages.opposite import Pairs

Floats = NDArray[np.float64]

MAX_SIDE = 10
"""Projections on each side of a single seam."""

MAX_PROJECTIONS = 40
"""Projections used in all."""

DEPTH = 1.0
"""Farthest depth of what is seen, in widths of the field. Too small a value trusts
far projections too much: a body of 1.5 fields biased by 0.1 px at half a width."""

TAPER = 0.1
"""Fraction of the common columns over which each end is faded."""

NOISE_BAND = 0.75
"""From this fraction of the Nyquist frequency on, there is only noise."""

REACH_PX = 3.0
"""How far the coarse shift may be off."""

STEP_PX = 0.05

GRID = np.arange(-REACH_PX, REACH_PX + STEP_PX / 2, STEP_PX)
"""px, steps from the coarse shift that are compared."""

PARTS = 4
"""Parts of the rows, the seams and the frequencies that are compared."""

CHUNK = 4
"""Neighboring frequencies that stay in one part: the window smears them."""


@dataclass(frozen=True, eq=False)
class Seam:
    """Projections near one direction, and those that look against it."""

    ahead: NDArray[np.intp]
    mirrored: NDArray[np.intp]
    angle: Floats
    """(ahead + mirrored,) rad from the seam, the mirrored ones turned by pi."""

    @property
    def members(self) -> NDArray[np.intp]:
        """Return all its projections."""
        return np.concatenate([self.ahead, self.mirrored])

    def within(self, used: NDArray[np.intp]) -> Seam:
        """Return the same seam as places in ``used``, sorted indices."""
        ahead, mirrored = (
            np.searchsorted(used, x) for x in (self.ahead, self.mirrored)
        )
        return Seam(ahead, mirrored, self.angle)


@dataclass(frozen=True)
class Fine:
    """The shift that is most likely."""

    shift: float
    """px; the mirrored projections are moved by it."""
    sigma: float
    """px; by the curvature of the likelihood, or the scatter of parts if larger."""


def find_seams(theta: Floats, pairs: Pairs, max_miss: float) -> list[Seam]:
    """Choose seams: many with few projections each, or few with many.

    Parameters
    ----------
    theta : ndarray, (angle,)
        rad.
    pairs : Pairs
        The best pair first.
    max_miss : float
        rad; how far from its seam a projection may be.
    """
    phase = np.mod(theta, 2 * np.pi)
    miss = abs(pairs.miss)
    as_good = np.count_nonzero(miss <= 1.5 * miss.min() + 1e-4)
    side = int(np.clip(MAX_PROJECTIONS // (2 * as_good), 1, MAX_SIDE))
    free = np.ones(theta.size, bool)
    seams: list[Seam] = []
    for first, second, direction in zip(
        pairs.first, pairs.second, pairs.direction, strict=True
    ):
        if len(seams) * 2 * side >= MAX_PROJECTIONS:
            break
        if not (free[first] and free[second]):
            continue
        ahead = _nearest(phase, direction, side, max_miss, free)
        free[ahead] = False
        mirrored = _nearest(phase, direction + np.pi, side, max_miss, free)
        free[mirrored] = False
        if ahead.size and mirrored.size:
            angle = np.concatenate(
                [
                    _apart(phase[ahead], direction),
                    _apart(phase[mirrored], direction + np.pi),
                ]
            )
            seams.append(Seam(ahead, mirrored, angle))
    return seams


def _apart(phase: Floats, direction: float) -> Floats:
    return np.mod(phase - direction + np.pi, 2 * np.pi) - np.pi


def _nearest(
    phase: Floats, direction: float, n: int, reach: float, free: NDArray[np.bool_]
) -> NDArray[np.intp]:
    gap = np.where(free, abs(_apart(phase, direction)), np.inf)
    chosen = np.argsort(gap, kind="stable")[:n]
    return chosen[gap[chosen] <= reach]


def refine(rows: NDArray[np.float32], seams: list[Seam], shift: float) -> Fine:
    """Return the most likely shift near a coarse one.

    Parameters
    ----------
    rows : ndarray, [angle, row, column]
        Line integrals, finite.
    seams : list of Seam
        Indices into ``rows``.
    shift : float
        px, right to ``REACH_PX``.

    Returns
    -------
    Fine
        Its sigma is infinite where nothing is known.
    """
    # Gradients: what lies beyond the field would else end in a step.
    slopes = np.diff(rows.astype(np.float64), axis=2)
    used = np.unique(np.concatenate([seam.mirrored for seam in seams]))
    splines = np.zeros_like(slopes)
    splines[used] = ndimage.spline_filter1d(-slopes[used][:, :, ::-1], axis=2)
    evidence = None
    start, step = shift, 0.0
    for _ in range(2):
        shift += step
        evidence = _evidence(slopes, splines, seams, shift)
        if evidence is None:
            return Fine(start, np.inf)
        step = evidence.top(evidence.cross.sum(axis=(0, 1)))
    if evidence is None or abs(shift + step - start) > REACH_PX:
        return Fine(start, np.inf)
    return Fine(shift + step, evidence.sigma())


@dataclass(frozen=True, eq=False)
class Evidence:
    """What each seam, row and frequency says of the shift."""

    cross: NDArray[np.complex128]
    """[seam, row, frequency]; weighted so that likelihoods add up."""
    frequency: Floats
    """rad/px."""

    @cached_property
    def _turns(self) -> NDArray[np.complex128]:
        return np.exp(-1j * np.outer(self.frequency, GRID))

    def likelihood(self, cross: NDArray[np.complex128]) -> Floats:
        """Return the log likelihood at `GRID`, of a sum ``(..., frequency)``."""
        return 2 * (cross @ self._turns).real

    def top(self, cross: NDArray[np.complex128]) -> float:
        """Return the most likely step, px."""
        likely = self.likelihood(cross)
        k = int(np.clip(np.argmax(likely), 1, likely.size - 2))
        before, here, after = likely[k - 1 : k + 2]
        bend = 2 * here - before - after
        part = 0.5 * (after - before) / bend if bend > 0 else 0.0
        return float(GRID[k] + STEP_PX * np.clip(part, -1, 1))

    def sigma(self) -> float:
        """Return how far off the step may be, px.

        The width of what is likely (noise is not quite white: half of the evidence
        is believed), or the scatter of parts of the data, if larger.
        """
        joint = self.cross.sum(axis=(0, 1))
        likely = self.likelihood(joint) / 2
        chance = np.exp(likely - likely.max())
        chance /= chance.sum()
        mean = chance @ GRID
        width = np.sqrt(chance @ (GRID - mean) ** 2)
        # Narrower than the grid tells: the curvature in closed form.
        bend = 2 * (joint * self.frequency**2).real.sum() / 2
        width = max(width, 1 / np.sqrt(bend)) if bend > 0 else np.inf
        chunk = np.arange(self.frequency.size) // CHUNK % PARTS
        by_frequency = np.stack([np.where(chunk == k, joint, 0) for k in range(PARTS)])
        by = (by_frequency, self.cross.sum(axis=1), self.cross.sum(axis=0))
        return float(max(width, *map(self._scatter, by)))

    def _scatter(self, parts: NDArray[np.complex128]) -> float:
        """Return the mean's standard error over parts; too few of them give zero."""
        if len(parts) < PARTS:
            return 0.0
        starts = np.arange(PARTS) * len(parts) // PARTS
        found = [self.top(part) for part in np.add.reduceat(parts, starts, axis=0)]
        return float(np.std(found) / np.sqrt(PARTS - 1))


def _evidence(
    slopes: Floats, splines: Floats, seams: list[Seam], shift: float
) -> Evidence | None:
    """Weigh the cross spectra of both sides about a shift; None if there are none."""
    spectra = _spectra(slopes, splines, seams, shift)
    if spectra is None:
        return None
    noise, power, frequency = _noise_and_power(spectra)
    band = power > 1e-3 * noise
    if not band.any():
        return None
    ratio = (power[band] / noise[band])[:, None, None]
    depth = DEPTH * (slopes.shape[2] + 1)
    known: dict[bytes, Floats] = {}
    out = []
    for seam, (ahead, mirrored) in zip(seams, spectra, strict=True):
        key = np.round(seam.angle, 6).tobytes() + bytes([seam.ahead.size])
        if key not in known:
            known[key] = _weights(seam, frequency[band] * depth, ratio)
        predicted = known[key] @ mirrored[band]
        cross = (np.conj(ahead[band]) * predicted).sum(axis=1) / noise[band, None]
        out.append(cross.T)
    return Evidence(np.stack(out), frequency[band])


def _spectra(
    slopes: Floats, splines: Floats, seams: list[Seam], shift: float
) -> list[tuple[NDArray[np.complex128], NDArray[np.complex128]]] | None:
    """Return both sides' spectra ``[frequency, angle, row]`` over common columns."""
    n = slopes.shape[2]
    whole = round(shift)
    low, high = max(0, whole), min(n, n + whole)
    if high - low < 4:
        return None
    window = np.ones(high - low)
    edge = max(2, int(TAPER * window.size))
    window[:edge] = np.sin(np.pi / 2 * (np.arange(edge) + 0.5) / edge) ** 2
    window[-edge:] *= window[edge - 1 :: -1]
    length = fft.next_fast_len(window.size, real=True)
    out = []
    for seam in seams:
        ahead = slopes[seam.ahead][:, :, low:high] * window
        moved = _moved(splines[seam.mirrored], shift - whole)
        mirrored = moved[:, :, low - whole : high - whole] * window
        both = (np.asarray(fft.rfft(x, length, axis=2)) for x in (ahead, mirrored))
        first, second = (np.ascontiguousarray(x.transpose(2, 0, 1)) for x in both)
        out.append((first, second))
    return out


def _moved(splines: Floats, by: float) -> Floats:
    """Return cubic splines, given by coefficients, moved by up to half a pixel."""
    padded = np.pad(splines, ((0, 0), (0, 0), (2, 2)), mode="edge")
    n = splines.shape[2]
    out = np.zeros_like(splines)
    for k in range(-2, 3):
        x = abs(k - by)
        near = 2 / 3 - x**2 + x**3 / 2
        weight = near if x < 1 else max(0.0, 2 - x) ** 3 / 6
        out += weight * padded[:, :, 2 - k : 2 - k + n]
    return out


def _noise_and_power(
    spectra: list[tuple[NDArray[np.complex128], NDArray[np.complex128]]],
) -> tuple[Floats, Floats, Floats]:
    """Return the spectra of white noise's gradient and of the sample's, and rad/px."""
    sides = [side for both in spectra for side in both]
    n = sum(side.shape[1] * side.shape[2] for side in sides)
    power = np.sum([(abs(side) ** 2).sum(axis=(1, 2)) for side in sides], axis=0) / n
    frequency = np.linspace(0, np.pi, power.size)
    slope = 4 * np.sin(frequency / 2) ** 2
    top = frequency >= NOISE_BAND * np.pi
    level = float(np.median(power[top] / slope[top]))
    power = ndimage.uniform_filter1d(power, max(3, power.size // 32))
    noise = level * slope + 1e-9 * power.max()
    noise[0] = np.inf if not power.any() else power.max() * 1e9
    return noise, np.maximum(power - noise, 0), frequency


def _weights(seam: Seam, reach: Floats, ratio: Floats) -> Floats:
    """Return what predicts one side of a seam from the other.

    Parameters
    ----------
    seam : Seam
    reach : ndarray, (frequency,)
        Frequency times depth: radians of phase per radian of turn.
    ratio : ndarray, (frequency, 1, 1)
        Power of the sample over that of the noise.

    Returns
    -------
    ndarray, [frequency, ahead, mirrored]
        Of the inverse covariance the part between both sides, sign turned.
    """
    apart = abs(seam.angle[:, None] - seam.angle)
    x = reach[:, None, None] * apart + 1e-9
    covariance = ratio * (2 * special.j1(x) / x) + np.eye(apart.shape[0])
    n = seam.ahead.size
    return -np.linalg.inv(covariance)[:, :n, n:]
