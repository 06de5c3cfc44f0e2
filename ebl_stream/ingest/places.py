"""Where the images of events are, and which of them are read together."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ebl_stream.errors import InputError
from ebl_stream.ingest.stored import BLOCK_BYTES, StoredImages


class Place(NamedTuple):
    """Where the images of one event are in a file."""

    images: StoredImages
    event: int
    """As the file counts."""


@dataclass(slots=True)
class _Stretch:
    """Events that lie one after the other in a file."""

    start: int
    stop: int
    images: StoredImages
    index: int
    """Of its first event."""

    def cut(self, start: int, stop: int) -> _Stretch:
        return _Stretch(start, stop, self.images, self.index + start - self.start)


class Places:
    """The places of events, by number, as stretches: what is in order costs nothing."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stretches: list[_Stretch] = []

    def __iter__(self) -> Iterator[int]:
        """Yield the events that have a place."""
        for one in self._stretches:
            yield from range(one.start, one.stop)

    def __contains__(self, seq: int) -> bool:
        return self._find(seq) is not None

    def get(self, seq: int) -> Place | None:
        """Return the place of an event; None: it has none."""
        found = self._find(seq)
        if found is None:
            return None
        return Place(found.images, found.index + seq - found.start)

    def put(self, start: int, stop: int, images: StoredImages, index: int) -> None:
        """Note where events are; where they were is forgotten."""
        self.remove(start, stop)
        new = _Stretch(start, stop, images, index)
        at = bisect_left(self._starts, start)
        before = self._stretches[at - 1] if at else None
        if (
            before is not None
            and before.stop == start
            and before.cut(start, stop) == new
        ):
            before.stop = stop
            return
        self._starts.insert(at, start)
        self._stretches.insert(at, new)

    def remove(self, start: int, stop: int) -> None:
        """Forget where events are."""
        low = max(0, bisect_right(self._starts, start) - 1)
        high = bisect_left(self._starts, stop)
        kept: list[_Stretch] = []
        for one in self._stretches[low:high]:
            if one.start < min(start, one.stop):
                kept.append(one.cut(one.start, min(start, one.stop)))
            if max(stop, one.start) < one.stop:
                kept.append(one.cut(max(stop, one.start), one.stop))
        self._stretches[low:high] = kept
        self._starts[low:high] = [one.start for one in kept]

    def _find(self, seq: int) -> _Stretch | None:
        at = bisect_right(self._starts, seq) - 1
        if at < 0 or seq >= self._stretches[at].stop:
            return None
        return self._stretches[at]


def check_rows(rows: tuple[int, int], height: int) -> None:
    """Refuse a range of rows that the frames do not have.

    Raises
    ------
    InputError
        It reaches beyond the frame.
    """
    if not 0 <= rows[0] < rows[1] <= height:
        raise InputError(
            f"rows {rows[0]}:{rows[1]} are not in the frames, which have {height} rows"
        )


def blocks(events: Iterable[tuple[int, Place]]) -> Iterator[list[tuple[int, Place]]]:
    """Group events that lie one after the other in a file, up to a block's bytes."""
    block: list[tuple[int, Place]] = []
    for event in events:
        place = event[1]
        if block and not _follows(block, place):
            yield block
            block = []
        block.append(event)
    if block:
        yield block


def _follows(block: list[tuple[int, Place]], place: Place) -> bool:
    last = block[-1][1]
    if place.images is not last.images:
        return False
    fits = (len(block) + 1) * place.images.event_bytes <= BLOCK_BYTES
    return fits and place.event == last.event + 1
