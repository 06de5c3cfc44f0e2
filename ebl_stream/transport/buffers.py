"""Memory for images on their way out, used again."""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import NDArray

MAX_FREE_BYTES = 64 * 2**20
"""As much as a backlog keeps in memory: after its first fill nothing is new."""
N_SPARE = 4
STEP_BYTES = 2**16
"""Sizes are rounded up to it: documents of one scan differ by a few bytes."""


class Buffers:
    """Hand out memory, and hand it out again when nobody refers to it any more.

    New memory costs a page fault every few kilobytes, for which the RunEngine's
    thread would have to wait. What is handed out comes back by itself when the last
    reference to it goes, also one that 0MQ holds while it sends.

    Parameters
    ----------
    max_free_bytes : int
        Kept for later; more is given back to the system.
    """

    def __init__(self, max_free_bytes: int = MAX_FREE_BYTES) -> None:
        self._max_free_bytes = max_free_bytes
        # References go in any thread, at any time, so that a lock could be held by
        # the very thread that comes for it: only single steps on a list.
        self._free: list[NDArray[np.uint8]] = []
        self._size = 0  # of the latest

    def take(self, n_bytes: int) -> NDArray[np.uint8]:
        """Return an array of so many bytes, with any content."""
        self._size = size = -(-n_bytes // STEP_BYTES) * STEP_BYTES
        buffer = self._pop(size)
        if buffer is None:
            buffer = np.empty(size, np.uint8)
        part = buffer[:n_bytes]
        weakref.finalize(part, self._give_back, buffer).atexit = False
        return part

    def stock_up(self) -> None:
        """Have memory ready before it is asked for; not in the RunEngine's thread."""
        if self._size and len(self._free) < N_SPARE:
            buffer = np.empty(self._size, np.uint8)
            buffer.fill(0)  # its page faults come here and now
            self._give_back(buffer)

    @property
    def free_bytes(self) -> int:
        """Bytes kept for later."""
        return sum(buffer.nbytes for buffer in list(self._free))

    def _pop(self, size: int) -> NDArray[np.uint8] | None:
        for _ in range(len(self._free)):
            try:
                buffer = self._free.pop()
            except IndexError:
                return None
            if buffer.nbytes == size:
                return buffer
        return None  # images of another size now

    def _give_back(self, buffer: NDArray[np.uint8]) -> None:
        if self.free_bytes + buffer.nbytes <= self._max_free_bytes:
            self._free.append(buffer)
