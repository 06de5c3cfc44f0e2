"""The field that is reconstructed, where it is wider than the detector.

An offset detector sees one side of the sample at a time; a full turn shows both. Its
columns are laid into a frame about the axis that is wide enough for both sides, and
where the two sides overlap they are blended.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.numerics.weights import FULL_TURN, HALF_TURN, angular_weights

MIN_OVERLAP_PX = 4.0
"""Columns beyond the axis that blending needs."""

WHOLE_TURN = 0.98
"""Share of the full turn that an offset scan must have seen."""


class Field:
    """Map a detector's columns onto the columns that are reconstructed.

    A detector about the axis is its own field. For an offset detector column ``s``
    from the axis is weighted by w(s), which rises from 0 to 1 over the overlap with
    w(s) + w(-s) = 1: a ray and its opposite count as one together. The angular
    weights of all projections then share the full turn, `period`.

    Parameters
    ----------
    n_columns : int
        Of the detector.
    rotation_center : float or None
        px, column of the detector.
    offset : bool
        Whether it is an offset detector that turns by 360 degrees.

    Raises
    ------
    InputError
        The center of an offset detector is unknown, or too near its edge.
    """

    def __init__(
        self, n_columns: int, rotation_center: float | None, *, offset: bool = False
    ) -> None:
        self.n_detector_columns = n_columns
        self.offset = offset
        self.period = FULL_TURN if offset else HALF_TURN
        """rad, after which a projection shows the same again."""
        self._before = self._after = 0
        self._feather: NDArray[np.float32] | None = None
        if not offset:
            self._center = rotation_center
            return
        self._center = center = _checked(n_columns, rotation_center)
        missing = math.ceil(abs(n_columns - 1 - 2 * center))
        if center < (n_columns - 1) / 2:
            self._before = missing
        else:
            self._after = missing
        self._feather = _feather(n_columns, center)

    @property
    def n_columns(self) -> int:
        """Columns that are reconstructed."""
        return self.n_detector_columns + self._before + self._after

    @property
    def rotation_center(self) -> float | None:
        """Column, px, of the wide frame; None where it is not known yet."""
        return None if self._center is None else self._center + self._before

    def to_field(self, column: float) -> float:
        """Return where a column of the detector lies in the field, px."""
        return column + self._before

    def spread(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Lay line integrals into the field.

        Parameters
        ----------
        values : ndarray, [angle, row, column]
            Line integrals on the detector's columns.

        Returns
        -------
        ndarray of float32, [angle, row, column]
            On the field's columns; ``values`` itself where they are the same.
        """
        if self._feather is None:
            return values
        wide = np.zeros((*values.shape[:-1], self.n_columns), np.float32)
        seen = slice(self._before, self._before + self.n_detector_columns)
        np.multiply(values, self._feather, out=wide[..., seen], casting="same_kind")
        return wide

    def unseen(self, theta: NDArray[np.float64]) -> str | None:
        """Say which part of the sample was seen from one side only, if any.

        Parameters
        ----------
        theta : ndarray, (angle,)
            rad; of a complete scan.

        Returns
        -------
        str or None
            None where the angles show all that this detector can see.
        """
        if not self.offset:
            return None
        seen = angular_weights(theta, self.period).sum() / self.period
        if seen >= WHOLE_TURN:
            return None
        return (
            f"geometry.offset_detector: the angles cover {360 * seen:.0f} of 360 "
            "degrees, so a part of the sample was seen from one side only and is "
            "wrong in the volume; scan a full turn, or set "
            "geometry.offset_detector: false"
        )


def _checked(n_columns: int, rotation_center: float | None) -> float:
    """Return the center of an offset detector."""
    if rotation_center is None:
        raise InputError(
            "geometry.offset_detector: the rotation center must be known before the "
            "first projection, since both sides are blended about it; set "
            "geometry.rotation_center, or state it in the file or start document"
        )
    overlap = min(rotation_center, n_columns - 1 - rotation_center)
    if not overlap >= MIN_OVERLAP_PX:
        raise InputError(
            f"geometry.offset_detector: the rotation center, column "
            f"{rotation_center:.2f}, must lie at least {MIN_OVERLAP_PX:.0f} px inside "
            f"the detector's columns 0 to {n_columns - 1}, or both sides do not meet"
        )
    return float(rotation_center)


def _feather(n_columns: int, center: float) -> NDArray[np.float32]:
    """Return w(s), (column,): a step of degree 9, smooth to its fourth derivative."""
    overlap = min(center, n_columns - 1 - center)
    s = np.arange(n_columns) - center
    if center > (n_columns - 1) / 2:
        s = -s
    u = np.clip((s / overlap + 1) / 2, 0, 1)
    step = u**5 * (126 - 420 * u + 540 * u**2 - 315 * u**3 + 70 * u**4)
    return step.astype(np.float32)
