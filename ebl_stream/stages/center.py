"""Center: where the rotation axis is seen, from projections that face each other.

Half a turn apart, the same rays are measured from both ends:
``p(theta + pi, s) = p(theta, -s)``. One projection, mirrored, is the other one,
shifted by ``2 center - (n_columns - 1)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebl_stream.stages import CenterVerdict
from ebl_stream.stages.center_fine import find_seams, refine
from ebl_stream.stages.opposite import (
    Alignment,
    Pairs,
    binned,
    correlate,
    find_pairs,
    without_pattern,
)

SMOOTHING_PX = (1.5, 4.0)
"""Scales of the gradients that are compared: edges, then bulk, for noisy scans."""

MIN_OVERLAP_PX = 8
"""Fewer columns hold nothing that could be recognized."""

MIN_PEAK = 0.15
"""Normalized correlation below which nothing is alike."""

MIN_CONTRAST = 1.7
"""The best shift must correlate so many times better than any other place."""

COARSE_COLUMNS = 640
"""Wider projections are binned for the search over all shifts."""


@dataclass(frozen=True)
class OppositePairs:
    """Correlate projections with their mirrored opposites.

    First over all shifts: gradients are compared over the columns that both see
    (normalized correlation), so that an object cut by the field does not pull the
    answer to the middle. Pairs that miss half a turn by a few degrees serve, too:
    their apparent shift grows with the miss times the depth of what is seen, so
    that depth is fitted along. Then finely, by the likelihood of the shift
    (`ebl_stream.stages.center_fine`).
    """

    max_miss_deg: float = 4.0
    """How far from half a turn apart two projections may be."""
    min_overlap: float = 0.34
    """Fraction of the columns that both projections of a pair must see."""
    max_spread_px: float = 0.5
    """The center must be known so well."""

    def __post_init__(self) -> None:
        if not 0 < self.max_miss_deg <= 20:
            raise ValueError("max_miss_deg must be above 0 and at most 20")
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
        n_columns = projections.shape[2]
        max_miss = np.radians(self.max_miss_deg)
        pairs = find_pairs(theta, max_miss)
        if not len(pairs):
            return _no(
                f"no two of {len(theta)} projections face each other "
                f"(within {self.max_miss_deg:g} degrees of half a turn)"
            )
        if int(self.min_overlap * n_columns) < MIN_OVERLAP_PX:
            return _no(f"{n_columns} columns are too few to recognize anything in")
        seams = find_seams(theta, pairs, max_miss)
        pairs = pairs.that_count(n_columns)
        used = np.unique(
            np.concatenate(
                [pairs.first, pairs.second, *(seam.members for seam in seams)]
            )
        )
        rows = without_pattern(projections, used)
        pairs = pairs.within(used)
        coarse = self._coarse(rows, pairs)
        if not coarse.reliable or coarse.center is None:
            return coarse
        shift = 2 * coarse.center - (n_columns - 1)
        fine = refine(rows, [seam.within(used) for seam in seams], shift)
        center, spread = (fine.shift + n_columns - 1) / 2, fine.sigma / 2
        if spread <= self.max_spread_px:
            return CenterVerdict(center, True, spread, coarse.why, "pairs")
        why = f"opposite projections tell it to {spread:.2g} px only ({_facts(pairs)})"
        return CenterVerdict(coarse.center, False, spread, why, "pairs")

    def _coarse(self, rows: NDArray[np.float32], pairs: Pairs) -> CenterVerdict:
        """Find the shift in the whole range; edges are compared first, then bulk."""
        bins = -(-rows.shape[2] // COARSE_COLUMNS)
        n_columns = rows.shape[2] // bins
        coarse = binned(rows, bins)
        reach = int((1 - self.min_overlap) * n_columns)
        verdict = _no("the projections show nothing")
        for smoothing in SMOOTHING_PX:
            curves = correlate(coarse, pairs, reach, smoothing)
            if curves is None:
                continue
            found = self._judge(Alignment(curves, pairs, n_columns), smoothing, bins)
            if found.reliable:
                return found
            if verdict.center is None:
                verdict = found
        return verdict

    def _judge(
        self, alignment: Alignment, smoothing: float, bins: int
    ) -> CenterVerdict:
        """Say whether the best shift stands out, and whether its parts agree."""
        best = alignment.best()
        spread = bins * alignment.spread(best) / 2
        center = bins * (best.shift + alignment.n_columns - 1) / 2 + (bins - 1) / 2
        contrast = best.height / max(alignment.second(best, smoothing), 1e-6)
        facts = _facts(alignment.pairs)
        why = f"opposite projections agree ({facts})"
        if best.height < MIN_PEAK:
            why = f"opposite projections are not alike ({facts})"
        elif contrast < MIN_CONTRAST:
            why = f"opposite projections fit at more than one place ({facts})"
        elif not spread <= self.max_spread_px:
            why = f"parts of the data disagree by {spread:.2g} px ({facts})"
        else:
            return CenterVerdict(float(center), True, float(spread), why, "pairs")
        return CenterVerdict(float(center), False, float(spread), why, "pairs")


def _facts(pairs: Pairs) -> str:
    miss = np.degrees(abs(pairs.miss).max())
    return f"{len(pairs)} pairs, within {miss:.2g} degrees of half a turn"


def _no(why: str) -> CenterVerdict:
    return CenterVerdict(None, False, float("nan"), why, "pairs")
