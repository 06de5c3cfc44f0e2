"""Slabs whose truth is known, seen twice through the noise of a reconstruction."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics.quality import inside_circle
from ebl_stream.simulation.phantom import Foam

Volume = NDArray[np.float32]


@lru_cache(4)
def _foam(n: int, rows: int, seed: int) -> tuple[Volume, float]:
    foam = Foam(n, rows, seed)
    return foam.volume(), foam.matrix


def noisy_foam(
    n: int = 64, rows: int = 8, seed: int = 0, noise: float = 1.0
) -> tuple[Volume, Volume, Volume]:
    """Return the truth, A + B and A - B, ``[z, y, x]``.

    ``noise`` is the standard deviation of either half over the density of the matrix;
    it grows with the frequency, as filtered back-projection makes it.
    """
    truth, matrix = _foam(n, rows, seed)
    rng = np.random.default_rng(seed + 1)
    halves = [truth + noise * matrix * ramped(rng, truth.shape) for _ in "AB"]
    volume = (halves[0] + halves[1]) / 2
    return truth, volume.astype(np.float32), (volume - halves[1]).astype(np.float32)


def ramped(rng: np.random.Generator, shape: tuple[int, ...]) -> Volume:
    """Return noise of standard deviation 1 whose power grows with the frequency."""
    spectrum = np.fft.rfft2(rng.normal(size=shape))
    y, x = np.fft.fftfreq(shape[-2])[:, None], np.fft.rfftfreq(shape[-1])
    noise = np.fft.irfft2(spectrum * np.sqrt(np.hypot(y, x)), shape[-2:])
    return (noise / noise.std()).astype(np.float32)


def error(made: Volume, truth: Volume) -> float:
    """Return the RMS error inside 0.9 of the circle."""
    circle = inside_circle(truth.shape, 0.9)
    return float(np.sqrt(np.mean(np.square((made - truth)[:, circle]))))
