"""The thread that sends documents until a service has acknowledged them."""

from __future__ import annotations

import secrets
import threading
import time
from typing import Any, Protocol

import zmq

from ebl_stream.transport import wire
from ebl_stream.transport.backlog import Backlog
from ebl_stream.transport.packable import Packed

WINDOW_BYTES = 32 * 2**20
"""Sent and not yet acknowledged."""
WINDOW_MESSAGES = 1024
RETRY_S = 0.25
MAX_RETRY_S = 5.0
PING_S = 0.5
LOOK_MS = 20
"""How long a document waits for the thread at most.

It is not woken: who wakes a thread in the midst of the RunEngine's call hands it the
interpreter's lock, and where all cores are busy gets that back a time slice later.
"""
ZERO_COPY_BYTES = 65_536


class Desk(Protocol):
    """Who hears, in the sender's thread, what the service says."""

    def runs_asked_about(self) -> list[str]:
        """Return the uids of the runs whose status is wanted."""
        ...

    def heard(self) -> None:
        """The service spoke."""
        ...

    def acknowledged(self, end: int) -> None:
        """All documents before ``end`` are in the service's journal."""
        ...

    def told(self, status: dict[str, Any]) -> None:
        """The service said how a run gets on."""
        ...

    def note(self, kind: str, message: str) -> None:
        """Something went wrong."""
        ...


class Sender:
    """The thread that owns the socket.

    Parameters
    ----------
    endpoint : str
        0MQ's form of the address.
    backlog : Backlog
        What is to be sent; released by the desk.
    desk : Desk
        Who hears of the outcome.
    """

    def __init__(self, endpoint: str, backlog: Backlog, desk: Desk) -> None:
        self._desk = desk
        self._backlog = backlog
        self._client = secrets.token_bytes(wire.CLIENT_BYTES)
        self._endpoint = endpoint
        self._move_to: str | None = None
        self._next = 0  # never sent so far
        self._in_flight: dict[int, tuple[float, int]] = {}  # sent at, bytes
        self._in_flight_bytes = 0
        self._held: set[int] = set()  # the service has them, out of order
        self._retry_s = RETRY_S
        self._ping_at = 0.0
        self._asked: list[str] = []
        self._blocked = False
        self._stopping = False
        self._thread = threading.Thread(
            target=self._run, name="ebl-stream-sender", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def move(self, endpoint: str) -> None:
        """Go on with another service; what is not acknowledged is sent there."""
        self._move_to = endpoint

    def stop(self, timeout_s: float) -> bool:
        """End the thread; False if it has not ended in time."""
        self._stopping = True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        context = zmq.Context()
        socket = self._open(context)
        try:
            while not self._stopping:
                if self._move_to is not None:
                    socket.close(linger=0)
                    self._endpoint, self._move_to = self._move_to, None
                    socket = self._open(context)
                self._turn(socket)
        finally:
            socket.close(linger=0)
            context.destroy(linger=0)

    def _turn(self, socket: zmq.Socket[bytes]) -> None:
        try:
            self._blocked = False
            self._ping(socket)
            self._send_due(socket)
            socket.poll(LOOK_MS, zmq.POLLIN | (zmq.POLLOUT if self._blocked else 0))
            self._receive(socket)
        except Exception as error:  # the thread must outlive any surprise
            self._desk.note("sender fault", f"sender: {type(error).__name__}: {error}")
            time.sleep(RETRY_S)

    def _open(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.DEALER)
        # Without a peer nothing is queued in 0MQ: the backlog is the only queue.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.SNDHWM, 64)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_SMALL_BYTES)
        socket.connect(self._endpoint)
        self._held.clear()
        return socket

    def _ping(self, socket: zmq.Socket[bytes]) -> None:
        runs = self._desk.runs_asked_about()
        # Of a new run at once: a service that ends answers whom it knows of.
        if time.monotonic() >= self._ping_at or runs != self._asked:
            self._ping_at = time.monotonic() + PING_S
            head = wire.Head(wire.PING, self._client, 0, self._backlog.first)
            if self._send(socket, head, wire.pack_small(runs)):
                self._asked = runs

    def _send_due(self, socket: zmq.Socket[bytes]) -> None:
        self._backlog.refill()
        now = time.monotonic()
        due = [
            number
            for number, (sent_at, _) in self._in_flight.items()
            if now - sent_at >= self._retry_s and number not in self._held
        ]
        for number in due:
            if not self._send_document(socket, number):
                return
        if due:
            self._retry_s = min(2 * self._retry_s, MAX_RETRY_S)
        while self._next < self._backlog.end and self._window_is_open():
            if not self._send_document(socket, self._next):
                return

    def _window_is_open(self) -> bool:
        few = len(self._in_flight) < WINDOW_MESSAGES
        return few and self._in_flight_bytes < WINDOW_BYTES

    def _send_document(self, socket: zmq.Socket[bytes], number: int) -> bool:
        packed = self._backlog.get(number)
        if packed is None:  # still in the file
            return False
        head = wire.Head(wire.DOCUMENT, self._client, number, self._backlog.first)
        if not self._send(socket, head, packed):
            return False
        if number not in self._in_flight:
            self._in_flight_bytes += len(packed)
            self._next = number + 1
        self._in_flight[number] = (time.monotonic(), len(packed))
        return True

    def _send(
        self, socket: zmq.Socket[bytes], head: wire.Head, payload: Packed
    ) -> bool:
        try:
            copy = len(payload) < ZERO_COPY_BYTES
            socket.send_multipart([head.pack(), payload], zmq.NOBLOCK, copy=copy)
        except zmq.Again:
            self._blocked = True
            return False
        return True

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._take(parts)
            except wire.WireError as error:
                self._desk.note("malformed reply", f"malformed reply: {error}")

    def _take(self, parts: list[bytes]) -> None:
        if len(parts) != 2:
            raise wire.WireError(f"{len(parts)} parts")
        head = wire.read_head(parts[0])
        if head.client != self._client:
            return
        self._desk.heard()
        if head.kind == wire.STATUS:
            self._desk.told(wire.unpack_small(parts[1], dict))
        elif head.kind == wire.ACK:
            self._acknowledge(head.sequence, wire.unpack_small(parts[1], list))

    def _acknowledge(self, expected: int, held: list[int]) -> None:
        self._retry_s = RETRY_S
        self._held = set(held)
        for number in [n for n in self._in_flight if n < expected]:
            self._in_flight_bytes -= self._in_flight.pop(number)[1]
        self._desk.acknowledged(min(expected, self._next))
