"""Quantify: the numbers that the user asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics.quality import inside_circle


@dataclass(frozen=True)
class PhaseFractions:
    """How much of the reconstructed cylinder each phase fills."""

    def __call__(
        self, volume: NDArray[np.float32], labels: NDArray[np.uint8]
    ) -> dict[str, float]:
        """Count labels inside the circle.

        Parameters
        ----------
        volume : ndarray, [z, y, x]
            Not looked at: phases are told apart already.
        labels : ndarray of uint8, [z, y, x]

        Returns
        -------
        dict
            ``{"fraction_0": ..., "fraction_1": ...}`` up to the largest label,
            summing to 1.
        """
        inside = labels[:, inside_circle(labels.shape)]
        counts = np.bincount(inside.ravel(), minlength=1)
        return {
            f"fraction_{label}": float(count / inside.size)
            for label, count in enumerate(counts)
        }
