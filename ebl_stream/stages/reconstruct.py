"""Reconstruct: line integrals to slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics.accumulate import Accumulator, Window
from ebl_stream.numerics.weights import alternate, angular_weights


@dataclass(frozen=True)
class Fourier:
    """Filtered back-projection by accumulation on the Fourier grid."""

    linear: ClassVar[bool] = True
    """Projections may be added and taken back one by one."""

    window: Window = "ramp"
    """Low-pass on top of the ramp filter."""
    oversampling: float = 1.25
    """Grid points per pixel; 1.125 saves memory."""
    taps: Literal[4, 6] = 4
    """Width of the gridding kernel, grid points."""

    def accumulator(
        self, n_rows: int, n_columns: int, rotation_center: float
    ) -> Accumulator:
        """Return empty grids for one slab."""
        return Accumulator(
            n_rows,
            n_columns,
            rotation_center,
            window=self.window,
            oversampling=self.oversampling,
            taps=self.taps,
        )

    def __call__(
        self,
        values: NDArray[np.float32],
        theta: NDArray[np.float64],
        rotation_center: float,
    ) -> NDArray[np.float32]:
        """Reconstruct a whole scan at once: the batch twin of the live path.

        Parameters
        ----------
        values : ndarray, [angle, row, column]
            Line integrals.
        theta : ndarray, (angle,)
            rad.
        rotation_center : float
            px, column of the stored frame.

        Returns
        -------
        ndarray, [z, y, x]
            1/px.
        """
        _, n_rows, n_columns = values.shape
        grids = self.accumulator(n_rows, n_columns, rotation_center)
        weights, halves = angular_weights(theta), alternate(theta)
        for k, spoke in enumerate(map(grids.spokes, values[:, None])):
            share = [0.0, 0.0]
            share[halves[k]] = float(weights[k])
            grids.add(spoke[0], float(theta[k]), *share)
        return grids.volume()
