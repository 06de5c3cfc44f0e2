"""Zarr v3 arrays on disk, written slab by slab, twice as fast as zarr-python does.

zarr-python makes the array, so its ``zarr.json`` is zarr's own, and reads it; only
the chunk files are written here (zarr v3 core specification, key encoding
``default``, codecs ``bytes``, ``blosc``, ``crc32c``).

What a reader may see: every chunk file is written beside its place, then renamed
onto it, so a chunk is of one version, whole. The chunks of a slab are all written
before the first is renamed: a full disk leaves the old version of the whole slab,
and slices of two versions side by side are seen for milliseconds only.

Nothing waits for the disk itself (no ``fsync``). A process that dies spoils nothing;
it may leave ``*.part`` files, which zarr does not look at. After a power failure the
last half minute may be damaged, and the checksum makes a reader refuse such a chunk.
(Without it blosc reads a cut chunk as wrong numbers and says nothing.)
"""

from __future__ import annotations

import errno
import itertools
import math
import os
from collections.abc import Iterator
from concurrent.futures import Executor, wait
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs.blosc import BITSHUFFLE, Blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from ebl_stream import failpoints
from ebl_stream.publish.record import ArraySpec

CHUNK = (16, 256, 256)
"""Largest chunk, ``[z, y, x]``: one slice is read in tens of milliseconds."""

LEVEL = 5

Staged = tuple[str, str]
"""A chunk file that is written, and the place it is for."""


class ChunkedArray:
    """One array of a run; ``write`` may be called from several threads.

    Parameters
    ----------
    path : Path
        Folder of the array; must not exist.
    spec : ArraySpec
        Shape, dtype and unit; filled with 0.
    slab_rows : int
        Height of the slabs that will be written.
    pool : Executor
        Chunks are compressed and written on its threads.

    Raises
    ------
    OSError
        The disk does not let us.
    """

    def __init__(
        self, path: Path, spec: ArraySpec, slab_rows: int, pool: Executor
    ) -> None:
        self.path = path
        self.shape = spec.shape
        self.dtype = np.dtype(spec.dtype)
        self.chunks = chunk_shape(spec.shape, slab_rows)
        self._pool = pool
        self._number = itertools.count()
        self._blosc = Blosc("lz4", LEVEL, BITSHUFFLE, typesize=self.dtype.itemsize)
        blosc = BloscCodec(
            typesize=self.dtype.itemsize,
            cname="lz4",
            clevel=LEVEL,
            shuffle="bitshuffle",
        )
        zarr.create_array(
            path,
            shape=self.shape,
            chunks=self.chunks,
            dtype=self.dtype,
            # Finite: a slice that holds one NaN is shown black by Tiled.
            fill_value=0,
            compressors=(blosc, Crc32cCodec()),
            chunk_key_encoding={"name": "default", "separator": "/"},
            dimension_names=("z", "y", "x"),
            attributes={"unit": spec.unit},
        )

    def stage(self, z0: int, slab: NDArray[Any]) -> list[Staged]:
        """Write the chunks of a slab beside their places.

        Parameters
        ----------
        z0 : int
            First slice, a multiple of the chunk's height.
        slab : ndarray, [z, y, x]
            All of y and x; ends at a chunk's end or at the array's.

        Returns
        -------
        list of Staged
            For ``commit``.

        Raises
        ------
        OSError
            The disk does not let us; nothing of the slab is left behind.
        """
        number = next(self._number)
        jobs = [
            self._pool.submit(self._stage_chunk, number, key, slab[part])
            for key, part in self._parts(z0, slab.shape)
        ]
        wait(jobs)
        failed = [error for job in jobs if (error := job.exception()) is not None]
        if failed:
            discard([job.result() for job in jobs if job.exception() is None])
            raise failed[0]
        return [job.result() for job in jobs]

    def _parts(
        self, z0: int, shape: tuple[int, ...]
    ) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Yield the number of every chunk, and which part of the slab it is."""
        counts = [math.ceil(n / k) for n, k in zip(shape, self.chunks, strict=True)]
        dz, dy, dx = self.chunks
        for z, y, x in product(*map(range, counts)):
            part = np.s_[
                z * dz : (z + 1) * dz, y * dy : (y + 1) * dy, x * dx : (x + 1) * dx
            ]
            yield (z0 // dz + z, y, x), part

    def _stage_chunk(
        self, number: int, key: tuple[int, ...], values: NDArray[Any]
    ) -> Staged:
        encoded = self._blosc.encode(self._whole(values))
        checksum = google_crc32c.value(encoded).to_bytes(4, "little")
        place = os.path.join(self.path, "c", *map(str, key))
        draft = f"{place}.{number}.part"
        _write_file(draft, encoded, checksum)
        failpoints.hit("chunk.staged")
        return draft, place

    def _whole(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return a chunk in one piece; at the array's edge it is filled up with 0."""
        if values.shape == self.chunks:
            return np.ascontiguousarray(values, self.dtype)
        whole = np.zeros(self.chunks, self.dtype)
        whole[tuple(map(slice, values.shape))] = values
        return whole


def commit(staged: list[Staged]) -> None:
    """Put chunks in their places; OSError leaves the rest where it was."""
    try:
        for draft, place in staged:
            os.replace(draft, place)
            failpoints.hit("chunk.placed")
    except OSError:
        discard(staged)
        raise


def discard(staged: list[Staged]) -> None:
    """Remove what was written beside its place."""
    for draft, _ in staged:
        with suppress(OSError):
            os.unlink(draft)


def chunk_shape(shape: tuple[int, int, int], slab_rows: int) -> tuple[int, int, int]:
    """Choose chunks that no slab shares with another: no read before a write."""
    heights = math.gcd(slab_rows, CHUNK[0])
    nz, ny, nx = shape
    return min(heights, nz), min(CHUNK[1], ny), min(CHUNK[2], nx)


def _write_file(path: str, *pieces: bytes) -> None:
    """Write a new file; OSError leaves nothing of it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        file = os.open(path, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = os.open(path, flags, 0o666)
    try:
        try:
            _reserve(file, sum(map(len, pieces)))
            _write_all(file, pieces)
        finally:
            os.close(file)
    except OSError:
        with suppress(OSError):
            os.unlink(path)
        raise


def _write_all(file: int, pieces: tuple[bytes, ...]) -> None:
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(file, rest) :]


def _reserve(file: int, n_bytes: int) -> None:
    """Ask for the space first, where the file system knows how.

    ext4 sends a file to the disk at once when it is renamed onto another, unless its
    space was reserved: a version that replaces one took twice as long.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, n_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
