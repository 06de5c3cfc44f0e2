"""Divide by the beam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ebl_stream.stages import References, Values


@dataclass(frozen=True)
class FlatField:
    """Divide by the beam: ``(raw - dark) / (flat - dark)``, the transmission.

    Where flats were taken at several times, each projection gets its own, by linear
    interpolation. Dead and hot pixels become NaN, to be filled from their neighbors.
    """

    per_frame: ClassVar[bool] = True
    needs_references: ClassVar[bool] = True
    linear: ClassVar[bool] = False
    whole_frame: ClassVar[bool] = False
    halo: ClassVar[int] = 0
    takes: ClassVar[Values] = "raw"
    role: ClassVar[Values] = "transmission"

    def __call__(
        self, values: NDArray[np.float32], references: References | None = None
    ) -> NDArray[np.float32]:
        """Return the transmission ``[angle, row, column]``.

        Raises
        ------
        ValueError
            There are no references.
        """
        if references is None:
            raise ValueError("flat_field needs a flat and a dark")
        with np.errstate(invalid="ignore", over="ignore"):
            transmission = np.subtract(values, references.dark, dtype=np.float32)
            transmission *= gain(references)
        return transmission


def gain(references: References) -> NDArray[np.float32]:
    """Return ``1 / (flat - dark)``, NaN for dead pixels; shaped as the flat is."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        beam = np.subtract(references.flat, references.dark, dtype=np.float32)
        inverse = np.divide(1, beam, dtype=np.float32)
    inverse[..., references.dead] = np.nan
    return inverse
