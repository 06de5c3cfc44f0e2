"""Documents from our doors over 0MQ, each door's in order, acknowledged.

`DoorSource` binds and takes documents from `ebl_stream.transport.link`, one at a
time and in order per door, and acknowledges what its sink has put on disk.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from ebl_stream import failpoints
from ebl_stream.errors import InputError
from ebl_stream.sources.listener import (
    COMMIT_EVERY_S,
    IDLE_POLL_MS,
    Sink,
    SocketListener,
)
from ebl_stream.transport import wire

logger = logging.getLogger(__name__)

MAX_HELD_BYTES = 64 * 2**20
MAX_HELD = 4096
"""Documents of one door that came before an earlier one."""
MAX_CLIENTS = 256
MAX_RUNS_TOLD = 32
LAST_WORDS_S = 0.4
"""Between the last news and the end of the connection: a door reads every 0.1 s."""


@dataclass
class _Client:
    """One door, by the id that it gave itself."""

    route: bytes
    expected: int = 0
    committed: int = 0
    held: dict[int, bytes] = field(default_factory=dict)
    held_bytes: int = 0
    runs: frozenset[str] = frozenset()
    ack_due: bool = False

    def hold(self, sequence: int, packed: bytes) -> None:
        """Keep a document that came early, within bounds; it is sent again anyway."""
        fits = self.held_bytes + len(packed) <= MAX_HELD_BYTES
        fits = fits and len(self.held) < MAX_HELD
        if sequence not in self.held and (fits or sequence == self.expected):
            self.held[sequence] = packed
            self.held_bytes += len(packed)

    def unhold(self, sequence: int) -> bytes | None:
        """Return a document that came early, once."""
        packed = self.held.pop(sequence, None)
        self.held_bytes -= len(packed or b"")
        return packed

    def skip_to(self, base: int) -> None:
        """Go on at ``base``: all before it were acknowledged once."""
        if base > self.expected:
            self.expected = base
            for early in [s for s in self.held if s < base]:
                self.unhold(early)


class DoorSource(SocketListener):
    """Binds, and takes documents from doors until it is closed.

    Parameters
    ----------
    address : str
        ``zmq://host:port`` or ``ipc://path``. Without a host: loopback only; a port
        ``*`` takes any free one.

    Raises
    ------
    InputError
        The address has another form or cannot be bound.
    """

    acknowledges = True

    def __init__(self, address: str) -> None:
        super().__init__()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 1000)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_DOCUMENT_BYTES)
        self.address = self._bind(address)
        self._clients: dict[bytes, _Client] = {}
        self._statuses: dict[str, bytes] = {}
        self._to_tell: deque[tuple[str, bytes]] = deque()
        self._asked_for: set[str] = set()  # runs to tell of again
        self._dirty = False
        self._committed_at = 0.0
        self._told_at = -LAST_WORDS_S

    def tell(self, run_uid: str, status: dict[str, Any]) -> None:
        """Send how a run gets on to the doors that ask about it (any thread)."""
        self._to_tell.append((run_uid, wire.pack_small(status)))

    def listen(self, sink: Sink) -> None:
        """Hand every document to the sink, each door's in order, until `close`."""
        try:
            while not self.closing.is_set():
                if self._socket.poll(IDLE_POLL_MS):
                    self._receive(sink)
                self._commit_if_due(sink)
                self._tell_all()
            self._commit(sink)
            self._tell_all()
            # 0MQ throws away what a door has not read when the connection ends.
            while time.monotonic() < self._told_at + LAST_WORDS_S:
                if self._socket.poll(IDLE_POLL_MS):
                    self._receive(sink)
                self._tell_all()
        finally:
            if self.address.startswith("ipc://"):
                Path(self.address[6:]).unlink(missing_ok=True)  # 0MQ leaves it
            # Long enough for the last words to a door that listens.
            self._socket.close(linger=500)
            self._context.term()

    def _bind(self, address: str) -> str:
        endpoint = wire.endpoint(address)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            self._context.term()
            raise InputError(
                f"cannot listen on {address}: {os.strerror(error.errno or 0)}"
            ) from None
        bound = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        if not wire.is_local(bound):
            logger.warning(
                "%s can be reached from other machines: anyone there may send "
                "documents",
                address,
            )
        return bound.replace("tcp://", "zmq://")

    def _receive(self, sink: Sink) -> None:
        """Receive what is there, but look up now and then."""
        until = time.monotonic() + COMMIT_EVERY_S
        while time.monotonic() < until:
            try:
                route, *parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._take(sink, route, parts)
            except wire.WireError as error:
                self.note("not ours", str(error))

    def _take(self, sink: Sink, route: bytes, parts: list[bytes]) -> None:
        if len(parts) != 2:
            raise wire.WireError(f"{len(parts)} parts, expected 2")
        head = wire.read_head(parts[0])
        self.heard_at = time.monotonic()
        client = self._client(head, route)
        if head.kind == wire.PING:
            self._pinged(client, wire.unpack_small(parts[1], list))
            sink.heard(client.runs)
            self._hand_over_held(sink, client)  # what was refused before
        elif head.kind == wire.DOCUMENT and self.taking:
            self._take_document(sink, client, head.sequence, parts[1])
        client.ack_due = True

    def _client(self, head: wire.Head, route: bytes) -> _Client:
        client = self._clients.pop(head.client, None) or _Client(route)
        while len(self._clients) >= MAX_CLIENTS:
            self._clients.pop(next(iter(self._clients)))
        self._clients[head.client] = client  # the newest is last
        client.route = route
        if head.base > client.expected:
            client.skip_to(head.base)
            client.committed = max(client.committed, head.base)
        return client

    def _pinged(self, client: _Client, runs: list[Any]) -> None:
        client.runs = frozenset(run for run in runs[:64] if isinstance(run, str))
        # By name only: a newer status may be on its way from the worker just now.
        self._asked_for |= client.runs & self._statuses.keys()

    def _take_document(
        self, sink: Sink, client: _Client, sequence: int, packed: bytes
    ) -> None:
        if sequence < client.expected:
            return  # again: its acknowledgment was lost
        client.hold(sequence, packed)
        self._hand_over_held(sink, client)

    def _hand_over_held(self, sink: Sink, client: _Client) -> None:
        while self.taking and client.expected in client.held:
            if not self.hand_over(sink, client.held[client.expected]):
                return
            client.unhold(client.expected)
            client.expected += 1
            self._dirty = True

    def _commit_if_due(self, sink: Sink) -> None:
        if time.monotonic() - self._committed_at >= COMMIT_EVERY_S:
            self._commit(sink)

    def _commit(self, sink: Sink) -> None:
        """Put on disk what was taken, then acknowledge it."""
        if self._dirty:
            try:
                sink.commit()
            except Exception as error:
                self.note("not committed", f"{type(error).__name__}: {error}")
                return
            self._dirty = False
            for client in self._clients.values():
                client.committed = client.expected
        self._committed_at = time.monotonic()
        for client_id, client in self._clients.items():
            if client.ack_due:
                client.ack_due = False
                head = wire.Head(wire.ACK, client_id, client.committed)
                self._send(client, head, wire.pack_small(sorted(client.held)))
                failpoints.hit("acknowledged")

    def _tell_all(self) -> None:
        """Send the newest of every run that there is news of."""
        news: dict[str, bytes] = {}
        while self._to_tell:
            run_uid, packed = self._to_tell.popleft()
            news[run_uid] = packed
        for run_uid, packed in news.items():
            self._statuses.pop(run_uid, None)
            self._statuses[run_uid] = packed
            self._told_at = time.monotonic()
            while len(self._statuses) > MAX_RUNS_TOLD:
                self._statuses.pop(next(iter(self._statuses)))
        for run_uid in (news.keys() | self._asked_for) & self._statuses.keys():
            packed = self._statuses[run_uid]
            for client_id, client in self._clients.items():
                if run_uid in client.runs:
                    self._send(client, wire.Head(wire.STATUS, client_id), packed)
        self._asked_for.clear()

    def _send(self, client: _Client, head: wire.Head, payload: bytes) -> None:
        try:
            self._socket.send_multipart(
                [client.route, head.pack(), payload], zmq.NOBLOCK
            )
        except zmq.ZMQError as error:
            logger.debug("a door does not listen: %s", error)
