"""Measured scans through replay, against ASTRA and algotom; pictures side by side."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import matplotlib as mpl
import numpy as np
import zarr
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from ebl_stream import profile_file as profiles
from ebl_stream.cli.commands import PLAIN
from ebl_stream.cli.peers import PEERS, Problem
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.result import Result
from ebl_stream.sources import open_source
from ebl_stream.stages.astra_backend import Astra
from ebl_stream.stages.reconstruct import Fourier

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "benchmarks"
FOLDER = Path(os.environ.get("EBL_STREAM_TEST_DATA", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True)
class Measured:
    """A scan, and whether its license lets us show it."""

    file: str
    center: float
    """px, as its manifest has it."""
    row: int
    picture: str | None


SCANS = {
    "tooth": Measured("aps_tooth.h5", 295.6, 0, "tooth.png"),
    "tomo77": Measured("ssrl_txm_tomo77.h5", 39.0, 45, "tomo77.png"),
    "bone": Measured("itb_bone.h5", 74.5, 20, "bone.png"),
    "pepper": Measured("helsinki_pepper_normal.h5", 279.5, 4, None),
}


def real(threads: int) -> dict[str, Any]:
    """Measure every scan that is there; the absent ones are named."""
    found: dict[str, Any] = {}
    for name, scan in SCANS.items():
        path = FOLDER / scan.file
        found[name] = measure(path, scan, threads) if path.is_file() else "absent"
    return found


def measure(path: Path, scan: Measured, threads: int) -> dict[str, Any]:
    """Reconstruct one scan by replay and by the peers."""
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        replay(path, scan.center, Path(folder) / "warm")
        begun = time.perf_counter()
        result = replay(path, scan.center, Path(folder) / "out")
        replay_s = time.perf_counter() - begun
        ours = zarr.open_array(result.volume, mode="r")[:]
    problem = line_integrals(path, scan.center, threads)
    batch_s = took(lambda: Fourier()(problem.values, problem.theta, scan.center))
    theirs, slices = peers(problem, scan.row)
    if scan.picture:
        show(ours[scan.row], slices["ASTRA FBP"], scan.picture)
    last_s = result.latency_s["last_projection_to_recon"] or np.nan
    for name, figures in theirs.items():
        figures["total_over_our_batch"] = figures["total_s"] / batch_s
        figures["total_over_our_replay"] = figures["total_s"] / replay_s
        figures["total_over_our_last_to_memory"] = figures["total_s"] / last_s
        figures["nrmse_to_ours"] = apart(slices[name], ours[scan.row])
    return {
        "shape": [len(problem.theta), *problem.values.shape[1:]],
        "replay_s": replay_s,
        "batch_s": batch_s,
        "latency_s": result.latency_s,
        "peers": theirs,
    }


def peers(
    problem: Problem, row: int
) -> tuple[dict[str, dict[str, float]], dict[str, NDArray[np.float32]]]:
    """Return each peer's time for all rows, from a few; and its slice of one row."""
    ways: dict[str, Callable[[Problem], NDArray[np.float32]]] = {
        # ASTRA's own FBP has no sub-pixel axis: the same kernel, with one.
        "ASTRA FBP": lambda problem: Astra()(
            problem.values, problem.theta, problem.rotation_center
        ),
        **{p.name: p.slices for p in PEERS if p.name == "algotom FBP" and not p.absent},
    }
    n_rows = problem.values.shape[1]
    few = problem.rows(row, min(row + problem.threads, n_rows))
    theirs, slices = {}, {}
    for name, make in ways.items():
        slices[name] = make(few)[0]
        seconds = took(lambda make=make: make(few))
        theirs[name] = {"total_s": seconds * n_rows / few.values.shape[1]}
    return theirs, slices


def took(work: Callable[[], object]) -> float:
    """Return how long the work takes, s."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def replay(path: Path, center: float, out: Path) -> Result:
    """Send a file's documents through the callbacks of a live scan."""
    settings = PLAIN | {"geometry.rotation_center": center, "publish.tiled": "none"}
    profile = profiles.load("data_exchange", settings)
    source, profile = open_source(str(path), profile)
    callback = Reconstruction(profile, out=out, roots=source.roots)
    for name, doc in source.documents():
        callback(name, doc)
    callback.close()
    (result,) = callback.results.values()
    return result


def line_integrals(path: Path, center: float, threads: int) -> Problem:
    """Read a scan as the peers want it: flat, dark and -log are done, for free."""
    with h5py.File(path) as file:
        raw = file["exchange/data"][:].astype(np.float32)
        flat = file["exchange/data_white"][:].mean(0, dtype=np.float32)
        dark = file["exchange/data_dark"][:].mean(0, dtype=np.float32)
        theta = np.deg2rad(file["exchange/theta"][:].astype(np.float64))
    values = -np.log(np.clip((raw - dark) / (flat - dark), 1e-5, None))
    return Problem(values.astype(np.float32), theta, center, threads)


def apart(slice_: NDArray[np.float32], ours: NDArray[np.float32]) -> float:
    """Return the RMS difference inside 0.9 of the circle over our deviation there."""
    n = ours.shape[0]
    x = np.arange(n) - (n - 1) / 2
    inside = np.hypot(x[:, None], x) < 0.45 * n
    difference = slice_[inside].astype(float) - ours[inside]
    return float(np.sqrt(np.mean(difference**2)) / ours[inside].std())


def show(ours: NDArray[np.float32], astra: NDArray[np.float32], name: str) -> None:
    """Draw two slices side by side on one gray scale."""
    mpl.use("Agg")
    low, high = np.percentile(ours, [0.5, 99.7])
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.4), facecolor="white")
    for axis, image, title in zip(
        axes, (ours, astra), ("ebl-stream", "ASTRA FBP"), strict=True
    ):
        axis.imshow(image, cmap="gray", vmin=low, vmax=high)
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=10)
    figure.tight_layout()
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / name, dpi=80)
    plt.close(figure)
