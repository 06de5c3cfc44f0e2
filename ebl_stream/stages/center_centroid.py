"""Center: from how the center of mass moves as the sample turns.

The mass that a row of a projection shows is the same from all sides, and its
center of mass is seen at ``center + a cos(theta) + b sin(theta)`` (the
consistency conditions of order 0 and 1: Helgason, Acta Math. 113, 153 (1965);
Ludwig, Commun. Pure Appl. Math. 19, 49 (1966)). An arc is enough to fit the three.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ebl_stream.stages import CenterVerdict

Floats = NDArray[np.float64]

EDGE = 0.04
"""Fraction of the columns on each side that must show air."""

MIN_ANGLES = 16

AIR = 0.03
"""Of the projected thickness: more than that at an edge is not air."""

MASS = 0.03
"""The mass may change with the angle by this fraction: more, and part is outside."""

MOVED = 6.0
"""Residuals of whole arcs, in their standard errors, that only motion explains."""

MOVED_PX = 0.5
"""Smaller residuals are no motion, however sure."""

ARCS = 12
"""Arcs whose mean residuals are looked at."""

SAMPLED = 64
"""Projections that the extent of the sample is taken from."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Mass and first moment of some rows, free of background."""

    mass: Floats
    """[angle, row]."""
    place: Floats
    """[angle, row]; px from the middle of the columns, times mass."""
    pattern: Floats
    """(row,) what the detector's own pattern may add to ``place``, the same always."""


@dataclass(frozen=True, eq=False)
class Sinusoid:
    """The joint fit of all rows."""

    center: float
    """px from the middle of the columns."""
    spread: float
    residual: Floats
    """(angle,) px, the rows' mean in the order of ``theta``."""


@dataclass(frozen=True)
class Centroid:
    """Fit the path of the center of mass, where the sample stays inside the field.

    Fast, and ready long before projections face each other; blind to a sample that
    the field cuts, which it refuses (by the edges and by the mass), and misled by
    uneven backgrounds, which its spread shows.
    """

    min_arc_deg: float = 45.0
    """Arc of directions, of 180 degrees, that must be there."""
    max_spread_px: float = 0.25
    """The center must be known so well."""

    def __post_init__(self) -> None:
        if not 20 <= self.min_arc_deg <= 180:
            raise ValueError("min_arc_deg must be from 20 to 180")
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
        return self.follow(projections, theta)[0]

    def follow(
        self, projections: NDArray[np.float32], theta: NDArray[np.float64]
    ) -> tuple[CenterVerdict, float]:
        """Return the verdict, and how far (px) the sample leaves its circle.

        The latter is zero where nothing is known.
        """
        theta = np.asarray(theta, np.float64)
        arc = np.degrees(covered_arc(theta))
        facts = f"{len(theta)} projections over {arc:.3g} degrees"
        if len(theta) < MIN_ANGLES or arc < self.min_arc_deg - 1e-6:
            need = f"{self.min_arc_deg:g} degrees are needed"
            return _no(f"the center of mass is not known from {facts}: {need}"), 0.0
        moments = _seen(projections)
        if isinstance(moments, str):
            return _no(moments), 0.0
        changes = _mass_changes(moments.mass, theta)
        if changes > MASS:
            return _no(
                f"the mass seen changes by {changes:.1%} with the angle: "
                "part of the sample is outside of the field, or the beam drifts"
            ), 0.0
        fit = _fit(moments, theta)
        center = fit.center + (projections.shape[2] - 1) / 2
        step = _motion(fit.residual, theta)
        if step:
            why = f"the center of mass leaves its circle by {step:.2g} px ({facts})"
        elif not fit.spread <= self.max_spread_px:
            why = f"the center of mass tells it to {fit.spread:.2g} px only ({facts})"
        else:
            why = f"the center of mass moves on a circle ({facts})"
            return CenterVerdict(center, True, fit.spread, why, "centroid"), 0.0
        return CenterVerdict(center, False, fit.spread, why, "centroid"), step


def covered_arc(theta: Floats) -> float:
    """Return what of half a turn (rad) is left when its widest gap is taken out."""
    if len(theta) < 2:
        return 0.0
    direction = np.sort(np.mod(theta, np.pi))
    gaps = np.sort(np.diff(direction, append=direction[0] + np.pi))
    # Each projection stands for a gap, the last one, too.
    return float(min(np.pi, np.pi - gaps[-1] + np.median(gaps[:-1])))


def _seen(projections: NDArray[np.float32]) -> Moments | str:
    """Return the moments of the rows that show something, or why there are none."""
    extent = _extent(projections)
    if isinstance(extent, str):
        return extent
    moments = _moments(projections, *extent)
    weight = np.median(moments.mass, axis=0)
    rows = weight > 0.1 * weight.max(initial=0)
    if not rows.any():
        return "the projections show nothing that stands out of the air"
    return Moments(moments.mass[:, rows], moments.place[:, rows], moments.pattern[rows])


def _extent(projections: NDArray[np.float32]) -> tuple[int, int] | str:
    """Return the columns that the sample is ever seen in, or why there are none."""
    n = projections.shape[2]
    sample = projections[:: -(-len(projections) // SAMPLED)]
    profile = np.nan_to_num(sample).mean(axis=1)
    smooth = ndimage.gaussian_filter1d(profile, max(1.0, 0.006 * n), axis=1)
    edge = max(3, int(EDGE * n))
    ends = np.concatenate([smooth[:, :edge], smooth[:, -edge:]], axis=1)
    # Noise of the smoothed profile, from neighbors in angle.
    noise = float(np.median(abs(np.diff(ends, axis=0)))) if len(sample) > 1 else 0.0
    level = float(np.quantile(smooth.max(axis=1), 0.5)) - float(np.median(ends))
    if level < 12 * noise or level <= 0:
        return "the projections show nothing that stands out of the air"
    tolerance = max(AIR * level, 6 * noise)
    excess = abs(np.stack([smooth[:, :edge], smooth[:, -edge:]]).mean(axis=2))
    if float(np.quantile(excess, 0.98)) > tolerance:
        return "the sample reaches the edge of the field"
    seen = np.flatnonzero((smooth > tolerance).any(axis=0))
    margin = max(3, int(0.02 * n))
    low, high = int(seen[0]) - margin, int(seen[-1]) + 1 + margin
    if low < edge // 2 or high > n - edge // 2:
        return "the sample reaches the edge of the field"
    return low, high


def _moments(projections: NDArray[np.float32], low: int, high: int) -> Moments:
    """Sum over the sample's columns, less what the air on both sides shows."""
    n = projections.shape[2]
    x = np.arange(n) - (n - 1) / 2
    left, right = slice(0, max(low, 3)), slice(min(high, n - 3), n)
    kernel = np.zeros((n, 4))
    kernel[low:high, 0] = 1
    kernel[low:high, 1] = x[low:high] / n
    kernel[left, 2] = 1 / (left.stop - left.start)
    kernel[right, 3] = 1 / (right.stop - right.start)
    sums = _products(projections, kernel.astype(np.float32))
    # Noise of the air is shared out: what is steady per row, what drifts per angle.
    ends = sums[:, :, 2:]
    air = ends.mean(axis=0) + ends.mean(axis=1, keepdims=True) - ends.mean(axis=(0, 1))
    at = np.array([x[left].mean(), x[right].mean()])
    slope = (air[:, :, 1] - air[:, :, 0]) / (at[1] - at[0])
    level = air[:, :, 0] - slope * at[0]
    moved = x[low:high].sum(), (x[low:high] ** 2).sum()
    mass = sums[:, :, 0] - level * (high - low) - slope * moved[0]
    place = sums[:, :, 1] * n - level * moved[0] - slope * moved[1]
    reach = float(np.sqrt((x[low:high] ** 2).sum()))
    return Moments(mass, place, reach * _pattern(projections[:, :, low:high]))


def _pattern(projections: NDArray[np.float32]) -> Floats:
    """Return how much stands on the detector, of each row: (row,), as a deviation."""
    mean = np.nan_to_num(projections[:: -(-len(projections) // SAMPLED)]).mean(axis=0)
    rough = mean - ndimage.median_filter(mean, size=(1, 9), mode="nearest")
    return 1.4826 * np.median(abs(rough), axis=1).astype(np.float64)


def _products(projections: NDArray[np.float32], kernel: NDArray[np.float32]) -> Floats:
    """Return ``projections @ kernel``; pixels without a value count as nothing."""
    sums = np.asarray(projections @ kernel, np.float64)
    lost = ~np.isfinite(sums).all(axis=2)
    if lost.any():
        sums[lost] = np.nan_to_num(projections[lost]) @ kernel
    return sums


def _mass_changes(mass: Floats, theta: Floats) -> float:
    """Return how much the rows' joint mass changes with the angle, beyond noise."""
    total = mass.sum(axis=1)[np.argsort(np.mod(theta, 2 * np.pi), kind="stable")]
    arcs = np.array_split(total, min(ARCS, len(total) // 4))
    means = np.array([np.median(arc) for arc in arcs])
    error = np.mean([np.var(arc) / len(arc) for arc in arcs])
    return float(np.sqrt(max(0.0, np.var(means) - error)) / abs(np.median(total)))


def _fit(moments: Moments, theta: Floats) -> Sinusoid:
    """Fit every row, and judge by how rows, and arcs, agree."""
    weight = np.median(moments.mass, axis=0)
    path = moments.place / weight
    design = np.stack([np.ones_like(theta), np.cos(theta), np.sin(theta)], axis=1)
    inverse = np.linalg.pinv(design)
    coefficients = inverse @ path
    share = weight**2 / (weight**2).sum()
    center = float(coefficients[0] @ share)
    residual = (path - design @ coefficients) @ share
    # What stands on the detector pushes all angles alike: no residual shows it.
    standing = float(np.sqrt((share**2) @ (moments.pattern / weight) ** 2))
    spreads = [float(np.hypot(_by_residual(residual, inverse[0], theta), standing))]
    if len(share) >= 4:
        effective = 1 / (share**2).sum()
        scatter = np.sqrt(share @ (coefficients[0] - center) ** 2)
        spreads.append(float(scatter / np.sqrt(max(effective - 1, 1))))
    return Sinusoid(center, max(spreads), residual)


def _by_residual(residual: Floats, lever: Floats, theta: Floats) -> float:
    """Return the standard error of the center; neighbors in angle err alike."""
    order = np.argsort(np.mod(theta, 2 * np.pi), kind="stable")
    pushes = (residual * lever)[order]
    arcs = np.array_split(pushes, min(ARCS, len(pushes) // 4))
    lumped = sum(float(arc.sum()) ** 2 for arc in arcs)
    alone = float((pushes**2).sum())
    return float(np.sqrt(max(lumped * len(arcs) / (len(arcs) - 3), alone)))


def _motion(residual: Floats, theta: Floats) -> float:
    """Return the step (px) that the residuals show in angle or in time, or 0."""
    order = np.argsort(np.mod(theta, 2 * np.pi), kind="stable")
    worst = 0.0
    n_arcs = min(ARCS, len(residual) // 4)
    for sequence in (residual, residual[order]):
        arcs = np.array_split(sequence, n_arcs)
        means = np.array([np.median(arc) for arc in arcs])
        noise = np.median([np.std(np.diff(arc)) for arc in arcs]) / np.sqrt(2)
        error = 1.25 * noise / np.sqrt(len(sequence) / n_arcs)
        if abs(means).max() > max(MOVED_PX, MOVED * error):
            worst = max(worst, float(np.ptp(means)))
    return worst


def _no(why: str) -> CenterVerdict:
    return CenterVerdict(None, False, float("nan"), why, "centroid")
