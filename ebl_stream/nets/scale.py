"""The scale on which nets see a sample: alike whatever its unit, contrast or noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics.quality import INSIDE, inside_circle

LEAST_SIGNAL = 1e-3
"""Signal below this share of what is seen is taken for none."""


@dataclass(frozen=True)
class Scale:
    """value = offset + gain * what a net sees."""

    offset: float
    """1/px: mean of the sample inside the circle."""
    gain: float
    """1/px: RMS of what the halves agree on, without their noise."""

    @classmethod
    def of(
        cls, volume: NDArray[np.float32], half_difference: NDArray[np.float32]
    ) -> Scale:
        """Find the scale of slices: the halves' covariance is the signal's variance.

        Parameters
        ----------
        volume, half_difference : ndarray, [z, y, x]
            A + B and A - B, 1/px; what is not finite is left out.

        Returns
        -------
        Scale
            With gain 1 where there is nothing at all to see.
        """
        circle = inside_circle(volume.shape, INSIDE)
        seen = volume[:, circle].astype(np.float64)
        noise = half_difference[:, circle].astype(np.float64)
        known = np.isfinite(seen) & np.isfinite(noise)
        if not known.any():
            return cls(0.0, 1.0)
        if not known.all():
            seen, noise = seen[known], noise[known]
        total = float(seen.var())
        # 2A = V + D and 2B = V - D: their covariance is var V - var D.
        signal = total - float(np.mean(np.square(noise)))
        power = max(signal, LEAST_SIGNAL * total)
        gain = float(np.sqrt(power)) if power > 0 and np.isfinite(power) else 1.0
        return cls(float(seen.mean()), gain)

    def to_net(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what a net sees of values in 1/px."""
        return ((values - self.offset) / self.gain).astype(np.float32, copy=False)

    def to_volume(self, seen: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the values (1/px) of what a net made."""
        return (seen * self.gain + self.offset).astype(np.float32, copy=False)
