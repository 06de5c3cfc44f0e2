"""Flats and darks: their running means, and what to do where there are none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ebl_stream.engine.window import Window
from ebl_stream.errors import InputError
from ebl_stream.frames import Frame, FrameRef, Image, Kind
from ebl_stream.stages import References
from ebl_stream.stages.preprocess.pixels import find_bad_pixels

AIR_PERCENTILE = 99.5
"""Of the first projections' pixels: the beam beside the sample, where no flat is."""

ZINGER_SIGMA = 8.0
"""Noise above the others' mean at which a pixel's brightest value does not count."""

NOISE_ROWS = 64
"""Rows of an image, about, that the noise of flats and darks is estimated from."""


class ReferenceFrames:
    """Collect flats and darks of one run; the last write of an index wins.

    Flats taken at another time of the scan are another group: the beam drifts.
    """

    def __init__(self) -> None:
        self._flats: dict[float, _Mean] = {}
        self._dark = _Mean()
        self._shape: dict[Kind, tuple[int, ...]] = {}
        # Means are made on the way; frames are read again only if one is retaken.
        self._kept = {kind: Window(0) for kind in (Kind.FLAT, Kind.DARK)}
        self._positions: dict[tuple[Kind, int], float] = {}

    @property
    def used(self) -> dict[Kind, Sequence[int]]:
        """Indices of the frames in the means, by kind."""
        return {kind: kept.indices for kind, kept in self._kept.items()}

    def add(
        self,
        kind: Kind,
        index: int,
        image: Image,
        position: float = 0.0,
        ref: FrameRef | None = None,
    ) -> None:
        """Add a flat or a dark ``(row, column)``.

        Parameters
        ----------
        kind : Kind
        index : int
            Its own; one that is there already is replaced.
        image : ndarray
        position : float
            Index of the projection that comes next, for all that is known. Flats
            with the same position are one group; darks do not drift.
        ref : FrameRef, optional
            Where it can be read again.

        Raises
        ------
        InputError
            Its shape differs from the others' of its kind.
        """
        shape = self._shape.setdefault(kind, image.shape)
        if shape != image.shape:
            raise InputError(
                f"{kind.name.lower()}s: frame {index} has shape {image.shape}, the "
                f"first one {shape}; flats and darks must agree"
            )
        kept = self._kept[kind]
        if index in kept:
            self._take_out(kind, index)
        if kind is Kind.DARK:
            self._dark.add(image)
        else:
            self._flats.setdefault(position, _Mean()).add(image)
            self._positions[kind, index] = position
        kept.put(Frame(index, kind, math.nan, image, ref), 0)

    def _take_out(self, kind: Kind, index: int) -> None:
        """Make the mean that holds a frame anew, without it."""
        kept, mean = self._kept[kind], _Mean()
        at = self._positions.get((kind, index), 0.0)
        for other in kept.indices:
            if other != index and self._positions.get((kind, other), 0.0) == at:
                mean.add(kept.image(kept.place_of(other)))
        if kind is Kind.DARK:
            self._dark = mean
        elif mean.n:
            self._flats[at] = mean
        else:
            del self._flats[at]

    def close(self) -> None:
        """Let go of the frames."""
        for kept in self._kept.values():
            kept.close()

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Rows and columns of flats, else of darks; None before there are any."""
        return self._shape.get(Kind.FLAT) or self._shape.get(Kind.DARK)

    @property
    def n_flats(self) -> int:
        """Flats received."""
        return len(self._kept[Kind.FLAT])

    def measured(self, shape: tuple[int, ...]) -> References | None:
        """Return the mean flats and dark, or None while there is no flat.

        Raises
        ------
        InputError
            The shape is not the projections', or the flat has no signal.
        """
        if not self.n_flats:
            return None
        self._check(Kind.FLAT, shape)
        dark = self._dark_mean(shape)
        groups = [(at, mean.robust()) for at, mean in sorted(self._flats.items())]
        weights = [self._flats[at].n for at, _ in groups]
        flat = np.average([image for _, image in groups], axis=0, weights=weights)
        signal = flat - dark
        if not (np.isfinite(signal) & (signal > 0)).any():
            raise InputError(
                "flats: no pixel is brighter than the darks (all zero or NaN); "
                "check which frames are flats and which are darks"
            )
        single = (flat := flat.astype(np.float32)), dark, "measured"
        bad = find_bad_pixels(flat, dark)
        return References(*single, bad, tuple(groups) if len(groups) > 1 else ())

    def assumed(self, images: list[Image]) -> References:
        """Return a constant flat at the air level of the first projections."""
        level = np.nanpercentile(np.stack(images), AIR_PERCENTILE)
        shape = images[0].shape
        flat = np.full(shape, level, np.float32)
        return References(flat, self._dark_mean(shape), "assumed")

    def _dark_mean(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the mean dark; zero where there is none."""
        if not self._dark.n:
            return np.zeros(shape, np.float32)
        self._check(Kind.DARK, shape)
        return self._dark.robust()

    def _check(self, kind: Kind, shape: tuple[int, ...]) -> None:
        if self._shape[kind] != shape:
            raise InputError(
                f"{kind.name.lower()}s have shape {self._shape[kind]}, projections "
                f"{shape} (row, column); they must agree"
            )


class _Mean:
    """Mean of images that are not kept, without a stray photon in one of them."""

    def __init__(self) -> None:
        self.n = 0
        self._sum = np.zeros(())
        self._brightest = np.zeros(())
        self._squares = np.zeros(())
        self._quantum = 0.0

    def add(self, image: Image) -> None:
        if not self.n:
            self._sum = np.zeros(image.shape)
            self._brightest = np.full(image.shape, -np.inf, np.float32)
            self._squares = np.zeros(self._sample(image).shape)
            self._quantum = 0.5 if image.dtype.kind in "ui" else 0.0
        self._sum += image
        np.maximum(self._brightest, image, out=self._brightest, casting="same_kind")
        self._squares += np.square(self._sample(image), dtype=np.float64)
        self.n += 1

    @staticmethod
    def _sample(image: Image) -> Image:
        return image[:: max(1, len(image) // NOISE_ROWS)]

    def robust(self) -> NDArray[np.float32]:
        """Return the mean, less each pixel's brightest value if that is a zinger."""
        mean = self._sum / self.n
        if self.n > 1:
            others = (self._sum - self._brightest) / (self.n - 1)
            sigma, level = self._noise(mean)
            # Photon noise grows with the root of the level; what is darker keeps it.
            with np.errstate(invalid="ignore"):
                limit = np.maximum(others / level, 1) if level > 0 else 1.0
                lit = self._brightest - others > ZINGER_SIGMA * sigma * np.sqrt(limit)
            mean[lit] = others[lit]
        return mean.astype(np.float32)

    def _noise(self, mean: NDArray[np.float64]) -> tuple[float, float]:
        """Return the usual noise of one image, and the level that it belongs to."""
        mean = self._sample(mean)
        free = self.n - 1
        variance = (self._squares - self.n * mean**2) / free
        level, usual = np.nanmedian(mean), max(float(np.nanmedian(variance)), 0)
        # The median of chi-squared (Wilson & Hilferty, PNAS 17, 684 (1931)).
        sigma = np.sqrt(usual / (1 - 2 / (9 * free)) ** 3)
        return max(float(sigma), self._quantum, 1e-6 * abs(level)), float(level)
