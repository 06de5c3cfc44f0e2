"""Which rotation center counts: given > file > measured > previous > assumed."""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.frames import Scan
from ebl_stream.profile import Profile
from ebl_stream.stages import CenterStage

log = logging.getLogger(__name__)

Source = Literal["given", "file", "measured", "previous", "assumed"]

STEP_PX = 0.05
"""Measured centers are rounded to it: a finer change is not worth a rebuild, and the
last measurement alone decides, whatever the previews found before."""


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
        self.position = 0.0
        """px, column of the stored frame."""
        self.why = ""
        self.spread_px: float | None = None

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
        return self.source not in ("previous", "assumed")

    def find(self, values: NDArray[np.float32], theta: NDArray[np.float64]) -> bool:
        """Measure; return whether the center moved.

        Parameters
        ----------
        values : ndarray, [angle, row, column]
            Line integrals of some rows.
        theta : ndarray, (angle,)
            rad.
        """
        verdict = self._stage(values, theta)
        if not verdict.reliable or verdict.center is None:
            if not self.settled:
                self.why = verdict.why
            return False
        measured = round(round(float(verdict.center) / STEP_PX) * STEP_PX, 6)
        moved = measured != self.position
        self.source, self.spread_px, self.why = "measured", verdict.spread_px, ""
        self.position = measured
        if moved:
            log.info("rotation center measured: column %.2f", measured)
        return moved

    def as_dict(self) -> dict[str, Any]:
        """Return what is published with the data."""
        return {
            "column": self.position,
            "source": self.source,
            "spread_px": self.spread_px,
            "why": self.why,
        }
