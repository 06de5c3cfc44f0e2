"""Pixels that a stray photon lit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics import line_integrals, zingers
from ebl_stream.stages import References, Values


@dataclass(frozen=True)
class RemoveZingers:
    """Replace pixels that a stray photon lit, from their neighbors in the image.

    No other projection is asked, so the order of the angles does not matter. A pixel
    is a zinger if it is brighter than the median of its eight neighbors by
    ``threshold`` times the noise, if no more than ``max_pixels - 1`` of the pixels
    within two of it are half as far above (light that went through the sample is
    blurred by the optics, and an edge or a line goes on), and none is a third as far
    below (texture). The noise is the projection's own and grows with the root of the
    transmission. Dark spots stay: a dense grain is one, and a pixel that is always
    dark is known from the flats.
    """

    per_frame: ClassVar[bool] = True
    needs_references: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    whole_frame: ClassVar[bool] = True  # the noise; all else is within two rows
    halo: ClassVar[int] = zingers.HALO
    takes: ClassVar[Values] = "transmission"
    role: ClassVar[Values] = "transmission"

    threshold: float = 6.0
    """Standard deviations of the noise."""
    max_pixels: int = 4
    """The largest zinger (px), 1 to 4."""

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError("threshold must be above 0")
        if not 1 <= self.max_pixels <= 4:
            raise ValueError("max_pixels must be from 1 to 4")

    def variance(self, noise: float) -> np.float32:
        """Return the square of the limit at full beam, given the noise there."""
        return np.float32((self.threshold * noise) ** 2)

    def __call__(
        self,
        values: NDArray[np.float32],
        references: References | None = None,
    ) -> NDArray[np.float32]:
        """Return the transmission ``[angle, row, column]`` without zingers."""
        cleaned = np.empty(values.shape, np.float32)
        for before, after in zip(values, cleaned, strict=True):
            image = np.ascontiguousarray(before, np.float32)
            variance = self.variance(noise(image, references))
            line_integrals.remove_zingers(image, variance, self.max_pixels, after)
        return cleaned


def noise(image: NDArray[np.float32], references: References | None) -> float:
    """Return the noise at full beam of a transmission ``(row, column)``."""
    if references is not None and references.dead.any():
        # What was filled from neighbors has less noise.
        image = np.where(references.dead, np.float32(np.nan), image)
    return zingers.noise(image)
