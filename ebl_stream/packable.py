"""Pack any document: what cannot travel, travels as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ebl_stream.documents import pack

MAX_TEXT = 1000


def pack_leniently(
    name: str, doc: Mapping[str, Any], note: Callable[[str, str], None]
) -> bytes:
    """Pack a document; a value that cannot travel must not cost the run.

    Parameters
    ----------
    note : callable
        Told ``(kind, message)`` where a value was turned into text.

    Raises
    ------
    TypeError
        An unknown document name.
    """
    try:
        return pack(name, doc)
    except TypeError as error:
        packed = pack(name, as_packable(doc))
        note("sent as text", f"sent as text: {error}")
        return packed


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
