"""Reconstruct with tomocupy: whole scans, on an NVIDIA GPU."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.numerics.fourier_plan import Padding
from ebl_stream.numerics.weights import angular_weights
from ebl_stream.numerics.windows import Window
from ebl_stream.stages.filtering import filtered_rows


@dataclass(frozen=True)
class Tomocupy:
    """Reconstruct the whole scan with tomocupy on a GPU: `fourierrec` or `linerec`.

    tomocupy's back-projectors are used as a library (Nikitin, J. Synchrotron Rad.
    30, 179 (2023)); filter, angular weights and rotation center are ours. It comes
    from conda-forge, not from the package index, and is in the GPU image.
    """

    method: Literal["fourierrec", "linerec"] = "fourierrec"
    """Gridding, or summation over lines. (``lprec`` takes even half turns only.)"""
    window: Window = "ramp"
    """Low-pass on top of the ramp filter."""
    padding: Padding = "zero"
    """Beside the detector; ``edge`` where the object leaves the field."""
    slab_rows: int = 16
    """Detector rows on the GPU together."""

    def __post_init__(self) -> None:
        if self.slab_rows < 2 or self.slab_rows % 2:
            raise ValueError("slab_rows must be even, 2 or more")

    @property
    def takes_blended(self) -> bool:
        """Whether rows may be blended with their opposites (offset detector)."""
        return True

    def check(self) -> None:
        """Say whether this can run here.

        Raises
        ------
        InputError
            tomocupy or CuPy is not installed, or there is no GPU.
        """
        self._load()

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
            tomocupy or CuPy is not installed, or there is no GPU.
        """
        xp, projector_class = self._load()
        n_angles, n_rows, n = values.shape
        n_even = n + n % 2  # its slices have an even number of columns
        angles = xp.asarray(theta, np.float32)
        arguments: tuple[Any, ...] = (n_even, n_angles, self.slab_rows, angles)
        if self.method == "linerec":
            rows = self.slab_rows
            arguments = (angles, n_angles, n_angles, rows, rows, n_even)
        projector = projector_class(*arguments, "float32")
        volume = np.empty((n_rows, n, n), np.float32)
        for z in range(0, n_rows, self.slab_rows):
            part = values[:, z : z + self.slab_rows]
            data = xp.zeros((self.slab_rows, n_angles, n_even), np.float32)
            data[: part.shape[1], :, :n] = xp.asarray(part.swapaxes(0, 1))
            if self.padding == "edge":
                data[..., n:] = data[..., n - 1 : n]
            data = self._filter(xp, data, theta, rotation_center, n)
            slices = xp.zeros((self.slab_rows, n_even, n_even), np.float32)
            projector.backprojection(slices, data, xp.cuda.get_current_stream())
            # Its first row is the one of the largest y.
            upright = xp.asnumpy(slices[: part.shape[1], ::-1])
            volume[z : z + self.slab_rows] = upright[:, :n, :n]
        return volume

    def _filter(
        self, xp: Any, data: Any, theta: NDArray[np.float64], center: float, n: int
    ) -> Any:
        """Filter rows so that tomocupy's fixed geometry becomes ours.

        It samples column ``(x - m) cos + (y - m) sin + m`` with ``m`` half the
        columns, a whole number, and multiplies the sum by 4 over the angles.
        """
        middle = data.shape[-1] // 2
        aside = middle - (n - 1) / 2
        shift = center - middle + aside * (np.cos(theta) + np.sin(theta))
        weights = angular_weights(theta) * len(theta) / 4
        return filtered_rows(
            data, shift, weights, window=self.window, padding=self.padding, xp=xp
        )

    def _load(self) -> tuple[Any, Any]:
        """Return CuPy, and the class of the back-projector."""
        name = {"fourierrec": "FourierRec", "linerec": "LineRec"}[self.method]
        where = f"tomocupy.reconstruction.{self.method}"
        try:
            xp = importlib.import_module("cupy")
            xp.cuda.runtime.getDeviceCount()
            return xp, getattr(importlib.import_module(where), name)
        except Exception as error:
            # Without a driver CuPy raises errors of its own.
            raise InputError(
                f"reconstruct: tomocupy cannot run here ({error}): it needs an NVIDIA "
                "GPU and 'conda install -c conda-forge tomocupy' (the GPU image has "
                "it), or choose fourier"
            ) from None
