"""Open HDF5 files without letting them load code, hang, or become another file."""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import os
import weakref
from pathlib import Path
from typing import Any

import h5py

from ebl_stream.errors import InputError
from ebl_stream.ingest.regular import kept_open
from ebl_stream.ingest.truncated import PaddedFile, Superblock

_CHUNK_CACHE_BYTES = 16 * 2**20
_MIN_BYTES = 48

READ_ATTEMPTS = 24
"""Of metadata that a writer is changing. HDF5 sleeps twice as long after each, 1 ns
at first: 17 ms in all. Its default of 100 is for ever in a damaged file."""


def _let_hdf5_load_nothing() -> None:
    """Take away the folders in which HDF5 looks for filters to load.

    Filters that are registered, as those of hdf5plugin, work without.
    """
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # for processes that we start
    while h5py.h5pl.size():
        h5py.h5pl.remove(0)


_let_hdf5_load_nothing()


def open_hdf5(path: Path) -> h5py.File:
    """Open a file for reading, while it is written where its format allows that.

    A file shorter than it says is padded with zeros: see `truncated.Reach` for what
    of it is real.

    Parameters
    ----------
    path : Path
        Resolved: without symbolic links on the way.

    Raises
    ------
    OSError
        Locked by a writer without SWMR, or not there: worth another try.
    InputError
        Not an HDF5 file, not a regular one, or not the one that was looked at.
    """
    path = Path(path)
    with kept_open(path) as number:
        file = _open(path, os.fstat(number).st_size)
        try:
            _require_same(file, number, path)
            _let_others_write(file)
        except BaseException:
            file.close()
            raise
        return file


def _open(path: Path, size: int) -> h5py.File:
    superblock = Superblock.read(path)
    if superblock is None:
        if size < _MIN_BYTES:
            # Its writer may just have made it.
            raise OSError(f"{path}: not an HDF5 file (yet)")
        if not h5py.is_hdf5(path):
            raise InputError(f"{path} is not an HDF5 file")
        return h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES)
    if superblock.version >= 3:
        options = {"driver": _DRIVER, "libver": "latest", "swmr": True}
        return h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES, **options)
    if size < superblock.stored_end:
        return _open_padded(path, superblock.stored_end)
    return h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES)


def _open_padded(path: Path, size: int) -> h5py.File:
    try:
        file = h5py.File(PaddedFile(path, size), "r")
    except OSError as error:
        # Frames of h5py keep what HDF5 calls Python for when it lets go of it.
        raise error.with_traceback(None) from None
    _PADDED[id(file)] = file  # it may have no hash
    return file


def _limit_attempts(access: h5py.h5p.PropFAID, **options: Any) -> None:
    """Set up the usual driver; h5py offers this setting nowhere else."""
    access.set_fapl_sec2(**options)
    _LIBRARY.H5Pset_metadata_read_attempts(
        ctypes.c_int64(access.id), ctypes.c_uint(READ_ATTEMPTS)
    )


_LIBRARY = ctypes.CDLL(h5py.h5p.__file__)  # with the HDF5 that h5py uses
_DRIVER = "ebl_stream"
h5py.register_driver(_DRIVER, _limit_attempts)

_PADDED: weakref.WeakValueDictionary[int, h5py.File] = weakref.WeakValueDictionary()


@atexit.register
def _close_padded() -> None:
    """Close what is still open: HDF5 would do so when Python is gone, and crash."""
    for file in list(_PADDED.values()):
        file.close()


def _require_same(file: h5py.File, number: int, path: Path) -> None:
    """Refuse a file that took the place of the approved one in the meantime."""
    if file.driver != "sec2":
        return  # a `PaddedFile`, which looks for itself
    opened = os.fstat(file.id.get_vfd_handle())
    if not os.path.samestat(opened, os.fstat(number)):
        raise InputError(f"{path} was exchanged while it was opened")


def _let_others_write(file: h5py.File) -> None:
    """Give HDF5's lock back: it has shown that nobody is writing.

    Kept, it would keep the beamline from adding to the file (tomoscan its angles).
    """
    if file.driver == "sec2" and not file.swmr_mode:
        fcntl.flock(file.id.get_vfd_handle(), fcntl.LOCK_UN)
