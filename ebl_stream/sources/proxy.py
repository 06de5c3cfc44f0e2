"""Documents from the stock Bluesky bus on 0MQ. No pickle."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import zmq

from ebl_stream.sources.gaps import Gaps
from ebl_stream.sources.listener import (
    COMMIT_EVERY_S,
    IDLE_POLL_MS,
    Sink,
    SocketListener,
)
from ebl_stream.transport import wire
from ebl_stream.transport.documents import DocumentError, unpack


class ProxySource(SocketListener):
    """Listens to a PUB socket that carries ``prefix name payload``, payload msgpack.

    That is what ``bluesky.callbacks.zmq.Publisher(address,
    serializer=msgpack.packb)`` sends. Payloads that are pickled are refused. What the
    sockets lose is named within a second (``problems["gap"]``, and the log).

    Parameters
    ----------
    address : str
        ``zmq+sub://host:port``, a proxy's output.

    Raises
    ------
    InputError
        The address has another form.
    """

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self._gaps = Gaps(self.problems)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        endpoint = wire.endpoint(address)
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)  # a slow disk must not lose documents
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_DOCUMENT_BYTES)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(endpoint)

    def tell(self, run_uid: str, status: dict[str, Any]) -> None:
        """Do nothing: a broadcast has nobody to answer to."""

    def listen(self, sink: Sink) -> None:
        """Hand every document to the sink until `close`."""
        committed_at = 0.0
        try:
            while not self.closing.is_set():
                if self._socket.poll(IDLE_POLL_MS):
                    self._receive(sink)
                if time.monotonic() - committed_at >= COMMIT_EVERY_S:
                    self._commit(sink)
                    self._gaps.look()
                    committed_at = time.monotonic()
        finally:
            self._commit(sink)
            self._socket.close()
            self._context.term()

    def _receive(self, sink: Sink) -> None:
        self.heard_at = time.monotonic()
        while time.monotonic() - self.heard_at < COMMIT_EVERY_S:
            try:
                message = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if self.taking:
                self._take(sink, message)

    def _take(self, sink: Sink, parts: list[bytes]) -> None:
        _, name, payload = (*parts[0].split(b" ", 2), b"", b"")[:3]
        if len(parts) != 1 or not payload or not 0 < len(name) < 32:
            self.note("not ours", "expected 'prefix name payload'")
        elif payload[:1] == b"\x80" and len(payload) > 1:
            self.note(
                "pickled",
                "it is pickled; give the Publisher serializer=msgpack.packb",
            )
        else:
            # [name, document], around the payload as it is: unpacked once, by the
            # sink, with all its limits.
            packed = b"\x92" + bytes([0xA0 | len(name)]) + name + payload
            self.hand_over(sink, packed)
            with contextlib.suppress(DocumentError):  # counted already
                self._gaps.note(*unpack(packed))

    def _commit(self, sink: Sink) -> None:
        try:
            sink.commit()
        except Exception as error:
            self.note("not committed", f"{type(error).__name__}: {error}")
