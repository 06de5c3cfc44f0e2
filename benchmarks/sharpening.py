"""Make the README's picture: one slice sharpening while golden angles arrive.

Run: ``python benchmarks/sharpening.py`` (writes docs/images/sharpening.png).
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from ebl_stream import profile_file as profiles
from ebl_stream.engine.grids import Grids
from ebl_stream.engine.projections import ProjectionSum
from ebl_stream.engine.references import ReferenceFrames
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.window import Window
from ebl_stream.frames import Frame, Kind
from ebl_stream.simulation.detector import DetectorModel
from ebl_stream.simulation.phantom import Foam, golden_angles

N_COLUMNS, N_ROWS, N_ANGLES = 256, 32, 400
SHOWN = (20, 60, 160, 400)
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "sharpening.png"


def looks() -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Return (angles, slice, noise map) at the shown numbers of projections."""
    foam = Foam(N_COLUMNS, N_ROWS)
    detector = DetectorModel(N_ROWS, N_COLUMNS)
    theta = golden_angles(N_ANGLES)
    raw = detector.projections(foam.project(theta))
    profile = profiles.load("demo")
    rooms = Rooms.furnish(profile)
    center = (N_COLUMNS - 1) / 2
    grids = Grids(rooms.reconstruct, (N_ROWS, N_COLUMNS), N_ROWS, center)
    total = ProjectionSum(rooms, Window(2**30), grids)
    references = ReferenceFrames()
    for k in range(20):
        references.add(Kind.FLAT, k, detector.flats(1, first=k)[0])
        references.add(Kind.DARK, k, detector.darks(1, first=k)[0])
    total.references = references.measured((N_ROWS, N_COLUMNS))
    seen = []
    for k in range(N_ANGLES):
        total.put(Frame(k, Kind.PROJECTION, theta[k], raw[k]))
        if k + 1 in SHOWN:
            total.settle()
            ((volume, difference),) = total.look(without_rings=True)
            seen.append((k + 1, volume[N_ROWS // 2], difference[N_ROWS // 2]))
    grids.close()
    return seen


def draw() -> None:
    """Draw slices above their noise maps."""
    mpl.use("Agg")
    seen = looks()
    low, high = np.percentile(seen[-1][1], [0.5, 99.8])
    figure, axes = plt.subplots(2, len(seen), figsize=(10, 5.2), facecolor="white")
    for (n, volume, difference), (top, bottom) in zip(seen, axes.T, strict=True):
        top.imshow(volume, cmap="gray", vmin=low, vmax=high)
        top.set_title(f"{n} of {N_ANGLES} projections", fontsize=10)
        half = (high - low) / 2
        bottom.imshow(difference, cmap="gray", vmin=-half, vmax=half)
    axes[0, 0].set_ylabel("volume, A + B")
    axes[1, 0].set_ylabel("its noise, A − B")  # noqa: RUF001  (a minus sign)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=80)


if __name__ == "__main__":
    draw()
