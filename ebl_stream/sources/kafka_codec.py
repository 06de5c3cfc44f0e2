"""What Bluesky's producers put into Kafka, made a document of ours. No pickle.

Two encodings are common: msgpack of ``[name, document]``, as ``bluesky_kafka`` sends
it, and JSON of the same or of ``{"name": ..., "doc": ...}``. Arrays come in
msgpack-numpy's maps (or as lists); they are read as plain data of booleans, numbers
or strings, and every other dtype is refused: what they would hold is pickled.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream import strict_json
from ebl_stream.transport.documents import DocumentError, pack, unpackb

MAX_VALUES = 1_000_000
"""Entries of all dictionaries and lists of one message."""

_DTYPE = re.compile(r"[<>|=]?[biufcSU][1-9][0-9]{0,5}")
_PICKLE = re.compile(rb"\x80[\x02-\x05]")


def is_pickled(value: bytes) -> bool:
    """Say whether a message looks like a pickle of protocol 2 or later."""
    return _PICKLE.match(value) is not None


def repack(value: bytes) -> bytes:
    """Return a message as the house packs documents.

    Raises
    ------
    DocumentError
        Neither msgpack nor JSON, not a name and a document, an array that is no
        plain data, a value that cannot travel, or too many of them.
    """
    try:
        said = strict_json.loads(value) if _is_json(value) else _unpack(value)
    except DocumentError:
        raise
    except Exception as error:  # msgpack raises a dozen kinds, JSON some
        raise DocumentError(f"neither msgpack nor JSON: {error}") from None
    name, doc = _name_and_document(said)
    try:
        return pack(name, doc)
    except TypeError as error:
        raise DocumentError(str(error)) from None


def _is_json(value: bytes) -> bool:
    # As msgpack these bytes would be small integers.
    return value.lstrip()[:1] in (b"[", b"{")


def _name_and_document(said: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(said, dict) and said.keys() >= {"name", "doc"}:
        said = [said["name"], said["doc"]]
    if not isinstance(said, list) or len(said) != 2:
        raise DocumentError("expected [name, document]")
    name, doc = said
    if not isinstance(name, str) or not isinstance(doc, dict):
        raise DocumentError("expected [name, document]")
    return name, doc


def _unpack(value: bytes) -> Any:
    n_values = 0

    def spend(container: Any) -> Any:
        nonlocal n_values
        n_values += 1 + len(container)
        if n_values > MAX_VALUES:
            raise DocumentError("holds too many values")
        return container

    return unpackb(
        value,
        timestamp=1,
        ext_hook=_refuse_extension,
        list_hook=spend,
        object_hook=lambda found: _array_or_map(spend(found)),
    )


def _refuse_extension(code: int, data: bytes) -> Any:
    raise DocumentError(f"unknown msgpack extension {code}")


def _array_or_map(found: dict[Any, Any]) -> Any:
    """Read what msgpack-numpy made of an array or a numpy scalar."""
    if b"nd" not in found:
        return found
    try:
        array = _array(found[b"type"], found.get(b"shape", ()), found[b"data"])
    except (KeyError, TypeError, ValueError) as error:
        raise DocumentError(f"not an array of plain data: {error}") from None
    return array if found[b"nd"] else array[()]


def _array(name: Any, shape: Any, data: Any) -> NDArray[Any]:
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise ValueError(f"dtype {str(name)[:40]!r}")
    if not isinstance(data, bytes):
        raise ValueError("its data are not bytes")
    dtype = np.dtype(name)
    shape = tuple(shape)
    if len(shape) > 32 or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"shape {str(shape)[:40]}")
    # Compared first: a shape must not make us ask for gigabytes.
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{shape} of {dtype} in {len(data)} bytes")
    return np.ndarray(shape, dtype, buffer=data)
