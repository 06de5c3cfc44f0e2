"""Files that end before they should: what of them can still be read.

HDF5 refuses a file that is shorter than the end of file in its superblock (unless
it is opened for SWMR reading, where it silently reads zeros). Here such a file is
padded with zeros, and every frame is known to lie inside the real file or not.
"""

from __future__ import annotations

import io
import itertools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ebl_stream.ingest.regular import open_regular

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SUPERBLOCK_BYTES = 96
_END_AT = {0: 40, 1: 44, 2: 28, 3: 28}
"""Where the stored end of file stands, by version of the superblock."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """The first bytes of an HDF5 file."""

    version: int
    stored_end: int
    """Bytes that the file should have."""
    being_written: bool
    """A writer has marked the file as its own (and has not let go, or died)."""

    @classmethod
    def read(cls, path: str | Path) -> Superblock | None:
        """Read it; None where the file does not begin like HDF5."""
        with os.fdopen(open_regular(path), "rb") as file:
            head = file.read(_SUPERBLOCK_BYTES)
        if not head.startswith(SIGNATURE) or len(head) < _SUPERBLOCK_BYTES // 2:
            return None
        version = head[8]
        at = _END_AT.get(version)
        if at is None:
            return None
        end = int.from_bytes(head[at : at + 8], "little")
        return cls(version, end, version >= 2 and bool(head[11] & 1))


def is_truncated(path: str | Path) -> bool:
    """Return whether the file is shorter than it says."""
    superblock = Superblock.read(path)
    return superblock is not None and os.path.getsize(path) < superblock.stored_end


def shortage(path: str | Path) -> str:
    """Say how much of a truncated file is there; empty where it is whole."""
    superblock = Superblock.read(path)
    size = os.path.getsize(path)
    if superblock is None or size >= superblock.stored_end:
        return ""
    name = Path(path).name
    return f"{name} is truncated: {size} of {superblock.stored_end} bytes are there"


def survivors(dataset: h5py.Dataset) -> NDArray[np.bool_]:
    """Return for each entry of the first axis whether its file really has it.

    A file that is whole, or that a writer still holds, has all of them.
    """
    n = dataset.shape[0] if dataset.shape else 1
    path = dataset.file.filename
    superblock = Superblock.read(path)
    size = os.path.getsize(path)
    if superblock is None or size >= superblock.stored_end or superblock.being_written:
        return np.ones(n, bool)
    return Reach(dataset, size)(0, n)


class PaddedFile(io.RawIOBase):
    """A file, read-only, that seems to go on with zeros up to a given size."""

    def __init__(self, path: Path, size: int) -> None:
        self._file = os.fdopen(open_regular(path), "rb")
        self._path = path
        self._size = size
        self._at = 0

    def __repr__(self) -> str:
        # h5py names a file after its file object: links are relative to this.
        return str(self._path)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset of the padded file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}
        self._at = base[whence] + offset
        return self._at

    def tell(self) -> int:
        """Return the offset."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the file, then with zeros."""
        view = memoryview(buffer).cast("B")
        n = max(0, min(len(view), self._size - self._at))
        self._file.seek(self._at)
        real = self._file.readinto(view[:n])
        view[real:n] = bytes(n - real)
        self._at += n
        return n

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


class Reach:
    """Which frames of a dataset lie wholly inside a truncated file.

    Parameters
    ----------
    dataset : h5py.Dataset
        Contiguous or chunked; the first axis counts frames.
    size : int
        Bytes that the file really has.
    """

    def __init__(self, dataset: h5py.Dataset, size: int) -> None:
        n = dataset.shape[0] if dataset.shape else 1
        if dataset.chunks is None:
            self._inside = _contiguous(dataset, n, size)
        else:
            self._inside = _chunked(dataset, dataset.chunks, size)

    def __call__(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return for each frame of the half-open range whether it can be read."""
        return self._inside[start:stop]


def _contiguous(dataset: h5py.Dataset, n: int, size: int) -> NDArray[np.bool_]:
    offset = dataset.id.get_offset()
    if offset is None:  # compact (inside the header), or never written
        return np.full(n, dataset.id.get_storage_size() > 0)
    frame_bytes = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    return offset + (np.arange(n, dtype=np.int64) + 1) * frame_bytes <= size


def _chunked(
    dataset: h5py.Dataset, chunks: tuple[int, ...], size: int
) -> NDArray[np.bool_]:
    """Count, per row of chunks along the first axis, those that are there."""
    shape = dataset.shape
    n = shape[0]
    n_inside = np.zeros(-(-n // chunks[0]), np.int64)

    def note(chunk: Any) -> None:
        if chunk.byte_offset is not None and chunk.byte_offset + chunk.size <= size:
            n_inside[chunk.chunk_offset[0] // chunks[0]] += 1

    try:
        dataset.id.chunk_iter(note)
    except (RuntimeError, OSError, ValueError):
        # A part of the index itself is lost: ask for each chunk.
        n_inside[:] = 0
        _ask_for_each(dataset, chunks, note)
    needed = math.prod(
        -(-length // chunk) for length, chunk in zip(shape[1:], chunks[1:], strict=True)
    )
    return np.repeat(n_inside >= needed, chunks[0])[:n]


def _ask_for_each(dataset: h5py.Dataset, chunks: tuple[int, ...], note: Any) -> None:
    steps = zip(dataset.shape, chunks, strict=True)
    for corner in itertools.product(*(range(0, n, step) for n, step in steps)):
        try:
            note(dataset.id.get_chunk_info_by_coord(corner))
        except (RuntimeError, OSError, ValueError):
            continue
