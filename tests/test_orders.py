"""Any order of angles, with losses: each version is the batch of what there was."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from reference import circle, nufft_fbp

from ebl_stream import profile_file as profiles
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.session import Session
from ebl_stream.frames import Announced, Closed, Frame, Kind, Scan
from ebl_stream.publish.output import RunOutput
from ebl_stream.result import Progress
from ebl_stream.simulation.phantom import Foam, angles_of
from ebl_stream.stages.reconstruct import Fourier

N_COLUMNS, N_ROWS, N_ANGLES = 96, 4, 160
CENTER = (N_COLUMNS - 1) / 2 - 1.25
AS_GOOD_DB = 0.02

_U = np.arange(N_ANGLES) / N_ANGLES
ORDERS = {
    "golden": angles_of("golden", N_ANGLES),
    "interlaced": angles_of("interlaced", N_ANGLES),
    "variable speed": np.pi * (_U + 0.5 * np.sin(2 * np.pi * _U) / (2 * np.pi)),
    "random": np.random.default_rng(3).random(N_ANGLES) * np.pi,
    "two turns": np.arange(N_ANGLES) * 2 * np.pi / N_ANGLES,
    "there and back": np.concatenate(
        [np.arange(0, N_ANGLES, 2), np.arange(N_ANGLES - 1, 0, -2)]
    )
    * np.pi
    / N_ANGLES,
}


@dataclass
class Versions:
    """The volume as it was published after each look."""

    output: RunOutput
    seen: dict[int, tuple[int, NDArray[np.float32]]] = field(default_factory=dict)
    """By version: projections used, and the volume."""

    def __call__(self, progress: Progress) -> None:
        if progress.volume and progress.version not in self.seen:
            self.seen[progress.version] = progress.n_used, self.read()

    def read(self) -> NDArray[np.float32]:
        return np.asarray(zarr.open_array(self.output.path("recon"), mode="r"))


def scan(
    values: NDArray[np.float32], theta: NDArray[np.float64], kept: list[int], out: Path
) -> dict[int, tuple[int, NDArray[np.float32]]]:
    """Run the kept projections through a session; return its versions."""
    settings = {
        "preprocess": [],
        "denoise": None,
        "segment": None,
        "quantify": None,
        "geometry.rotation_center": CENTER,
        "refresh.every": 0.2,
    }
    profile = profiles.load("demo", settings)
    versions = Versions(RunOutput(out, "run"))
    session = Session(
        Scan("raw", {}, N_ANGLES),
        profile,
        Rooms.furnish(profile),
        versions.output,
        on_progress=versions,
    )
    session.take(Announced(Kind.PROJECTION, 0, N_ANGLES))
    for k in kept:
        session.take(Frame(k, Kind.PROJECTION, theta[k], values[k]))
    session.take(Closed("success", "", N_ANGLES, 0))
    session.close()
    return versions.seen


def psnr(volume: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    inside = circle(N_COLUMNS)
    error = np.sqrt(np.mean((volume - truth)[:, inside] ** 2))
    return float(20 * np.log10(np.ptp(truth) / error))


@pytest.fixture(scope="module")
def foam() -> Foam:
    return Foam(N_COLUMNS, N_ROWS, seed=5)


@pytest.mark.parametrize("order", ORDERS)
def test_each_version_is_as_good_as_the_batch(
    foam: Foam, tmp_path: Path, order: str
) -> None:
    theta, truth = ORDERS[order], foam.volume()
    values = foam.project(theta, rotation_center=CENTER)
    rng = np.random.default_rng(1)
    kept = np.sort(rng.permutation(N_ANGLES)[: round(0.95 * N_ANGLES)])
    versions = scan(values, theta, kept.tolist(), tmp_path)
    assert len(versions) >= 4
    assert max(versions) == len(versions)
    for n_used, volume in versions.values():
        used = kept[:n_used]
        batch = Fourier()(values[used], theta[used], CENTER)
        live = psnr(volume, truth)
        assert live == pytest.approx(psnr(batch, truth), abs=AS_GOOD_DB)
    assert n_used == len(kept)
    # The batch is not judged by itself: an exact NUFFT with Voronoi weights, too.
    independent = nufft_fbp(values[kept, 1].astype(float), theta[kept], CENTER)
    independent_db = psnr(independent[None].astype(np.float32), truth[1:2])
    assert psnr(volume[1:2], truth[1:2]) == pytest.approx(independent_db, abs=0.1)


@pytest.mark.parametrize("order", ["interlaced", "variable speed", "random"])
def test_equal_weights_would_not_pass(foam: Foam, order: str) -> None:
    """The test above has teeth: what it allows is far below what weights do."""
    theta, truth = ORDERS[order], foam.volume()[1:2]
    kept = np.sort(np.random.default_rng(1).permutation(N_ANGLES)[:152])
    values = foam.project(theta[kept], rotation_center=CENTER)[:, 1].astype(float)
    uniform = np.full(len(kept), np.pi / len(kept))
    found = [
        psnr(nufft_fbp(values, theta[kept], CENTER, w)[None].astype("f4"), truth)
        for w in (None, uniform)
    ]
    assert found[0] > found[1] + 10 * AS_GOOD_DB


@pytest.mark.parametrize("order", ["sequential", "golden", "interlaced"])
def test_the_published_noise_is_the_true_error(
    foam: Foam, tmp_path: Path, order: str
) -> None:
    """The gate on the halves, through the engine: A - B of the last version."""
    theta = angles_of(order, N_ANGLES)
    exact = foam.project(theta, rotation_center=CENTER)
    counts = np.random.default_rng(0).poisson(5000 * np.exp(-exact))
    values = -np.log(np.maximum(counts, 0.5) / 5000).astype(np.float32)
    versions = scan(values, theta, list(range(N_ANGLES)), tmp_path)
    _, volume = versions[max(versions)]
    error = np.sqrt(np.mean((volume - foam.volume())[:, circle(N_COLUMNS)] ** 2))
    (row,) = read_quality(tmp_path)[max(versions)]
    assert 0.9 <= row["split_noise"] / error <= 1.15


def read_quality(folder: Path) -> dict[int, list[dict[str, float]]]:
    """Return the rows of the quality table, by version."""
    (path,) = folder.rglob("quality.jsonl")
    rows: dict[int, list[dict[str, float]]] = {}
    for row in map(json.loads, path.read_text().splitlines()):
        rows.setdefault(row["version"], []).append(row)
    return rows
