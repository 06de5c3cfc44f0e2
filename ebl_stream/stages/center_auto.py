"""Center: several methods that check one another, and refuse together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ebl_stream.stages import CenterVerdict
from ebl_stream.stages.center import OppositePairs
from ebl_stream.stages.center_centroid import Centroid
from ebl_stream.stages.center_motion import motion_of
from ebl_stream.stages.center_wedge import DoubleWedge

AGREE_PX = 1.0
"""Two methods that differ by less agree."""

SURE = 4.0
"""Spreads by which two methods may differ in any case."""

EXACT_PX = 0.1
"""Opposite projections this exact need no help; they bear drifts of the beam best."""

JITTER_SHARE = 0.5
"""What the center takes over of the jitter: it rests on few pairs of projections."""

MOVED_PX = 1.5
"""A sample whose center of mass leaves its circle by so much has moved."""


@dataclass(frozen=True)
class Auto:
    """Find it by opposite projections or the center of mass; each checks the other.

    The center of mass comes first, from a quarter of the angles, where the sample
    stays inside of the field; opposite projections decide once they are there. A
    sample that jumped between neighboring projections, or whose center of mass
    leaves its circle, has no center.
    """

    max_miss_deg: float = 4.0
    """How far from half a turn apart two projections may be."""
    min_overlap: float = 0.34
    """Fraction of the columns that both projections of a pair must see."""
    max_spread_px: float = 0.5
    """The center must be known so well."""

    def __post_init__(self) -> None:
        self._pairs()

    def _pairs(self) -> OppositePairs:
        return OppositePairs(self.max_miss_deg, self.min_overlap, self.max_spread_px)

    def __call__(
        self, projections: NDArray[np.float32], theta: NDArray[np.float64]
    ) -> CenterVerdict:
        """Judge where the axis is.

        Parameters
        ----------
        projections : ndarray, [angle, row, column]
            Line integrals, in the order in which they were taken; rows may be a
            sample of all.
        theta : ndarray, (angle,)
            rad.

        Returns
        -------
        CenterVerdict
            Its ``method`` is ``pairs`` or ``centroid``.
        """
        pairs = self._pairs()(projections, theta)
        mass, moved = Centroid().follow(projections, theta)
        verdict = _joint(pairs, mass)
        if not (pairs.reliable or mass.reliable):
            return verdict
        if moved > MOVED_PX:
            return _refused(verdict, f"the sample moved: {mass.why}")
        motion = motion_of(projections, theta)
        if motion.jump:
            return _refused(
                verdict,
                f"the sample jumped by {motion.jump:.2g} px "
                "between neighboring projections",
            )
        spread = float(np.hypot(verdict.spread_px, JITTER_SHARE * motion.jitter))
        if verdict.reliable and spread > self.max_spread_px:
            why = f"it is known to {spread:.2g} px only: {verdict.why}; single "
            why += f"projections are off by {motion.jitter:.2g} px"
            return _refused(verdict, why)
        return replace(verdict, spread_px=spread)

    def confirm(
        self,
        verdict: CenterVerdict,
        projections: NDArray[np.float32],
        theta: NDArray[np.float64],
    ) -> CenterVerdict:
        """Check a reliable verdict by the double wedge; for the last look.

        Parameters
        ----------
        verdict : CenterVerdict
            Of the same projections.
        projections, theta
            As in the call.

        Returns
        -------
        CenterVerdict
            Not reliable where the double wedge is sure of another center.
        """
        if verdict.center is None or not verdict.reliable:
            return verdict
        wedge = DoubleWedge(self.min_overlap)(projections, theta)
        if wedge.center is None or not wedge.reliable:
            return verdict
        checks = verdict.checks | {"double_wedge": wedge.center}
        verdict = replace(verdict, checks=checks)
        if _apart(verdict, wedge) <= max(AGREE_PX, SURE * wedge.spread_px):
            return verdict
        return _refused(
            verdict,
            f"{verdict.why}, at {verdict.center:.2f}; "
            f"the sinogram's double wedge says {wedge.center:.2f}",
        )


def _joint(pairs: CenterVerdict, mass: CenterVerdict) -> CenterVerdict:
    """Join both answers: the better one, if they agree."""
    if not mass.reliable:
        return pairs if pairs.reliable else replace(pairs, why=_both(pairs, mass))
    if pairs.center is None:
        return mass
    better, other = pairs, mass
    if not pairs.reliable or (
        pairs.spread_px > EXACT_PX and mass.spread_px < pairs.spread_px
    ):
        better, other = mass, pairs
    apart = _apart(pairs, mass)
    spread = pairs.spread_px if np.isfinite(pairs.spread_px) else 0.0
    if apart > max(AGREE_PX, SURE * float(np.hypot(spread, mass.spread_px))):
        return _refused(better, _both(pairs, mass))
    assert other.center is not None  # noqa: S101  (both have one)
    better = replace(better, checks={other.method: other.center})
    if better.method == mass.method:
        # A background that stands on the detector pulls the mass, and hides in it.
        return replace(better, spread_px=max(mass.spread_px, apart / 2))
    return better


def _both(pairs: CenterVerdict, mass: CenterVerdict) -> str:
    """Say what each method says, or why it says nothing."""
    said = pairs.why, mass.why
    if pairs.reliable:
        said = f"opposite projections say {pairs.center:.2f}", said[1]
    if mass.reliable:
        said = said[0], f"the center of mass says {mass.center:.2f}"
    return "; ".join(said)


def _apart(one: CenterVerdict, other: CenterVerdict) -> float:
    assert one.center is not None  # noqa: S101  (both are reliable)
    assert other.center is not None  # noqa: S101
    return abs(one.center - other.center)


def _refused(verdict: CenterVerdict, why: str) -> CenterVerdict:
    return replace(verdict, reliable=False, why=why)
