"""Versions of the volume: reconstruct, denoise, segment, quantify, hand on."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream import __version__
from ebl_stream.engine.grids import SUM, Grids, Lens
from ebl_stream.engine.interpret import Interpreter
from ebl_stream.engine.previews import Previews
from ebl_stream.engine.projections import ProjectionSum
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.rotation_center import CenterFinder
from ebl_stream.engine.viewer import Wishes
from ebl_stream.errors import InputError
from ebl_stream.frames import Scan
from ebl_stream.numerics.aligned import aligned_empty
from ebl_stream.profile import Profile
from ebl_stream.publish.output import ArraySpec, RunOutput
from ebl_stream.result import Progress, Result, State

Make = Callable[[int, NDArray[np.float32] | None], NDArray[np.float32]]
"""Makes a slab, ``[z, y, x]``, into an array where one is given."""


@dataclass(frozen=True)
class Look:
    """How the grids are looked at."""

    coverage: float
    """Projections in the grids over projections that the run owes, 0..1."""
    lens: Lens
    interpret: bool
    """Whether there is memory to denoise and segment it."""
    final: bool = False
    watched: tuple[int, ...] = ()
    """Slabs that somebody looks at, or that the profile wants first."""
    judge: bool = True
    """Whether quality, noise and phases are looked at, too."""
    make: Make | None = None
    """Who makes the slabs, if not the grids; not thread-safe."""


class Views:
    """Make and publish the versions of one run's volume."""

    def __init__(
        self,
        scan: Scan,
        profile: Profile,
        rooms: Rooms,
        output: RunOutput,
        is_behind: Callable[[], bool] | None = None,
    ) -> None:
        self.output = output
        self.version = 0
        self.latency: dict[str, float | None] = {
            "first_preview": None,
            "last_projection_to_recon": None,
            "last_projection_to_first_slab": None,
            "last_projection_to_volume": None,
            "last_projection_to_watched": None,
        }
        """s; ``recon`` is the whole volume in memory, ``volume`` the same on disk,
        ``watched`` the slabs that somebody looks at, denoised, on disk."""
        self._scan = scan
        self._profile = profile
        self._rooms = rooms
        self._shape: tuple[int, int, int] | None = None
        self._whole: NDArray[np.float32] | None = None
        self._touching: list[Future[None]] = []
        self._newest_latency: float | None = None
        learner = rooms.learner(is_behind)
        self._interpreter = Interpreter(rooms, output, learner)
        self._n_previews = 0
        self._previews: Previews | None = None
        self._looks: list[int] = []

    def make_room(self, grids: Grids) -> None:
        """Begin to take memory for the whole volume, on the slabs' threads."""
        n = grids.n_columns
        self._whole = whole = aligned_empty((grids.ranges[-1][1], n, n))
        self._touching = [grids.begin(whole[a:b].fill, 0) for a, b in grids.ranges]

    def drop_room(self) -> None:
        """Keep no whole volume."""
        self._whole = None
        self._touching = []

    def close(self) -> None:
        """Let go of the volume, and of the threads that write it."""
        self._interpreter.close()
        self.drop_room()
        self._previews = None
        self.output.close()

    def begin_pass(self) -> None:
        """Other slabs are made now: the volume is there when they are."""
        self.latency["last_projection_to_recon"] = None
        self.latency["last_projection_to_volume"] = None

    @property
    def is_ready(self) -> bool:
        """Whether that memory is there."""
        return all(future.done() for future in self._touching)

    def preview(
        self,
        projections: ProjectionSum,
        look: Look,
        wishes: Wishes,
        provenance: dict[str, Any],
    ) -> None:
        """Publish quick looks: a coarse volume, and planes."""
        previews = self._open(projections.grids, look, provenance)
        if not previews.wanted:
            return
        n_used = len(projections.window)
        self._n_previews += 1
        stamp = {
            "version": self._n_previews,
            "n_used": n_used,
            "coverage": look.coverage,
        }
        whole = self._whole if look.final else None
        grids = projections.grids
        previews.publish(grids, look.lens, wishes, self.output, stamp, whole)

    def publish(
        self,
        projections: ProjectionSum,
        slabs: Iterable[int],
        look: Look,
        *,
        received: tuple[float | None, float | None],
        provenance: dict[str, Any],
    ) -> None:
        """Look at slabs, and write what the rooms make of them.

        Parameters
        ----------
        projections : ProjectionSum
        slabs : iterable of int
            In the order in which they are wanted.
        look : Look
        received : (float, float)
            When the first and the last projection came, s on the monotonic clock.
        provenance : dict
            Published with the data.
        """
        first, last = received
        grids, n_used = projections.grids, len(projections.window)
        self._open(grids, look, provenance)
        wanted = iter(slabs)
        one = next(wanted, None)
        if one is None:
            return
        slabs = itertools.chain([one], wanted)
        self.version += 1
        stamp = {"version": self.version, "n_used": n_used, "coverage": look.coverage}
        with self._interpreter.hold():
            done = self._reconstruct(grids, slabs, look, last, stamp)
        if self.version == 1 and first is not None:
            self.latency["first_preview"] = time.monotonic() - first
        if look.final:
            self._note_latency("last_projection_to_volume", last)
        if look.final and look.judge:
            # After the volume, which stays as it is: only the halves change.
            projections.balance_halves()
        coverage, phases = projections.angular_coverage, {}
        if look.judge:
            phases = self._look_closer(projections, done, look, coverage, stamp)
        rows = self._interpreter.rows.values()
        fresh = [row for row in rows if row["version"] == self.version]
        self.output.quality(sorted(fresh, key=lambda row: row["slab"]))
        self._looks.append(n_used)
        self.output.update(
            provenance
            | {"looks": {"n_used": self._looks}, "timings": grids.timings.as_dict()}
            | ({"phases": phases} if phases else {})
            | self._interpreter.report()
        )
        self._newest_latency = None if last is None else time.monotonic() - last

    def _reconstruct(
        self,
        grids: Grids,
        slabs: Iterable[int],
        look: Look,
        last: float | None,
        stamp: dict[str, Any],
    ) -> list[int]:
        """Make the slabs, and write them: the first at once, the others when all are.

        Returns the slabs that were made.
        """
        while self._touching:
            self._touching.pop().result()
        if look.make is None:
            grids.share(look.lens, SUM)
        done: list[int] = []
        under_way: deque[Future[None]] = deque()
        for slab in slabs:
            if len(under_way) >= (1 if look.make else grids.n_threads):
                under_way.popleft().result()
            at_once = self._whole is None or not done
            task = grids.submit(self._make, grids, slab, look, stamp, at_once)
            under_way.append(task)
            done.append(slab)
            if at_once and self._whole is not None:
                task.add_done_callback(
                    lambda _: (
                        look.final
                        and self._note_latency("last_projection_to_first_slab", last)
                    )
                )
        for future in under_way:
            future.result()
        if look.final:
            self._note_latency("last_projection_to_recon", last)
            self._show_watched(grids, done, look, stamp, last)
        if self._whole is not None:
            later = [
                grids.submit(self._write, "recon", grids, slab, self._whole, stamp)
                for slab in done[1:]
            ]
            for future in later:
                future.result()
        return done

    def _show_watched(
        self,
        grids: Grids,
        done: list[int],
        look: Look,
        stamp: dict[str, Any],
        last: float | None,
    ) -> None:
        """Denoise what is watched, as well as it can be by now."""
        if self._whole is None or not look.interpret:
            return
        slabs = [slab for slab in done if slab in look.watched]
        if self._interpreter.first_denoised(grids, slabs, self._whole, stamp):
            self._note_latency("last_projection_to_watched", last)

    def _note_latency(self, name: str, last: float | None) -> None:
        if last is not None and self.latency[name] is None:
            self.latency[name] = time.monotonic() - last

    def _make(
        self, grids: Grids, slab: int, look: Look, stamp: dict[str, Any], at_once: bool
    ) -> None:
        z0, z1 = grids.ranges[slab]
        out = None if self._whole is None else self._whole[z0:z1]
        if look.make is not None:
            volume = look.make(slab, out)
        else:
            volume = grids.volume(slab, look.lens, out)
        if at_once:
            self._put("recon", grids, slab, volume, stamp)

    def _put(
        self,
        name: str,
        grids: Grids,
        slab: int,
        values: NDArray[Any],
        stamp: dict[str, Any],
    ) -> None:
        begun = time.perf_counter()
        self.output.write(name, grids.ranges[slab][0], values, **stamp)
        grids.timings.note(f"write {name}", slab, time.perf_counter() - begun)

    def _write(
        self,
        name: str,
        grids: Grids,
        slab: int,
        whole: NDArray[Any],
        stamp: dict[str, Any],
    ) -> None:
        self._put(name, grids, slab, whole[slice(*grids.ranges[slab])], stamp)

    def _look_closer(
        self,
        projections: ProjectionSum,
        done: list[int],
        look: Look,
        angular_coverage: float,
        stamp: dict[str, Any],
    ) -> dict[str, float]:
        """Judge slabs; denoise and segment them when it is time."""
        rooms, interpreter, whole = self._rooms, self._interpreter, self._whole
        grids = projections.grids
        slabs = [slab for slab in done if grids.has_halves(slab)]
        if not look.final:
            slabs = interpreter.monitors(grids, done, look.watched)
        is_possible = look.interpret and whole is not None
        interpreter.judge(
            grids,
            slabs,
            whole,
            look.lens,
            angular_coverage,
            stamp,
            is_last=look.final,
            learns=is_possible,  # what nobody denoises, nobody learns from
        )
        due = look.final or self.version % self._profile.refresh.interpret_every == 0
        if not (due and is_possible and slabs) or whole is None:
            return {}
        if rooms.denoise is None and rooms.segment is None:
            return {}
        return interpreter.interpret(
            projections, slabs, whole, look.lens, stamp, is_last=look.final
        )

    def _open(self, grids: Grids, look: Look, provenance: dict[str, Any]) -> Previews:
        """Allocate the arrays, once."""
        if self._previews is not None:
            return self._previews
        n = grids.n_columns
        self._shape = shape = (grids.ranges[-1][1], n, n)
        arrays = [ArraySpec("recon", shape, "<f4", "1/px")]
        if self._rooms.denoise is not None and look.interpret:
            arrays.append(ArraySpec("denoised", shape, "<f4", "1/px"))
            if self._rooms.maps_uncertainty:
                arrays.append(ArraySpec("uncertainty", shape, "<f4", "1/px"))
        if self._rooms.segment is not None and look.interpret:
            arrays.append(ArraySpec("labels", shape, "|u1", "label"))
        self._previews = Previews(self._profile.preview, shape, can_peek=grids.can_peek)
        arrays += self._previews.arrays
        metadata = self._start_metadata() | provenance
        try:
            self.output.create(arrays, metadata, self._profile.refresh.slab_rows)
        except OSError as error:
            raise InputError(f"{error}; choose another folder with --out") from None
        return self._previews

    def _start_metadata(self) -> dict[str, Any]:
        raw = self._scan.start
        kept = ("plan_name", "scan_id", "sample", "sample_name", "data_session")
        start = {key: raw[key] for key in kept if key in raw}
        start |= {
            "uid": self.output.processed_uid,
            "original_run_uid": self._scan.run_uid,
            "time": time.time(),
        }
        analysis = {
            "software": "ebl_stream",
            "version": __version__,
            "profile": self._profile.model_dump(mode="json"),
            "stages": self._rooms.as_dict(),
            "rows": self._scan.rows,
            "voxel_size_um": self._scan.voxel_size_um,
            "geometry": "x cos(theta) + y sin(theta) = column - rotation_center; "
            "pixel (y, x) at (x - (n - 1) / 2, y - (n - 1) / 2)",
        }
        return {"start": start, "analysis": analysis}

    def progress(self, **facts: Any) -> Progress:
        """Return a `Progress` with what is known here added."""
        resolutions = [row["resolution_px"] for row in self._interpreter.rows.values()]
        finite = [value for value in resolutions if value is not None]
        return Progress(
            processed_uid=self.output.processed_uid,
            version=self.version,
            latency_s=self._newest_latency,
            resolution_px=float(np.median(finite)) if finite else None,
            volume=str(self.output.path("recon")) if self.version else None,
            **facts,
        )

    def result(
        self,
        run_uid: str,
        center: CenterFinder,
        n_projections: int,
        ledger: dict[str, Any],
        state: State,
    ) -> Result:
        """Return what came of the run."""
        assert self._shape is not None  # noqa: S101  (a version was published)
        return Result(
            run_uid=run_uid,
            processed_uid=self.output.processed_uid,
            volume=str(self.output.path("recon")),
            shape=self._shape,
            rotation_center=center.position,
            rotation_center_source=center.source,
            n_projections=n_projections,
            ledger=ledger,
            state=state,
            latency_s=self.latency,
            wall_s=0.0,
            quality=self._mean_quality(),
        )

    def _mean_quality(self) -> dict[str, float]:
        """Return the last version's figures, mean over the slabs that have them."""
        names = ("resolution_px", "frc_mean", "split_noise")
        # In the slabs' order: a sum depends on it, and threads do not keep it.
        rows = [row for _, row in sorted(self._interpreter.rows.items())]
        known = {
            name: [row[name] for row in rows if row[name] is not None] for name in names
        }
        return {
            name: float(np.mean(values)) for name, values in known.items() if values
        }
