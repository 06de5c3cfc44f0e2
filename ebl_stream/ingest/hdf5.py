"""Open and read HDF5 files that somebody else named, and may still be writing."""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import h5py
import numpy as np

from ebl_stream.errors import InputError
from ebl_stream.frames import FrameRef, Image
from ebl_stream.ingest.links import DAMAGE, is_inside, walk
from ebl_stream.ingest.opening import open_hdf5

log = logging.getLogger(__name__)

MAX_FRAME_BYTES = 256 * 2**20
MAX_URI = 4096
"""Characters; longer than any path."""
_MAX_TEXT_BYTES = 65_536
_MAX_OVERHEAD = 1.1
"""How much larger than its values a compressed chunk may be; sound ones are smaller."""
_MIN_OVERHEAD_BYTES = 4096
_LZ4, _BITSHUFFLE = 32004, 32008
"""HDF5 filters."""
_NOT_FILES = (Path("/proc"), Path("/sys"))
"""What lies there looks like files and is not: reading it may wait for ever."""
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class MissingFileError(InputError):
    """A file that is named, allowed, and not there (yet)."""


def resolve_uri(
    uri: str, roots: Sequence[Path], path_map: Mapping[str, str] | None = None
) -> Path:
    """Resolve a ``file:`` URI (or an absolute path) to an existing, allowed file.

    Parameters
    ----------
    uri : str
        As in a StreamResource document; percent-decoded once.
    roots : sequence of Path
        Folders that the file must lie in, after all symbolic links.
    path_map : mapping, optional
        Prefix of a path in the documents -> prefix here; the longest match counts.

    Raises
    ------
    MissingFileError
        It is allowed, but not there.
    InputError
        Another scheme or host, outside the roots, or not a regular file.
    """
    path = Path(os.path.realpath(_mapped(_path_of(uri), path_map or {})))
    if is_inside(path, _NOT_FILES) or not is_inside(path, roots):
        allowed = ", ".join(str(root) for root in roots) or "none"
        raise InputError(
            f"{path} lies outside the allowed folders (allowed: {allowed})\n"
            "add its folder to files.roots, or map it with files.path_map, "
            "in the profile"
        )
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        raise MissingFileError(f"there is no file {path} (from {uri!r})") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is not a regular file")
    return path


def _path_of(uri: str) -> str:
    if len(uri) > MAX_URI:
        raise InputError(f"{uri[:60]!r}...: longer than {MAX_URI} characters")
    if uri.startswith("/"):
        path = uri
    else:
        try:
            parts = urlsplit(uri)
            host = parts.netloc
        except ValueError:
            raise InputError(f"{uri!r} is not a URI") from None
        if parts.scheme.lower() != "file" or host.lower() not in ("", "localhost"):
            raise InputError(f"{uri!r}: frames are read from file://localhost/... only")
        if parts.query or parts.fragment or _BAD_ESCAPE.search(parts.path):
            raise InputError(f"{uri!r}: '?', '#' and '%' must be percent-encoded")
        path = unquote(parts.path)
    # One that begins with two slashes is another machine's on some systems.
    if not path.startswith("/") or path.startswith("//"):
        raise InputError(f"{uri!r} does not name an absolute path")
    if not path.isprintable() or max(map(len, map(os.fsencode, path.split("/")))) > 255:
        raise InputError(f"{uri!r} does not name a file that can be")
    return path


def _mapped(path: str, path_map: Mapping[str, str]) -> str:
    # '..' goes first: the mapped prefix is that of the file really meant.
    path = os.path.normpath(path)
    for there in sorted(path_map, key=len, reverse=True):
        prefix = there.rstrip("/")
        if path == prefix or path.startswith(prefix + "/"):
            return path_map[there].rstrip("/") + path[len(prefix) :]
    return path


def open_dataset(
    file: h5py.File,
    dataset_path: str,
    roots: Sequence[Path],
    *,
    max_frame_bytes: int = MAX_FRAME_BYTES,
) -> h5py.Dataset:
    """Open a dataset, following links only where they stay inside the roots.

    Parameters
    ----------
    file : h5py.File
    dataset_path : str
    roots : sequence of Path
        Folders that links, virtual sources and external storage must lie in.
    max_frame_bytes : int
        The largest image (last two axes), and the largest chunk, that is read.

    Returns
    -------
    h5py.Dataset
        Of numbers, or a single text; ``.file`` is another file behind a link.

    Raises
    ------
    InputError
        No such dataset, a link out of the roots, not numbers, or too large.
    """
    dataset = walk(file, dataset_path, roots, open_hdf5)
    where = f"{dataset.file.filename}: {dataset.name}"
    if dataset.shape is None or not _is_readable_type(dataset):
        raise InputError(f"{where} holds {dataset.dtype}, not numbers")
    _check_size(dataset, where, max_frame_bytes)
    _check_chunks(dataset, where)
    _load_filters(dataset, where)
    return dataset


def _is_readable_type(dataset: h5py.Dataset) -> bool:
    if dataset.dtype.kind in "uifb" and dataset.dtype.subdtype is None:
        return True
    is_text = h5py.check_string_dtype(dataset.dtype) is not None and dataset.size == 1
    return is_text and dataset.dtype.itemsize <= _MAX_TEXT_BYTES


def _check_size(dataset: h5py.Dataset, where: str, limit: int) -> None:
    itemsize = dataset.dtype.itemsize
    sizes = {
        "frames": math.prod(dataset.shape[-2:]) if dataset.ndim > 2 else 1,
        "chunks": math.prod(dataset.chunks or ()),
    }
    for what, n in sizes.items():
        if n * itemsize > limit:
            raise InputError(
                f"{where} has {what} of {n * itemsize} bytes, more than {limit}\n"
                "raise files.max_frame_bytes in the profile if that is meant"
            )


def _check_chunks(dataset: h5py.Dataset, where: str) -> None:
    """Refuse compressed chunks that would unpack to far more than their values."""
    if dataset.chunks is None or not dataset.id.get_create_plist().get_nfilters():
        return
    n_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    limit = _MAX_OVERHEAD * n_bytes + _MIN_OVERHEAD_BYTES

    file = _file_of_headers(dataset)

    def is_bad(chunk: Any) -> str | None:
        if chunk.size > limit:
            return f"compressed chunks larger than their {n_bytes} bytes"
        if file is not None:
            said = int.from_bytes(os.pread(file, 8, chunk.byte_offset), "big")
            if said != n_bytes:
                return f"a chunk that says it has {said} bytes, not {n_bytes}"
        return None  # anything else ends the iteration

    try:
        if bad := dataset.id.chunk_iter(is_bad):
            raise InputError(f"{where} has {bad}")
    except DAMAGE as error:
        log.debug("%s: its chunks cannot be listed: %s", where, error)


def _file_of_headers(dataset: h5py.Dataset) -> int | None:
    """Return the file, if its chunks begin with their unpacked size.

    The filters believe it: a wrong one makes them write beyond their memory.
    """
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    code, _, settings, _ = filters[-1]
    packs = code == _LZ4 or (code == _BITSHUFFLE and any(settings[4:5]))
    if not packs or dataset.file.userblock_size or dataset.file.driver != "sec2":
        return None
    return int(dataset.file.id.get_vfd_handle())


def _load_filters(dataset: h5py.Dataset, where: str) -> None:
    """Load the filter plugins where the built-in ones do not do."""
    properties = dataset.id.get_create_plist()
    codes = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if all(h5py.h5z.filter_avail(code) for code in codes):
        return
    import hdf5plugin  # noqa: F401  (registers its filters; a slow import)

    missing = [code for code in codes if not h5py.h5z.filter_avail(code)]
    if missing:
        raise InputError(f"{where} is compressed by unknown HDF5 filters {missing}")


def read_frame(ref: FrameRef) -> Image:
    """Read one frame again.

    Returns
    -------
    (row, column)
        In the file's dtype; only ``ref.rows`` of it where they are given.

    Raises
    ------
    OSError
        The file is gone or cannot be read.
    """
    with open_hdf5(Path(ref.path)) as file:
        dataset = file[ref.dataset]
        if not isinstance(dataset, h5py.Dataset):
            raise OSError(f"{ref.path}: {ref.dataset} is no dataset any more")
        _load_filters(dataset, f"{ref.path}: {ref.dataset}")
        rows = slice(*ref.rows) if ref.rows else slice(None)
        return np.asarray(dataset[(*ref.index, rows)])
