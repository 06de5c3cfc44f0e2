"""Reconstruct with the ASTRA toolbox: whole scans, on the CPU."""

from __future__ import annotations

import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.numerics.fourier_plan import Padding
from ebl_stream.numerics.weights import angular_weights
from ebl_stream.numerics.windows import Window
from ebl_stream.stages.filtering import filtered_rows

ITERATIONS = {"sirt": 150, "cgls": 20}
"""Where the profile does not say; CGLS goes faster, and fits noise sooner."""


@dataclass(frozen=True)
class Astra:
    """Reconstruct the whole scan with ASTRA on the CPU: `fbp`, `sirt` or `cgls`.

    A slice is worked on by one thread, so that the result does not depend on how
    many there are (van Aarle et al., Opt. Express 24, 25129 (2016)).

    ASTRA's own FBP takes neither a shifted axis (on the CPU) nor uneven angles. Its
    projector does, so rows are filtered and weighted here, and back-projected there:
    the same numbers where ASTRA's FBP can go.
    """

    method: Literal["fbp", "sirt", "cgls"] = "fbp"
    """Filtered back-projection, or one of two iterative ways."""
    iterations: int | None = None
    """Of ``sirt`` (150) and ``cgls`` (20)."""
    window: Window = "ramp"
    """Low-pass on top of the ramp filter, ``fbp`` only."""
    padding: Padding = "zero"
    """Beside the detector, ``fbp`` only; ``edge`` where the object leaves the field."""

    def __post_init__(self) -> None:
        if self.iterations is not None and self.iterations < 1:
            raise ValueError("iterations must be 1 or more")
        if self.iterations is not None and self.method == "fbp":
            raise ValueError("iterations: fbp has none")

    @property
    def takes_blended(self) -> bool:
        """Whether rows may be blended with their opposites (offset detector).

        Each such row alone contradicts the others; ``cgls`` then diverges.
        """
        return self.method != "cgls"

    def check(self) -> None:
        """Say whether this can run here.

        Raises
        ------
        InputError
            ASTRA is not installed.
        """
        _astra()

    def __call__(
        self,
        values: NDArray[np.float32],
        theta: NDArray[np.float64],
        rotation_center: float,
    ) -> NDArray[np.float32]:
        """Reconstruct a whole scan.

        Parameters
        ----------
        values : ndarray, [angle, row, column]
            Line integrals.
        theta : ndarray, (angle,)
            rad; any order, any gaps, any number of turns.
        rotation_center : float
            px, column of the stored frame.

        Returns
        -------
        ndarray, [z, y, x]
            1/px.

        Raises
        ------
        InputError
            ASTRA is not installed.
        """
        astra = _astra()
        _, n_rows, n = values.shape
        volume = np.empty((n_rows, n, n), np.float32)
        weights = angular_weights(theta)

        def one(row: int) -> None:
            sinogram = np.ascontiguousarray(values[:, row], np.float32)
            if self.method == "fbp":
                sinogram = filtered_rows(
                    sinogram,
                    np.zeros(len(theta)),
                    weights,
                    window=self.window,
                    padding=self.padding,
                )
            # ASTRA's first row is the one of the largest y.
            volume[row] = self._slice(astra, sinogram, theta, rotation_center)[::-1]

        with ThreadPoolExecutor(os.cpu_count(), "astra") as pool:
            list(pool.map(one, range(n_rows)))
        return volume

    def _slice(
        self,
        astra: Any,
        sinogram: NDArray[np.float32],
        theta: NDArray[np.float64],
        rotation_center: float,
    ) -> NDArray[np.float32]:
        """Run ASTRA on one sinogram [angle, column]."""
        n = sinogram.shape[1]
        rays = _rays(theta, (n - 1) / 2 - rotation_center)
        detector = astra.create_proj_geom("parallel_vec", n, rays)
        plane = astra.create_vol_geom(n, n)
        projector = astra.create_projector("linear", detector, plane)
        data = astra.data2d.create("-sino", detector, sinogram)
        image = astra.data2d.create("-vol", plane)
        algorithm = None
        try:
            name = "BP" if self.method == "fbp" else self.method.upper()
            settings = astra.astra_dict(name)
            settings["ProjectorId"] = projector
            settings["ProjectionDataId"] = data
            settings["ReconstructionDataId"] = image
            algorithm = astra.algorithm.create(settings)
            turns = self.iterations or ITERATIONS.get(self.method, 1)
            astra.algorithm.run(algorithm, turns)
            return astra.data2d.get(image)
        finally:
            if algorithm is not None:
                astra.algorithm.delete(algorithm)
            astra.data2d.delete([data, image])
            astra.projector.delete(projector)


def _rays(theta: NDArray[np.float64], offset: float) -> NDArray[np.float64]:
    """Return ASTRA's (ray, middle of the detector, step per pixel) of every angle.

    The detector is shifted along itself by ``offset`` px, so that the axis is seen
    at the rotation center.
    """
    cos, sin = np.cos(theta), np.sin(theta)
    return np.stack([sin, -cos, offset * cos, offset * sin, cos, sin], axis=1)


def _astra() -> Any:
    try:
        return importlib.import_module("astra")
    except ImportError as error:
        raise InputError(
            f"reconstruct: astra cannot run here ({error}): "
            "pip install 'ebl-stream[astra]', or choose fourier"
        ) from None
