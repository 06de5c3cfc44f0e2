"""Open the very file that was approved, and only if it is a regular one.

Between the look at a path and the opening of it somebody may put a symbolic link, a
pipe or another file in its place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ebl_stream.errors import InputError

_OPENED = Path("/proc/self/fd")
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_regular(path: str | Path) -> int:
    """Open a file for reading; return its descriptor.

    Parameters
    ----------
    path : str or Path
        Resolved: without symbolic links on the way.

    Raises
    ------
    OSError
        It is not there, or may not be read.
    InputError
        It is a pipe, a device, a folder, or not at this path (any more).
    """
    try:
        # Never waits, whatever lies there.
        number = os.open(path, _FLAGS)
    except OSError as error:
        if os.path.islink(path):
            raise InputError(f"{path} has become a symbolic link") from None
        raise error from None
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise InputError(f"{path} is not a regular file")
        if not _is_at(number, path):
            raise InputError(f"{path} is not where it was looked at")
    except BaseException:
        os.close(number)
        raise
    return number


@contextmanager
def kept_open(path: str | Path) -> Iterator[int]:
    """Hold an approved file open while others open it by its name."""
    number = open_regular(path)
    try:
        yield number
    finally:
        os.close(number)


def _is_at(number: int, path: str | Path) -> bool:
    """Whether an open file is the one at a path, no link on the way."""
    if _OPENED.is_dir():
        return os.readlink(_OPENED / str(number)) == os.path.abspath(path)
    is_plain = os.path.realpath(path) == os.path.abspath(path)
    return is_plain and os.path.samestat(os.fstat(number), os.lstat(path))
