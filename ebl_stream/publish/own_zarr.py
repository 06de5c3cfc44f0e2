"""Read zarr arrays such as `chunks` writes, and no others.

A folder of results may come from a stranger. zarr takes from ``zarr.json`` how much
memory to ask for and which codecs to load, it follows symbolic links, and blosc makes
as many bytes as a chunk says that it holds.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ebl_stream import strict_json
from ebl_stream.errors import InputError
from ebl_stream.publish.chunks import CHUNK
from ebl_stream.publish.record import ArraySpec

CODECS = ["bytes", "blosc", "crc32c"]
MAX_JSON_BYTES = 65_536
SHARE = 0.5
"""Of the machine's memory that one row of chunks, read together, may take."""
_BLOSC_HEAD = 16
"""Bytes; from the fourth on three little-endian uint32: raw, block and stored size."""
_CRC = 4


class OwnArray:
    """An array ``[z, y, x]`` that this house has written.

    Parameters
    ----------
    path : Path
        Folder of the array.
    spec : ArraySpec
        What the run's record says of it.
    chunks : (int, int, int)
        Likewise.

    Raises
    ------
    InputError
        It is something else, or too large for this machine. Nothing but
        ``zarr.json`` was read.
    """

    def __init__(self, path: Path, spec: ArraySpec, chunks: tuple[int, ...]) -> None:
        self.path = path
        self.shape = spec.shape
        self.chunks = chunks
        self._chunk_bytes = int(np.prod(chunks)) * np.dtype(spec.dtype).itemsize
        _require_fit(path, spec, chunks)
        try:
            self._require_ours(np.dtype(spec.dtype))
            array: Any = zarr.open_array(path, mode="r", zarr_format=3)
        except InputError:
            raise
        except Exception as error:  # whatever zarr makes of a damaged zarr.json
            raise InputError(f"{path} cannot be opened: {error}") from None
        self.array = array

    def keys(self, z: int) -> Iterator[str]:
        """Yield the chunks that hold slice ``z``."""
        dz, dy, dx = self.chunks
        _, ny, nx = self.shape
        for y, x in product(range(-(-ny // dy)), range(-(-nx // dx))):
            yield f"c/{z // dz}/{y}/{x}"

    def check(self, key: str) -> bool:
        """Look at a chunk before zarr reads it; False if it is not there.

        Raises
        ------
        ValueError
            It is no chunk of this array: the message says why.
        """
        place = self.path / key
        try:
            for folder in list(place.parents)[:3]:
                if not stat.S_ISDIR(folder.lstat().st_mode):
                    raise ValueError(f"lies behind {folder.name}, which is no folder")
            head, size = _head(place)
        except FileNotFoundError:
            return False
        raw, _, stored = np.frombuffer(head.ljust(_BLOSC_HEAD, b"\0"), "<u4")[1:]
        if raw != self._chunk_bytes:
            raise ValueError(f"holds {raw} bytes, {self._chunk_bytes} are expected")
        if size != stored + _CRC:
            raise ValueError("is cut, or longer than it says")
        return True

    def check_slices(self, z0: int, z1: int) -> None:
        """Look at all chunks of some slices; ValueError as for `check`."""
        for z in range(z0, z1, self.chunks[0]):
            for key in self.keys(z):
                self.check(key)

    def _require_ours(self, dtype: np.dtype[Any]) -> None:
        if self.path.is_symlink():
            raise InputError(f"{self.path} is a symbolic link")
        content = strict_json.load(self.path / "zarr.json", max_bytes=MAX_JSON_BYTES)
        codecs = [codec["name"] for codec in content["codecs"]]
        grid = {"chunk_shape": list(self.chunks)}
        wanted: dict[str, tuple[Any, Any]] = {
            "zarr_format": (content["zarr_format"], 3),
            "node_type": (content["node_type"], "array"),
            "shape": (content["shape"], list(self.shape)),
            "data_type": (content["data_type"], dtype.name),
            "chunk_grid": (content["chunk_grid"]["configuration"], grid),
            "chunk_key_encoding": (
                content["chunk_key_encoding"],
                {"name": "default", "configuration": {"separator": "/"}},
            ),
            "fill_value": (content["fill_value"], 0),
            "codecs": (codecs, CODECS),
            "storage_transformers": (content.get("storage_transformers", []), []),
        }
        for name, (found, ours) in wanted.items():
            if found != ours:
                raise InputError(
                    f"{self.path} is not what metadata.json says it is: "
                    f"{name} is {str(found)[:80]}, expected {ours}"
                )


def _require_fit(path: Path, spec: ArraySpec, chunks: tuple[int, ...]) -> None:
    """Refuse what would ask for more memory than there is."""
    if any(not 0 < n <= most for n, most in zip(chunks, CHUNK, strict=True)):
        raise InputError(f"{path}: chunks of {chunks}, at most {CHUNK}")
    n_bytes = chunks[0] * spec.shape[1] * spec.shape[2] * np.dtype(spec.dtype).itemsize
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if n_bytes > SHARE * memory:
        raise InputError(
            f"{path}: {chunks[0]} slices of {spec.shape[1]} x {spec.shape[2]} need "
            f"{n_bytes / 1e9:.3g} GB of memory, this machine has {memory / 1e9:.3g} GB"
        )


def _head(place: Path) -> tuple[bytes, int]:
    """Return the beginning and the size of a chunk, which may be replaced any time."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(place, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a regular file")
        return file.read(_BLOSC_HEAD), status.st_size
