"""Versions of the volume: reconstruct, denoise, segment, quantify, hand on."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream import __version__
from ebl_stream.engine.grids import Grids, Look
from ebl_stream.engine.projections import ProjectionSum
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.rotation_center import CenterFinder
from ebl_stream.errors import InputError
from ebl_stream.frames import Scan
from ebl_stream.numerics.quality import quality_row
from ebl_stream.profile import Profile
from ebl_stream.publish.output import ArraySpec, RunOutput
from ebl_stream.result import Progress, Result, State

WHOLE_CIRCLE = 0.9
"""Share of the half circle below which split-half resolution means nothing."""


JUDGED_SLICES = 8
"""Slices of a slab that its quality figures are made of, about."""


class Views:
    """Make and publish the versions of one run's volume."""

    def __init__(
        self,
        scan: Scan,
        profile: Profile,
        rooms: Rooms,
        output: RunOutput,
        *,
        skip_late: bool,
    ) -> None:
        self.output = output
        self.version = 0
        self.latency: dict[str, float | None] = {
            "first_preview": None,
            "last_projection_to_recon": None,
            "last_projection_to_volume": None,
        }
        self._scan = scan
        self._profile = profile
        self._rooms = rooms
        self._skip_late = skip_late
        self._shape: tuple[int, int, int] | None = None
        self._busy = (0.0, 0.0)
        self._newest_latency: float | None = None
        self._rows: list[dict[str, Any]] = []
        self._looks: list[int] = []
        self._unseen = 0

    def skip(self) -> bool:
        """Whether previews take more than half of the time just now (live only)."""
        ended, took = self._busy
        late = self._skip_late and time.monotonic() - ended < took
        self._unseen += late
        return late

    def publish(
        self,
        projections: ProjectionSum,
        *,
        without_rings: bool,
        coverage: float,
        received: tuple[float | None, float | None],
        provenance: dict[str, Any],
        final: bool,
    ) -> None:
        """Look at the volume, and write what the rooms make of it."""
        begun = time.monotonic()
        first, last = received
        grids, n_used = projections.grids, len(projections.window)
        look = projections.look(without_rings=without_rings)
        if final and last is not None:
            self.latency["last_projection_to_recon"] = time.monotonic() - last
        self._open(grids, provenance)
        self.version += 1
        stamp = {"version": self.version, "n_used": n_used, "coverage": coverage}
        self._write("recon", grids, [volume for volume, _ in look], stamp)
        if self.version == 1 and first is not None:
            self.latency["first_preview"] = time.monotonic() - first
        if final and last is not None:
            self.latency["last_projection_to_volume"] = time.monotonic() - last
        phases = self._interpret(grids, look, stamp) if self._due(final) else {}
        self._rows = grids.each_slab(
            lambda k: quality_row(k, *grids.slabs[k], *map(_sample, look[k]), **stamp),
            range(len(look)),
        )
        if projections.angular_coverage < WHOLE_CIRCLE:
            # The halves share a missing wedge, so they agree on what it hides.
            for row in self._rows:
                row["resolution_px"] = None
        self.output.quality(self._rows)
        self._looks.append(n_used)
        self.output.update(
            provenance
            | {"looks": {"n_used": self._looks, "skipped": self._unseen}}
            | ({"phases": phases} if phases else {})
        )
        now = time.monotonic()
        self._busy = (now, now - begun)
        self._newest_latency = None if last is None else now - last

    def _due(self, final: bool) -> bool:
        """Whether this version is denoised and segmented, too."""
        return final or self.version % self._profile.refresh.interpret_every == 0

    def _open(self, grids: Grids, provenance: dict[str, Any]) -> None:
        if self._shape is not None:
            return
        n = grids.n_columns
        self._shape = shape = (grids.slabs[-1][1], n, n)
        arrays = [ArraySpec("recon", shape, "<f4", "1/px")]
        if self._rooms.denoise is not None:
            arrays.append(ArraySpec("denoised", shape, "<f4", "1/px"))
        if self._rooms.segment is not None:
            arrays.append(ArraySpec("labels", shape, "|u1", "label"))
        metadata = self._start_metadata() | provenance
        try:
            self.output.create(arrays, metadata, self._profile.refresh.slab_rows)
        except OSError as error:
            raise InputError(f"{error}; choose another folder with --out") from None

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

    def _write(
        self, name: str, grids: Grids, slabs: list[Any], stamp: dict[str, Any]
    ) -> None:
        for (z0, _), slab in zip(grids.slabs, slabs, strict=True):
            self.output.write(name, z0, slab, **stamp)

    def _interpret(
        self, grids: Grids, look: Look, stamp: dict[str, Any]
    ) -> dict[str, float]:
        """Denoise, segment and quantify; the raw volume always stands beside."""
        rooms = self._rooms
        volume = np.concatenate([slab for slab, _ in look])
        clean = volume
        if rooms.denoise is not None:
            clean = np.concatenate(
                grids.each_slab(rooms.denoise, *zip(*look, strict=True))
            )
            self._write("denoised", grids, _cut(clean, grids), stamp)
        if rooms.segment is None:
            return {}
        labels = rooms.segment(volume, clean)
        self._write("labels", grids, _cut(labels, grids), stamp)
        return rooms.quantify(volume, labels) if rooms.quantify else {}

    def progress(self, **facts: Any) -> Progress:
        """Return a `Progress` with what is known here added."""
        resolutions = [row["resolution_px"] for row in self._rows]
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
        known = {
            name: [row[name] for row in self._rows if row[name] is not None]
            for name in names
        }
        return {
            name: float(np.mean(values)) for name, values in known.items() if values
        }


def _sample(slab: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return some slices of a slab, enough for its figures."""
    return slab[:: max(1, len(slab) // JUDGED_SLICES)]


def _cut(volume: NDArray[Any], grids: Grids) -> list[NDArray[Any]]:
    return [volume[z0:z1] for z0, z1 in grids.slabs]
