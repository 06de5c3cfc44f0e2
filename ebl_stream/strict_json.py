"""JSON that somebody else may have written: bounded, and with one meaning only."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 64
MAX_DIGITS = 20
"""Of an integer: all of 64 bits."""


class JsonError(ValueError):
    """The text is no JSON of ours."""


def loads(text: str | bytes, *, max_bytes: int = MAX_BYTES) -> Any:
    """Read JSON (UTF-8) without what its readers disagree about.

    Raises
    ------
    JsonError
        Larger than ``max_bytes``, nested deeper than :data:`MAX_DEPTH`, a key twice
        in one object, NaN or Infinity, an integer of more than 64 bits, or no JSON.
    """
    if len(text) > max_bytes:
        raise JsonError(f"JSON of {len(text)} bytes, at most {max_bytes}")
    try:
        value = json.loads(
            text.decode() if isinstance(text, bytes) else text,
            object_pairs_hook=_without_twins,
            parse_constant=_no_constant,
            parse_int=_integer,
        )
    except JsonError:
        raise
    except (ValueError, RecursionError) as error:
        raise JsonError(f"not JSON: {str(error)[:100]}") from None
    _require_shallow(value)
    return value


def load(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON file; raises as `read` and `loads` do."""
    return loads(read(path, max_bytes=max_bytes), max_bytes=max_bytes)


def read(path: Path, *, max_bytes: int) -> bytes:
    """Read a file that somebody else may have put there; never waits.

    Raises
    ------
    OSError
        It is not there, may not be read, or is a symbolic link.
    JsonError
        It is a pipe, a device or a folder, or larger than ``max_bytes``.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise JsonError(f"{path} is not a regular file")
        if status.st_size > max_bytes:
            raise JsonError(f"{path}: {status.st_size} bytes, at most {max_bytes}")
        return file.read(max_bytes)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise JsonError("a key stands twice in one object")
    return found


def _no_constant(text: str) -> NoReturn:
    raise JsonError(f"{text} is no JSON")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS or not -(2**63) <= int(text) < 2**64:
        raise JsonError("an integer of more than 64 bits")
    return int(text)


def _require_shallow(top: Any) -> None:
    level = [top]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise JsonError(f"nested deeper than {MAX_DEPTH} levels")
