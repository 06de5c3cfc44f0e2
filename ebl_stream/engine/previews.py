"""Quick looks between versions: a coarse volume, and planes at full resolution.

They cost a small part of a version and disturb nothing: the grids are only read.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.engine.grids import Grids, Lens
from ebl_stream.engine.viewer import Plane, Wishes
from ebl_stream.numerics import previews
from ebl_stream.numerics.fourier_plan import FEWEST_COLUMNS
from ebl_stream.profile import Preview
from ebl_stream.publish.output import ArraySpec, RunOutput


class Previews:
    """The preview arrays of one run.

    Parameters
    ----------
    settings : Preview
        Of the profile.
    shape : (int, int, int)
        Of the volume, ``[z, y, x]``.
    can_peek : bool
        Whether the grids lie in this machine's memory.
    """

    def __init__(
        self, settings: Preview, shape: tuple[int, int, int], *, can_peek: bool
    ) -> None:
        self._bin = settings.bin
        self._shape = nz, _, n = shape
        m = n // self._bin
        self.wanted = settings.every > 0 and can_peek and m >= FEWEST_COLUMNS
        """Whether there are previews at all."""
        self._coarse = (-(-nz // self._bin), m, m)
        self._side = max(self._coarse)

    @property
    def arrays(self) -> list[ArraySpec]:
        """What is to be allocated."""
        if not self.wanted:
            return []
        nz, ny, nx = self._shape
        shapes = {
            "preview": self._coarse,
            "plane_z": (1, ny, nx),
            "plane_y": (nz, 1, nx),
            "plane_x": (nz, ny, 1),
            "plane_oblique": (1, self._side, self._side),
        }
        return [
            ArraySpec(name, shape, "<f4", "1/px", slab_rows=shape[0])
            for name, shape in shapes.items()
        ]

    def publish(
        self,
        grids: Grids,
        lens: Lens,
        wishes: Wishes,
        output: RunOutput,
        stamp: dict[str, Any],
        whole: NDArray[np.float32] | None = None,
    ) -> None:
        """Make and write them all.

        ``whole`` is the volume, where it has just been made: planes are cut from it.
        """
        begun = time.perf_counter()
        nz = self._shape[0]
        rows = wishes.rows or (nz // 2, nz // 2 + 1)
        row = min(sum(rows) // 2, nz - 1)
        volume = self._volume(grids, lens)
        found = {"preview": volume}
        if whole is None:
            found["plane_y"] = self._upright(grids, lens, "y")
            found["plane_x"] = self._upright(grids, lens, "x")
            level = self._level(grids, lens, row)
            if level is not None:
                found["plane_z"] = level
        else:
            middle = self._shape[2] // 2
            found["plane_z"] = whole[row, None]
            found["plane_y"] = whole[:, middle, None]
            found["plane_x"] = whole[:, :, middle, None]
        if wishes.plane is not None:
            found["plane_oblique"] = self._oblique(volume, wishes.plane)
        for name, values in found.items():
            output.write(name, 0, np.ascontiguousarray(values), **stamp)
        grids.timings.note("preview", 0, time.perf_counter() - begun)

    def _volume(self, grids: Grids, lens: Lens) -> NDArray[np.float32]:
        volume = np.zeros(self._coarse, np.float32)

        def one(slab: int) -> None:
            z0, z1 = (z / self._bin for z in grids.ranges[slab])
            volume[int(z0) : int(np.ceil(z1))] = grids.peek(
                slab,
                lambda grid: previews.binned(
                    grid, self._bin, shift=lens.shift, first_theta=lens.first_theta
                ),
            )

        grids.each(one)
        return volume

    def _upright(self, grids: Grids, lens: Lens, axis: str) -> NDArray[np.float32]:
        nz, _, n = self._shape
        plane = np.zeros((nz, n), np.float32)
        cut = previews.plane_y if axis == "y" else previews.plane_x

        def one(slab: int) -> None:
            plane[slice(*grids.ranges[slab])] = grids.peek(
                slab,
                lambda grid: cut(
                    grid,
                    n // 2,
                    window=lens.window,
                    shift=lens.shift,
                    first_theta=lens.first_theta,
                ),
            )

        grids.each(one)
        return plane[:, None, :] if axis == "y" else plane[:, :, None]

    def _level(self, grids: Grids, lens: Lens, row: int) -> NDArray[np.float32] | None:
        for slab in grids.held:
            z0, z1 = grids.ranges[slab]
            if z0 <= row < z1:
                return grids.peek(
                    slab,
                    lambda grid: previews.plane_z(
                        grid,
                        row - z0,  # noqa: B023  (called at once)
                        window=lens.window,
                        shift=lens.shift,
                        first_theta=lens.first_theta,
                    ),
                )[None]
        return None

    def _oblique(
        self, volume: NDArray[np.float32], plane: Plane
    ) -> NDArray[np.float32]:
        """Cut the coarse volume; the plane's middle is where it was asked for."""
        down, right = previews.oblique_frame(plane.normal)
        middle = np.asarray(plane.point) / self._bin
        corner = middle - (down + right) * (self._side - 1) / 2
        side = (self._side, self._side)
        return previews.oblique(volume, tuple(corner), tuple(down), tuple(right), side)[
            None
        ]
