"""The whole service in one process: raw frames in, a volume in zarr out."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ebl_stream import profile_file as profiles
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.session import Session
from ebl_stream.frames import Announced, Closed, Frame, Kind, Scan
from ebl_stream.publish.output import RunOutput
from ebl_stream.result import Result
from ebl_stream.simulation.phantom import Foam

FLAT, DARK = 20_000, 100
REAL_ROWS = 8
"""Rows that are projected; the others repeat them."""

SETTINGS: dict[str, Any] = {
    "preprocess": ["flat_field", "remove_zingers", "minus_log", "remove_rings"],
    "denoise": None,
    "segment": None,
    "quantify": None,
    "publish.tiled": "none",
}


def service(quick: bool, threads: int) -> dict[str, Any]:
    """Let a session take raw frames as fast as it can, and publish the volume.

    Frames lie in memory, as they come from a detector's feed; previews are left out
    while frames wait, as in a live scan that is faster than we are. The case holds
    the same without the removal of rings.
    """
    rows, columns, angles = (64, 512, 512) if quick else (512, 1024, 1024)
    frames = raw_frames(rows, columns, angles)
    plain = [name for name in SETTINGS["preprocess"] if name != "remove_rings"]
    without = measure(frames, {"preprocess": plain})
    case = {
        "rows": rows,
        "columns": columns,
        "angles": angles,
        "raw_gb": frames.nbytes / 1e9,
        "volume_gb": 4e-9 * rows * columns**2,
        "without_rings": without,
    }
    found = measure(frames, {})
    return found | {"case": case | found.pop("more")}


def measure(frames: NDArray[np.uint16], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one scan, in a folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="engine-"))
    try:
        result, taken_s, looked = run(frames, folder, settings)
        latency = {name: value or np.nan for name, value in result.latency_s.items()}
        volume = zarr.open_array(result.volume, mode="r")
        rows, columns = frames.shape[1:]
        assert volume.shape == (rows, columns, columns)
        assert volume[rows - 1].any()
    finally:
        shutil.rmtree(folder)
    gb = frames.nbytes / 1e9
    return {
        "ingest_gb_s": gb / taken_s.sum(),
        "last_to_memory_s": latency["last_projection_to_recon"],
        "last_to_first_slab_s": latency["last_projection_to_first_slab"],
        "last_to_volume_s": latency["last_projection_to_volume"],
        "first_over_later_block": float(taken_s[:32].sum() / _later_block(taken_s)),
        "more": {
            "ingest_s": float(taken_s.sum()),
            "looks": int(looked.sum()),
            "ingest_without_looks_gb_s": gb / taken_s[~looked].sum(),
            "slowest_frame_ms": float(1e3 * taken_s.max()),
        },
    }


def _later_block(taken_s: NDArray[np.float64]) -> float:
    """Return how long 32 frames take in the middle of the scan, s."""
    n = len(taken_s) // 32 * 32
    return median(taken_s[:n].reshape(-1, 32).sum(1)[1:].tolist())


def raw_frames(rows: int, columns: int, angles: int) -> NDArray[np.uint16]:
    """Return what a detector counts of a foam, uint16 ``[angle, row, column]``."""
    theta = np.arange(angles) * np.pi / angles
    exact = Foam(columns, REAL_ROWS, seed=0).project(theta)
    counts = np.random.default_rng(0).poisson(DARK + FLAT * np.exp(-exact))
    return np.tile(counts.astype(np.uint16), (1, rows // REAL_ROWS, 1))


def run(
    frames: NDArray[np.uint16], folder: Path, settings: dict[str, Any]
) -> tuple[Result, NDArray[np.float64], NDArray[np.bool_]]:
    """Send frames through a session.

    Returns
    -------
    Result
    ndarray, (angle,)
        How long each frame was worked on, s.
    ndarray, (angle,)
        Whether a version of the volume was published then.
    """
    angles, rows, columns = frames.shape
    center = {"geometry.rotation_center": (columns - 1) / 2}
    profile = profiles.load("default", SETTINGS | center | settings)
    rooms = Rooms.furnish(profile)
    rooms.warm_up()
    scan = Scan("raw", {}, angles)
    output = RunOutput(folder, "run")
    version = [0]
    session = Session(
        scan,
        profile,
        rooms,
        output,
        is_behind=lambda: True,
        on_progress=lambda progress: version.append(progress.version),
    )
    flat = np.full((rows, columns), FLAT + DARK, np.uint16)
    for kind, image in ((Kind.FLAT, flat), (Kind.DARK, np.full_like(flat, DARK))):
        session.take(Announced(kind, 0, 1))
        session.take(Frame(0, kind, np.nan, image))
    while not session.is_ready:
        # Flats take seconds; memory is made ready meanwhile.
        time.sleep(0.01)
    taken_s, looked = np.empty(angles), np.zeros(angles, bool)
    for k in range(angles):
        begun, before = time.perf_counter(), version[-1]
        session.take(Announced(Kind.PROJECTION, k, k + 1))
        session.take(Frame(k, Kind.PROJECTION, k * np.pi / angles, frames[k]))
        taken_s[k] = time.perf_counter() - begun
        looked[k] = version[-1] > before
    result = session.take(Closed("success", "", angles, 0))
    session.close()
    assert result is not None
    assert result.state == "complete"
    return result, taken_s, looked
