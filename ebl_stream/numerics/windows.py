"""The ramp filter, and low-pass windows on top of it."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Window: TypeAlias = Literal[
    "ramp", "shepp_logan", "cosine", "hann", "parzen", "butterworth", "sinc2"
]
"""Low-pass on top of the ramp filter; ``ramp`` is none."""

BUTTERWORTH_CUTOFF = 0.25
"""Where the Butterworth window falls to 1/sqrt(2), cycles per px."""

BUTTERWORTH_ORDER = 4
"""How steeply it does."""


def ramp_response(n_padded: int) -> NDArray[np.float64]:
    """Return the DFT of the spatially sampled ramp, (frequency,), FFT order.

    Sampling |f| itself loses the mean of the object (Kak & Slaney, Principles of
    Computerized Tomographic Imaging, 1988, eq. 3.61).
    """
    # Whole numbers: a lag that rounding makes 0.999... is not odd.
    lag = np.minimum(np.arange(n_padded), n_padded - np.arange(n_padded))
    odd = lag % 2 == 1
    impulse = np.zeros(n_padded)
    impulse[odd] = -1 / (np.pi * lag[odd]) ** 2
    impulse[0] = 0.25
    return np.fft.fft(impulse).real


def window_response(
    frequency: NDArray[np.float64], window: Window
) -> NDArray[np.float64]:
    """Return a low-pass at ``frequency`` (cycles per px, 0 to 1/2).

    ``sinc2`` is what linear interpolation in back-projection does; ``parzen`` is the
    piecewise cubic window.

    Raises
    ------
    ValueError
        No such window.
    """
    match window:
        case "ramp":
            return np.ones_like(frequency)
        case "shepp_logan":
            return np.sinc(frequency)
        case "cosine":
            return np.cos(np.pi * frequency)
        case "hann":
            return 0.5 + 0.5 * np.cos(2 * np.pi * frequency)
        case "parzen":
            x = 2 * frequency
            return np.where(x <= 0.5, 1 - 6 * x**2 * (1 - x), 2 * (1 - x) ** 3)
        case "butterworth":
            falling = (frequency / BUTTERWORTH_CUTOFF) ** (2 * BUTTERWORTH_ORDER)
            return 1 / np.sqrt(1 + falling)
        case "sinc2":
            return np.sinc(frequency) ** 2
        case _:
            raise ValueError(f"no window is called {window!r}")
