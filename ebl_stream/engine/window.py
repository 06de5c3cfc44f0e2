"""The window: raw projections by index, kept as long as the byte budget allows.

The truth is here (or in the detector's file): grids, halves and previews can be
rebuilt from it at any time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.frames import Frame, FrameRef, Image
from ebl_stream.ingest.hdf5 import read_frame


@dataclass(frozen=True, slots=True)
class _Spilled:
    """A frame without a file of its own, put into the scratch file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass
class Slot:
    """One projection, and how much of it is in the grids."""

    theta: float
    """rad."""
    half: int
    """0 (A) or 1 (B): the half it should be in."""
    image: Image | FrameRef | _Spilled
    """Raw frame in the detector's dtype, or where to read it again."""
    applied: tuple[float, float] = (0.0, 0.0)
    """Weights, rad, with which it was added to A and B."""


class Window:
    """Slots by frame index, in the order of first arrival.

    Parameters
    ----------
    max_bytes : int
        Raw frames held in memory. Beyond it file-backed frames are read again when
        they are needed, and frames that came inside events go to a scratch file.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._slots: dict[int, Slot] = {}
        self._scratch: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, index: int) -> bool:
        return index in self._slots

    def __getitem__(self, index: int) -> Slot:
        return self._slots[index]

    def items(self) -> Iterator[tuple[int, Slot]]:
        """Iterate over indices and slots in order of first arrival."""
        return iter(self._slots.items())

    def slots(self) -> Iterator[Slot]:
        """Iterate over the slots in order of first arrival."""
        return iter(self._slots.values())

    def put(self, frame: Frame, half: int) -> None:
        """Keep a projection; the last write of an index wins.

        Whoever replaces a slot takes the old projection out of the grids first.
        """
        old = self._slots.get(frame.index)
        if old is not None and isinstance(old.image, np.ndarray):
            self._bytes -= old.image.nbytes
        self._slots[frame.index] = Slot(frame.theta, half, self._keep(frame))

    def image(self, index: int) -> Image:
        """Return the raw frame ``(row, column)``, from memory or from its file."""
        kept = self._slots[index].image
        if isinstance(kept, FrameRef):
            return read_frame(kept)
        if isinstance(kept, _Spilled):
            return self._unspill(kept)
        return kept

    def thetas(self) -> NDArray[np.float64]:
        """Return theta in rad, in the order of ``items``."""
        return np.array([slot.theta for slot in self._slots.values()])

    def used(self) -> list[int]:
        """Return the indices of projections that are in the grids."""
        return [k for k, slot in self._slots.items() if any(slot.applied)]

    def close(self) -> None:
        """Let go of the frames."""
        self._slots.clear()
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
        return _Spilled(offset, image.shape, image.dtype)

    def _unspill(self, kept: _Spilled) -> Image:
        assert self._scratch is not None  # noqa: S101  (_spill opened it)
        self._scratch.seek(kept.offset)
        count = int(np.prod(kept.shape))
        raw = self._scratch.read(count * kept.dtype.itemsize)
        return np.frombuffer(raw, kept.dtype).reshape(kept.shape)
