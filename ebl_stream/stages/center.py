"""Center: where the rotation axis is seen, from projections that face each other.

Half a turn apart, the same rays are measured from both ends:
``p(theta + pi, s) = p(theta, -s)``. One projection, mirrored, is the other one,
shifted by ``2 center - (n_columns - 1)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, optimize

from ebl_stream.stages import CenterVerdict

MAX_PAIRS = 48
"""Pairs that are compared, the most exact first; more cost time and add little."""

MAX_ROWS = 32
"""Rows that are compared; more are averaged in blocks first."""

GROUPS = 6
"""Independent parts of the data, which must agree."""

SMOOTHING_PX = (1.5, 4.0)
"""Scales (standard deviation) of the gradients: edges, and bulk under noise."""

ENOUGH_ANGLES = 24
"""From so many on, what all projections share is the detector's own pattern."""


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Projections that (nearly) face each other."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    excess: NDArray[np.float64]
    """rad; second - first - half a turn."""
    middle: NDArray[np.float64]
    """rad; direction half-way between the first one and the mirrored second one."""

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, which: Any) -> _Pairs:
        return _Pairs(
            self.first[which],
            self.second[which],
            self.excess[which],
            self.middle[which],
        )


@dataclass(frozen=True)
class OppositePairs:
    """Correlate projections with their mirrored opposites.

    Pairs that miss half a turn by a few degrees serve, too: their apparent shift
    grows with the miss times the mean depth of what is seen, so the fit has that
    depth as a second unknown, and the center is what is left where the miss is zero.
    Gradients are compared over the columns that both see (normalized correlation),
    so a cut object does not pull the answer to the middle.
    """

    max_excess_deg: float = 4.0
    """How far from half a turn two projections may be apart."""
    min_overlap: float = 0.34
    """Fraction of the columns that both projections of a pair must see."""
    max_spread_px: float = 0.75
    """Independent parts of the data may disagree by so much."""

    def __post_init__(self) -> None:
        if not 0 < self.max_excess_deg <= 20:
            raise ValueError("max_excess_deg must be above 0 and at most 20")
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
        pairs = _find_pairs(theta, np.radians(self.max_excess_deg))
        if not len(pairs):
            return _no("no two projections face each other")
        ...
