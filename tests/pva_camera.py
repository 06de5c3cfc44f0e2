"""An areaDetector's image over pvAccess, as its plugin posts it: a real p4p server."""

from __future__ import annotations

import struct
import time
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numcodecs.blosc import Blosc
from numcodecs.lz4 import LZ4
from p4p import Value
from p4p.nt import NTNDArray
from p4p.server import Server
from p4p.server.thread import SharedPV

PV = "EBLTEST:Pva1:Image"
ATTRIBUTE = "HDF5FrameLocation"
TYPE = NTNDArray.buildType()
MEMBER = {
    "i1": "byteValue",
    "u1": "ubyteValue",
    "i2": "shortValue",
    "u2": "ushortValue",
    "i4": "intValue",
    "u4": "uintValue",
    "f4": "floatValue",
    "f8": "doubleValue",
}
ND_TYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


def lz4(image: np.ndarray) -> bytes:
    """Return the bare block: numcodecs puts the size before it."""
    packed = bytes(LZ4().encode(np.ascontiguousarray(image)))
    assert struct.unpack_from("<I", packed)[0] == image.nbytes
    return packed[4:]


def blosc(image: np.ndarray) -> bytes:
    return bytes(Blosc(cname="lz4", shuffle=Blosc.BITSHUFFLE).encode(image))


def bslz4(image: np.ndarray) -> bytes:
    """Return what the HDF5 filter stores, without its header of two sizes."""
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        shape = {"shape": image.shape, "chunks": image.shape}
        data = file.create_dataset(
            "x", dtype=image.dtype, **shape, **hdf5plugin.Bitshuffle()
        )
        data[:] = image
        return data.id.read_direct_chunk((0, 0))[1][12:]


CODECS = {"lz4": lz4, "blosc": blosc, "bslz4": bslz4}


def ntndarray(
    image: np.ndarray,
    unique_id: int,
    *,
    codec: str = "",
    location: str | None = None,
    stamp: float | None = None,
) -> Value:
    """Return the structure that areaDetector would post for an image."""
    code = image.dtype.str[1:]
    stamp = time.time() if stamp is None else stamp
    fields: dict[str, Any] = {
        "value": (MEMBER[code], image.ravel()),
        "compressedSize": image.nbytes,
        "uncompressedSize": image.nbytes,
        "uniqueId": unique_id,
        "timeStamp": {
            "secondsPastEpoch": int(stamp),
            "nanoseconds": int(stamp % 1 * 1e9),
        },
        "dimension": [{"size": n, "fullSize": n} for n in reversed(image.shape)],
        "attribute": [{"name": "ColorMode", "value": 0}],
    }
    if location is not None:
        fields["attribute"].append({"name": ATTRIBUTE, "value": location})
    if codec:
        packed = CODECS[codec](image)
        fields["value"] = ("ubyteValue", np.frombuffer(packed, np.uint8))
        fields["compressedSize"] = len(packed)
        fields["codec"] = {"name": codec, "parameters": ND_TYPES.index(code)}
    return Value(TYPE, fields)


class Camera:
    """A server with one image; `restart` as an IOC does, on the same ports."""

    def __init__(self) -> None:
        self._pv = SharedPV(initial=Value(TYPE, {}))
        self._server = Server(providers=[{PV: self._pv}], isolate=True)
        self.conf = self._server.conf()

    def post(self, image: np.ndarray, unique_id: int, **how: Any) -> None:
        self._pv.post(ntndarray(image, unique_id, **how))

    def post_value(self, value: Value) -> None:
        self._pv.post(value)

    def stop(self) -> None:
        self._server.stop()

    def restart(self) -> None:
        self._pv = SharedPV(initial=Value(TYPE, {}))
        self._server = Server(providers=[{PV: self._pv}], conf=self.conf, useenv=False)
