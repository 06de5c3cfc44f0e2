"""A queue on its way out: bounded in memory, beyond that in a file of this machine."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ebl_stream.transport.packable import Packed

logger = logging.getLogger(__name__)


class Backlog:
    """Numbered messages that stay until they are released, oldest first.

    One thread appends, another one takes and releases. Appending never waits for
    the taker: what does not fit into memory goes to an unnamed temporary file, and
    everything after it as well, so that the order is kept.

    Parameters
    ----------
    max_bytes : int
        Bound of what is kept in memory.
    folder : Path, optional
        Where the temporary file is made; the system's choice by default.
    """

    def __init__(self, max_bytes: int, folder: Path | None = None) -> None:
        self._max_bytes = max_bytes
        self._folder = folder
        self._lock = threading.Lock()
        self._memory: dict[int, Packed] = {}
        self._memory_bytes = 0
        self._spill: BinaryIO | None = None
        self._spilled: deque[tuple[int, int]] = deque()  # offset, size
        self._spill_end = 0
        self.first = 0
        """Number of the oldest message that is kept."""
        self.end = 0
        """Number that the next message will get."""

    def __len__(self) -> int:
        return self.end - self.first

    @property
    def memory_bytes(self) -> int:
        """Bytes kept in memory."""
        return self._memory_bytes

    @property
    def n_spilled(self) -> int:
        """Messages that lie in the file."""
        return len(self._spilled)

    def append(self, message: Packed) -> None:
        """Append a message; OSError where the file cannot take it (it is not kept)."""
        with self._lock:
            if self._spilled or not self._fits(len(message)):
                self._append_to_spill(message)
            else:
                self._keep(self.end, message)
            self.end += 1

    def refill(self) -> None:
        """Fetch messages from the file as far as memory allows (the taker's thread).

        One that cannot be read comes as no bytes, so that those behind it come.
        """
        while self._spilled and self._fits(self._spilled[0][1]):
            offset, size = self._spilled[0]
            try:
                message: Packed = self._read(offset, size)
            except OSError as error:
                logger.error("a document is lost in the temporary file: %s", error)
                message = b""
            with self._lock:
                self._keep(self.end - len(self._spilled), message)
                self._spilled.popleft()
                if not self._spilled:
                    self._drop_spill()

    def get(self, number: int) -> Packed | None:
        """Return a message that is in memory, None otherwise."""
        return self._memory.get(number)

    def release(self, end: int) -> int:
        """Let go of all messages in memory before ``end``; return how many."""
        with self._lock:
            before = self.first
            while self.first < end and self.first in self._memory:
                self._memory_bytes -= len(self._memory.pop(self.first))
                self.first += 1
            return self.first - before

    def drain(self) -> Iterator[Packed]:
        """Take out every message, oldest first (nobody else uses it any more)."""
        while len(self):
            self.refill()
            message = self._memory[self.first]
            self.release(self.first + 1)
            yield message

    def close(self) -> None:
        """Remove the temporary file."""
        with self._lock:
            self._drop_spill()

    def _fits(self, size: int) -> bool:
        # One message is always allowed, however large.
        return not self._memory or self._memory_bytes + size <= self._max_bytes

    def _keep(self, number: int, message: Packed) -> None:
        self._memory[number] = message
        self._memory_bytes += len(message)

    def _append_to_spill(self, message: Packed) -> None:
        if self._spill is None:
            self._spill = tempfile.TemporaryFile(  # noqa: SIM115  (outlives this)
                prefix="ebl_stream-", dir=self._folder, buffering=0
            )
            self._spill_end = 0
        rest = memoryview(message)
        offset = self._spill_end
        while rest:
            written = os.pwrite(self._spill.fileno(), rest, offset)
            offset, rest = offset + written, rest[written:]
        self._spilled.append((self._spill_end, len(message)))
        self._spill_end = offset

    def _read(self, offset: int, size: int) -> bytes:
        if self._spill is None:
            raise OSError("the spill file is closed")
        parts: list[bytes] = []
        while size:
            part = os.pread(self._spill.fileno(), size, offset)
            if not part:
                raise OSError("the spill file is shorter than what was written")
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _drop_spill(self) -> None:
        if self._spill is not None:
            self._spill.close()
            self._spill = None
