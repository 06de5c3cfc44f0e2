"""Open and read HDF5 files that somebody else named, and may still be writing."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import h5py
import numpy as np

from ebl_stream.errors import InputError
from ebl_stream.frames import FrameRef, Image
from ebl_stream.ingest.links import is_inside, walk
from ebl_stream.ingest.truncated import PaddedFile, Superblock

MAX_FRAME_BYTES = 256 * 2**20
_CHUNK_CACHE_BYTES = 16 * 2**20
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
    if not is_inside(path, roots):
        allowed = ", ".join(str(root) for root in roots) or "none"
        raise InputError(
            f"{path} lies outside the allowed folders (allowed: {allowed})\n"
            "add its folder to files.roots, or map it with files.path_map, "
            "in the profile"
        )
    if not path.exists():
        raise MissingFileError(f"there is no file {path} (from {uri!r})")
    if not path.is_file():
        raise InputError(f"{path} is not a regular file")
    return path


def _path_of(uri: str) -> str:
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
    if not path.startswith("/") or "\0" in path:
        raise InputError(f"{uri!r} does not name an absolute path")
    return path


def _mapped(path: str, path_map: Mapping[str, str]) -> str:
    # '..' goes first: the mapped prefix is that of the file really meant.
    path = os.path.normpath(path)
    for there in sorted(path_map, key=len, reverse=True):
        prefix = there.rstrip("/")
        if path == prefix or path.startswith(prefix + "/"):
            return path_map[there].rstrip("/") + path[len(prefix) :]
    return path


def open_hdf5(path: Path) -> h5py.File:
    """Open a file for reading, while it is written where its format allows that.

    A file shorter than it says is padded with zeros: see `truncated.Reach` for what
    of it is real.

    Raises
    ------
    OSError
        Locked by a writer without SWMR, or not there: worth another try.
    InputError
        Not an HDF5 file.
    """
    superblock = Superblock.read(path)
    if superblock is None:
        if path.stat().st_size < 48:
            # Its writer may just have made it.
            raise OSError(f"{path}: not an HDF5 file (yet)")
        if not h5py.is_hdf5(path):
            raise InputError(f"{path} is not an HDF5 file")
        return h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES)
    if superblock.version >= 3:
        return h5py.File(
            path, "r", libver="latest", swmr=True, rdcc_nbytes=_CHUNK_CACHE_BYTES
        )
    if path.stat().st_size < superblock.stored_end:
        return h5py.File(PaddedFile(path, superblock.stored_end), "r")
    return h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES)


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
    _load_filters(dataset, where)
    return dataset


def _is_readable_type(dataset: h5py.Dataset) -> bool:
    if dataset.dtype.kind in "uifb" and dataset.dtype.subdtype is None:
        return True
    return h5py.check_string_dtype(dataset.dtype) is not None and dataset.size == 1


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
