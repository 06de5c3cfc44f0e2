"""Raw frames: in memory as far as a budget goes, else where they can be read again."""

from __future__ import annotations

import os
import tempfile
from array import array
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ebl_stream.frames import Frame, FrameRef, Image
from ebl_stream.ingest.hdf5 import read_frame


@dataclass(frozen=True, slots=True)
class _Dataset:
    """Where frames lie in a detector's file."""

    path: str
    name: str
    rows: tuple[int, int] | None
    n_axes: int
    """Indices that lead to a frame: 0 to 2."""


@dataclass(frozen=True, slots=True)
class _Scratch:
    """What frames without a file of their own look like in ours."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


_Source: TypeAlias = _Dataset | _Scratch


class FrameStore:
    """Frames by place, 0 and up; of one that is not in memory three numbers are kept.

    Parameters
    ----------
    max_bytes : int
        Held in memory. Beyond it file-backed frames are read again when they are
        needed, and frames that came inside events go to a scratch file.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.n_bytes = 0
        """Held in memory."""
        self._images: dict[int, Image] = {}
        self._sources: list[_Source] = []
        self._number: dict[_Source, int] = {}
        # Of each place: the number of its source, and two that say where in it.
        self._where = array("q")
        self._scratch: IO[bytes] | None = None

    def put(self, place: int, frame: Frame) -> None:
        """Keep a frame at a place, instead of what is there; places come in order."""
        if 3 * place == len(self._where):
            self._where.extend((0, 0, 0))
        if place in self._images:
            self.n_bytes -= self._images.pop(place).nbytes
        if self.n_bytes + frame.image.nbytes <= self._max_bytes:
            self.n_bytes += frame.image.nbytes
            self._images[place] = np.ascontiguousarray(frame.image)
            return
        source, where = self._outside(frame)
        number = self._number.setdefault(source, len(self._sources))
        if number == len(self._sources):
            self._sources.append(source)
        self._where[3 * place : 3 * place + 3] = array("q", (number, *where))

    def image(self, place: int) -> Image:
        """Return the frame ``(row, column)`` of a place; any thread may ask."""
        if place in self._images:
            return self._images[place]
        number, *where = self._where[3 * place : 3 * place + 3]
        source = self._sources[number]
        if isinstance(source, _Scratch):
            return self._read(source, where[0])
        index = tuple(where[: source.n_axes])
        return read_frame(FrameRef(source.path, source.name, index, source.rows))

    def close(self) -> None:
        """Let go of the frames."""
        self._images.clear()
        self.n_bytes = 0
        if self._scratch is not None:
            self._scratch.close()

    def _outside(self, frame: Frame) -> tuple[_Source, tuple[int, int]]:
        """Return where a frame that is not held can be read again."""
        ref = frame.ref
        if ref is None:
            scratch = _Scratch(frame.image.shape, frame.image.dtype)
            return scratch, (self._write(frame.image), 0)
        first, second, *_ = (*ref.index, 0, 0)
        return _Dataset(ref.path, ref.dataset, ref.rows, len(ref.index)), (
            first,
            second,
        )

    def _write(self, image: Image) -> int:
        if self._scratch is None:
            self._scratch = tempfile.TemporaryFile(prefix="ebl_stream-")  # noqa: SIM115
        offset = self._scratch.seek(0, 2)
        self._scratch.write(np.ascontiguousarray(image).tobytes())
        self._scratch.flush()
        return offset

    def _read(self, source: _Scratch, offset: int) -> NDArray[Any]:
        assert self._scratch is not None  # noqa: S101  (_write opened it)
        n_bytes = int(np.prod(source.shape)) * source.dtype.itemsize
        # No shared position: the slabs' threads read side by side.
        raw = os.pread(self._scratch.fileno(), n_bytes, offset)
        return np.frombuffer(raw, source.dtype).reshape(source.shape)
