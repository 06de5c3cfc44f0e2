"""The codec of Bluesky documents: msgpack, strict on the way in, never pickle.

One document is one msgpack value ``[name, document]``. Numpy arrays travel as an
extension type with dtype, shape and the bytes in C order. Importing this module
loads msgpack and numpy and nothing else: it runs in the RunEngine's process.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from msgpack import ExtType
from numpy.typing import NDArray

# msgpack_numpy.patch() (called on import of some Kafka clients) replaces the names
# of the msgpack package, and what it puts there unpickles. These names it leaves.
try:
    from msgpack._cmsgpack import Packer, unpackb
except ImportError:  # msgpack built without its extension
    from msgpack.fallback import Packer, Unpacker

    def unpackb(packed: bytes | memoryview, **options: Any) -> Any:
        """Unpack one value and refuse what follows it, as the extension does."""
        unpacker = Unpacker(None, max_buffer_size=len(packed), **options)
        unpacker.feed(packed)
        value = unpacker.unpack()
        if unpacker.tell() != len(packed):
            raise ValueError("unpack(b) received extra data.")
        return value


def _require_plain() -> None:
    """Refuse to begin where unpacking makes something else of a dictionary.

    What msgpack_numpy would unpickle comes back as it is.
    """
    bait = {b"nd": True, b"type": b"O", b"kind": b"O", b"shape": [1], b"data": b""}
    try:
        packed: Any = Packer().pack(bait)
        is_plain = unpackb(packed) == bait
    except Exception:
        is_plain = False
    if not is_plain:
        raise ImportError(
            "msgpack was changed to make objects of what it reads (msgpack_numpy?): "
            "that would run code out of documents; remove what changes it"
        )


_require_plain()

NAMES = frozenset(
    {
        *("start", "descriptor", "stop"),
        *("event", "event_page", "bulk_events"),
        *("resource", "datum", "datum_page", "bulk_datum"),
        *("stream_resource", "stream_datum"),
    }
)
"""Names of documents (event_model.DocumentNames)."""

MAX_DEPTH = 64
"""Dictionaries and lists inside one another."""
MAX_CONTAINERS = 1_000_000
"""Dictionaries and lists in one document."""
MAX_ITEMS = 16_000_000
"""Entries of all dictionaries and lists of one document."""

MAX_NDIM = 32

ARRAY = 1
"""Our msgpack extension: number of dimensions, dtype, shape, pixels in C order."""
_HEAD = struct.Struct("<B3x12s")
_DTYPE = re.compile(r"[<>|][biufcSU][1-9][0-9]{0,8}")
_NESTED = (dict, list, tuple)


class DocumentError(ValueError):
    """The bytes are no document of ours."""


def pack(name: str, doc: Mapping[str, Any]) -> bytes:
    """Pack one document.

    Parameters
    ----------
    name : str
        The document's name, one of :data:`NAMES`.
    doc : mapping
        Values may be what JSON knows, bytes, numpy arrays and numpy scalars.
        Tuples become lists, scalars become Python's.

    Raises
    ------
    TypeError
        A value that cannot travel (the message names its key), a key that is not a
        string, an unknown document name.
    """
    if name not in NAMES:
        raise TypeError(f"no document is called {name!r}")
    if not isinstance(doc, Mapping):
        raise TypeError(
            f"{name} document: expected a mapping, got {type(doc).__name__}"
        )
    plain = dict(doc)
    try:
        _check_tree(plain)
        packed: Any = Packer(default=_to_plain).pack([name, plain])
    except (TypeError, ValueError, OverflowError) as error:
        culprit = _find_culprit(plain, name) or f"{name} document: {error}"
        raise TypeError(culprit) from None
    return packed


def unpack(
    data: bytes | memoryview, *, max_bytes: int = 1 << 30
) -> tuple[str, dict[str, Any]]:
    """Unpack one document and trust nothing in it.

    Arrays are read-only views of their own bytes, ``(…)`` as packed, in the dtype
    and byte order that they were packed in. msgpack timestamps become seconds.

    Raises
    ------
    DocumentError
        Too large, not msgpack, not ``[name, document]``, unknown name, nested
        deeper than :data:`MAX_DEPTH`, or an array whose dtype is not plain or
        whose shape does not fit its bytes.
    """
    if len(data) > max_bytes:
        raise DocumentError(f"document of {len(data)} bytes, at most {max_bytes}")
    try:
        value = unpackb(
            data, timestamp=1, ext_hook=_from_extension, **_Budget().hooks()
        )
    except DocumentError:
        raise
    except Exception as error:  # msgpack raises a dozen kinds
        raise DocumentError(f"not a msgpack document: {error}") from None
    if not isinstance(value, list) or len(value) != 2:
        raise DocumentError("expected [name, document]")
    name, doc = value
    if not isinstance(name, str) or name not in NAMES:
        raise DocumentError(f"no document is called {str(name)[:40]!r}")
    if not isinstance(doc, dict):
        raise DocumentError(f"{name}: expected a map, got {type(doc).__name__}")
    try:
        _check_tree(doc)
    except TypeError as error:
        raise DocumentError(f"{name}: {error}") from None
    return name, doc


def pack_array(array: NDArray[Any]) -> ExtType:
    """Pack an array of booleans, numbers or strings with its dtype and shape.

    Raises
    ------
    TypeError
        Another dtype: object, structured, date.
    """
    if array.dtype.itemsize == 0:
        array = array.astype(f"{array.dtype.kind}1")
    head = array_head(array)
    pixels = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return ExtType(ARRAY, b"".join((head, pixels)))  # one copy of the pixels


def array_head(array: NDArray[Any]) -> bytes:
    """Return what precedes an array's pixels: dimensions, dtype, shape.

    Raises
    ------
    TypeError
        A dtype that cannot travel.
    """
    dtype = array.dtype.str
    if not _DTYPE.fullmatch(dtype):
        raise TypeError(f"arrays of dtype {array.dtype} cannot travel")
    shape = _shape_struct(array.ndim).pack(*array.shape)
    return _HEAD.pack(array.ndim, dtype.encode()) + shape


def _to_plain(value: Any) -> Any:
    """Turn what msgpack does not know into what it knows."""
    if isinstance(value, np.ndarray):
        return pack_array(value)
    if isinstance(value, np.generic) and value.dtype.kind in "biufcSU":
        return (
            pack_array(np.asarray(value)) if value.dtype.kind == "c" else value.item()
        )
    if isinstance(value, Mapping):
        plain = dict(value)
        _check_tree(plain)
        return plain
    if isinstance(value, int):
        raise TypeError("wider than 64 bits")
    raise TypeError("such a value cannot travel")


def _check_tree(top: dict[str, Any]) -> None:
    """Refuse keys that are not strings, and trees too deep or too large to walk."""
    level: list[Any] = [top]
    containers = 0
    for _ in range(MAX_DEPTH):
        if not level:
            return
        containers += len(level)
        if containers > MAX_CONTAINERS:
            raise TypeError(f"more than {MAX_CONTAINERS} dictionaries and lists")
        level = [child for node in level for child in _children(node)]
    if level:
        raise TypeError(f"nested deeper than {MAX_DEPTH} levels")


def _children(node: Any) -> list[Any]:
    if not isinstance(node, dict):
        return [child for child in node if isinstance(child, _NESTED)]
    for key in node:
        if not isinstance(key, str):
            raise TypeError(f"key {key!r} is not a string")
    return [child for child in node.values() if isinstance(child, _NESTED)]


def _find_culprit(value: Any, path: str, depth: int = 0) -> str | None:
    """Name the first value that cannot be packed, and where it stands."""
    if depth > MAX_DEPTH:
        return f"{path[:120]}…: nested deeper than {MAX_DEPTH} levels"
    if isinstance(value, Mapping):
        for key, child in value.items():
            if not isinstance(key, str):
                return f"{path}: key {key!r} is not a string"
            if found := _find_culprit(child, f"{path}.{key}", depth + 1):
                return found
        return None
    if isinstance(value, (list, tuple)):
        found = (
            _find_culprit(c, f"{path}[{i}]", depth + 1) for i, c in enumerate(value)
        )
        return next(filter(None, found), None)
    try:
        Packer(default=_to_plain).pack(value)
    except (TypeError, ValueError, OverflowError) as error:
        return f"{path}: {error} ({type(value).__name__})"
    return None


class _Budget:
    """What one document may hold; a few bytes of msgpack can claim gigabytes."""

    def __init__(self) -> None:
        self.containers = 0
        self.items = 0

    def hooks(self) -> dict[str, Any]:
        return {"object_hook": self._spend, "list_hook": self._spend}

    def _spend(self, value: Any) -> Any:
        self.containers += 1
        self.items += len(value)
        if self.containers > MAX_CONTAINERS or self.items > MAX_ITEMS:
            raise DocumentError("document holds too many values")
        return value


def _from_extension(code: int, data: bytes) -> NDArray[Any]:
    if code != ARRAY:
        raise DocumentError(f"unknown msgpack extension {code}")
    try:
        dtype, shape, offset = _read_head(data)
        n_bytes = math.prod(shape) * dtype.itemsize
        if n_bytes != len(data) - offset:
            raise ValueError(f"{shape} of {dtype} in {len(data) - offset} bytes")
        return np.ndarray(shape, dtype, buffer=data, offset=offset)
    except (TypeError, ValueError, struct.error) as error:
        raise DocumentError(f"not an array: {error}") from None


def _read_head(data: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Read dtype, shape and where the pixels begin; the dtype is a plain one."""
    ndim, text = _HEAD.unpack_from(data)
    if ndim > MAX_NDIM:
        raise ValueError(f"{ndim} dimensions")
    name = text.rstrip(b"\0").decode("ascii")
    if not _DTYPE.fullmatch(name):
        raise ValueError(f"dtype {name[:20]!r}")
    dimensions = _shape_struct(ndim)
    shape = dimensions.unpack_from(data, _HEAD.size)
    return np.dtype(name), shape, _HEAD.size + dimensions.size


def _shape_struct(ndim: int) -> struct.Struct:
    """``ndim`` lengths, padded so that the pixels lie aligned in what is received."""
    return struct.Struct(f"<{ndim}Q{8 * (ndim % 2)}x")
