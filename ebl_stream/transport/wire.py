"""What doors and services say to each other over 0MQ; light, msgpack only.

Every message has two parts: a head (magic, kind, client, sequence, base) and a
payload. ``base`` is the oldest document that the client still keeps: all before it
were acknowledged once, so a service that was started again knows where to begin.

========= ================= ====================================================
kind      direction         payload
========= ================= ====================================================
DOCUMENT  door to service   one packed document, numbered by ``sequence``
PING      door to service   msgpack list of the run uids that the door asks about
ACK       service to door   msgpack list of sequences held beyond ``sequence``,
                            the next one that the service expects
STATUS    service to door   msgpack map, `run_uid` and what is known of that run
========= ================= ====================================================
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

from ebl_stream.errors import InputError
from ebl_stream.transport.documents import Packer, unpackb

DOCUMENT, PING, ACK, STATUS = b"D", b"P", b"A", b"S"

CLIENT_BYTES = 16
MAX_DOCUMENT_BYTES = 1 << 30
MAX_SMALL_BYTES = 1 << 20
"""Payload of everything but documents."""

_MAGIC = b"EBL1"
_HEAD = struct.Struct(f">4sc{CLIENT_BYTES}sQQ")


class WireError(ValueError):
    """The parts are no message of ours."""


@dataclass(frozen=True)
class Head:
    """The first part of a message."""

    kind: bytes
    client: bytes
    sequence: int = 0
    base: int = 0

    def pack(self) -> bytes:
        """Return the head's bytes."""
        return _HEAD.pack(_MAGIC, self.kind, self.client, self.sequence, self.base)


def read_head(data: bytes) -> Head:
    """Read the first part of a message.

    Raises
    ------
    WireError
        Another length or magic.
    """
    if len(data) != _HEAD.size:
        raise WireError("no head of ours")
    magic, *fields = _HEAD.unpack(data)
    if magic != _MAGIC:
        raise WireError("another protocol or version")
    return Head(*fields)


def pack_small(value: Any) -> bytes:
    """Pack a payload that is no document."""
    packed: Any = Packer().pack(value)
    return packed


def unpack_small(data: bytes, kind: type) -> Any:
    """Unpack a payload that is no document.

    Raises
    ------
    WireError
        Too large, not msgpack, or not of the type ``kind``.
    """
    if len(data) > MAX_SMALL_BYTES:
        raise WireError("payload too large")
    try:
        value = unpackb(data)
    except Exception as error:  # msgpack raises a dozen kinds
        raise WireError(f"payload is not msgpack: {type(error).__name__}") from None
    if not isinstance(value, kind):
        raise WireError(f"payload is no {kind.__name__}")
    return value


MAX_IPC_PATH = 100
"""Bytes; the system allows a few more, 0MQ adds none."""

_ZMQ = re.compile(
    r"(?:zmq://|zmq\+sub://|tcp://)?(?:(\[[0-9a-fA-F:]+\]|[^:/\s]*):)?(\d{1,5}|\*)"
)


def endpoint(address: str) -> str:
    """Return the 0MQ endpoint of ``zmq://host:port``, ``host:port`` or ``ipc://path``.

    No host means this machine's loopback.

    Raises
    ------
    InputError
        Another form.
    """
    if address.startswith("ipc://"):
        if not 0 < len(address[6:].encode()) <= MAX_IPC_PATH:
            raise InputError(
                f"address {address!r}: the path of a local socket has 1 to "
                f"{MAX_IPC_PATH} bytes; choose a shorter one"
            )
        return address
    match = _ZMQ.fullmatch(address)
    port = match[2] if match else ""
    if match is None or (port != "*" and int(port) > 65535):
        raise InputError(
            f"address {address!r}: expected zmq://host:port, such as "
            f"zmq://localhost:5577, or ipc:///path"
        )
    host = "127.0.0.1" if match[1] in (None, "", "localhost") else match[1]
    return f"tcp://{host}:{port}"


def is_local(address: str) -> bool:
    """Return whether only this machine can reach an address."""
    if address.startswith(("kafka://", "tiled:")):
        return False  # whoever writes there can be anywhere
    return endpoint(address).startswith(("ipc://", "tcp://127.", "tcp://[::1]"))
