"""The window: raw projections by index, kept as long as the byte budget allows.

The truth is here (or in the detector's file): grids, halves and previews can be
rebuilt from it at any time.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream import failpoints
from ebl_stream.engine.frame_store import FrameStore
from ebl_stream.frames import Frame, Image

FIRST_ROOM = 1024
"""Projections that there is room for at first; it doubles."""


class Window:
    """Projections in the order of first arrival, and how much of each is in the grids.

    A projection's *place* is its number in that order; its *index* is its key in the
    documents.

    Parameters
    ----------
    max_bytes : int
        Raw frames held in memory, see `FrameStore`.
    """

    def __init__(self, max_bytes: int) -> None:
        self.indices = array("q")
        """Place to frame index."""
        self.frames = FrameStore(max_bytes)
        """The raw frames, by place."""
        # By frame index: its place + 1; 0 where there is none.
        self._place_of = np.zeros(FIRST_ROOM, np.int32)
        self._theta = np.empty(FIRST_ROOM)
        self._half = np.empty(FIRST_ROOM, np.int8)
        self._applied = np.empty((FIRST_ROOM, 2))
        self._summed = np.empty(FIRST_ROOM, bool)

    def __len__(self) -> int:
        return len(self.indices)

    def __contains__(self, index: int) -> bool:
        return index < len(self._place_of) and bool(self._place_of[index])

    def place_of(self, index: int) -> int:
        """Return the place of a frame, which is there."""
        return int(self._place_of[index]) - 1

    def in_order(self) -> NDArray[np.intp]:
        """Return the places in the order of their indices."""
        return np.argsort(self.indices)

    @property
    def theta(self) -> NDArray[np.float64]:
        """rad, (place,)."""
        return self._theta[: len(self)]

    @property
    def half(self) -> NDArray[np.int8]:
        """0 (A) or 1 (B), (place,): the half that each projection should be in."""
        return self._half[: len(self)]

    @property
    def applied(self) -> NDArray[np.float64]:
        """rad, (place, half): the weights with which each stands in the grids."""
        return self._applied[: len(self)]

    @property
    def summed(self) -> NDArray[np.bool_]:
        """(place,): whether it is in the sums that rings and center are found from."""
        return self._summed[: len(self)]

    def put(self, frame: Frame, half: int) -> int:
        """Keep a projection and return its place; the last write of an index wins.

        Whoever replaces one takes the old projection out of the grids first.
        """
        if frame.index in self:
            place = self.place_of(frame.index)
        else:
            place = self._new_place(frame.index)
        self._theta[place] = frame.theta
        self._half[place] = half
        self._applied[place] = 0
        self._summed[place] = False
        self.frames.put(place, frame)
        failpoints.hit("window.kept")
        return place

    def _new_place(self, index: int) -> int:
        place = len(self.indices)
        if place == len(self._theta):
            self._theta = _longer(self._theta, 2 * place)
            self._half = _longer(self._half, 2 * place)
            self._applied = _longer(self._applied, 2 * place)
            self._summed = _longer(self._summed, 2 * place)
        if index >= len(self._place_of):
            n = max(index + 1, 2 * len(self._place_of))
            self._place_of = _longer(self._place_of, n)
        self._place_of[index] = place + 1
        self.indices.append(index)
        return place

    def image(self, place: int) -> Image:
        """Return the raw frame ``(row, column)``, from memory or from its file."""
        return self.frames.image(place)

    def used(self) -> NDArray[np.int64]:
        """Return the indices of projections that are in the grids."""
        return np.array(self.indices)[self.applied.any(axis=1)]

    def close(self) -> None:
        """Let go of the frames."""
        self.indices = array("q")
        self._place_of[:] = 0
        self.frames.close()


def _longer(values: NDArray[Any], n: int) -> NDArray[Any]:
    """Return the same with room for n; zeros, which take no memory until written."""
    longer = np.zeros((n, *values.shape[1:]), values.dtype)
    longer[: len(values)] = values
    return longer
