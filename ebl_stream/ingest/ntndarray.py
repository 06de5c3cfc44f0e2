"""EPICS NTNDArray (areaDetector's image over pvAccess) to an image.

The normative type: https://github.com/epics-base/normativeTypesCPP. What
areaDetector puts into it: dimensions from the fastest axis on; a compressed frame
keeps the element type of its pixels in ``codec.parameters``, as areaDetector counts
its data types.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ebl_stream.frames import Image
from ebl_stream.ingest.feed import FeedError

_DTYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
"""areaDetector's NDDataType_t, in its order."""
_MAX_BYTES = 2**31
_BITSHUFFLE_BLOCK_BYTES = 8192
"""Block of bitshuffle's default settings, which areaDetector uses."""


class NTNDArray(Protocol):
    """The fields that are read, as p4p shows them."""

    value: NDArray[Any] | None
    codec: Any
    compressedSize: int  # noqa: N815  (EPICS spells it so)
    uncompressedSize: int  # noqa: N815
    uniqueId: int  # noqa: N815
    timeStamp: Any  # noqa: N815
    dimension: list[Any]
    attribute: list[Any]


def attribute(array: NTNDArray, name: str) -> str | None:
    """Return an NDAttribute as text; None: the frame does not have it."""
    for one in array.attribute:
        if one.name == name:
            return str(one.value).strip("\0 ")
    return None


def decode(array: NTNDArray) -> Image:
    """Return the image ``(row, column)`` in the detector's dtype.

    Raises
    ------
    FeedError
        It is no monochrome image, is cut short, or its codec is not known.
    """
    if array.value is None:
        raise FeedError("an array without a value")
    shape = _shape(array)
    codec = str(array.codec.name)
    if not codec:
        n = math.prod(shape)
        if array.value.size < n:
            raise FeedError(f"{array.value.size} pixels, but its shape is {shape}")
        return array.value[:n].reshape(shape)
    return _decompress(array, codec, shape)


def _shape(array: NTNDArray) -> tuple[int, ...]:
    sizes = [int(axis.size) for axis in array.dimension]
    shape = tuple(n for n in reversed(sizes) if n != 1)
    if len(shape) != 2 or min(shape) < 1:
        raise FeedError(f"no monochrome image: its dimensions are {sizes}")
    return shape


def _decompress(array: NTNDArray, codec: str, shape: tuple[int, ...]) -> Image:
    assert array.value is not None  # noqa: S101
    known = _CODECS.get(codec.lower())
    if known is None:
        raise FeedError(
            f"codec {codec!r} is not read here (none, {', '.join(sorted(_CODECS))} are)"
        )
    dtype = _dtype(array.codec.parameters)
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes != array.uncompressedSize or n_bytes > _MAX_BYTES:
        raise FeedError(
            f"{array.uncompressedSize} bytes uncompressed, but {shape} of {dtype} "
            f"are {n_bytes}"
        )
    # The array may be longer than what the codec filled of it.
    packed = np.ascontiguousarray(array.value).view(np.uint8)
    if array.compressedSize > packed.size:
        raise FeedError(f"{packed.size} of {array.compressedSize} bytes are there")
    packed = packed[: array.compressedSize]
    try:
        raw = known(packed.tobytes(), n_bytes, dtype)
    except Exception as error:  # what a decoder says of a broken frame
        raise FeedError(f"codec {codec!r}: {error}") from None
    if len(raw) != n_bytes:
        raise FeedError(f"codec {codec!r}: {len(raw)} bytes came out of {n_bytes}")
    return np.frombuffer(raw, dtype).reshape(shape)


def _dtype(parameters: Any) -> np.dtype[Any]:
    if not isinstance(parameters, int) or not 0 <= parameters < len(_DTYPES):
        raise FeedError(f"compressed, and its data type is {parameters!r}")
    return np.dtype(_DTYPES[parameters])


def _lz4(packed: bytes, n_bytes: int, _: np.dtype[Any]) -> bytes:
    from numcodecs.lz4 import decompress

    # numcodecs wants the size before the block; areaDetector sends the bare block.
    return decompress(struct.pack("<I", n_bytes) + packed)


def _blosc(packed: bytes, n_bytes: int, _: np.dtype[Any]) -> bytes:
    from numcodecs.blosc import decompress

    stated = struct.unpack_from("<I", packed, 4)[0] if len(packed) >= 16 else 0
    if stated != n_bytes:
        raise ValueError(f"it holds {stated} bytes, not {n_bytes}")
    return decompress(packed)


def _bslz4(packed: bytes, n_bytes: int, dtype: np.dtype[Any]) -> bytes:
    """Undo bitshuffle and LZ4, as a chunk of an HDF5 file in memory.

    The filter of HDF5 is the well-kept decoder that is installed anyway; its chunks
    are areaDetector's bytes behind a header of sizes.
    """
    import h5py
    import hdf5plugin

    n = n_bytes // dtype.itemsize
    header = struct.pack(">QI", n_bytes, _BITSHUFFLE_BLOCK_BYTES)
    with h5py.File("frame", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset(
            "frame", (n,), dtype, chunks=(n,), **hdf5plugin.Bitshuffle()
        )
        dataset.id.write_direct_chunk((0,), header + packed)
        return dataset[:].tobytes()


_Decoder = Callable[[bytes, int, np.dtype[Any]], bytes]
_CODECS: dict[str, _Decoder] = {"blosc": _blosc, "bslz4": _bslz4, "lz4": _lz4}
