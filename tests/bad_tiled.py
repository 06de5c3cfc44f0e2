"""A fault proxy before a Tiled server: slow, cut off, or answering with errors."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections.abc import Coroutine
from socket import SO_LINGER, SOL_SOCKET
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 30.0


class BadTiled:
    """Passes HTTP on, and harms it as `mode` says.

    Modes: ``pass``; ``slow`` (each reply waits `delay_s`); ``reset`` (the connection
    breaks after the request was passed on: it may have been done); ``truncate`` (half
    of the reply); ``silent`` (no reply); ``409``, ``413``, ``429``, ``500`` (nothing is
    passed on).

    Parameters
    ----------
    uri : str
        The server behind.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self._behind = parts.hostname, parts.port
        self.mode = "pass"
        self.delay_s = 0.5
        self.requests: list[tuple[float, str]] = []
        """When requests came, s on the monotonic clock, and the mode then."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = self._wait_for(asyncio.start_server(self._serve, "127.0.0.1"))
        self.uri = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        self._wait_for(self._hang_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT_S)
        self._loop.close()

    async def _hang_up(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _wait_for(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while await self._pass_one(reader, writer):
                pass
        except (OSError, EOFError, ValueError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _pass_one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        request = await _message(reader)
        mode = self.mode
        self.requests.append((time.monotonic(), mode))
        if mode == "silent":
            await asyncio.sleep(3600)
        if mode.isdigit():
            writer.write(
                f"HTTP/1.1 {mode} Bad\r\nContent-Length: 2\r\n\r\n{{}}".encode()
            )
            await writer.drain()
            return True
        behind, onto = await asyncio.open_connection(*self._behind)
        try:
            onto.write(request)
            reply = await _message(behind)
        finally:
            onto.close()
        if mode == "slow":
            await asyncio.sleep(self.delay_s)
        if mode == "reset":
            socket = writer.get_extra_info("socket")
            socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            return False
        writer.write(reply[: len(reply) // 2] if mode == "truncate" else reply)
        await writer.drain()
        return mode != "truncate"


async def _message(reader: asyncio.StreamReader) -> bytes:
    """Read a request or a reply, whole."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    fields = {
        line.split(b":")[0].lower(): line.split(b":", 1)[1].strip()
        for line in lines[1:]
        if b":" in line
    }
    body = b""
    if b"content-length" in fields:
        body = await reader.readexactly(int(fields[b"content-length"]))
    elif fields.get(b"transfer-encoding") == b"chunked":
        while (size := int(await reader.readline(), 16)) or not await reader.readline():
            body += (await reader.readexactly(size + 2))[:-2] if size else b""
            if not size:
                break
        kept = [k for k in lines if not k.lower().startswith(b"transfer-encoding")]
        kept.insert(1, b"Content-Length: %d" % len(body))
        head = b"\r\n".join(kept)
    return head + body
