"""Phase retrieval in the near field."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ebl_stream.stages import References, Values

KEV_NM = 1.239841984
"""Photon energy times wavelength, keV nm."""

REACH = 5
"""Decay lengths of the filter that the image is continued beyond its edges."""


@dataclass(frozen=True)
class RetrievePhase:
    """Undo the edges of propagation, for a sample of one material (Paganin).

    The transmission is filtered with ``1 / (1 + pi wavelength distance delta_beta
    u^2)`` (u in cycles per length), after which minus_log gives the line integrals of
    the attenuation alone. Paganin et al., J. Microsc. 206, 33 (2002), eq. 10.
    """

    per_frame: ClassVar[bool] = True
    needs_references: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    whole_frame: ClassVar[bool] = True
    halo: ClassVar[int] = 0
    takes: ClassVar[Values] = "transmission"
    role: ClassVar[Values] = "transmission"

    energy_kev: float
    """Photon energy."""
    distance_mm: float
    """From the sample to the detector."""
    pixel_size_um: float
    """At the sample."""
    delta_beta: float
    """Refractive index decrement over absorption index, of the material."""

    def __post_init__(self) -> None:
        for name in ("energy_kev", "distance_mm", "pixel_size_um", "delta_beta"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be above 0")

    @property
    def strength(self) -> float:
        """``pi wavelength distance delta_beta``, px^2."""
        wavelength_um = KEV_NM / self.energy_kev * 1e-3
        area_um2 = np.pi * wavelength_um * self.distance_mm * 1e3 * self.delta_beta
        return area_um2 / self.pixel_size_um**2

    def __call__(
        self, values: NDArray[np.float32], references: References | None = None
    ) -> NDArray[np.float32]:
        """Return the filtered transmission ``[angle, row, column]``.

        Beyond its edges an image is taken to go on as it is there.
        """
        shape = values.shape[1:]
        # In the image the filter is K0(r / length): what it decays over.
        length = np.sqrt(self.strength) / (2 * np.pi)
        padded, response = _response(shape, self.strength, int(np.ceil(REACH * length)))
        before = [(n - size) // 2 for n, size in zip(padded, shape, strict=True)]
        margins = [
            (b, n - size - b) for b, n, size in zip(before, padded, shape, strict=True)
        ]
        inner = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
        filtered = np.empty(values.shape, np.float32)
        # One by one: a padded frame and its spectrum are all the memory that it takes.
        for image, out in zip(values, filtered, strict=True):
            continued = np.pad(np.asarray(image, np.float32), margins, mode="edge")
            spectrum: Any = scipy.fft.rfft2(continued, overwrite_x=True)
            spectrum *= response
            whole: Any = scipy.fft.irfft2(spectrum, padded, overwrite_x=True)
            out[:] = whole[inner]
        return filtered


@lru_cache(maxsize=4)
def _response(
    shape: tuple[int, int], strength: float, margin: int
) -> tuple[tuple[int, int], NDArray[np.float32]]:
    """Return the padded shape, and the filter on the half plane of its spectrum."""
    # Margins at two opposite edges meet in the periodic image, each of its own half.
    lengths = [n + 2 * min(margin, n) for n in shape]
    n_rows, n_columns = (int(scipy.fft.next_fast_len(n, True) or n) for n in lengths)
    v = np.fft.fftfreq(n_rows)[:, None]
    u = np.fft.rfftfreq(n_columns)
    response = 1 / (1 + strength * (u**2 + v**2))
    return (n_rows, n_columns), response.astype(np.float32)
