"""Where an export goes: nothing is there before it is whole.

What is exported lies beside its place, hidden, until then: an export that is killed
leaves no file that looks like one. The next export to that place removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from ebl_stream import strict_json
from ebl_stream.errors import InputError
from ebl_stream.publish.export import FORMAT
from ebl_stream.publish.record import FORMAT as RESULT
from ebl_stream.publish.space import GB, free_bytes

PROVENANCE = "provenance.json"
"""In an exported folder: says that it is one, and where it comes from."""


def check_target(target: Path, kind: Literal["file", "folder"], force: bool) -> None:
    """Refuse a place that cannot be exported to; touches nothing.

    Raises
    ------
    InputError
        Something is in the way, or the folder of the place is not there.
    """
    parent = target.absolute().parent.resolve()
    if not parent.is_dir():
        raise InputError(f"{target}: there is no folder {parent}")
    if any(
        _says(above / "metadata.json", RESULT) for above in (parent, *parent.parents)
    ):
        raise InputError(f"{target} lies inside of a result: choose another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{target}: no permission to write in {parent}")
    if not os.path.lexists(target):
        return
    is_folder = target.is_dir() and not target.is_symlink()
    if is_folder != (kind == "folder"):
        raise InputError(f"{target} is {'a folder' if is_folder else 'not a folder'}")
    if is_folder and not any(target.iterdir()):
        return
    if not force:
        raise InputError(f"{target} exists; --force replaces it")
    if is_folder and not _says(target / PROVENANCE, FORMAT):
        raise InputError(f"{target} holds something else than an export: remove it")


def _says(file: Path, name: str) -> bool:
    """Whether a JSON file says that it is of a format."""
    try:
        return strict_json.load(file)["format"] == name
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_space(target: Path, n_bytes: int) -> None:
    """Refuse to begin what does not fit; InputError says what is missing."""
    free = free_bytes(target.absolute().parent)
    if free is not None and n_bytes > free:
        raise InputError(
            f"{target} needs {n_bytes / GB:.3g} GB, {free / GB:.3g} GB are free; "
            "export fewer slices with --rows, or to another disk"
        )


@contextmanager
def draft(target: Path) -> Iterator[Path]:
    """Give the place to write to; when the block ends well, it becomes ``target``.

    Raises
    ------
    InputError
        The disk refused.
    """
    target = target.absolute()
    _sweep(target)
    try:
        hidden = Path(tempfile.mkdtemp(".part", f".{target.name}.", target.parent))
    except OSError as error:
        raise InputError(f"{target}: {error.strerror or error}") from None
    mark = os.open(hidden, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(mark, fcntl.LOCK_EX)
        yield hidden / target.name
        _place(hidden, target)
    except (OSError, RuntimeError) as error:
        words = f"{target} cannot be written: {_reason(error)}; nothing is left"
        raise InputError(words) from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        os.close(mark)


def _reason(error: BaseException) -> str:
    """Say in words why the disk refused, whoever wrote: h5py, tifffile or numpy."""
    cause: BaseException | None = error
    number = None
    while number is None and cause is not None:
        number = getattr(cause, "errno", None)
        cause = cause.__context__
    text = " ".join(str(error).split())[:200]
    # numpy tells nothing but "... requested and ... written".
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "requested and" in text:
        return "the disk is full"
    return os.strerror(number) if number else text


def _place(hidden: Path, target: Path) -> None:
    """Rename; a folder that is replaced goes when the new one has its name."""
    if target.is_dir():
        target.rename(hidden / "replaced")
    try:
        os.replace(hidden / target.name, target)
    except OSError:
        if (hidden / "replaced").exists():
            (hidden / "replaced").rename(target)
        raise


def _sweep(target: Path) -> None:
    """Remove what exports to this place left that were killed."""
    for left in target.parent.glob(f".{_literal(target.name)}.*.part"):
        with suppress(OSError):
            mark = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(mark)


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
