"""Some rows of every projection, kept for the search of the rotation center."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

CHUNK = 256
"""Projections that room is made for at a time: nothing is moved when there are more."""


class CenterRows:
    """Rows of line integrals by place, in the order in which they came."""

    def __init__(self) -> None:
        self._chunks: list[NDArray[np.float32]] = []
        # Place of each slot; -1 where it was taken out.
        self._places = array("q")

    def add(self, place: int, rows: NDArray[np.float32]) -> None:
        """Keep the rows ``(row, column)`` of a projection."""
        chunk, slot = divmod(len(self._places), CHUNK)
        if slot == 0:
            self._chunks.append(np.empty((CHUNK, *rows.shape), np.float32))
        self._chunks[chunk][slot] = rows
        self._places.append(place)

    def remove(self, place: int) -> None:
        """Let go of a projection, if it is there."""
        if place in self._places:
            self._places[self._places.index(place)] = -1

    def clear(self) -> None:
        """Let go of all."""
        self._chunks.clear()
        self._places = array("q")

    @property
    def places(self) -> list[int]:
        """Of the projections that are kept."""
        return [place for place in self._places if place >= 0]

    def every(self, step: int = 1) -> NDArray[np.float32]:
        """Return every so many projections' rows ``[angle, row, column]``."""
        slots = [k for k, place in enumerate(self._places) if place >= 0][::step]
        return np.stack([self._chunks[k // CHUNK][k % CHUNK] for k in slots])
