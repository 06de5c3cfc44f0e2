"""The beam's intensity, from the air beside the sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ebl_stream.stages import References, Values


@dataclass(frozen=True)
class NormalizeBeam:
    """Divide by the beam that each projection shows in the air beside the sample.

    The level of the columns at either edge (median over all their pixels) is
    interpolated linearly in between, so a beam that decays, is topped up, or wanders
    sideways leaves no trace. The sample must not reach those columns.
    """

    per_frame: ClassVar[bool] = True
    needs_references: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    whole_frame: ClassVar[bool] = True
    halo: ClassVar[int] = 0
    takes: ClassVar[Values] = "transmission"
    role: ClassVar[Values] = "transmission"

    columns: int = 10
    """Columns of air at an edge."""
    sides: Literal["both", "left", "right"] = "both"
    """Where there is air; with one side its level counts for all columns."""

    def __post_init__(self) -> None:
        if self.columns < 1:
            raise ValueError("columns must be 1 or more")

    def scale(
        self, left: NDArray[np.float32], right: NDArray[np.float32], n_columns: int
    ) -> NDArray[np.float32]:
        """Return what to multiply each column with, ``(column,)``.

        Parameters
        ----------
        left, right : ndarray
            Transmission ``[row, column]`` of the `columns` at either edge; NaN pixels
            do not count. An edge without any light leaves the projection as it is.
        n_columns : int
            Of the whole projection.
        """
        levels = [_level(left), _level(right)]
        if self.sides != "both":
            levels = [levels[self.sides == "right"]] * 2
        if not all(level > 0 for level in levels):
            return np.ones(n_columns, np.float32)
        middle = (min(self.columns, n_columns) - 1) / 2
        at = [middle, max(n_columns - 1 - middle, middle + 1)]
        line = np.polynomial.Polynomial.fit(at, levels, 1)(np.arange(n_columns))
        return (1 / np.maximum(line, 0.1 * min(levels))).astype(np.float32)

    def __call__(
        self, values: NDArray[np.float32], references: References | None = None
    ) -> NDArray[np.float32]:
        """Return the transmission ``[angle, row, column]``; air is 1."""
        n = values.shape[-1]
        edge = min(self.columns, n)
        scaled = np.empty(values.shape, np.float32)
        for before, after in zip(values, scaled, strict=True):
            if references is not None and references.dead.any():
                seen = np.where(references.dead, np.float32(np.nan), before)
            else:
                seen = before
            after[:] = before * self.scale(seen[:, :edge], seen[:, n - edge :], n)
        return scaled


def _level(air: NDArray[np.float32]) -> float:
    finite = air[np.isfinite(air)]
    return float(np.median(finite)) if finite.size else 0.0
