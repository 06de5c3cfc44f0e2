"""Rings, in final quality: filters that need the whole sinogram."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ebl_stream.stages import References, Values

FEWEST_ANGLES = 16
"""With fewer angles a stripe is nothing that could be told from the sample."""


@dataclass(frozen=True)
class RemoveStripes:
    """Even out stripes of every kind in the whole sinogram, by sorting; final only.

    Dead and unstable, wide, and narrow stripes in turn: algorithms 6, 5 and 3 of Vo,
    Atwood & Drakopoulos, Opt. Express 26, 28396 (2018), as algotom has them. For badly
    striped data: what is round about the axis in the sample (a container's wall) is
    harmed, the more the larger ``wide`` and ``narrow`` are.
    """

    per_frame: ClassVar[bool] = False
    needs_references: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    whole_frame: ClassVar[bool] = False
    whole_sinogram: ClassVar[bool] = True
    halo: ClassVar[int] = 0
    takes: ClassVar[Values] = "line_integral"
    role: ClassVar[Values] = "line_integral"

    snr: float = 5.0
    """How far a stripe stands out before it is replaced; larger takes fewer."""
    wide: int = 21
    """Columns (odd) of the median for wide stripes: about twice their width."""
    narrow: int = 5
    """Columns (odd) of the median for narrow stripes."""

    def __post_init__(self) -> None:
        if not self.snr > 1:
            raise ValueError("snr must be above 1")
        for name in ("wide", "narrow"):
            if getattr(self, name) < 3 or getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} must be odd and at least 3")

    def __call__(
        self, values: NDArray[np.float32], references: References | None = None
    ) -> NDArray[np.float32]:
        """Return line integrals ``[angle, row, column]``, rows treated one by one."""
        from algotom.prep import removal  # takes a second: only for those who use it

        def clean(sinogram: NDArray[np.float32]) -> Any:
            # The method divides by the mean of columns, which is about zero in air.
            above = np.float32(np.abs(sinogram).max())
            found = removal.remove_all_stripe(
                sinogram + above, self.snr, self.wide, self.narrow
            )
            return found - above

        return _row_by_row(clean, values)


@dataclass(frozen=True)
class FilterStripes:
    """Damp what is constant along the angle, in the whole sinogram; final only.

    Fourier filter of the wavelet coefficients: Munch et al., Opt. Express 17, 8567
    (2009), as algotom has it. Also takes stripes that are not the same at all angles.
    """

    per_frame: ClassVar[bool] = False
    needs_references: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    whole_frame: ClassVar[bool] = False
    whole_sinogram: ClassVar[bool] = True
    halo: ClassVar[int] = 0
    takes: ClassVar[Values] = "line_integral"
    role: ClassVar[Values] = "line_integral"

    level: int = 2
    """Levels of the wavelet decomposition: stripes up to about 2^level px wide."""
    damping: int = 1
    """Width of what is damped around the frequency 0 along the angle."""
    wavelet: Literal["haar", "db5", "db9", "db15", "db20", "sym8"] = "db9"

    def __post_init__(self) -> None:
        if self.level < 1:
            raise ValueError("level must be 1 or more")
        if self.damping < 1:
            raise ValueError("damping must be 1 or more")

    def __call__(
        self, values: NDArray[np.float32], references: References | None = None
    ) -> NDArray[np.float32]:
        """Return line integrals ``[angle, row, column]``, rows treated one by one."""
        from algotom.prep import removal

        def clean(sinogram: NDArray[np.float32]) -> Any:
            return removal.remove_stripe_based_wavelet_fft(
                sinogram, self.level, self.damping, self.wavelet
            )

        return _row_by_row(clean, values)


def _row_by_row(clean: Any, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return cleaned sinograms; one that the method cannot treat stays as it is."""
    cleaned = np.array(values, np.float32)
    if len(values) < FEWEST_ANGLES:
        return cleaned
    for row in range(values.shape[1]):
        sinogram = np.ascontiguousarray(values[:, row], np.float32)
        try:
            with np.errstate(divide="ignore", invalid="ignore"):
                found = clean(sinogram)
        except ValueError:  # too small for it, or without any noise
            continue
        if np.isfinite(found).all():
            cleaned[:, row] = found
    return cleaned
