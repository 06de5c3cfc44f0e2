"""HTTP that no slow client can hold up; runs within the Tiled server's process.

uvicorn (0.54) waits without end for a request that was begun, for the body of one,
and for a reader of its reply, and it holds what was sent until then. The heads of
requests are bounded by h11 (64 kB).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 30.0
"""A request has to be here, whole, so long after its connection is free for it."""
STALLED_S = 30.0
"""A reader has to take something of a reply within so long."""
REPLY_S = 600.0
"""A reply has to be taken so long after its connection was free for its request."""
LOOK_EVERY_S = 1.0
MAX_CONNECTIONS = 256
"""Beyond it the one that has kept us waiting for its request longest is closed."""
MAX_BODY_BYTES = 256 * 2**20
"""Of all requests that are being sent; FastAPI reads a body before it asks for the key.
Beyond it large ones are cut off."""
SMALL_BYTES = 2**20
"""A request that is let through however much others send."""


class BoundedHttp(H11Protocol):
    """One connection; it is closed without a word where its client takes too long."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.since = self._moved_at = self.loop.time()
        """When the connection was free for a request, s on the loop's clock."""
        self.n_received = 0
        """Bytes since then."""
        self._unsent = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waits_for_client(self) -> bool:
        """Whether a request is not here yet, or not whole."""
        asked = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        return asked and not self.flow.read_paused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, if need be in place of another one."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [c for c in self._all() if c.waits_for_client]
            min(waiting, key=lambda c: c.since, default=self).transport.abort()
        self._look()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        self.n_received += len(data)
        if self.n_received > SMALL_BYTES and self._are_too_large():
            self.transport.abort()
            return
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.since = self.loop.time()
        self.n_received = 0
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over: websockets have pings of their own."""
        self._stop_looking()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the connection."""
        self._stop_looking()
        super().connection_lost(exc)

    def _all(self) -> Iterator[BoundedHttp]:
        return (c for c in self.connections if isinstance(c, BoundedHttp))

    def _are_too_large(self) -> bool:
        return sum(one.n_received for one in self._all()) > MAX_BODY_BYTES

    def _look(self) -> None:
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._moved_at = unsent, now
        free_at = max(self.since, self._moved_at)
        late = not unsent and self.waits_for_client and now - free_at > REQUEST_S
        stalled = unsent > 0 and now - self._moved_at > STALLED_S
        slow = unsent > 0 and now - self.since > REPLY_S
        if late or stalled or slow:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(LOOK_EVERY_S, self._look)

    def _stop_looking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
