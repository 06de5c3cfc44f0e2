"""Denoise: less noise in a slab, by what its two halves say of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from ebl_stream.numerics.noise2filter import NormalEquations, filter_slices
from ebl_stream.numerics.quality import rings, soft_circle

RING_SMOOTHING = 5
"""Rings over which powers are averaged; single rings near zero hold few values."""

DEPTH_SMOOTHING = 3
"""The same, for frequencies along z."""


@dataclass(frozen=True)
class Wiener:
    """Weigh every spatial frequency by how far the two halves agree on it.

    With the correlation C of the halves' spectra, the whole has the signal-to-noise
    ratio 2C / (1 - C) (Unser, Trus and Steven, Ultramicroscopy 23, 39 (1987)), so
    the Wiener filter is 2C / (1 + C): the weight that Rosenthal and Henderson (J.
    Mol. Biol. 333, 721 (2003)) give the square root of. It has no parameter. C is
    taken per ring of in-plane frequencies and per frequency along z.
    """

    def __call__(
        self, volume: NDArray[np.float32], half_difference: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Filter a slab.

        Parameters
        ----------
        volume : ndarray, [z, y, x]
            A + B.
        half_difference : ndarray, [z, y, x]
            A - B: as noisy as the volume, and without its signal.

        Returns
        -------
        ndarray, [z, y, x]
        """
        circle = soft_circle(volume.shape)
        total = _power(_spectrum(volume * circle))
        noise = _power(_spectrum(half_difference * circle))
        # 2C / (1 + C), with C = (total - noise) / (total + noise), is this:
        gain = 1 - np.divide(noise, total, out=np.ones_like(noise), where=total > 0)
        ring = rings(volume.shape, half=True)
        weights = np.clip(gain, 0, 1).astype(np.float32)[:, ring]
        return _image(_spectrum(volume) * weights, volume.shape)


@dataclass(frozen=True)
class Noise2Filter:
    """The filter along the detector that makes each half best from the other.

    See `ebl_stream.numerics.noise2filter`; it has no parameter, and is another filter
    of filtered back-projection. Every slab has its own.
    """

    def __call__(
        self, volume: NDArray[np.float32], half_difference: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Filter a slab: ``volume`` is A + B, ``half_difference`` A - B, [z, y, x]."""
        equations = NormalEquations(volume.shape[-1])
        equations.add(volume, half_difference)
        return filter_slices(volume, equations.solve())


@dataclass(frozen=True)
class Gaussian:
    """Blur in the plane: the plain alternative."""

    sigma_px: float = 1.0
    """Standard deviation, px."""

    def __post_init__(self) -> None:
        if not 0 < self.sigma_px <= 100:
            raise ValueError("sigma_px must be above 0 and at most 100")

    def __call__(
        self, volume: NDArray[np.float32], half_difference: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Blur every slice of a slab ``[z, y, x]``."""
        sigmas = (0, self.sigma_px, self.sigma_px)
        blurred = ndimage.gaussian_filter(volume, sigmas, mode="nearest")
        return np.asarray(blurred, np.float32)


def _spectrum(slab: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Transform in the plane, and by cosines along z, where a slab has two ends."""
    along_z = fft.dct(slab.astype(np.float32, copy=False), axis=0, norm="ortho")
    return np.asarray(fft.rfft2(along_z, axes=(1, 2)))


def _image(
    spectrum: NDArray[np.complex64], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    planes = np.asarray(fft.irfft2(spectrum, shape[1:], axes=(1, 2)))
    return np.asarray(fft.idct(planes, axis=0, norm="ortho"), np.float32)


def _power(spectrum: NDArray[np.complex64]) -> NDArray[np.float64]:
    """Return the power ``[z frequency, ring]``, smoothed over both."""
    n_y = spectrum.shape[1]
    shape = (n_y, 2 * (spectrum.shape[2] - 1))
    ring = rings(shape, half=True).ravel()
    n_rings = int(ring.max()) + 1
    power = np.stack(
        [
            np.bincount(ring, (abs(plane) ** 2).ravel(), minlength=n_rings)
            for plane in spectrum
        ]
    )
    power /= np.maximum(np.bincount(ring, minlength=n_rings), 1)
    along_z = ndimage.uniform_filter1d(power, DEPTH_SMOOTHING, 0, mode="nearest")
    return ndimage.uniform_filter1d(along_z, RING_SMOOTHING, 1, mode="nearest")
