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
from ebl_stream.stages.opposite import Alignment, correlate, find_pairs, without_pattern

SMOOTHING_PX = (1.5, 4.0)
"""Scales of the gradients that are compared: edges, then bulk, for noisy scans."""

MIN_OVERLAP_PX = 8
"""Fewer columns hold nothing that could be recognized."""

MIN_PEAK = 0.15
"""Normalized correlation below which nothing is alike."""

MIN_CONTRAST = 1.7
"""The best shift must correlate so many times better than any other place."""

DOUBT = 0.25
"""Fraction of what extrapolation to half a turn changed that counts as spread."""


@dataclass(frozen=True)
class OppositePairs:
    """Correlate projections with their mirrored opposites.

    Pairs that miss half a turn by a few degrees serve, too: their apparent shift
    grows with the miss times the depth of what is seen, so that depth is fitted
    along, and the center is what is left where the miss is zero. Gradients are
    compared over the columns that both see (normalized correlation), so that an
    object cut by the field does not pull the answer to the middle.
    """

    max_miss_deg: float = 4.0
    """How far from half a turn apart two projections may be."""
    min_overlap: float = 0.34
    """Fraction of the columns that both projections of a pair must see."""
    max_spread_px: float = 0.75
    """Independent parts of the data may disagree by so much."""

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
        pairs = find_pairs(np.asarray(theta, np.float64), np.radians(self.max_miss_deg))
        if not len(pairs):
            return _no(
                f"no two of {len(theta)} projections face each other "
                f"(within {self.max_miss_deg:g} degrees of half a turn)"
            )
        n_columns = projections.shape[2]
        reach = int((1 - self.min_overlap) * n_columns)
        if n_columns - reach < MIN_OVERLAP_PX:
            return _no(f"{n_columns} columns are too few to recognize anything in")
        rows = without_pattern(np.nan_to_num(projections))
        verdict = _no("the projections show nothing")
        for smoothing in SMOOTHING_PX:
            curves = correlate(rows, pairs, reach, smoothing)
            if curves is None:
                continue
            found = self._judge(Alignment(curves, pairs, n_columns), smoothing)
            if found.reliable:
                return found
            if verdict.center is None:
                verdict = found
        return verdict

    def _judge(self, alignment: Alignment, smoothing: float) -> CenterVerdict:
        """Say whether the best shift stands out, and whether its parts agree."""
        best = alignment.best()
        spread = np.hypot(alignment.spread(best), DOUBT * abs(best.extrapolated)) / 2
        center = (best.shift + alignment.n_columns - 1) / 2
        contrast = best.height / max(alignment.second(best, smoothing), 1e-6)
        facts = (
            f"{len(alignment.pairs)} pairs, within "
            f"{np.degrees(abs(alignment.pairs.miss).max()):.2g} degrees of half a turn"
        )
        why = f"opposite projections agree ({facts})"
        if best.height < MIN_PEAK:
            why = f"opposite projections are not alike ({facts})"
        elif contrast < MIN_CONTRAST:
            why = f"opposite projections fit at more than one place ({facts})"
        elif not spread <= self.max_spread_px:
            why = f"parts of the data disagree by {spread:.2g} px ({facts})"
        else:
            return CenterVerdict(float(center), True, float(spread), why)
        return CenterVerdict(float(center), False, float(spread), why)


def _no(why: str) -> CenterVerdict:
    return CenterVerdict(None, False, float("nan"), why)
