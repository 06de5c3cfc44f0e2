"""Sets of integers that are mostly contiguous: frame indices, event numbers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TypeAlias

Range: TypeAlias = tuple[int, int]
"""Half-open: ``(start, stop)``."""


class RangeSet:
    """A set of integers kept as sorted, disjoint half-open ranges.

    Its size in memory follows the number of gaps, never the values: a range as
    large as a lying document likes costs nothing.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Range]:
        return zip(self._starts, self._stops, strict=True)

    def __contains__(self, value: int) -> bool:
        i = bisect_right(self._starts, value) - 1
        return i >= 0 and value < self._stops[i]

    def add(self, start: int, stop: int) -> tuple[list[Range], list[Range]]:
        """Add a range.

        Returns
        -------
        new, known : list of (start, stop)
            What of the range was not in the set before, and what was.
        """
        low = bisect_left(self._stops, start)
        high = bisect_right(self._starts, stop)
        touched = list(zip(self._starts[low:high], self._stops[low:high], strict=True))
        new, known, at = [], [], start
        for first, last in touched:
            if first > at:
                new.append((at, first))
            if max(first, start) < min(last, stop):
                known.append((max(first, start), min(last, stop)))
            at = max(at, last)
        if at < stop:
            new.append((at, stop))
        if touched:
            start, stop = min(start, touched[0][0]), max(stop, touched[-1][1])
        self._starts[low:high] = [start]
        self._stops[low:high] = [stop]
        self._count += sum(last - first for first, last in new)
        return new, known

    def discard(self, value: int) -> None:
        """Take a value out, if it is in."""
        i = bisect_right(self._starts, value) - 1
        if i < 0 or value >= self._stops[i]:
            return
        rest = ((self._starts[i], value), (value + 1, self._stops[i]))
        kept = [(start, stop) for start, stop in rest if start < stop]
        self._starts[i : i + 1] = [start for start, _ in kept]
        self._stops[i : i + 1] = [stop for _, stop in kept]
        self._count -= 1
