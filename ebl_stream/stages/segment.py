"""Segment: which phase each voxel belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_multiotsu

from ebl_stream.numerics.quality import inside_circle

BINS = 256

TAILS = (0.05, 99.95)
"""Percentiles that the histogram spans; a few wild voxels must not stretch it."""

SAMPLES = 4_000_000
"""Voxels that the histogram is made of, about."""


@dataclass(frozen=True)
class MultiOtsu:
    """Split the gray values into classes that are narrow within, far apart between.

    Liao, Chen and Chung, J. Inf. Sci. Eng. 17, 713 (2001). One set of thresholds
    serves all slices it is called with, so call it with the whole volume, or find
    the thresholds first and hand them to every slab.
    """

    classes: int = 3
    """Phases, with the surroundings; label 0 is the lightest."""

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= 5:
            raise ValueError("classes must be from 2 to 5")

    def __call__(
        self,
        volume: NDArray[np.float32],
        denoised: NDArray[np.float32],
        thresholds: NDArray[np.float64] | None = None,
    ) -> NDArray[np.uint8]:
        """Label every voxel.

        Parameters
        ----------
        volume, denoised : ndarray, [z, y, x]
            Gray values are taken from the denoised one.
        thresholds : ndarray, (classes - 1,), optional
            From `thresholds`; by default those of this volume.

        Returns
        -------
        ndarray of uint8, [z, y, x]
            0 to classes - 1 by rising gray value; 0 outside of the circle, and
            everywhere when there are fewer gray values than classes.
        """
        if thresholds is None:
            thresholds = self.thresholds(denoised)
        labels = np.zeros(denoised.shape, np.uint8)
        for threshold in thresholds:
            labels += denoised > threshold
        labels *= inside_circle(denoised.shape)
        return labels

    def thresholds(self, denoised: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the gray values between the classes.

        Parameters
        ----------
        denoised : ndarray, [z, y, x]

        Returns
        -------
        ndarray, (classes - 1,)
            Empty when there are fewer gray values than classes.
        """
        step = 1 + int(np.sqrt(denoised.size / SAMPLES))
        thinned = denoised[:, ::step, ::step] if step > 2 else denoised
        gray = thinned[:, inside_circle(thinned.shape)]
        gray = gray[np.isfinite(gray)]
        if gray.size == 0:
            return np.empty(0)
        low, high = np.percentile(gray, TAILS)
        if not high > low:
            return np.empty(0)
        counts, edges = np.histogram(gray, BINS, (low, high))
        if np.count_nonzero(counts) < self.classes:
            return np.empty(0)
        centers = 0.5 * (edges[1:] + edges[:-1])
        found = threshold_multiotsu(classes=self.classes, hist=(counts, centers))
        return np.asarray(found, np.float64)
