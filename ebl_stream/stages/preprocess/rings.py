"""Rings: what the detector adds to every angle alike, live and by linearity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ebl_stream.stages import References, Values


@dataclass(frozen=True)
class RemoveRings:
    """Subtract what every projection sees alike in a detector pixel.

    The mean over the angles is smooth along the columns, as every feature sweeps
    across them; what is narrow in it comes from the detector and would become
    rings. Constant in angle, so by linearity it may be taken away at any time.
    """

    per_frame: ClassVar[bool] = False
    needs_references: ClassVar[bool] = False
    linear: ClassVar[bool] = False  # the median's window; taking it away is linear
    whole_frame: ClassVar[bool] = False
    halo: ClassVar[int] = 0
    takes: ClassVar[Values] = "line_integral"
    role: ClassVar[Values] = "line_integral"

    size: int = 5
    """Columns (odd) of the median that, smoothed, stands for the sample."""
    min_coverage: float = 0.25
    """Below it the mean still shows the sample, and nothing is subtracted."""

    def __post_init__(self) -> None:
        if self.size < 3 or self.size % 2 == 0:
            raise ValueError("size must be odd and at least 3")
        if not 0 <= self.min_coverage <= 1:
            raise ValueError("min_coverage must be from 0 to 1")

    def profile(self, mean: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what to subtract from every projection.

        Parameters
        ----------
        mean : ndarray, [row, column]
            Line integrals, averaged over the angles.

        Returns
        -------
        ndarray, [row, column]
        """
        steps = ndimage.median_filter(mean, size=(1, self.size), mode="nearest")
        smooth = ndimage.gaussian_filter1d(steps, self.size / 6, axis=1, mode="nearest")
        return np.asarray(mean - smooth, np.float32)

    def __call__(
        self, values: NDArray[np.float32], references: References | None = None
    ) -> NDArray[np.float32]:
        """Return line integrals ``[angle, row, column]`` without the profile."""
        mean = np.asarray(np.mean(values, axis=0, dtype=np.float64), np.float32)
        return np.asarray(values - self.profile(mean), np.float32)


def sinogram_order(theta: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the order in which projections make a sinogram without a jump.

    By direction over the full turn, as opposite views are mirrored; it begins after
    the widest gap, so that -90..90 degrees is not cut in two.

    Parameters
    ----------
    theta : ndarray, (angle,)
        rad, in any order, any number of turns.
    """
    turn = np.asarray(theta, np.float64) % (2 * np.pi)
    order = np.argsort(turn, kind="stable")
    if order.size < 2:
        return order
    gaps = np.diff(turn[order], prepend=turn[order[-1]] - 2 * np.pi)
    return np.roll(order, -int(np.argmax(gaps)))
