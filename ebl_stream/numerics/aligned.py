"""Arrays on boundaries that vector instructions and large pages want."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LARGE_PAGE = 1 << 21
PRIVATE = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    if hasattr(mmap, "MAP_PRIVATE")
    else {}
)
LINE = 64
"""Bytes of a cache line, and of the widest vector."""


def aligned_empty(shape: Sequence[int]) -> NDArray[np.float32]:
    """Return a float32 array whose data begins on a 64-byte boundary.

    A large one lies on large pages where the system has them: with small pages, a
    spoke across the grid needs more of them than the processor remembers.
    """
    n_bytes = 4 * math.prod(shape)
    large = n_bytes >= 2 * LARGE_PAGE
    boundary = LARGE_PAGE if large else LINE
    if large:
        # Private: memory that might be shared gets no large pages.
        memory = mmap.mmap(-1, n_bytes + boundary, **PRIVATE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a system without them
                memory.madvise(mmap.MADV_HUGEPAGE)
        raw = np.frombuffer(memory, np.uint8)
    else:
        raw = np.empty(n_bytes + boundary, np.uint8)
    start = -raw.ctypes.data % boundary
    return raw[start : start + n_bytes].view(np.float32).reshape(shape)


def aligned_zeros(shape: Sequence[int]) -> NDArray[np.float32]:
    """Return `aligned_empty` set to zero, so that its memory is really there."""
    array = aligned_empty(shape)
    array.fill(0)
    return array
