"""Which frames can be used, and why the others cannot."""

from __future__ import annotations

from typing import Any

import numpy as np

from ebl_stream.frames import Frame, Kind, Reason


class Fitness:
    """Judge the frames of one run; its first projection says how they look."""

    def __init__(self) -> None:
        self.shape: tuple[int, int] | None = None
        """Rows and columns of a projection; None before the first."""
        self.n_repaired = 0
        """Pixels of used projections that are not finite."""
        self._dtype: np.dtype[Any] | None = None
        self._odd_shape: tuple[int, ...] | None = None

    @staticmethod
    def of_reference(frame: Frame) -> Reason | None:
        """Say why a flat or dark cannot be used, if so."""
        if not np.isfinite(frame.image).any():
            return "non_finite"
        # A flat of the closed shutter; a dark may well be zero.
        return "blank" if frame.kind is Kind.FLAT and not frame.image.any() else None

    def of_projection(
        self, frame: Frame, like: tuple[int, ...] | None
    ) -> Reason | None:
        """Say why a projection cannot be used, if so.

        Parameters
        ----------
        frame : Frame
        like : tuple of int, optional
            Shape of the flats or darks that came before.
        """
        image = frame.image
        if self.shape is None:
            if self._is_odd(image.shape, like):
                return "wrong_shape"
            self.shape, self._dtype = image.shape, image.dtype
        if image.shape != self.shape or image.dtype != self._dtype:
            return "wrong_shape"
        if not np.isfinite(frame.theta):
            return "no_angle"
        if image.dtype.kind == "f":
            n_bad = image.size - np.count_nonzero(np.isfinite(image))
            if n_bad > image.size / 2:
                return "non_finite"
            self.n_repaired += n_bad
        return None if image.any() else "blank"

    def _is_odd(self, shape: tuple[int, ...], like: tuple[int, ...] | None) -> bool:
        """Whether the first projection is not like the flats: the next one decides."""
        first, self._odd_shape = self._odd_shape, shape
        return like is not None and shape not in (like, first)
