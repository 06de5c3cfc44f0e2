"""Make the README's picture: one slice sharpening while golden angles arrive.

Run: ``python benchmarks/sharpening.py`` (writes docs/images/sharpening.png).
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from denoise_runs import Outcome, scan_phantom
from matplotlib import pyplot as plt

from ebl_stream.simulation.phantom import Foam, golden_angles

N_COLUMNS, N_ROWS, N_ANGLES, I0 = 256, 16, 400, 2000
SHOWN = (20, 60, 160, 400)
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "sharpening.png"


def looks() -> list[tuple[int, Outcome]]:
    """Return what was published at the shown numbers of projections."""
    foam, theta = Foam(N_COLUMNS, N_ROWS), golden_angles(N_ANGLES)
    return [
        (n, scan_phantom(foam, theta[:n], I0, "noise2inverse", seed=1)) for n in SHOWN
    ]


def draw() -> None:
    """Draw slices above what is made of them."""
    mpl.use("Agg")
    seen = looks()
    low, high = np.percentile(seen[-1][1].denoised, [0.5, 99.8])
    figure, axes = plt.subplots(2, len(seen), figsize=(10, 5.2), facecolor="white")
    for (n, run), (top, bottom) in zip(seen, axes.T, strict=True):
        top.imshow(run.recon[N_ROWS // 2], cmap="gray", vmin=low, vmax=high)
        top.set_title(f"{n} of {N_ANGLES} projections", fontsize=10)
        bottom.imshow(run.denoised[N_ROWS // 2], cmap="gray", vmin=low, vmax=high)
    axes[0, 0].set_ylabel("as reconstructed")
    axes[1, 0].set_ylabel("denoised")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=80)


if __name__ == "__main__":
    draw()
