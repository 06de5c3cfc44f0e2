"""The window: raw projections by index, kept as long as the byte budget allows.

The truth is here (or in the detector's file): grids, halves and previews can be
rebuilt from it at any time.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream import failpoints
from ebl_stream.frames import Frame, FrameRef, Image
from ebl_stream.ingest.hdf5 import read_frame

FIRST_ROOM = 1024
"""Projections that there is room for at first; it doubles."""


@dataclass(frozen=True, slots=True)
class _Spilled:
    """A frame without a file of its own, put into the scratch file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Window:
    """Projections in the order of first arrival, and how much of each is in the grids.

    A projection's *place* is its number in that order; its *index* is its key in the
    documents.

    Parameters
    ----------
    max_bytes : int
        Raw frames held in memory. Beyond it file-backed frames are read again when
        they are needed, and frames that came inside events go to a scratch file.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self.places: dict[int, int] = {}
        """Frame index to place."""
        self.indices: list[int] = []
        """Place to frame index."""
        self._images: list[Image | FrameRef | _Spilled] = []
        self._theta = np.empty(FIRST_ROOM)
        self._half = np.empty(FIRST_ROOM, np.int8)
        self._applied = np.empty((FIRST_ROOM, 2))
        self._summed = np.empty(FIRST_ROOM, bool)
        self._scratch: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, index: int) -> bool:
        return index in self.places

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
        place = self.places.get(frame.index)
        if place is None:
            place = self._new_place(frame.index)
        else:
            old = self._images[place]
            self._bytes -= old.nbytes if isinstance(old, np.ndarray) else 0
        self._theta[place] = frame.theta
        self._half[place] = half
        self._applied[place] = 0
        self._summed[place] = False
        self._images[place] = self._keep(frame)
        failpoints.hit("window.kept")
        return place

    def _new_place(self, index: int) -> int:
        place = len(self.places)
        if place == len(self._theta):
            self._theta = np.resize(self._theta, 2 * place)
            self._half = np.resize(self._half, 2 * place)
            self._applied = np.resize(self._applied, (2 * place, 2))
            self._summed = np.resize(self._summed, 2 * place)
        self.places[index] = place
        self.indices.append(index)
        self._images.append(_Spilled(0, (), np.dtype("u1")))
        return place

    def image(self, place: int) -> Image:
        """Return the raw frame ``(row, column)``, from memory or from its file."""
        kept = self._images[place]
        if isinstance(kept, FrameRef):
            return read_frame(kept)
        if isinstance(kept, _Spilled):
            return self._unspill(kept)
        return kept

    def used(self) -> list[int]:
        """Return the indices of projections that are in the grids."""
        is_used = np.asarray(self.applied.any(axis=1))
        return [index for index, place in self.places.items() if is_used[place]]

    def close(self) -> None:
        """Let go of the frames."""
        self.places.clear()
        self.indices.clear()
        self._images.clear()
        if self._scratch is not None:
            self._scratch.close()

    def _keep(self, frame: Frame) -> Image | FrameRef | _Spilled:
        if self._bytes + frame.image.nbytes <= self._max_bytes:
            self._bytes += frame.image.nbytes
            return np.ascontiguousarray(frame.image)
        return frame.ref or self._spill(frame.image)

    def _spill(self, image: Image) -> _Spilled:
        if self._scratch is None:
            self._scratch = tempfile.TemporaryFile(prefix="ebl_stream-")  # noqa: SIM115
        offset = self._scratch.seek(0, 2)
        self._scratch.write(np.ascontiguousarray(image).tobytes())
        self._scratch.flush()
        return _Spilled(offset, image.shape, image.dtype)

    def _unspill(self, kept: _Spilled) -> Image:
        assert self._scratch is not None  # noqa: S101  (_spill opened it)
        n_bytes = int(np.prod(kept.shape)) * kept.dtype.itemsize
        # No shared position: the slabs' threads read side by side.
        raw = os.pread(self._scratch.fileno(), n_bytes, kept.offset)
        return np.frombuffer(raw, kept.dtype).reshape(kept.shape)
