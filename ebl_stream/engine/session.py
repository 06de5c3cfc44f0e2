"""One run, from its first frame to its last look.

No threads, no documents: the assembler hands in items, the output takes slabs.
Whatever can change a number is counted in projections, never in seconds, so that a
replay repeats the live run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ebl_stream import audit, failpoints
from ebl_stream.engine.field import Field
from ebl_stream.engine.fitness import Fitness
from ebl_stream.engine.grids import Grids, MakeAccumulator
from ebl_stream.engine.ledger import Ledgers
from ebl_stream.engine.looks import Facts, Looks
from ebl_stream.engine.memory import (
    MemoryPlan,
    free_memory,
    n_threads,
    plan_memory,
)
from ebl_stream.engine.projections import ProjectionSum, center_bytes
from ebl_stream.engine.references import ReferenceFrames
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.rotation_center import CenterFinder
from ebl_stream.engine.schedule import BLOCK
from ebl_stream.engine.views import Views
from ebl_stream.engine.window import Window
from ebl_stream.errors import InputError
from ebl_stream.frames import (
    Closed,
    Frame,
    Image,
    Item,
    Kind,
    Scan,
)
from ebl_stream.numerics.fourier_plan import FEWEST_COLUMNS
from ebl_stream.profile import Profile
from ebl_stream.publish.output import RunOutput
from ebl_stream.result import Progress, Result
from ebl_stream.stages import References

log = logging.getLogger(__name__)

ASSUME_AIR_AFTER = 0.1
"""Share of the promised projections that wait for flats before air is assumed."""


class Session:
    """Turn the frames of one run into versions of its volume.

    Parameters
    ----------
    scan : Scan
    profile : Profile
    rooms : Rooms
        The profile's stages.
    output : RunOutput
        Where slabs go; nothing is created before the first version.
    previous_center : float, optional
        px; what the last scan of this profile found.
    is_behind : callable, optional
        Whether documents wait; then slabs are left out of previews that would take
        more than half of the time. None (replay): nothing is left out.
    accumulators : callable, optional
        What stands in for the class `Accumulator`: another device's.
    on_progress : callable, optional
        Called with a `Progress` after every block and version.
    """

    def __init__(
        self,
        scan: Scan,
        profile: Profile,
        rooms: Rooms,
        output: RunOutput,
        *,
        previous_center: float | None = None,
        is_behind: Callable[[], bool] | None = None,
        accumulators: MakeAccumulator | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.scan = scan
        self.center = CenterFinder(scan, profile, rooms.center, previous_center)
        self._profile = profile
        self._rooms = rooms
        self._references = ReferenceFrames()
        self._fitness = Fitness()
        keyed = profile.keys.image_key is not None
        self._ledgers = Ledgers(shared_index=keyed, run_uid=scan.run_uid)
        self._ledgers[Kind.PROJECTION].promise(scan.n_projections)
        self._window = Window(profile.window.max_bytes)
        audit.begin(self._window, scan.run_uid, output.processed_uid)
        self._sum: ProjectionSum | None = None
        self._views = Views(scan, profile, rooms, output, is_behind)
        self._is_behind = is_behind
        self._accumulators = accumulators
        self._looks: Looks | None = None
        self._memory: MemoryPlan | None = None
        self._unseen: str | None = None
        self._since_settle = 0
        self._next_index = 0
        self._first: float | None = None
        self._last: float | None = None
        self._begun = time.monotonic()
        self._on_progress = on_progress

    # ------------------------------------------------------------------ items in

    def take(self, item: Item) -> Result | None:
        """Take one item; the last one, `Closed`, gives the result.

        Raises
        ------
        InputError
            The run cannot be reconstructed (flats of another shape, no usable
            projection, ...).
        """
        match item:
            case Frame():
                self._frame(item)
            case Closed():
                return self._close(item)
            case _:
                self._ledgers.note(item)
        return None

    def _frame(self, frame: Frame) -> None:
        if frame.kind in (Kind.FLAT, Kind.DARK):
            self._reference(frame)
            return
        self._last = time.monotonic()
        self._first = self._first or self._last
        reason = self._fitness.of_projection(frame, self._references.shape)
        known = self._sum.image_shape if self._sum is not None else None
        if self._fitness.shape not in (None, known):
            self._begin(frame.image)
        if reason is not None:
            self._ledgers[frame.kind].reject(frame.index, reason)
            return
        self._ledgers[Kind.PROJECTION].accept(frame.index)
        self._projection(frame)

    def _reference(self, frame: Frame) -> None:
        reason = self._fitness.of_reference(frame)
        if reason is not None:
            self._ledgers[frame.kind].reject(frame.index, reason)
            return
        at = self._next_index
        self._references.add(frame.kind, frame.index, frame.image, at, frame.ref)
        if self._sum is None:
            # Before the first projection: memory is made ready meanwhile.
            self._begin(frame.image)

    def _projection(self, frame: Frame) -> None:
        projections = self._projections()
        projections.put(frame)
        self._next_index = max(self._next_index, frame.index + 1)
        self._since_settle += 1
        n = len(self._window)
        assert self._looks is not None  # noqa: S101  (made with the sum)
        is_full = self._since_settle >= BLOCK or self._looks.hurries(n)
        if not is_full or not self._ready(n):
            return
        if self._is_behind is not None and not self.is_ready:
            return  # live: frames gather in the window while memory is made ready
        projections.settle()
        failpoints.hit("settled")
        self._since_settle = 0
        self._looks.follow_center()
        if self._looks.due(n):
            self._looks()
            failpoints.hit("looked")
        self._tell("running")

    # --------------------------------------------------------------- the grids

    def _projections(self) -> ProjectionSum:
        assert self._sum is not None  # noqa: S101  (the first frame began it)
        return self._sum

    @property
    def is_ready(self) -> bool:
        """Whether the memory is there that projections will need."""
        return (
            self._sum is not None and self._sum.grids.is_ready and self._views.is_ready
        )

    def _begin(self, image: Image) -> None:
        """Make what the run needs, now that the shape of its frames is known."""
        if self._sum is not None:
            self._sum.grids.close()
        refresh, shape = self._profile.refresh, (image.shape[0], image.shape[1])
        if shape[1] < FEWEST_COLUMNS:
            raise InputError(
                f"projections of {shape[1]} columns cannot be reconstructed: "
                f"{FEWEST_COLUMNS} or more"
            )
        self.center.begin(shape[1])
        field = self._field(shape[1])
        self._memory = self._plan_memory(image, (shape[0], field.n_columns))
        grids = Grids(
            self._rooms.reconstruct,
            shape[0],
            field,
            refresh.slab_rows,
            self.center.position,
            self._memory,
            self._accumulators,
        )
        self._sum = ProjectionSum(self._rooms, self._window, grids, shape)
        self._looks = Looks(
            self._profile,
            self._rooms,
            self._views,
            self.center,
            self._sum,
            self._memory,
            self._is_behind,
            self._facts,
        )

    def _field(self, n_columns: int) -> Field:
        offset = self._profile.geometry.offset_detector
        stated = not self.center.may_be_measured
        known = self.center.position if stated or not offset else None
        return Field(n_columns, known, offset=offset)

    def _plan_memory(self, image: Image, shape: tuple[int, int]) -> MemoryPlan:
        promised = self._ledgers[Kind.PROJECTION].n_promised
        stack = promised * image.nbytes
        feed, ring = self._profile.feed, self._profile.window.max_bytes
        waiting = feed.max_bytes if feed.address else 0
        waiting += promised * center_bytes(image.shape[1])
        plan = plan_memory(
            shape,
            self._profile.refresh.slab_rows,
            oversampling=self._rooms.reconstruct.oversampling,
            interpret=bool(self._rooms.denoise or self._rooms.segment),
            learns=self._rooms.learns,
            ring_bytes=waiting + (min(ring, stack) if promised else ring),
            free=free_memory(),
            threads=n_threads(),
        )
        if plan.rung > 1:
            log.warning("run %s: memory is short: %s", self.scan.run_uid, plan.words)
        return plan

    def _ready(self, n: int) -> bool:
        """Whether flats are known, or air has been assumed in their place."""
        projections = self._projections()
        if projections.references is not None or not self._rooms.needs_references:
            return True
        projections.references = self._references.measured(projections.image_shape)
        if projections.references is None:
            promised = self._ledgers[Kind.PROJECTION].n_promised
            if n < max(BLOCK, ASSUME_AIR_AFTER * promised):
                return False
            self._assume_air()
        return True

    def _assume_air(self) -> None:
        projections = self._projections()
        projections.references = self._air()
        log.warning(
            "run %s: no flats; air level %.4g assumed from the projections",
            self.scan.run_uid,
            projections.references.flat[0, 0],
        )

    def _air(self) -> References:
        """Return what stands in for flats: the same, in whatever order frames came."""
        places = self._window.in_order().tolist()
        some = places[:: -(-len(places) // BLOCK)]
        return self._references.assumed([self._window.image(k) for k in some])

    def _facts(self) -> Facts:
        return Facts(
            self._ledgers[Kind.PROJECTION].n_promised,
            self._coverage(),
            (self._first, self._last),
            self._provenance(),
        )

    def _coverage(self) -> float:
        owed = self._ledgers[Kind.PROJECTION].n_owed
        return len(self._window) / owed if owed else 0.0

    # ------------------------------------------------------------------ the end

    def _close(self, closed: Closed) -> Result:
        ledger = self._ledgers[Kind.PROJECTION]
        ledger.promise(closed.n_announced_by_stop)
        for kind, n in closed.n_references.items():
            self._ledgers[kind].promise(n)
        ledger.n_orphan = closed.n_orphan
        self._ledgers.close()
        if not len(self._window):
            raise InputError(self._nothing_usable())
        self._last_look()
        is_whole = self._is_whole(closed) and not self._unseen
        state = "complete" if is_whole else "partial"
        provenance = self._provenance() | {
            "exit_status": closed.exit_status,
            "reason": closed.reason or self._unseen or "",
            "latency_s": self._views.latency,
            "angles": self._angles(),
            **closed.details,
        }
        if closed.feed is not None:
            provenance["feed"] = closed.feed
        self._views.output.finish(state, provenance)
        self._tell(state)
        return self._result(state, closed.reason or self._unseen or "")

    def _last_look(self) -> None:
        """Make the final volume: late flats, best center, balanced halves."""
        projections = self._projections()
        assert self._looks is not None  # noqa: S101
        needed = self._rooms.needs_references
        shape = projections.image_shape
        best = self._references.measured(shape) if needed else None
        if best is None and needed and projections.references is not None:
            best = self._air()  # now of the whole scan
        if best is not None and not best.same(projections.references):
            projections.reset(self.center.position, best)
        elif not self._ready(len(self._window)):
            self._assume_air()
        projections.settle()
        failpoints.hit("settled")
        self._unseen = projections.grids.field.unseen(self._window.theta)
        if self._unseen:
            log.warning("run %s: %s", self.scan.run_uid, self._unseen)
        self._looks.last()
        failpoints.hit("looked")

    def _is_whole(self, closed: Closed) -> bool:
        """Whether everything that was announced is in the volume."""
        references = self._provenance()["references"]
        reports = [self.ledger(), references["flats"], references["darks"]]
        lost = ("missing", "rejected", "dropped", "in_flight", "residue")
        return closed.exit_status == "success" and not any(
            report[k] for report in reports for k in lost
        )

    def _nothing_usable(self) -> str:
        report = self.ledger()
        reasons = ", ".join(f"{n} {why}" for why, n in report["rejected_by"].items())
        return (
            f"run {self.scan.run_uid}: no projection can be used "
            f"({report['announced']} announced; {reasons or 'none arrived'})"
        )

    # ----------------------------------------------------------- what it says

    def ledger(self) -> dict[str, Any]:
        """Return the projections' ledger as it is now."""
        return self._ledgers[Kind.PROJECTION].report(self._window.used())

    def _provenance(self) -> dict[str, Any]:
        references = self._sum.references if self._sum else None
        used = self._references.used
        return {
            "ledger": self.ledger(),
            "references": {
                "source": references.source if references else None,
                "bad_pixels": int(references.dead.sum()) if references else 0,
                "flats": self._ledgers[Kind.FLAT].report(used[Kind.FLAT]),
                "darks": self._ledgers[Kind.DARK].report(used[Kind.DARK]),
            },
            "rotation_center": self.center.as_dict(),
            "repaired_pixels": self._fitness.n_repaired,
            "memory": self._memory.as_dict() if self._memory else None,
            "truncated": self._looks.truncated if self._looks else None,
            "unseen": self._unseen,
            "slabs_skipped": self._looks.n_skipped if self._looks else 0,
        }

    def _angles(self) -> dict[str, Any]:
        """Return the indices and angles in the volume."""
        places = self._window.in_order()
        return {
            "index": sorted(self._window.indices),
            "theta_rad": self._window.theta[places].tolist(),
            "half": "".join("AB"[half] for half in self._window.half[places]),
        }

    def _tell(self, state: Any) -> None:
        if self._on_progress is not None:
            self._on_progress(self.progress(state))

    def progress(self, state: Any = "running", message: str = "") -> Progress:
        """Return one look at how far the run is."""
        owed = self._ledgers[Kind.PROJECTION].n_owed
        received = len(self._window)
        elapsed = (self._last or 0) - (self._first or 0)
        rate = (received - 1) / elapsed if received > 1 and elapsed > 0 else 0.0
        return self._views.progress(
            run_uid=self.scan.run_uid,
            state=state,
            n_owed=owed,
            n_received=received,
            n_used=len(self._window.used()),
            coverage=self._coverage(),
            rotation_center=self.center.position,
            rotation_center_source=self.center.source,
            rate_hz=rate,
            eta_s=(owed - received) / rate if rate else None,
            ledger=self.ledger(),
            message=message,
        )

    def _result(self, state: Any, message: str) -> Result:
        result = self._views.result(
            self.scan.run_uid, self.center, len(self._window), self.ledger(), state
        )
        wall = time.monotonic() - self._begun
        return replace(result, wall_s=wall, message=message)

    def fail(self, message: str) -> None:
        """Publish that the run failed, and why."""
        self._ledgers.give_up()
        try:
            if self._views.version:
                self._views.output.finish("failed", {"reason": message})
        finally:
            if self._on_progress is not None:
                self._on_progress(self.progress("failed", message))

    def close(self) -> None:
        """Let go of frames, grids and threads."""
        self._window.close()
        self._references.close()
        if self._sum is not None:
            self._sum.grids.close()
        self._views.close()
        # The run's memory goes now, not when Python looks for cycles.
        self._sum = self._looks = None
