"""Preprocess: what the detector counted, to line integrals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ebl_stream.stages import References, Values

NEIGHBORS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]

SIGMA_PER_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""

NOISE_SAMPLES = 16_384
"""Pixels of a projection that its noise is estimated from, about."""

FAINTEST_ZINGER = 0.03
"""Of the beam: brighter by less harms nobody, and is structure in noiseless data."""


def repair(values: NDArray[np.float32]) -> int:
    """Fill pixels that are not finite from their neighbors in the image, in place.

    Each is the mean of its finite neighbors (up to eight); holes fill from their rim.
    An image without any finite pixel stays as it is.

    Parameters
    ----------
    values : ndarray, [..., row, column]

    Returns
    -------
    int
        Pixels that were filled.
    """
    finite = np.isfinite(values)
    if finite.all():
        return 0
    return sum(
        _fill(values[k], finite[k])
        for k in np.ndindex(values.shape[:-2])
        if finite[k].any() and not finite[k].all()
    )


def _fill(image: NDArray[np.float32], finite: NDArray[np.bool_]) -> int:
    """Fill one image; ``finite`` is a mask."""
    padded = np.pad(np.where(finite, image, 0), 1)
    known = np.pad(finite, 1)
    rows, columns = np.nonzero(~known[1:-1, 1:-1])
    n_filled = rows.size
    while rows.size:
        count = np.zeros(rows.size, np.int64)
        total = np.zeros(rows.size, np.float64)
        for i, j in NEIGHBORS:
            count += known[rows + 1 + i, columns + 1 + j]
            total += padded[rows + 1 + i, columns + 1 + j]
        rim = count > 0
        filled = total[rim] / count[rim]
        padded[rows[rim] + 1, columns[rim] + 1] = filled
        known[rows[rim] + 1, columns[rim] + 1] = True
        image[rows[rim], columns[rim]] = filled
        rows, columns = rows[~rim], columns[~rim]
    return n_filled


@dataclass(frozen=True)
class FlatField:
    """Divide by the beam: ``(raw - dark) / (flat - dark)``, the transmission.

    Pixels that see no beam become NaN, for `repair` to fill.
    """

    per_frame: ClassVar[bool] = True
    needs_references: ClassVar[bool] = True
    takes: ClassVar[Values] = "raw"
    role: ClassVar[Values] = "transmission"

    def __call__(
        self, values: NDArray[np.float32], references: References | None = None
    ) -> NDArray[np.float32]:
        """Return the transmission ``[angle, row, column]``.

        Raises
        ------
        ValueError
            There are no references.
        """
        if references is None:
            raise ValueError("flat_field needs a flat and a dark")
        with np.errstate(invalid="ignore", over="ignore"):
            beam = np.asarray(references.flat - references.dark, np.float32)
            beam[~(np.isfinite(beam) & (beam > 0))] = np.nan
            transmission = np.subtract(values, references.dark, dtype=np.float32)
            transmission /= beam
        return transmission


@dataclass(frozen=True)
class MinusLog:
    """Turn transmission into line integrals: ``-log(max(transmission, clip))``."""

    per_frame: ClassVar[bool] = True
    needs_references: ClassVar[bool] = False
    takes: ClassVar[Values] = "transmission"
    role: ClassVar[Values] = "line_integral"

    clip: float = 1e-5
    """Smallest transmission; less counts as this."""

    def __post_init__(self) -> None:
        if not 0 < self.clip < 1:
            raise ValueError("clip must be between 0 and 1")

    def __call__(
        self, values: NDArray[np.float32], references: References | None = None
    ) -> NDArray[np.float32]:
        """Return line integrals ``[angle, row, column]``; NaN stays NaN."""
        clipped = np.maximum(values, np.float32(self.clip), dtype=np.float32)
        np.log(clipped, out=clipped)
        return np.negative(clipped, out=clipped)


@dataclass(frozen=True)
class RemoveZingers:
    """Replace pixels that a stray photon lit, from their neighbors in the image.

    A zinger is far brighter than all but a few pixels of its window. Far: in units
    of the projection's own noise, which grows with the root of the transmission.
    """

    per_frame: ClassVar[bool] = True
    needs_references: ClassVar[bool] = False
    takes: ClassVar[Values] = "transmission"
    role: ClassVar[Values] = "transmission"

    threshold: float = 6.0
    """Standard deviations of the noise."""
    size: int = 3
    """Width of the window (px, odd); zingers of up to ``size**2 // 4 + 1`` px go."""

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError("threshold must be above 0")
        if self.size not in (3, 5, 7):
            raise ValueError("size must be 3, 5 or 7")

    def __call__(
        self, values: NDArray[np.float32], references: References | None = None
    ) -> NDArray[np.float32]:
        """Return the transmission ``[angle, row, column]`` without zingers."""
        cleaned = np.array(values, np.float32, order="C")
        for before, after in zip(values, cleaned, strict=True):
            excess = self.threshold * max(_noise(before), 1e-6)
            _remove_zingers(
                np.ascontiguousarray(before, np.float32), after, self.size // 2, excess
            )
        return cleaned


def _noise(image: NDArray[np.float32]) -> float:
    """Return the noise at full beam, by what a pixel differs from its neighbors.

    Photon noise is proportional to the root of the transmission, so that is
    divided out; the median keeps edges and zingers from counting.
    """
    step = max(1, int(np.sqrt(image.size / NOISE_SAMPLES)))
    rows = image[::step]
    middle = rows[:, 1:-1:step]
    if middle.size == 0:
        return 0.0
    around = 0.5 * (rows[:, :-2:step] + rows[:, 2::step])
    level = np.sqrt(np.maximum(middle, 0.01))
    # The mean of two has half the variance of one: 1.5 in all.
    residual = np.abs(middle - around) / (level * np.float32(np.sqrt(1.5)))
    return SIGMA_PER_MAD * float(np.median(residual))


@numba.njit(nogil=True, cache=True)
def _remove_zingers(image: Any, out: Any, half: int, excess: float) -> None:
    n_rows, n_columns = image.shape
    suspect = np.ones(n_columns, np.bool_)
    for row in range(n_rows):
        suspect[:] = True
        if half <= row < n_rows - half:
            _suspect(image, row, half, np.float32(excess), suspect)
        for column in range(n_columns):
            if suspect[column]:
                out[row, column] = _calm(image, row, column, half, excess)


@numba.njit(nogil=True, cache=True)
def _suspect(image: Any, row: int, half: int, excess: Any, suspect: Any) -> None:
    """Rule out nearly all pixels, without a branch: two of four are as bright."""
    for column in range(half, image.shape[1] - half):
        value = max(image[row, column], np.float32(0))
        step = max(excess * np.sqrt(value), np.float32(FAINTEST_ZINGER))
        limit = value - step
        bright = int(image[row, column - half] > limit)
        bright += int(image[row, column + half] > limit)
        bright += int(image[row - half, column] > limit)
        bright += int(image[row + half, column] > limit)
        suspect[column] = bright <= 2


@numba.njit(nogil=True, cache=True)
def _calm(image: Any, row: int, column: int, half: int, excess: float) -> float:
    """Return a pixel, or the median of its darker neighbors if it is a zinger."""
    value = image[row, column]
    if not value > FAINTEST_ZINGER:
        return value
    limit = value - max(excess * np.sqrt(value), FAINTEST_ZINGER)
    window = image[
        max(row - half, 0) : row + half + 1, max(column - half, 0) : column + half + 1
    ]
    darker = np.empty(window.size, np.float32)
    n = 0
    for neighbor in window.flat:
        if neighbor <= limit:
            darker[n] = neighbor
            n += 1
    # At the image's border, where the window is smaller, fewer may be as bright.
    full = (2 * half + 1) ** 2
    allowed = (full // 4) * (window.size - 1) // (full - 1)
    if n == 0 or window.size - 1 - n > allowed:
        return value
    return float(np.median(darker[:n]))


@dataclass(frozen=True)
class RemoveRings:
    """Subtract what every projection sees alike in a detector pixel.

    The mean over the angles is smooth along the columns, as every feature sweeps
    across them; what is narrow in it comes from the detector and would become
    rings. Constant in angle, so by linearity it may be taken away at any time.
    """

    per_frame: ClassVar[bool] = False
    needs_references: ClassVar[bool] = False
    linear: ClassVar[bool] = True
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
