"""What a look says of the sample: quality figures, a denoised slab, phases."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.engine.consistency import UNKNOWN, Consistency
from ebl_stream.engine.grids import DIFFERENCE, Grids, Lens
from ebl_stream.engine.projections import ProjectionSum
from ebl_stream.engine.rooms import Rooms
from ebl_stream.nets.learner import Denoised, Learner, LearningStage
from ebl_stream.numerics.quality import quality_row
from ebl_stream.publish.output import RunOutput
from ebl_stream.stages import describe

MONITORS = 4
"""Slabs whose quality is looked at before the end, at most about."""

JUDGED_SLICES = 8
"""Slices of a slab that its figures are made of, about."""

Volume = NDArray[np.float32]


class Interpreter:
    """Judge, denoise and segment slabs of one run, and publish what comes of it.

    Parameters
    ----------
    rooms : Rooms
    output : RunOutput
    learner : Learner, optional
        Denoises instead of the rooms' stage, and learns from every look.
    """

    def __init__(
        self, rooms: Rooms, output: RunOutput, learner: Learner | None
    ) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        """The newest figures, by slab."""
        self._rooms = rooms
        self._output = output
        self._learner = learner
        self._consistency: Consistency | None = None

    def hold(self) -> Any:
        """Let nobody learn meanwhile."""
        return self._learner.hold() if self._learner else nullcontext()

    def monitors(
        self, grids: Grids, done: Sequence[int], watched: Sequence[int]
    ) -> list[int]:
        """Return the slabs that are looked at more closely before the end."""
        able = [slab for slab in sorted(done) if grids.has_halves(slab)]
        spread = able[:: max(1, -(-len(able) // MONITORS))]
        return [
            *(k for k in watched if k in able),
            *(k for k in spread if k not in watched),
        ]

    def judge(
        self,
        grids: Grids,
        slabs: Sequence[int],
        whole: Volume | None,
        lens: Lens,
        angular_coverage: float,
        stamp: dict[str, Any],
        *,
        is_last: bool,
        learns: bool,
    ) -> None:
        """Find the slabs' quality figures, and let the learner see some of them."""
        if not slabs:
            return
        grids.share(lens, DIFFERENCE)
        shown = self._shown(grids) if learns else []
        excerpts: dict[int, tuple[Volume, Volume]] = {}
        lock = threading.Lock()

        def one(slab: int) -> None:
            z0, z1 = grids.ranges[slab]
            difference = grids.half_difference(slab, lens)
            volume = grids.volume(slab, lens) if whole is None else whole[z0:z1]
            self.rows[slab] = (
                quality_row(
                    slab,
                    z0,
                    z1,
                    _sample(volume),
                    _sample(difference),
                    angular_coverage=angular_coverage,
                    **stamp,
                )
                | self._nothing_denoised()
            )
            if self._learner is not None and slab in shown:
                a, b = self._learner.rows(grids.n_columns, z1 - z0, len(shown))
                with lock:
                    excerpts[slab] = volume[a:b].copy(), difference[a:b].copy()

        for future in [grids.submit(one, slab) for slab in slabs]:
            future.result()
        if self._learner is not None and excerpts:
            seen = [excerpts[slab] for slab in sorted(excerpts)]
            if is_last:
                self._learner.finish(seen)
            else:
                self._learner.learn(seen, stamp["coverage"])

    def _nothing_denoised(self) -> dict[str, Any]:
        """Return the columns of a denoiser that has not worked."""
        return {} if self._rooms.denoise is None else Denoised().as_row() | UNKNOWN

    def _shown(self, grids: Grids) -> list[int]:
        """Return the slabs that are learned from: those in the middle.

        They are the same at every look: what the guard judges by, and an earlier look
        held out, must not be what another one has learned from.
        """
        if self._learner is None:
            return []
        able = self.monitors(grids, range(len(grids.ranges)), ())
        n = min(MONITORS, len(able), self._learner.slabs(grids.n_columns))
        first = (len(able) - n + 1) // 2
        return able[first : first + n]

    def first_denoised(
        self, grids: Grids, slabs: Sequence[int], whole: Volume, stamp: dict[str, Any]
    ) -> bool:
        """Denoise what is watched by what is known already; say whether it was."""
        learner = self._learner
        if learner is None or not slabs:
            return False

        def one(slab: int) -> None:
            volume = whole[slice(*grids.ranges[slab])]
            made = learner.denoise(volume, None)
            assert made.volume is not None  # noqa: S101  (it was asked for)
            self._write("denoised", grids, slab, made.volume, stamp)

        for future in [grids.submit(one, slab) for slab in slabs]:
            future.result()
        return True

    def interpret(
        self,
        projections: ProjectionSum,
        slabs: Sequence[int],
        whole: Volume,
        lens: Lens,
        stamp: dict[str, Any],
        *,
        is_last: bool,
    ) -> dict[str, float]:
        """Denoise and segment slabs; return what the quantify room makes of them."""
        grids = projections.grids
        order = sorted(slabs)  # that in which they lie in the volume
        ends = np.cumsum([grids.ranges[k][1] - grids.ranges[k][0] for k in order])
        seen = clean = whole
        if self._rooms.denoise is not None:
            clean = np.empty((ends[-1], *whole.shape[1:]), np.float32)

            steps = self._correction_steps if is_last else 0
            checks = Consistency(projections, self._rooms, slabs, lens, steps)
            self._consistency = checks
            grids.share(lens, DIFFERENCE)

            def one(slab: int) -> None:
                volume = whole[slice(*grids.ranges[slab])]
                end = ends[order.index(slab)]
                into = clean[end - len(volume) : end]
                self._clean(grids, slab, volume, lens, stamp, checks, into)

            for future in [grids.submit(one, slab) for slab in slabs]:
                future.result()
        if self._rooms.segment is None:
            return {}
        if ends[-1] < len(whole):
            seen = np.concatenate([whole[slice(*grids.ranges[k])] for k in order])
        if self._rooms.denoise is None:
            clean = seen
        return self._segment(grids, order, seen, clean, stamp)

    @property
    def _correction_steps(self) -> int:
        stage = self._rooms.denoise
        return stage.correction_steps if isinstance(stage, LearningStage) else 0

    def _clean(
        self,
        grids: Grids,
        slab: int,
        volume: Volume,
        lens: Lens,
        stamp: dict[str, Any],
        checks: Consistency,
        into: Volume,
    ) -> None:
        """Denoise a slab, publish it, and say how it agrees with the projections."""
        begun = time.perf_counter()
        made = self._denoise(volume, grids.half_difference(slab, lens))
        assert made.volume is not None  # noqa: S101  (it was asked for)
        grids.timings.note("denoise", slab, time.perf_counter() - begun)
        # Only what a net made may hold what was never measured.
        into[:] = checks.correct(slab, made.volume) if made.weights else made.volume
        self._write("denoised", grids, slab, into, stamp)
        if made.map is not None:
            self._write("uncertainty", grids, slab, made.map, stamp)
        begun = time.perf_counter()
        self.rows[slab] |= made.as_row() | checks.as_row(slab, volume, into)
        grids.timings.note("consistency", slab, time.perf_counter() - begun)

    def _denoise(self, volume: Volume, difference: Volume) -> Denoised:
        if self._learner is not None:
            return self._learner.denoise(volume, difference)
        stage = self._rooms.denoise
        assert stage is not None  # noqa: S101  (whoever calls has looked)
        assert not isinstance(stage, LearningStage)  # noqa: S101  (there is a learner)
        return Denoised(stage(volume, difference), by=next(iter(describe(stage))))

    def _segment(
        self,
        grids: Grids,
        slabs: Sequence[int],
        volume: Volume,
        clean: Volume,
        stamp: dict[str, Any],
    ) -> dict[str, float]:
        """Segment and quantify; the raw volume always stands beside."""
        rooms = self._rooms
        assert rooms.segment is not None  # noqa: S101  (whoever calls has looked)
        labels, at = rooms.segment(volume, clean), 0
        for slab in slabs:
            height = grids.ranges[slab][1] - grids.ranges[slab][0]
            self._write("labels", grids, slab, labels[at : at + height], stamp)
            at += height
        return rooms.quantify(volume, labels) if rooms.quantify else {}

    def _write(
        self,
        name: str,
        grids: Grids,
        slab: int,
        values: NDArray[Any],
        stamp: dict[str, Any],
    ) -> None:
        begun = time.perf_counter()
        self._output.write(name, grids.ranges[slab][0], values, **stamp)
        grids.timings.note(f"write {name}", slab, time.perf_counter() - begun)

    def report(self) -> dict[str, Any]:
        """Return what is published of the denoiser."""
        told = {"denoise": self._learner.report()} if self._learner else {}
        checks = self._consistency
        return told | ({"consistency": checks.report()} if checks else {})

    def close(self) -> None:
        """Stop learning."""
        if self._learner is not None:
            self._learner.close()


def _sample(slab: Volume) -> Volume:
    """Return some slices of a slab, enough for its figures."""
    return slab[:: max(1, len(slab) // JUDGED_SLICES)]
