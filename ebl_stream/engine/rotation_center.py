"""Which rotation center counts: given > file > measured > previous > assumed."""

from __future__ import annotations

import logging
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.frames import Scan
from ebl_stream.numerics.fourier_plan import half_turn_start
from ebl_stream.profile import Profile
from ebl_stream.stages import CenterStage, CenterVerdict
from ebl_stream.stages.center_centroid import MIN_ANGLES, covered_arc
from ebl_stream.stages.opposite import find_pairs

log = logging.getLogger(__name__)

Source = Literal["given", "file", "measured", "previous", "assumed"]

STEP_PX = 0.05
"""Measured centers are rounded to it: a finer change is not worth a rebuild, and the
last measurement alone decides, whatever the previews found before."""

SETTLED_PX = 0.1
"""Spread below which previews need not measure again."""

ON_GRID_PX = 0.5
"""Residuals up to it are corrected on the grid, see `FourierPlan.grid_response`."""

PRESHOT_ARC = np.radians(30)
"""Pairs found with less than this covered are a pre-shot."""

MAX_MISS = np.radians(4)
"""How far from half a turn apart two projections may be to be worth asking."""

ARC = np.radians(45)
"""From so much on, the center of mass can be followed."""

GROWTH = 1.25
"""Ask again when there are so many times more projections."""


class OnGrid(NamedTuple):
    """What a look at the grids must correct."""

    shift: float
    """px that the center lies beyond that of the grids."""
    first_theta: float
    """rad, where the half turn begins that holds all projections."""


@runtime_checkable
class _Confirming(Protocol):
    """A center stage with a slower check of its verdicts."""

    def confirm(
        self,
        verdict: CenterVerdict,
        projections: NDArray[np.float32],
        theta: NDArray[np.float64],
    ) -> CenterVerdict: ...


class CenterFinder:
    """The rotation center of one run, and where it comes from."""

    def __init__(
        self,
        scan: Scan,
        profile: Profile,
        stage: CenterStage,
        previous: float | None,
    ) -> None:
        self._stage = stage
        self._stated: tuple[float | None, Source] = (None, "assumed")
        if profile.geometry.rotation_center is not None:
            self._stated = (profile.geometry.rotation_center, "given")
        elif scan.rotation_center is not None and profile.geometry.use_file_center:
            self._stated = (scan.rotation_center, "file")
        elif previous is not None:
            self._stated = (previous, "previous")
        self.source: Source = self._stated[1]
        self.method = ""
        """What a measured center rests on: ``preshot``, ``pairs``, ``centroid``."""
        self.position = 0.0
        """px, column of the stored frame."""
        self.why = ""
        """Why there is no (better) measurement."""
        self.spread_px: float | None = None
        self.checks: dict[str, float] = {}
        """px; what other methods answered, and the last scan's center."""
        self._asked = 0

    def begin(self, n_columns: int) -> None:
        """Take the stated center, or the middle of the columns in its place.

        Raises
        ------
        InputError
            The stated center is nowhere near the detector.
        """
        stated, _ = self._stated
        if stated is None:
            self.position = (n_columns - 1) / 2
            self.why = "not measured yet: the middle of the columns"
            return
        if not -n_columns <= stated <= 2 * n_columns:
            raise InputError(
                f"rotation center {stated:g} ({self.source}) is far outside the "
                f"detector's {n_columns} columns; it is a 0-based column of the frame"
            )
        self.position = stated

    @property
    def may_be_measured(self) -> bool:
        """Whether nobody stated a center for this very scan."""
        return self._stated[1] not in ("given", "file")

    @property
    def settled(self) -> bool:
        """Whether previews need not look for it any more."""
        if self.source == "measured":
            return self.spread_px is not None and self.spread_px <= SETTLED_PX
        return not self.may_be_measured

    def wants(self, theta: NDArray[np.float64]) -> bool:
        """Whether `find` may bring news before the next look; cheap.

        True as soon as two of the first projections face each other (a pre-shot at 0
        and 180 degrees), and while the center is unsettled whenever a quarter more
        projections are there and an arc or a pair can tell something.

        Parameters
        ----------
        theta : ndarray, (angle,)
            rad; of the projections whose rows `find` would be given.
        """
        n = len(theta)
        if self.settled or n < max(2, GROWTH * self._asked):
            return False
        if n >= MIN_ANGLES and covered_arc(theta) >= ARC:
            return True
        return len(find_pairs(theta, MAX_MISS)) > 0

    def find(
        self,
        values: NDArray[np.float32],
        theta: NDArray[np.float64],
        *,
        preview: bool = False,
    ) -> bool:
        """Measure; return whether the center moved.

        Parameters
        ----------
        values : ndarray, [angle, row, column]
            Line integrals of some rows.
        theta : ndarray, (angle,)
            rad.
        preview : bool
            Stay where a measurement already is when the new one differs by no more
            than a step. The last measurement is taken as it is, and checked by the
            slower methods, so that the result does not depend on previews.
        """
        self._asked = len(theta)
        verdict = self._stage(values, theta)
        if not preview and isinstance(self._stage, _Confirming):
            verdict = self._stage.confirm(verdict, values, theta)
        if not verdict.reliable or verdict.center is None:
            if not preview or not self.settled:
                self.why = verdict.why
            return False
        return self._take(verdict, theta, preview)

    def _take(
        self, verdict: CenterVerdict, theta: NDArray[np.float64], preview: bool
    ) -> bool:
        assert verdict.center is not None  # noqa: S101  (reliable)
        measured = round(round(float(verdict.center) / STEP_PX) * STEP_PX, 6)
        near = abs(verdict.center - self.position) <= STEP_PX
        if preview and self.source == "measured" and near:
            measured = self.position
        moved = measured != self.position
        self.source, self.why = "measured", ""
        self.method = verdict.method
        if verdict.method == "pairs" and covered_arc(theta) < PRESHOT_ARC:
            self.method = "preshot"
        self.spread_px = float(verdict.spread_px)
        self.checks = {k: round(v, 3) for k, v in verdict.checks.items()}
        stated, source = self._stated
        if stated is not None:
            self.checks[source] = stated
        self.position = measured
        if moved:
            log.info("rotation center measured (%s): %.2f", self.method, measured)
        return moved

    def shift_for(
        self, grid_center: float, theta: NDArray[np.float64]
    ) -> OnGrid | None:
        """Return what corrects grids made for another center, or None: rebuild them.

        Parameters
        ----------
        grid_center : float
            px, that the grids were filled for.
        theta : ndarray, (angle,)
            rad, of all projections in them. Only where half a turn holds them all is
            a shift of the center a phase on the grid.
        """
        residual = self.position - grid_center
        if residual == 0:
            return OnGrid(0.0, 0.0)
        first = half_turn_start(theta)
        if first is None or abs(residual) > ON_GRID_PX:
            return None
        return OnGrid(residual, first)

    def as_dict(self) -> dict[str, Any]:
        """Return what is published with the data."""
        return {
            "column": self.position,
            "source": self.source,
            "method": self.method,
            "spread_px": self.spread_px,
            "why": self.why,
            "checks": self.checks,
        }
