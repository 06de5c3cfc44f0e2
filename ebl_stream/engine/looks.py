"""When a run is looked at, and how: previews, versions, the last look."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ebl_stream.engine.final import FinalPass
from ebl_stream.engine.grids import Lens
from ebl_stream.engine.memory import MemoryPlan
from ebl_stream.engine.projections import ProjectionSum
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.rotation_center import CenterFinder, OnGrid
from ebl_stream.engine.schedule import Budget, Points, SlabOrder
from ebl_stream.engine.viewer import Wishes, read_wishes
from ebl_stream.engine.views import Look, Make, Views
from ebl_stream.numerics.truncation import JUDGED_VIEWS, truncation
from ebl_stream.numerics.windows import Window
from ebl_stream.profile import Profile

READ_PER_S = 4e9
"""Bytes of grids that a preview goes through in a second, about."""

log = logging.getLogger(__name__)


class Facts(NamedTuple):
    """What the run knows of itself at a look."""

    promised: int | None
    """Projections."""
    coverage: float
    """Projections in the grids over projections that the run owes, 0..1."""
    received: tuple[float | None, float | None]
    """When the first and the last projection came, s on the monotonic clock."""
    provenance: dict[str, Any]


class Looks:
    """Look at the projections of one run.

    Parameters
    ----------
    profile : Profile
    rooms : Rooms
    views : Views
        Who makes and publishes what is seen.
    center : CenterFinder
    projections : ProjectionSum
    memory : MemoryPlan
    is_behind : callable, optional
        Whether documents wait, see `Budget`; None in a replay.
    facts : callable
        Called at each look.
    """

    def __init__(
        self,
        profile: Profile,
        rooms: Rooms,
        views: Views,
        center: CenterFinder,
        projections: ProjectionSum,
        memory: MemoryPlan,
        is_behind: Callable[[], bool] | None,
        facts: Callable[[], Facts],
    ) -> None:
        self._rooms = rooms
        self._views = views
        self._center = center
        self._projections = projections
        self._memory = memory
        self._facts = facts
        ranges = projections.grids.ranges
        self._is_live = is_behind is not None
        self._budget = Budget(is_behind)
        self._order = SlabOrder(ranges, profile.refresh.first_rows, self._budget)
        if memory.rung <= 2:
            views.make_room(projections.grids)
        else:
            views.drop_room()
        self.truncated: str | None = None
        """Why the object is known to leave the field of view."""
        self._versions = Points(profile.refresh.every)
        self._previews = Points(profile.preview.every)
        promised = facts().promised
        self._versions.begin(promised)
        self._previews.begin(promised)

    @property
    def n_skipped(self) -> int:
        """Refreshes of a slab that were left out because frames waited."""
        return self._order.n_skipped

    def due(self, n: int) -> bool:
        """Whether a look is due at ``n`` projections."""
        return self._versions.reached(n) or self._previews.reached(n)

    def hurries(self, n: int) -> bool:
        """Whether it is due before a block is full."""
        points = (self._versions, self._previews)
        return any(each.reached(n) and each.is_fine for each in points)

    def __call__(self) -> None:
        """Make the look that is due; the grids are settled."""
        n = len(self._projections.window)
        is_version = self._versions.reached(n)
        self._budget.begin()
        self._watch_edges()
        self._keep_center()
        facts = self._facts()
        self._previews.passed(n, facts.promised)
        if is_version:
            self._versions.passed(n, facts.promised)
        wishes = read_wishes(self._views.output.folder)
        # A replay that nobody looks at has its versions, and nothing in between.
        is_seen = self._is_live or wishes != Wishes()
        if is_seen and self._budget.allows(self._projections.grids.nbytes / READ_PER_S):
            self._preview(wishes, facts)
        if is_version:
            self._publish(wishes, facts, final=False)
        self._budget.end()

    def _watch_edges(self, *, final: bool = False) -> None:
        """Say so when the object leaves the field, and reconstruct accordingly.

        The last look decides, whatever the earlier ones have seen.
        """
        grids = self._projections.grids
        if grids.field.offset or (self.truncated and not final):
            return
        verdict = truncation(self._projections.sample_rows(JUDGED_VIEWS))
        before = self.truncated
        self.truncated = verdict.reason if verdict.truncated else None
        if verdict.truncated and not before:
            log.warning("%s; padded with what the edges see", verdict.reason)
        if grids.pad("edge" if verdict.truncated else "zero"):
            self._rebuild()

    def follow_center(self) -> None:
        """Measure the center, as soon and as often as that may bring news."""
        self._budget.start()
        if self._center.wants(self._projections.center_theta):
            self._find_center(preview=True)

    def _find_center(self, *, preview: bool) -> None:
        """Ask the finder."""
        values, theta = self._projections.center_rows()
        if self._center.find(values, theta, preview=preview):
            self._keep_center()

    def _on_grid(self) -> OnGrid | None:
        """Return what makes up for a center that the grids do not turn about."""
        projections = self._projections
        turns_about = projections.grids.rotation_center
        return self._center.shift_for(turns_about, projections.window.theta)

    def _keep_center(self) -> None:
        """Build the grids anew where a look cannot make up for the center any more."""
        if self._on_grid() is None:
            self._rebuild()

    def last(self) -> None:
        """Make the final volume, pass by pass; the grids are settled."""
        self._watch_edges(final=True)
        self._keep_center()
        if self._center.may_be_measured:
            self._find_center(preview=False)
        self._finish()
        self._preview(Wishes(), self._facts(), final=True)
        for slabs in self._memory.passes[1:]:
            self._projections.hold(range(*slabs))
            self._projections.settle()
            self._views.begin_pass()
            self._finish()

    def _finish(self) -> None:
        """Publish the slabs that are held: at once, and then as good as it gets."""
        projections, rooms = self._projections, self._rooms
        moved = self._center.position != projections.grids.rotation_center
        is_last = not (moved or rooms.final or rooms.backend)
        facts = self._facts()
        self._publish(self._rows_wished(), facts, final=True, judge=is_last)
        if is_last:
            return
        if moved:
            self._rebuild()
        if not (rooms.final or rooms.backend):
            self._publish(self._rows_wished(), self._facts(), final=True)
            return
        projections.balance_halves()
        facts = self._facts()
        better = FinalPass(projections, rooms, rings=self._rings_count(facts.coverage))
        better.refill_grids()
        make = better.volume if rooms.backend else None
        rings = not rooms.final
        self._publish(self._rows_wished(), facts, final=True, rings=rings, make=make)

    def _rows_wished(self) -> Wishes:
        """Return which slabs of the final volume come first: nothing else is asked."""
        return Wishes(rows=read_wishes(self._views.output.folder).rows)

    def _rebuild(self) -> None:
        """Fill the grids again, from the window, about the center that is known now."""
        begun = time.monotonic()
        self._projections.reset(self._center.position)
        self._projections.settle()
        self._views.latency["center_rebuild"] = time.monotonic() - begun

    def _preview(self, wishes: Wishes, facts: Facts, *, final: bool = False) -> None:
        lens = self._lens(wishes.window, rings=False)
        look = self._look(lens, facts.coverage, final=final)
        self._views.preview(self._projections, look, wishes, facts.provenance)

    def _publish(
        self,
        wishes: Wishes,
        facts: Facts,
        *,
        final: bool,
        judge: bool = True,
        rings: bool = True,
        make: Make | None = None,
    ) -> None:
        projections = self._projections
        rings = rings and self._rings_count(facts.coverage)
        lens = self._lens(wishes.window, rings=rings)
        n, held = len(projections.window), projections.grids.held
        watched = tuple(k for k in held if self._order.is_first(k, wishes.rows))
        how = {"final": final, "judge": judge, "make": make, "watched": watched}
        self._views.publish(
            projections,
            self._order(n, held, wishes.rows, final=final),
            self._look(lens, facts.coverage, **how),
            received=facts.received,
            provenance=facts.provenance,
        )

    def _rings_count(self, coverage: float) -> bool:
        """Whether rings can be told from the sample by now."""
        stage = self._rooms.rings
        return stage is not None and coverage >= stage.min_coverage

    def _look(self, lens: Lens, coverage: float, **how: Any) -> Look:
        return Look(
            lens=lens,
            coverage=coverage,
            interpret=self._memory.interpret,
            **how,
        )

    def _lens(self, window: Window | None, *, rings: bool) -> Lens:
        """Return how to look: what the grids do not hold yet is made up for here."""
        projections = self._projections
        on_grid = self._on_grid()
        assert on_grid is not None  # noqa: S101  (the center is kept before a look)
        return Lens(
            window=window or self._rooms.reconstruct.window,
            rings=projections.rings() if rings else None,
            shift=on_grid.shift,
            first_theta=on_grid.first_theta,
        )
