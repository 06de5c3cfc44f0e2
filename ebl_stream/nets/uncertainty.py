"""How far a denoised slab may be wrong, without knowing the truth.

One interface: a method takes a slab on the nets' scale and its half difference, and
returns an error per voxel. *Split* asks how much the halves' noise still moves the
result: what more photons would buy. *Ensemble* asks how far nets that learned the same
disagree: noise, and what the nets do not know. Dropout at inference would fit the
interface too; it did not follow the true error (rank correlation 0.10), so nothing
here relies on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ebl_stream.nets.guard import Denoise
from ebl_stream.numerics.quality import INSIDE, inside_circle

Seen = NDArray[np.float32]

SPLIT_SCALE = 2.1
"""True error over the split's, on phantoms; see ``benchmarks/denoise.py``."""

ENSEMBLE_SCALE = 25.0
"""True error over the ensemble's, on phantoms."""


class Uncertainty(Protocol):
    """A method."""

    def __call__(
        self, seen: Seen, difference: Seen, rows: Sequence[int] | None = None
    ) -> Seen:
        """Return the error of slices, [row, y, x], on the scale of ``seen``.

        Parameters
        ----------
        seen : ndarray, [z, y, x]
            A + B on the nets' scale.
        difference : ndarray, [z, y, x]
            A - B over the scale's gain.
        rows : sequence of int, optional
            The slices that are wanted; all of them.
        """
        ...


class Split:
    """Half the difference of what is made of either half."""

    def __init__(self, denoise: Denoise) -> None:
        self._denoise = denoise

    def __call__(
        self, seen: Seen, difference: Seen, rows: Sequence[int] | None = None
    ) -> Seen:
        """Return the error of slices; see `Uncertainty`."""
        one = self._denoise(seen + difference, rows)
        return self.of(one, self._denoise(seen - difference, rows))

    @staticmethod
    def of(one: Seen, other: Seen) -> Seen:
        """Return the error of slices that were made of either half."""
        return np.float32(SPLIT_SCALE / 2) * np.abs(one - other)


class Ensemble:
    """The spread of several nets.

    Parameters
    ----------
    members : sequence of callable
        Two or more.
    """

    def __init__(self, members: Sequence[Denoise]) -> None:
        if len(members) < 2:
            raise ValueError("an ensemble has two members or more")
        self._members = members

    def __call__(
        self, seen: Seen, difference: Seen, rows: Sequence[int] | None = None
    ) -> Seen:
        """Return the error of slices; see `Uncertainty`."""
        made = np.stack([member(seen, rows) for member in self._members])
        return np.float32(ENSEMBLE_SCALE) * made.std(0, ddof=1)


def scalar(error: Seen) -> float:
    """Return the RMS of an error inside 0.9 of the circle."""
    inside = error[:, inside_circle(error.shape, INSIDE)]
    return float(np.sqrt(np.mean(np.square(inside, dtype=np.float64))))
