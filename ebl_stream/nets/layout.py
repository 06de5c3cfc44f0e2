"""The layout of a safetensors file, looked at before anybody works with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ebl_stream import strict_json
from ebl_stream.errors import InputError

MAX_HEADER_BYTES = 2**20
_N_LENGTH = 8
_ITEMSIZE = 4
_FIELDS = {"dtype", "shape", "data_offsets"}
_OTHERS = {
    b"PK\x03\x04": "but a zip archive, as PyTorch writes",
    b"\x89HDF": "but HDF5: see `ebl-stream models import`",
    b"\x80": "but a pickle, which can run any program",
}
"""What else weights are kept in, by the first bytes."""


def require_header(content: bytes, where: str) -> bytes:
    """Return the header of a safetensors file: 8 bytes of length, header, values.

    Raises
    ------
    InputError
        The length cannot be right: it is something else; one line.
    """
    length = int.from_bytes(content[:_N_LENGTH], "little")
    room = max(0, len(content) - _N_LENGTH)
    if 2 <= length <= min(room, MAX_HEADER_BYTES):
        return content[_N_LENGTH : _N_LENGTH + length]
    whys = [what for magic, what in _OTHERS.items() if content.startswith(magic)]
    why = whys[0] if whys else f"(a header of {length} bytes, room for {room})"
    raise InputError(f"{where} is not safetensors {why}")


def require_tensors(
    content: bytes, wanted: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Refuse a file that does not hold exactly these tensors, as float32.

    Parameters
    ----------
    content : bytes
        The whole file.
    wanted : mapping
        Name to shape.
    where : str
        What messages begin with.

    Raises
    ------
    InputError
        No safetensors, or other tensors, types, shapes or sizes; one line.
    """
    text = require_header(content, where)
    try:
        header = strict_json.loads(text)
    except strict_json.JsonError as error:
        raise InputError(f"{where} is not safetensors: {error}") from None
    if not isinstance(header, dict):
        raise InputError(f"{where} is not safetensors: its header is no object")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        _require_entry(entry, f"{where}: {name[:80]!r}")
    require_shapes({name: header[name]["shape"] for name in header}, wanted, where)
    n_bytes = len(content) - _N_LENGTH - len(text)
    total = sum(_ITEMSIZE * math.prod(shape) for shape in wanted.values())
    if n_bytes != total:
        raise InputError(f"{where}: {n_bytes} bytes of values, not {total}")


def require_shapes(
    found: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Refuse tensors that lack, are too many, or have another shape.

    Raises
    ------
    InputError
        One line that begins with ``where``.
    """
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise InputError(f"{where}: lacks tensor {name!r} of its architecture")
        if name not in wanted:
            raise InputError(f"{where}: tensor {name[:80]!r} is unknown")
        shape, right = list(found[name]), list(wanted[name])
        if shape != right:
            raise InputError(f"{where}: {name} is {str(shape)[:60]}, not {right}")


def _require_entry(entry: Any, where: str) -> None:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise InputError(f"{where} is not described as safetensors does")
    if entry["dtype"] != "F32":
        raise InputError(f"{where} is {str(entry['dtype'])[:20]!r}, not 'F32'")
    if not isinstance(entry["shape"], list):
        raise InputError(f"{where} has no shape")
