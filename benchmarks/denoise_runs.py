"""Runs that the denoiser's benchmark looks at: phantoms, and the measured dose pair."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from numpy.typing import NDArray

from ebl_stream import profile_file as profiles
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.session import Session
from ebl_stream.frames import Announced, Closed, Frame, Kind, Scan
from ebl_stream.numerics.quality import inside_circle
from ebl_stream.publish.output import RunOutput
from ebl_stream.publish.record import read_record
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.simulation.families import Leaning
from ebl_stream.simulation.phantom import Phantom
from ebl_stream.sources import open_source

INSIDE = 0.9
PLAIN = {
    "preprocess": ["flat_field", {"minus_log": {"clip": 1e-5}}],
    "segment": None,
    "quantify": None,
    "geometry.use_file_center": True,
}


@dataclass
class Outcome:
    """What a run published."""

    arrays: dict[str, NDArray[np.float32]]
    metadata: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def recon(self) -> NDArray[np.float32]:
        return self.arrays["recon"]

    @property
    def denoised(self) -> NDArray[np.float32]:
        return self.arrays["denoised"]


def outcome(folder: Path) -> Outcome:
    """Read a run's folder."""
    names = ("recon", "denoised", "uncertainty")
    arrays = {
        name: np.asarray(zarr.open_array(folder / name, mode="r")[:])
        for name in names
        if (folder / name).is_dir()
    }
    record = read_record(folder)
    return Outcome(arrays, record.metadata(), record.rows())


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bench-denoise-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def scan_phantom(
    phantom: Phantom | Leaning,
    theta: NDArray[np.float64],
    i0: float,
    denoise: Any,
    *,
    seed: int,
    n_promised: int | None = None,
    is_behind: Any = None,
    **settings: Any,
) -> Outcome:
    """Scan a phantom with photon noise, as a session sees it."""
    rng = np.random.default_rng(seed)
    expected = i0 * np.exp(-phantom.project(theta).astype(np.float64))
    images = rng.poisson(expected).astype(np.uint16)
    flat = np.full(images.shape[1:], i0, np.float32)
    given = PLAIN | {
        "denoise": denoise,
        "geometry.rotation_center": (images.shape[2] - 1) / 2,
    }
    profile = profiles.load("demo", given | settings)
    with scratch() as folder:
        output = RunOutput(folder, "run")
        rooms = Rooms.furnish(profile)
        scan = Scan("raw", {}, n_promised or len(theta))
        session = Session(scan, profile, rooms, output, is_behind=is_behind)
        try:
            session.take(Announced(Kind.FLAT, 0, 1))
            session.take(Frame(0, Kind.FLAT, np.nan, flat))
            for k, angle in enumerate(theta):
                session.take(Announced(Kind.PROJECTION, k, k + 1))
                session.take(Frame(k, Kind.PROJECTION, float(angle), images[k]))
            session.take(Closed("success", "", len(theta), 0))
        finally:
            session.close()
        return outcome(output.folder)


def replay_file(path: Path, rotate_deg: float = 0.0, **settings: Any) -> Outcome:
    """Replay a measured scan; its stage may have begun at another angle."""
    with scratch() as folder:
        if rotate_deg:
            turned = folder / path.name
            shutil.copy(path, turned)
            turned.chmod(0o644)
            with h5py.File(turned, "r+") as scan:
                scan["exchange/theta"][:] += rotate_deg
            path = turned
        given = {"segment": None, "quantify": None, "publish.tiled": "none"}
        source, profile = open_source(
            str(path), profiles.load("data_exchange", given | settings)
        )
        callback = Reconstruction(profile, out=folder / "out", roots=source.roots)
        for name, doc in source.documents():
            callback(name, doc)
        callback.close()
        (result,) = callback.results.values()
        return outcome(Path(result.volume).parent)


def psnr(volume: NDArray[np.floating[Any]], truth: NDArray[np.floating[Any]]) -> float:
    """Return the PSNR (dB) inside 0.9 of the circle; the peak is the truth's range."""
    circle = inside_circle(truth.shape, INSIDE)
    wanted = truth[..., circle]
    error = float(np.mean(np.square(volume[..., circle] - wanted, dtype=np.float64)))
    return 10 * float(np.log10(np.ptp(wanted).astype(float) ** 2 / error))
