"""Projections that face each other: find them, compare them, align them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, optimize

Floats = NDArray[np.float64]

MAX_PAIRS = 30
"""Pairs that are compared, the closest to half a turn first."""

MAX_SAMPLED = 192
"""Projections that the detector's own pattern is averaged from."""

MAX_ROWS = 32
"""Rows that are compared; more are averaged in blocks first."""

ROW_BLOCKS = 6
"""Blocks of rows that are kept apart, to see whether they agree."""

PARTS = 6
"""Independent parts of the data, each of some pairs and some rows."""

PATTERN_ANGLES = 24
"""From so many projections on, what all share is the detector's own pattern."""

PATTERN_PX = 9
"""Width (columns) below which something that all projections share is pattern."""

PLAIN_PX = 1.0
"""A pair's miss may blur the comparison by so much before it counts for less."""

NEGLIGIBLE = 1e-2
"""Weight, in that of the best pair, that is not worth a comparison."""

FLOOR = 0.02
"""Of the energy: keeps the correlation of nearly empty overlaps from exploding."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Projections that (nearly) face each other."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    miss: Floats
    """(pair,) rad; theta[second] - theta[first] - pi, within half a turn."""
    direction: Floats
    """(pair,) rad; half-way between the first and the mirrored second one."""

    def __len__(self) -> int:
        return len(self.first)

    def within(self, used: NDArray[np.intp]) -> Pairs:
        """Return the same pairs as places in ``used``, sorted indices."""
        first, second = (np.searchsorted(used, x) for x in (self.first, self.second))
        return Pairs(first, second, self.miss, self.direction)

    def weights(self, n_columns: int) -> Floats:
        """Return how much each pair counts: less the more its miss blurs."""
        blur = abs(self.miss) * n_columns / 2
        # Far pairs bend the fit (depth is not one number); three at least must count.
        tolerance = max(PLAIN_PX, 0.6 * float(np.sort(blur)[:3][-1]))
        weights = np.exp(-(blur**2 - blur.min() ** 2) / (2 * tolerance**2))
        return weights / weights.sum()

    def that_count(self, n_columns: int) -> Pairs:
        """Return the pairs without those that weigh next to nothing."""
        weights = self.weights(n_columns)
        kept = weights > NEGLIGIBLE * weights.max()
        return Pairs(
            self.first[kept], self.second[kept], self.miss[kept], self.direction[kept]
        )


def find_pairs(theta: Floats, max_miss: float) -> Pairs:
    """Find the projections that face each other best, in any order of angles.

    Parameters
    ----------
    theta : ndarray, (angle,)
        rad.
    max_miss : float
        rad from half a turn.

    Returns
    -------
    Pairs
        At most ``MAX_PAIRS``, each pair of projections once.
    """
    turn = 2 * np.pi
    phase = np.mod(theta, turn)
    order = np.argsort(phase, kind="stable")
    opposite = np.searchsorted(phase[order], np.mod(phase + np.pi, turn))
    near = min(12, max(1, theta.size // 2))
    steps = np.arange(-near, near)
    second = order[(opposite[:, None] + steps) % theta.size].ravel()
    first = np.repeat(np.arange(theta.size), steps.size)
    miss = np.mod(phase[second] - phase[first], turn) - np.pi
    key = np.minimum(first, second) * theta.size + np.maximum(first, second)
    once = np.unique(key, return_index=True)[1]
    once = once[(abs(miss[once]) <= max_miss) & (first[once] != second[once])]
    # Equally good pairs are taken from all directions, reproducibly.
    once = np.random.default_rng(0).permutation(once)
    once = once[np.argsort(np.round(abs(miss[once]), 4), kind="stable")][:MAX_PAIRS]
    first, second, miss = first[once], second[once], miss[once]
    return Pairs(first, second, miss, phase[first] + miss / 2)


def without_pattern(
    projections: NDArray[np.float32], used: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Return the used projections, finite, without what stands on the detector.

    Narrow columns that all projections share know nothing of the axis. The broad
    part of the mean is kept: it holds the walls of a round container, which do.
    Many rows are averaged in blocks.
    """
    rows = np.nan_to_num(_averaged(projections[used]))
    if len(projections) >= PATTERN_ANGLES:
        step = -(-len(projections) // MAX_SAMPLED)
        mean = np.nan_to_num(_averaged(projections[::step])).mean(axis=0)
        broad = ndimage.median_filter(mean, size=(1, PATTERN_PX), mode="nearest")
        rows -= mean - broad
    return rows


def binned(values: NDArray[np.float32], bins: int) -> NDArray[np.float32]:
    """Return means of ``bins`` neighboring columns; columns left over are dropped.

    A bin without a value counts as zero.
    """
    if bins == 1:
        return np.where(np.isfinite(values), values, np.float32(0))
    n = values.shape[-1] // bins * bins
    total = values[..., 0:n:bins].copy()
    for k in range(1, bins):
        total += values[..., k:n:bins]
    return np.where(np.isfinite(total), total / np.float32(bins), np.float32(0))


def _averaged(projections: NDArray[np.float32]) -> NDArray[np.float32]:
    block = -(-projections.shape[1] // MAX_ROWS)
    if block == 1:
        return projections
    starts = np.arange(0, projections.shape[1], block)
    rows = np.diff(np.append(starts, projections.shape[1]))
    return np.add.reduceat(projections, starts, axis=1) / rows[:, None]


@dataclass(frozen=True, eq=False)
class Curves:
    """Correlation of every pair, per block of rows, at every whole shift."""

    shifts: NDArray[np.intp]
    """(shift,) px that the mirrored second one is moved by."""
    product: Floats
    """[pair, block, shift]."""
    energy: Floats
    """[pair, block, shift]; the largest product that the overlap allows."""

    def normalized(self, part: NDArray[np.bool_] | None = None) -> Floats:
        """Return the correlation -1..1 ``[pair, shift]`` of (a part of) the rows."""
        chosen = np.ones(self.energy.shape[:2], bool) if part is None else part
        energy = (self.energy * chosen[:, :, None]).sum(axis=1)
        product = (self.product * chosen[:, :, None]).sum(axis=1)
        return np.divide(product, energy, out=np.zeros_like(energy), where=energy > 0)


def correlate(
    rows: NDArray[np.float32], pairs: Pairs, reach: int, smoothing: float
) -> Curves | None:
    """Compare the gradients of each pair at all shifts up to ``reach``.

    Parameters
    ----------
    rows : ndarray, [angle, row, column]
    pairs : Pairs
    reach : int
        px.
    smoothing : float
        px, standard deviation of the Gaussian that the gradient is taken with.

    Returns
    -------
    Curves or None
        None when nothing is seen at all.
    """
    n_columns = rows.shape[2]
    used, where = np.unique(
        np.concatenate([pairs.first, pairs.second]), return_inverse=True
    )
    one, two = np.split(where, 2)
    ahead = ndimage.gaussian_filter1d(
        rows[used].astype(np.float64), smoothing, axis=2, order=1, mode="nearest"
    )
    mirrored = -ahead[:, :, ::-1]
    n_blocks = min(ROW_BLOCKS, rows.shape[1])
    starts = np.arange(n_blocks) * rows.shape[1] // n_blocks
    shifts = np.arange(-reach, reach + 1)
    length = fft.next_fast_len(n_columns + reach + 1, real=True)
    spectra = fft.rfft(ahead, length, axis=2), fft.rfft(mirrored, length, axis=2)
    sums = _running(ahead, starts), _running(mirrored, starts)
    if not sums[0].any():
        return None
    low, high = np.maximum(0, shifts), np.minimum(n_columns, n_columns + shifts)
    shape = (len(pairs), n_blocks, shifts.size)
    product, energy = np.empty(shape), np.empty(shape)
    for k, (i, j) in enumerate(zip(one, two, strict=True)):
        cross = np.add.reduceat(spectra[0][i] * np.conj(spectra[1][j]), starts, axis=0)
        product[k] = np.asarray(fft.irfft(cross, length, axis=1))[:, shifts]
        a, b = sums[0][i], sums[1][j]
        in_a = a[:, high] - a[:, low] + FLOOR * a[:, -1:]
        in_b = b[:, high - shifts] - b[:, low - shifts] + FLOOR * b[:, -1:]
        energy[k] = np.sqrt(in_a * in_b)
    return Curves(shifts, product, energy)


def _running(gradient: Floats, starts: NDArray[np.intp]) -> Floats:
    """Return sums of squares up to each column, ``[angle, block, column + 1]``."""
    squares = np.add.reduceat(gradient**2, starts, axis=1)
    return np.pad(np.cumsum(squares, axis=2), ((0, 0), (0, 0), (1, 0)))


@dataclass(frozen=True)
class Best:
    """The shift at which all pairs fit together."""

    shift: float
    """px, at a miss of zero."""
    depth: tuple[float, float]
    """px along x and y: where, in depth, what is seen lies on average."""
    height: float
    """Correlation there, -1..1, weighted by the overlap."""


class Alignment:
    """Fit one shift, and one depth, to the curves of all pairs."""

    def __init__(self, curves: Curves, pairs: Pairs, n_columns: int) -> None:
        self.pairs = pairs
        self.n_columns = n_columns
        self._curves = curves
        self._weights = pairs.weights(n_columns)
        # Chance correlates better where fewer columns overlap.
        self._trust = np.sqrt(1 - abs(curves.shifts) / n_columns)
        lever = pairs.miss[:, None] * np.stack(
            [np.cos(pairs.direction), np.sin(pairs.direction)], axis=1
        )
        self._lever = lever
        """(pair, 2): px of shift per px of depth."""

    def best(self) -> Best:
        """Find the best shift, first on a grid, then finely."""
        curves = self._curves.normalized()
        shift, depth = max(
            (self._search(curves, depth) for depth in self._depths()),
            key=lambda found: found[0],
        )[1:]
        shift, depth = self._refine(curves, shift, depth)
        profile = self._profile(curves, depth)
        height = float(np.interp(shift, self._curves.shifts, profile))
        return Best(shift, depth, height)

    def second(self, best: Best, smoothing: float) -> float:
        """Return the best correlation anywhere else."""
        profile = self._profile(self._curves.normalized(), best.depth)
        apart = max(6.0, 4 * smoothing, 0.03 * self.n_columns)
        elsewhere = profile[abs(self._curves.shifts - best.shift) > apart]
        return float(elsewhere.max(initial=0))

    def spread(self, best: Best) -> float:
        """Return how far parts of the data stray, each searching all shifts (px).

        Parts by pairs betray a sample that moved, parts by rows a pattern that all
        pairs share. Whole shifts are within half a pixel of a place between them.
        """
        n_pairs, n_blocks, _ = self._curves.product.shape
        pair, block = np.indices((n_pairs, n_blocks))
        strays = [self._strays(best, of) for of in ((pair + block) % PARTS, block)]
        return max(0.0, max(strays) - 0.5)

    def _strays(self, best: Best, part_of: NDArray[np.intp]) -> float:
        """Return the median over the parts of how far they are off the best shift."""
        places = [
            self._search(self._curves.normalized(part_of == part), best.depth)[1]
            for part in np.unique(part_of)
        ]
        return float(np.median(np.abs(np.asarray(places) - best.shift)))

    def _depths(self) -> list[tuple[float, float]]:
        """Return the depths that the coarse search tries."""
        radius = self.n_columns / 2
        steps = int(np.ceil(np.sqrt(self._weights @ self.pairs.miss**2) * radius))
        if steps == 0 or abs(self.pairs.miss).max() * radius < 0.25:
            return [(0.0, 0.0)]
        ticks = np.linspace(-radius, radius, 2 * min(steps + 1, 12) + 1)
        return [
            (float(x), float(y))
            for x in ticks
            for y in ticks
            if x * x + y * y <= 1.01 * radius**2
        ]

    def _profile(self, curves: Floats, depth: tuple[float, float]) -> Floats:
        """Return the joint correlation at every whole shift, for a given depth."""
        if any(depth):
            curves = _moved(curves, self._lever @ np.asarray(depth))
        return (self._weights @ curves) * self._trust

    def _search(
        self, curves: Floats, depth: tuple[float, float]
    ) -> tuple[float, float, tuple[float, float]]:
        profile = self._profile(curves, depth)
        k = int(np.argmax(profile))
        return float(profile[k]), float(self._curves.shifts[k]), depth

    def _refine(
        self, curves: Floats, shift: float, depth: tuple[float, float]
    ) -> tuple[float, tuple[float, float]]:
        """Climb to the top of the interpolated joint correlation."""
        smooth = ndimage.spline_filter1d(curves, axis=1, mode="nearest")
        rows = np.arange(len(curves))
        first = self._curves.shifts[0]
        scale = self.n_columns / 2
        free = len(self._depths()) > 1

        def badness(x: Floats) -> float:
            at = np.asarray(x[1:]) if free else np.zeros(2)
            place = x[0] - first + self._lever @ (at * scale)
            values = ndimage.map_coordinates(
                smooth, [rows, place], prefilter=False, mode="nearest"
            )
            # Depths that the pairs cannot tell stay near zero.
            return float(1e-3 * (at @ at) - self._weights @ values)

        start = np.array(
            [shift, depth[0] / scale, depth[1] / scale][: 3 if free else 1]
        )
        steps = np.diag([1.0, 0.2, 0.2][: start.size])
        found = optimize.minimize(
            badness,
            start,
            method="Nelder-Mead",
            options={
                "initial_simplex": np.vstack([start, start + steps]),
                "xatol": 1e-3,
                "fatol": 1e-8,
            },
        ).x
        if not free:
            return float(found[0]), (0.0, 0.0)
        return float(found[0]), (float(found[1] * scale), float(found[2] * scale))


def _moved(curves: Floats, by: Floats) -> Floats:
    """Return each curve read ``by`` places further on, linearly between places."""
    low = np.floor(by).astype(int)
    rest = (by - low)[:, None]
    last = curves.shape[1] - 1
    place = np.arange(last + 1) + low[:, None]
    here, there = (
        np.take_along_axis(curves, np.clip(p, 0, last), axis=1)
        for p in (place, place + 1)
    )
    return (1 - rest) * here + rest * there
