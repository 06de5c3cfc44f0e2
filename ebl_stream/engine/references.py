"""Flats and darks: their running means, and what to do where there are none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.frames import Image, Kind
from ebl_stream.stages import References

AIR_PERCENTILE = 99.5
"""Of the first projections' pixels: the beam beside the sample, where no flat is."""


class ReferenceFrames:
    """Collect flats and darks of one run."""

    def __init__(self) -> None:
        self._sum: dict[Kind, NDArray[np.float64]] = {}
        self._count: dict[Kind, int] = {}
        self.used: dict[Kind, list[int]] = {Kind.FLAT: [], Kind.DARK: []}

    def add(self, kind: Kind, index: int, image: Image) -> None:
        """Add a flat or a dark ``(row, column)``.

        Raises
        ------
        InputError
            Its shape differs from the others' of its kind.
        """
        if kind not in self._sum:
            self._sum[kind] = np.zeros(image.shape)
            self._count[kind] = 0
        if self._sum[kind].shape != image.shape:
            raise InputError(
                f"{kind.name.lower()}s: frame {index} has shape {image.shape}, the "
                f"first one {self._sum[kind].shape}; flats and darks must agree"
            )
        self._sum[kind] += image
        self._count[kind] += 1
        self.used[kind].append(index)

    @property
    def n_flats(self) -> int:
        """Flats received."""
        return self._count.get(Kind.FLAT, 0)

    def measured(self, shape: tuple[int, ...]) -> References | None:
        """Return the mean flat and dark, or None while there is no flat.

        Raises
        ------
        InputError
            The shape is not the projections', or the flat has no signal.
        """
        if not self.n_flats:
            return None
        flat = self._mean(Kind.FLAT, shape)
        dark = self._dark(shape)
        signal = flat - dark
        if not (np.isfinite(signal) & (signal > 0)).any():
            raise InputError(
                "flats: no pixel is brighter than the darks (all zero or NaN); "
                "check which frames are flats and which are darks"
            )
        return References(flat, dark, "measured")

    def assumed(self, images: list[Image]) -> References:
        """Return a constant flat at the air level of the first projections."""
        level = np.nanpercentile(np.stack(images), AIR_PERCENTILE)
        shape = images[0].shape
        flat = np.full(shape, level, np.float32)
        return References(flat, self._dark(shape), "assumed")

    def _dark(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the mean dark; zero where there is none."""
        if Kind.DARK in self._sum:
            return self._mean(Kind.DARK, shape)
        return np.zeros(shape, np.float32)

    def _mean(self, kind: Kind, shape: tuple[int, ...]) -> NDArray[np.float32]:
        total = self._sum[kind]
        if total.shape != shape:
            raise InputError(
                f"{kind.name.lower()}s have shape {total.shape}, projections {shape} "
                "(row, column); they must agree"
            )
        return (total / self._count[kind]).astype(np.float32)
