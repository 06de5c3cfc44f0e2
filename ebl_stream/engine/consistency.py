"""What denoised slices say of the projections, compared with what was measured.

A denoiser may leave out, or add, what looks right: the projections do not know of it.
So some rows of the slabs are projected again, at angles spread over those measured.
A perfect reconstruction differs from the measurement by the measurement's noise, which
is known from neighbors: less is noise that was fitted, more was not in the data.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.engine.final import FinalPass
from ebl_stream.engine.grids import Lens
from ebl_stream.engine.projections import ProjectionSum
from ebl_stream.engine.rooms import Rooms
from ebl_stream.numerics.projector import Sirt, project
from ebl_stream.stages.preprocess.rings import sinogram_order

log = logging.getLogger(__name__)

TRIPLES = 10
"""Places on the circle where three neighboring angles are looked at, at most."""

FAR_PX = 1.5
"""How far the rim moves from one angle to the next, where they are still alike."""

UNKNOWN = {"data_residual": None, "data_residual_raw": None, "data_noise": None}
"""Columns of the quality table, where nothing was compared."""

Volume = NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """Line integrals of some rows at some angles."""

    theta: NDArray[np.float64]
    """rad, (angle,): three neighbors each."""
    rotation_center: float
    """px, column of the detector."""
    values: NDArray[np.float32]
    """[angle, row, column], without what every angle sees alike."""
    noise: NDArray[np.float64]
    """(row,), RMS."""

    @classmethod
    def of(
        cls, projections: ProjectionSum, rows: NDArray[np.intp], lens: Lens
    ) -> Measured:
        """Take rows of projections once more, on the slabs' threads."""
        grids, window = projections.grids, projections.window
        used = np.flatnonzero(window.applied.any(axis=1))
        order = used[sinogram_order(window.theta[used])]
        places = order[_triples(len(order))]
        first = max(int(rows.min()) - 1, 0)
        stop = min(int(rows.max()) + 2, projections.image_shape[0])

        def one(place: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
            frame = projections.line_integrals(np.array([place]), (first, stop))[0]
            if lens.rings is not None:
                frame -= lens.rings.profile[first:stop]
            return frame[rows - first], _across(frame, rows - first)

        seen = list(grids.map(one, places))
        values = np.stack([row for row, _ in seen])
        theta = window.theta[places]
        along, step = _along(values, theta)
        power = along
        if step * grids.n_columns / 2 > FAR_PX:
            power = np.fmin(along, np.mean([square for _, square in seen], axis=0))
        center = grids.rotation_center + lens.shift
        return cls(theta, center, values, np.sqrt(power))


@dataclass(frozen=True)
class Correction:
    """How a slab was drawn toward the data; residuals over RMS of line integrals."""

    slab: int
    steps: int
    before: float | None
    after: float | None
    noise: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return what is published of it."""
        return {
            "slab": self.slab,
            "steps": self.steps,
            "residual_before": self.before,
            "residual_after": self.after,
            "noise": self.noise,
        }


class Consistency:
    """Compare the slabs of one look with the projections that they were made of.

    Whatever goes wrong here is told, and nothing else: the volume is there.

    Parameters
    ----------
    projections : ProjectionSum
    rooms : Rooms
    slabs : sequence of int
        That are looked at; the row in the middle of each is.
    lens : Lens
        That they were looked at with.
    steps : int
        That `correct` may take, at most.
    """

    def __init__(
        self,
        projections: ProjectionSum,
        rooms: Rooms,
        slabs: Sequence[int],
        lens: Lens,
        steps: int = 0,
    ) -> None:
        self._projections = projections
        self._rooms = rooms
        self._steps = steps
        self._places = {slab: k for k, slab in enumerate(slabs)}
        self._measured: Measured | None = None
        self._all: FinalPass | None = None
        self._corrections: dict[int, Correction] = {}
        self._unknown = self._why_not()
        if self._unknown:
            return
        ranges = [projections.grids.ranges[slab] for slab in slabs]
        rows = np.array([z0 + _middle(z1 - z0) for z0, z1 in ranges], np.intp)
        try:
            self._measured = Measured.of(projections, rows, lens)
            if steps:
                # Here, as it may need the slabs' threads, which `correct` is on.
                with_rings = lens.rings is not None
                self._all = FinalPass(projections, rooms, rings=with_rings)
        except Exception as error:
            self._failed(error)

    def _why_not(self) -> str:
        """Say why a volume cannot be compared with the projections, if so."""
        grids, window = self._projections.grids, self._projections.window
        if grids.padding == "edge":
            return "the object is wider than the field"
        if self._rooms.final:
            return "stages that see whole sinograms changed the line integrals"
        if np.count_nonzero(window.applied.any(axis=1)) < 3:
            return "fewer than three projections"
        return ""

    def _failed(self, error: Exception) -> None:
        log.error("data residual: %s", error, exc_info=error)
        self._unknown = f"{type(error).__name__}: {error}"

    def as_row(self, slab: int, volume: Volume, clean: Volume) -> dict[str, Any]:
        """Return columns of the quality table; thread-safe.

        Parameters
        ----------
        slab : int
        volume, clean : ndarray, [z, y, x]
            The slab raw and denoised, 1/px.
        """
        if self._measured is None:
            return dict(UNKNOWN)
        try:
            return self._compare(self._measured, slab, volume, clean)
        except Exception as error:
            self._failed(error)
            return dict(UNKNOWN)

    def _compare(
        self, measured: Measured, slab: int, volume: Volume, clean: Volume
    ) -> dict[str, Any]:
        k, z = self._places[slab], _middle(len(volume))
        values = measured.values[:, k : k + 1]
        both, n_columns = np.stack([clean[z], volume[z]]), values.shape[2]
        made = project(both, measured.theta, measured.rotation_center, n_columns)
        unit = _rms(values)
        return {
            "data_residual": _ratio(_rms(made[:, :1] - values), unit),
            "data_residual_raw": _ratio(_rms(made[:, 1:] - values), unit),
            "data_noise": _ratio(measured.noise[k], unit),
        }

    def correct(self, slab: int, clean: Volume) -> Volume:
        """Return a slab drawn toward the data, until nothing but noise is left.

        Parameters
        ----------
        slab : int
        clean : ndarray, [z, y, x]
            Stays as it is.
        """
        if self._measured is None or self._all is None:
            return clean
        try:
            return self._correct(self._measured, self._all, slab, clean)
        except Exception as error:
            self._failed(error)
            return clean

    def _correct(
        self, measured: Measured, whole: FinalPass, slab: int, clean: Volume
    ) -> Volume:
        values, middle = whole.sinograms(slab), _middle(len(clean))
        center, n_columns = measured.rotation_center, values.shape[2]
        sirt = Sirt(whole.theta, center, clean.shape[1], n_columns)
        noise, n_done = measured.noise[self._places[slab]], 0
        image = clean[middle]
        lacks = sirt.residual(image, values[:, middle])
        before = _rms(lacks)
        # The row whose noise is known says how many steps all rows take.
        while n_done < self._steps and _rms(lacks) > noise:
            image = sirt.step(image, lacks)
            lacks = sirt.residual(image, values[:, middle])
            n_done += 1
        made = clean.copy()
        for z in range(len(made)):
            for _ in range(n_done):
                made[z] = sirt.step(made[z], sirt.residual(made[z], values[:, z]))
        unit = _rms(values[:, middle])
        told = [_ratio(value, unit) for value in (before, _rms(lacks), noise)]
        self._corrections[slab] = Correction(slab, n_done, *told)
        return made

    def report(self) -> dict[str, Any]:
        """Return what is published of it: plain JSON."""
        told: dict[str, Any] = {"unknown": self._unknown}
        if self._measured is not None:
            told["n_angles"] = len(self._measured.theta)
        if self._corrections:
            made = [self._corrections[slab] for slab in sorted(self._corrections)]
            told["corrections"] = [one.as_dict() for one in made]
        return told


def _middle(n_rows: int) -> int:
    return n_rows // 2


def _triples(n: int) -> NDArray[np.intp]:
    """Return where three neighbors of n are, evenly spread; three or more of them."""
    count = min(TRIPLES, n // 3)
    first = np.linspace(0, n - 3, count).round().astype(np.intp)
    return (first[:, None] + np.arange(3)).ravel()


def _along(
    values: NDArray[np.float32], theta: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Return the noise power (row,) that neighboring angles tell, and their step, rad.

    An angle is compared with the straight line through its neighbors. What the sample
    changes from one to the next counts as noise; a detector's blur does not matter.
    """
    before, here, after = values.reshape(-1, 3, *values.shape[1:]).swapaxes(0, 1)
    turned = theta.reshape(-1, 3)
    steps = np.diff(turned) % (2 * np.pi)
    span = steps.sum(axis=1)
    share = np.divide(steps[:, 0], span, out=np.full(len(span), 0.5), where=span > 0)
    near = share[:, None, None].astype(np.float32)
    square = np.square(here - (1 - near) * before - near * after, dtype=np.float64)
    variance = 1 + share**2 + (1 - share) ** 2
    power = (square.mean(axis=2) / variance[:, None]).mean(axis=0)
    return power, float(np.median(steps))


def _across(frame: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the noise power (row,) that the neighbors in a frame tell.

    By second differences along both directions (Immerkaer, Comput. Vis. Image Underst.
    64, 300 (1996)); of a detector that blurs it sees a part. NaN for frames of fewer
    than three rows.
    """
    if len(frame) < 3:
        return np.full(len(rows), math.nan)
    z = np.clip(rows, 1, len(frame) - 2)
    bent = np.diff(frame[z - 1] - 2 * frame[z] + frame[z + 1], 2, axis=1)
    return np.mean(np.square(bent, dtype=np.float64), axis=1) / 36


def _rms(values: NDArray[np.float32]) -> float:
    return math.sqrt(float(np.mean(np.square(values, dtype=np.float64))))


def _ratio(value: float, unit: float) -> float | None:
    return float(value / unit) if unit > 0 and math.isfinite(value) else None
