"""What a projection is divided by: flats and darks, and how flats drift in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class References:
    """What the detector shows without a sample, and without a beam."""

    flat: NDArray[np.float32]
    """(row, column), counts; ``[angle, row, column]`` where it is each frame's own."""
    dark: NDArray[np.float32]
    """(row, column), counts."""
    source: Literal["measured", "assumed"] = "measured"
    bad: NDArray[np.bool_] | None = None
    """(row, column), True for pixels whose counts mean nothing: dead or hot."""
    groups: tuple[tuple[float, NDArray[np.float32]], ...] = ()
    """Flats taken at several times: (position, flat) in order. A position counts
    projections: that of a flat is the index of the projection that came next."""

    @cached_property
    def dead(self) -> NDArray[np.bool_]:
        """(row, column), True where no transmission can be had: bad, or no beam."""
        shape = self.dark.shape
        flats = [flat for _, flat in self.groups] or self.flat.reshape(-1, *shape)
        dead = np.zeros(shape, bool) if self.bad is None else self.bad.copy()
        with np.errstate(invalid="ignore", over="ignore"):
            for flat in flats:
                beam = flat - self.dark
                dead |= ~(np.isfinite(beam) & (beam > 0))
        return dead

    def between(self, position: float) -> tuple[int, float]:
        """Return after which group of flats a frame was taken, and how far on, 0..1.

        Before the first and after the last group, that group counts alone.
        """
        at = [where for where, _ in self.groups]
        after = int(np.searchsorted(at, position, side="right")) - 1
        if after < 0 or after == len(at) - 1:
            return max(after, 0), 0.0
        return after, (position - at[after]) / (at[after + 1] - at[after])

    def at(self, positions: Sequence[float]) -> References:
        """Return the references of frames at these positions, by linear interpolation.

        Parameters
        ----------
        positions : sequence of float
            The frames' indices.

        Returns
        -------
        References
            Its flat is ``[angle, row, column]``; itself if the flats do not change.
        """
        if len(self.groups) < 2:
            return self
        flats = np.empty((len(positions), *self.dark.shape), np.float32)
        for k, position in enumerate(positions):
            after, share = self.between(position)
            flats[k] = before = self.groups[after][1]
            if share:
                flats[k] += np.float32(share) * (self.groups[after + 1][1] - before)
        return References(flats, self.dark, self.source, self.dead)

    def same(self, other: References | None) -> bool:
        """Whether frames come out the same with the other's flats and darks."""
        if other is None or len(self.groups) != len(other.groups):
            return False
        mine = [self.flat, self.dark, self.dead]
        theirs = [other.flat, other.dark, other.dead]
        for (where, flat), (there, another) in zip(
            self.groups, other.groups, strict=True
        ):
            mine += [np.float64(where), flat]
            theirs += [np.float64(there), another]
        return all(map(_equal, mine, theirs))


def _equal(a: Any, b: Any) -> bool:
    return np.array_equal(a, b, equal_nan=True)
