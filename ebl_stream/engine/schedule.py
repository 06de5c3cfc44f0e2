"""When slabs are looked at, and which first: ingest always goes before.

Everything that can change a number is counted in projections. Time decides only
whether a live preview is left out; the slabs that missed one say so by their stamp.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence

from ebl_stream.errors import InputError

BLOCK = 32
"""Projections that go through the rooms together."""

SHARE = 0.25
"""Looks may take so much of the time that ingest took, while frames wait."""

GROWTH = 2.0
"""Without a promise, a look follows when coverage has grown by so many ``every``."""


class Points:
    """Points of a scan that recur with coverage.

    Parameters
    ----------
    every : float
        Share of the promised projections between two points; 0 has none.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._next = 0
        self._step = 0

    def begin(self, promised: int | None) -> None:
        """Set the first point."""
        self._next = self._after(0, promised)

    def reached(self, n: int) -> bool:
        """Whether ``n`` projections have reached the next point."""
        return n >= self._next

    @property
    def is_fine(self) -> bool:
        """Whether the points lie closer than blocks, which then wait for none."""
        return self._step < BLOCK

    def passed(self, n: int, promised: int | None) -> None:
        """Set the point after ``n`` projections."""
        self._next = self._after(n, promised)

    def _after(self, n: int, promised: int | None) -> int:
        if not self._every:
            return sys.maxsize
        if not promised:
            self._step = BLOCK
            return max(n + BLOCK, round(n * (1 + GROWTH * self._every)))
        self._step = step = max(1, round(self._every * promised))
        point = (n // step + 1) * step
        # The last look is made when the run closes, with everything it needs.
        return point if point + step / 2 <= promised else sys.maxsize


class Budget:
    """How long looks may take while frames wait: ingest always goes first.

    Parameters
    ----------
    is_behind : callable, optional
        Whether frames wait to be taken in; None: nobody waits (replay).
    """

    def __init__(self, is_behind: Callable[[], bool] | None) -> None:
        self._is_behind = is_behind
        self._ended: float | None = None
        self._began = 0.0
        self._left_s = 0.0

    def start(self) -> None:
        """Begin to count, with the first projections; once."""
        if self._ended is None:
            self._ended = time.monotonic()

    def begin(self) -> None:
        """Begin a look."""
        self.start()
        self._began = time.monotonic()
        self._left_s += SHARE * (self._began - (self._ended or self._began))

    def end(self) -> None:
        """End a look; what it took too long, the next ones do not have."""
        self._ended = time.monotonic()
        self._left_s = min(self._left_s - (self._ended - self._began), 0.0)

    @property
    def is_spent(self) -> bool:
        """Whether frames wait, and it is their turn."""
        return not self.allows(0.0)

    def allows(self, seconds: float) -> bool:
        """Whether nobody waits, or something that takes so long may be begun."""
        if self._is_behind is None:
            return True
        took = time.monotonic() - self._began
        return took + seconds < self._left_s or not self._is_behind()


class SlabOrder:
    """Which slabs are refreshed, in which order, and until when.

    Parameters
    ----------
    slabs : sequence of (int, int)
        Half-open ranges of rows.
    first_rows : (int, int), optional
        Region of interest of the profile: goes first.
    budget : Budget

    Raises
    ------
    InputError
        The region of interest lies outside of the detector.
    """

    def __init__(
        self,
        slabs: Sequence[tuple[int, int]],
        first_rows: tuple[int, int] | None,
        budget: Budget,
    ) -> None:
        n_rows = slabs[-1][1]
        if first_rows is not None and not 0 <= first_rows[0] < n_rows:
            raise InputError(
                f"refresh.first_rows {list(first_rows)}: the projections have rows "
                f"0 to {n_rows - 1}"
            )
        self._slabs = slabs
        self._first_rows = first_rows
        self._budget = budget
        self._seen_at = [0] * len(slabs)
        self.n_skipped = 0
        """Refreshes of a slab that were left out because frames waited."""

    def __call__(
        self,
        n: int,
        held: range,
        watched: tuple[int, int] | None = None,
        *,
        final: bool = False,
    ) -> Iterator[int]:
        """Iterate over the slabs to refresh at ``n`` projections.

        Watched slabs come first and are never left out; then the region of interest,
        then those that were seen longest ago, while the budget lasts.

        Parameters
        ----------
        n : int
            Projections in the grids.
        held : range
            Slabs that are in memory.
        watched : (int, int), optional
            Rows that a viewer looks at.
        final : bool
            Leave nothing out.
        """

        def key(k: int) -> tuple[bool, bool, int, int]:
            first = self._overlaps(k, self._first_rows)
            return (not self._overlaps(k, watched), not first, self._seen_at[k], k)

        for k in sorted(held, key=key):
            must = final or self._overlaps(k, watched)
            if not must and self._budget.is_spent:
                self.n_skipped += 1
                continue
            self._seen_at[k] = n
            yield k

    def is_first(self, k: int, watched: tuple[int, int] | None) -> bool:
        """Whether a slab is watched, or in the region of interest."""
        return self._overlaps(k, watched) or self._overlaps(k, self._first_rows)

    def _overlaps(self, k: int, rows: tuple[int, int] | None) -> bool:
        z0, z1 = self._slabs[k]
        return rows is not None and rows[0] < z1 and z0 < rows[1]


class Timings:
    """Seconds that each stage took for each slab, the last time and in all."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, int], list[float]] = {}

    def note(self, stage: str, slab: int, seconds: float) -> None:
        """Note one turn of a stage; different slabs may be noted side by side."""
        entry = self._of.setdefault((stage, slab), [0.0, 0.0, 0.0])
        entry[0] = seconds
        entry[1] += seconds
        entry[2] += 1

    def as_dict(self) -> dict[str, dict[str, list[float]]]:
        """Return ``{stage: {last_s, total_s, turns}}``, lists by slab."""
        stages = sorted({stage for stage, _ in self._of})
        return {stage: self._stage(stage) for stage in stages}

    def _stage(self, stage: str) -> dict[str, list[float]]:
        slabs = 1 + max(slab for name, slab in self._of if name == stage)
        entries = [self._of.get((stage, k), [0.0, 0.0, 0]) for k in range(slabs)]
        names = ("last_s", "total_s", "turns")
        return {
            name: [round(entry[i], 6) for entry in entries]
            for i, name in enumerate(names)
        }
