"""Documents from 0MQ: our acknowledged doors, and the stock Bluesky bus. No pickle.

`DoorSource` binds and takes documents from `ebl_stream.link`, one at a time and in
order per door, and acknowledges what its sink has put on disk. `ProxySource`
listens to a ``bluesky-0MQ-proxy`` (or any PUB socket): whatever is lost there stays
lost, for nobody acknowledges.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import zmq

from ebl_stream import wire
from ebl_stream.documents import DocumentError
from ebl_stream.errors import InputError

logger = logging.getLogger(__name__)

COMMIT_EVERY_S = 0.05
IDLE_POLL_MS = 20
MAX_HELD_BYTES = 64 * 2**20
MAX_HELD = 4096
"""Documents of one door that came before an earlier one."""
MAX_CLIENTS = 256
MAX_RUNS_TOLD = 32


class Sink(Protocol):
    """Who takes the documents that a source hears."""

    def take(self, packed: bytes) -> bool:
        """Take one; False: cannot keep it now, let it be sent again later.

        Raises
        ------
        DocumentError
            The bytes are no document.
        """
        ...

    def commit(self) -> None:
        """Make durable what was taken; only then is it acknowledged."""
        ...


class Listener(Protocol):
    """A source that pushes, and acknowledges where its transport can.

    Kafka fits: `commit` the sink, then the offsets.
    """

    address: str
    """Where it listens, final."""
    acknowledges: bool
    """Whether what the sink does not take comes again."""
    problems: Counter[str]
    """Messages that were refused, by kind."""

    def listen(self, sink: Sink) -> None:
        """Hand every document to the sink until `close` (one thread)."""
        ...

    def tell(self, run_uid: str, status: dict[str, Any]) -> None:
        """Send how a run gets on to who asked about it (any thread)."""
        ...

    def seconds_since_heard(self) -> float:
        """Return for how long nobody spoke."""
        ...

    def stop_taking(self) -> None:
        """Leave further documents with their senders; go on telling."""
        ...

    def close(self) -> None:
        """End `listen` soon."""
        ...


def open_listener(address: str) -> Listener:
    """Listen to ``zmq://host:port``, ``ipc://path`` or ``zmq+sub://host:port``.

    Raises
    ------
    InputError
        Another form, or the address cannot be bound.
    """
    if address.startswith("zmq+sub://"):
        return ProxySource(address)
    return DoorSource(address)


class _Socket:
    """What both sources share: the loop, the end, the count of what was refused."""

    acknowledges = False

    def __init__(self) -> None:
        self.problems: Counter[str] = Counter()
        self._closing = threading.Event()
        self._taking = True
        self._heard_at = time.monotonic()

    def seconds_since_heard(self) -> float:
        """Return for how long nobody spoke."""
        return time.monotonic() - self._heard_at

    def stop_taking(self) -> None:
        """Leave further documents with their senders; go on telling."""
        self._taking = False

    def close(self) -> None:
        """End `listen` soon."""
        self._closing.set()

    def _note(self, kind: str, message: str) -> None:
        self.problems[kind] += 1
        if self.problems[kind] == 1:
            logger.warning(
                "refused a message (%s): %s; further ones are only counted",
                kind,
                message,
            )

    def _hand_over(self, sink: Sink, packed: bytes) -> bool:
        """Give a document to the sink; what is no document counts as taken."""
        try:
            return sink.take(packed)
        except DocumentError as error:
            self._note("malformed", str(error))
        except Exception as error:  # the loop must outlive any surprise
            self._note("fault", f"{type(error).__name__}: {error}")
        return True


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


class DoorSource(_Socket):
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
        self._dirty = False
        self._committed_at = 0.0

    def tell(self, run_uid: str, status: dict[str, Any]) -> None:
        """Send how a run gets on to the doors that ask about it (any thread)."""
        self._to_tell.append((run_uid, wire.pack_small(status)))

    def listen(self, sink: Sink) -> None:
        """Hand every document to the sink, each door's in order, until `close`."""
        try:
            while not self._closing.is_set():
                if self._socket.poll(IDLE_POLL_MS):
                    self._receive(sink)
                self._commit_if_due(sink)
                self._tell_all()
            self._commit(sink)
            self._tell_all()
        finally:
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
        loopback = bound.startswith(("ipc://", "tcp://127.", "tcp://[::1]"))
        if not loopback:
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
                self._note("not ours", str(error))

    def _take(self, sink: Sink, route: bytes, parts: list[bytes]) -> None:
        if len(parts) != 2:
            raise wire.WireError(f"{len(parts)} parts, expected 2")
        head = wire.read_head(parts[0])
        self._heard_at = time.monotonic()
        client = self._client(head, route)
        if head.kind == wire.PING:
            self._pinged(client, wire.unpack_small(parts[1], list))
        elif head.kind == wire.DOCUMENT and self._taking:
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
        for run_uid in client.runs & self._statuses.keys():
            self._to_tell.append((run_uid, self._statuses[run_uid]))

    def _take_document(
        self, sink: Sink, client: _Client, sequence: int, packed: bytes
    ) -> None:
        if sequence < client.expected:
            return  # again: its acknowledgment was lost
        client.hold(sequence, packed)
        while client.expected in client.held:
            if not self._hand_over(sink, client.held[client.expected]):
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
                self._note("not committed", f"{type(error).__name__}: {error}")
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

    def _tell_all(self) -> None:
        """Send the newest of every run that there is news of."""
        news: dict[str, bytes] = {}
        while self._to_tell:
            run_uid, packed = self._to_tell.popleft()
            news[run_uid] = packed
        for run_uid, packed in news.items():
            self._statuses.pop(run_uid, None)
            self._statuses[run_uid] = packed
            while len(self._statuses) > MAX_RUNS_TOLD:
                self._statuses.pop(next(iter(self._statuses)))
            for client_id, client in self._clients.items():
                if run_uid in client.runs:
                    self._send(client, wire.Head(wire.STATUS, client_id), packed)

    def _send(self, client: _Client, head: wire.Head, payload: bytes) -> None:
        try:
            self._socket.send_multipart(
                [client.route, head.pack(), payload], zmq.NOBLOCK
            )
        except zmq.ZMQError as error:
            logger.debug("a door does not listen: %s", error)


class ProxySource(_Socket):
    """Listens to a PUB socket that carries ``prefix name payload``, payload msgpack.

    That is what ``bluesky.callbacks.zmq.Publisher(address,
    serializer=msgpack.packb)`` sends. Payloads that are pickled are refused.

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
            while not self._closing.is_set():
                if self._socket.poll(IDLE_POLL_MS):
                    self._receive(sink)
                if time.monotonic() - committed_at >= COMMIT_EVERY_S:
                    self._commit(sink)
                    committed_at = time.monotonic()
        finally:
            self._commit(sink)
            self._socket.close()
            self._context.term()

    def _receive(self, sink: Sink) -> None:
        self._heard_at = time.monotonic()
        while time.monotonic() - self._heard_at < COMMIT_EVERY_S:
            try:
                message = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if self._taking:
                self._take(sink, message)

    def _take(self, sink: Sink, parts: list[bytes]) -> None:
        _, name, payload = (*parts[0].split(b" ", 2), b"", b"")[:3]
        if len(parts) != 1 or not payload or not 0 < len(name) < 32:
            self._note("not ours", "expected 'prefix name payload'")
        elif payload[:1] == b"\x80" and len(payload) > 1:
            self._note(
                "pickled",
                "it is pickled; give the Publisher serializer=msgpack.packb",
            )
        else:
            # [name, document], around the payload as it is: unpacked once, by the
            # sink, with all its limits.
            self._hand_over(sink, b"\x92" + bytes([0xA0 | len(name)]) + name + payload)

    def _commit(self, sink: Sink) -> None:
        try:
            sink.commit()
        except Exception as error:
            self._note("not committed", f"{type(error).__name__}: {error}")
