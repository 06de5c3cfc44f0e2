"""Images that came inside their events, before what is needed to use them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from ebl_stream.ingest.ranges import RangeSet


class WaitingImages:
    """Images by event number, the oldest first, within a budget.

    Parameters
    ----------
    max_bytes : int
        Beyond it the oldest go; those of one event are kept whatever their size.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._images: dict[int, NDArray[Any]] = {}
        self._lost = RangeSet()
        self.n_bytes = 0
        """Of what waits."""

    def __contains__(self, seq: int) -> bool:
        return seq in self._images

    def __iter__(self) -> Iterator[int]:
        """Yield the events whose images wait."""
        return iter(self._images)

    def put(self, seq: int, images: NDArray[Any]) -> list[int]:
        """Keep the images of an event; return the events that had to go for it."""
        self.pop(seq)
        self._lost.discard(seq)
        self._images[seq] = images
        self.n_bytes += images.nbytes
        gone = []
        while self.n_bytes > self._max_bytes and len(self._images) > 1:
            oldest = next(iter(self._images))
            self.pop(oldest)
            self._lost.add(oldest, oldest + 1)
            gone.append(oldest)
        return gone

    def pop(self, seq: int) -> NDArray[Any] | None:
        """Take out the images of an event; None: there are none."""
        images = self._images.pop(seq, None)
        if images is not None:
            self.n_bytes -= images.nbytes
        return images

    def has_lost(self, seq: int) -> bool:
        """Return whether an event's images had to go."""
        return seq in self._lost
