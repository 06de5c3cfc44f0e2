"""Pack any document for its way out: quickly, and what cannot travel as text."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from msgpack import ExtType
from numpy.typing import NDArray

from ebl_stream.transport.buffers import Buffers
from ebl_stream.transport.documents import ARRAY, array_head, pack

MAX_TEXT = 1000
LARGE_BYTES = 65_536

Packed: TypeAlias = bytes | memoryview

_EXT_32 = b"\xc9"
_MAX_EXT_BYTES = 2**32 - 1
_TOKEN_CODE, _TOKEN_BYTES, _FIXEXT_16 = 127, 16, b"\xd8"


def pack_leniently(
    name: str,
    doc: Mapping[str, Any],
    note: Callable[[str, str], None],
    buffers: Buffers,
) -> Packed:
    """Pack a document; a value that cannot travel must not cost the run.

    Parameters
    ----------
    note : callable
        Told ``(kind, message)`` where a value was turned into text.
    buffers : Buffers
        Where memory for images comes from.

    Raises
    ------
    TypeError
        An unknown document name, or no mapping.
    """
    try:
        return pack_quickly(name, doc, buffers)
    except TypeError as error:
        packed = pack(name, as_packable(doc))
        note("sent as text", f"sent as text: {error}")
        return packed


def pack_quickly(name: str, doc: Mapping[str, Any], buffers: Buffers) -> Packed:
    """Pack as `pack` does, to the same bytes, with one copy of an event's images.

    A packer copies pixels four times, into memory that is new each time; that is
    what would hold up the RunEngine.

    Raises
    ------
    TypeError
        As `pack`.
    """
    data = doc.get("data") if isinstance(doc, Mapping) else None
    values = data.items() if isinstance(data, Mapping) else ()
    images = {key: value for key, value in values if _is_large(value)}
    if not images or not isinstance(data, Mapping):
        return pack(name, doc)
    tokens = {key: secrets.token_bytes(_TOKEN_BYTES) for key in images}
    stand_ins = {key: ExtType(_TOKEN_CODE, token) for key, token in tokens.items()}
    small = pack(name, {**doc, "data": {**data, **stand_ins}})
    parts: list[bytes | NDArray[Any]] = []
    for key in (k for k in data if k in images):  # in the order of the bytes
        mark = _FIXEXT_16 + bytes([_TOKEN_CODE]) + tokens[key]
        before, _, small = small.partition(mark)
        parts += [before + _array_start(images[key]), images[key]]
    return _join([*parts, small], buffers)


def as_bytes(packed: Packed) -> bytes:
    """Return a packed document as bytes, a copy where it is not."""
    return packed if isinstance(packed, bytes) else packed.tobytes()


def as_packable(value: Any) -> Any:
    """Return a document in which everything that cannot travel is text."""
    if isinstance(value, Mapping):
        return {str(key): as_packable(child) for key, child in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_packable(child) for child in value]
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return as_packable(value.tolist())
    try:
        pack("start", {"value": value})
    except TypeError:
        return str(value)[:MAX_TEXT]
    return value


def _is_large(value: Any) -> bool:
    is_array = isinstance(value, np.ndarray) and value.nbytes >= LARGE_BYTES
    # Of numbers; whatever else there is takes the slower way.
    return is_array and value.dtype.kind in "biufc"


def _array_start(array: NDArray[Any]) -> bytes:
    """Return all that comes before the pixels."""
    head = array_head(array)
    size = len(head) + array.nbytes
    if size > _MAX_EXT_BYTES:
        raise ValueError(f"an array of {array.nbytes} bytes is too large")
    return _EXT_32 + size.to_bytes(4, "big") + bytes([ARRAY]) + head


def _join(parts: list[bytes | NDArray[Any]], buffers: Buffers) -> memoryview:
    pieces = [_as_bytes(part) for part in parts]
    whole = buffers.take(sum(piece.size for piece in pieces))
    return np.concatenate(pieces, out=whole).data


def _as_bytes(part: bytes | NDArray[Any]) -> NDArray[np.uint8]:
    if isinstance(part, np.ndarray):
        return np.ascontiguousarray(part).reshape(-1).view(np.uint8)
    return np.frombuffer(part, np.uint8)
