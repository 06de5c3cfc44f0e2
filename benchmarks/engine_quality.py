"""How right: against exact NUFFT-FBP, the peers, the truth; any order of angles."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from halves import complete_scans
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from reference import nufft_fbp

from ebl_stream import profile_file as profiles
from ebl_stream.cli.commands import PLAIN
from ebl_stream.cli.peers import PEERS, Problem, accuracy
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.session import Session
from ebl_stream.frames import Announced, Closed, Frame, Kind, Scan
from ebl_stream.publish.output import RunOutput
from ebl_stream.simulation.phantom import Foam, angles_of
from ebl_stream.stages import build
from ebl_stream.stages.preprocess import RemoveZingers
from ebl_stream.stages.reconstruct import Fourier

LOST = 0.05


def exactness(quick: bool, threads: int) -> dict[str, Any]:
    """Compare PSNR with the exact adjoint NUFFT, and with ASTRA and algotom."""
    columns, angles = (256, 404) if quick else (512, 804)
    foam = Foam(columns, 4, seed=0)
    theta = np.arange(angles) * np.pi / angles
    center = columns // 2
    problem = Problem(foam.project(theta, center), theta, center, threads)
    truth = foam.volume()
    exact = np.stack(
        [
            nufft_fbp(problem.values[:, row].astype(float), theta, center)
            for row in range(foam.n_rows)
        ]
    ).astype(np.float32)
    slices = {
        "ours": Fourier()(problem.values, theta, center),
        "exact NUFFT": exact,
        "ours, sinc2": Fourier(window="sinc2")(problem.values, theta, center),
    }
    for peer in PEERS:
        if peer.name in ("ASTRA FBP", "algotom FBP") and not peer.absent:
            slices[peer.name] = peer.slices(problem)
    psnr = {name: accuracy(made, truth).psnr_db for name, made in slices.items()}
    return {
        "psnr_minus_nufft_db": psnr["ours"] - psnr["exact NUFFT"],
        "psnr_minus_astra_db": psnr["ours"] - psnr["ASTRA FBP"],
        "case": {"columns": columns, "angles": angles, "psnr_db": psnr},
    }


# ------------------------------------------------------------------ any order


def orders(n: int) -> dict[str, NDArray[np.float64]]:
    """Return angles (rad) as they are visited."""
    rng = np.random.default_rng(1)
    steps = 1 + 0.5 * np.sin(4 * np.pi * np.arange(n) / n)
    return {
        "sequential": angles_of("sequential", n),
        "golden": angles_of("golden", n),
        "interlaced": angles_of("interlaced", n),
        "variable speed": np.cumsum(steps) * np.pi / steps.sum(),
        "random": rng.random(n) * np.pi,
    }


def any_order(quick: bool, threads: int) -> dict[str, Any]:
    """Compare every refresh of lossy scans with batch of the same projections."""
    columns, angles = (128, 200) if quick else (512, 804)
    foam = Foam(columns, 4, seed=3)
    truth, found = foam.volume(), {}
    for name, theta in orders(angles).items():
        exact = foam.project(theta)
        rng = np.random.default_rng(7)
        kept = np.flatnonzero(rng.random(angles) > LOST)
        found[name] = [
            accuracy(volume, truth).psnr_db
            - accuracy(
                Fourier()(exact[used], theta[used], foam_center(foam)), truth
            ).psnr_db
            for volume, used in versions(exact, theta, kept)
        ]
    worst = max((d for many in found.values() for d in many), key=abs)
    return {
        "golden_minus_batch_db": worst,
        "case": {"columns": columns, "angles": angles, "lost": LOST, "db": found},
    }


def foam_center(foam: Foam) -> float:
    return (foam.n_columns - 1) / 2


def versions(
    exact: NDArray[np.float32], theta: NDArray[np.float64], kept: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.intp]]]:
    """Run a session; yield each published volume and the indices in it."""
    _, n_rows, n_columns = exact.shape
    settings = PLAIN | {
        "geometry.rotation_center": (n_columns - 1) / 2,
        "refresh.every": 0.25,
        "refresh.slab_rows": 4,
        "publish.tiled": "none",
    }
    profile = profiles.load("default", settings)
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        output = RunOutput(Path(folder), "run")
        scan = Scan("raw", {}, len(theta))
        session = Session(scan, profile, Rooms.furnish(profile), output)
        flat = np.ones((n_rows, n_columns), np.float32)
        session.take(Announced(Kind.FLAT, 0, 1))
        session.take(Frame(0, Kind.FLAT, np.nan, flat))
        session.take(Announced(Kind.DARK, 0, 1))
        session.take(Frame(0, Kind.DARK, np.nan, np.zeros_like(flat)))
        seen = 0
        for k in kept.tolist():
            session.take(Announced(Kind.PROJECTION, k, k + 1))
            session.take(Frame(k, Kind.PROJECTION, theta[k], np.exp(-exact[k])))
            progress = session.progress()
            if progress.version > seen:
                seen = progress.version
                yield zarr.open_array(progress.volume, mode="r")[:], kept[kept <= k]
        result = session.take(Closed("success", "", len(theta), 0))
        yield zarr.open_array(result.volume, mode="r")[:], kept
        session.close()


# ----------------------------------------------------------- center, zingers, halves


def center(quick: bool, threads: int) -> dict[str, Any]:
    """Measure the error of the rotation center, px, and refusals."""
    columns, angles, rows = (256, 400, 8) if quick else (512, 800, 16)
    stage = build("center", profiles.load("default").center)
    foam = Foam(columns, rows, seed=5)
    cases: dict[str, float] = {}
    for off in (3.37, -6.2):
        true = (columns - 1) / 2 + off
        for order in ("sequential", "golden", "interlaced"):
            theta = angles_of(order, angles)
            if order == "sequential":
                theta = np.linspace(0, np.pi, angles)
            exact = foam.project(theta, true)
            cut = exact[..., columns // 4 : -(columns // 4)]
            scans = {
                "clean": (exact, true),
                "I0 = 2000": (with_noise(exact, 2000), true),
                "truncated": (cut, true - columns // 4),
            }
            for name, (values, expected) in scans.items():
                verdict = stage(values, theta)
                error = np.nan
                if verdict.center is not None and verdict.reliable:
                    error = verdict.center - expected
                cases[f"{name}, {order}, {off:+}"] = float(error)
    rng = np.random.default_rng(2)
    air = rng.normal(0, 0.02, (angles, rows, columns)).astype(np.float32)
    refused = not stage(air, angles_of("golden", angles)).reliable
    return {
        "center_error_px": _worst(cases, "clean"),
        "center_error_noisy_px": _worst(cases, "I0"),
        "center_error_truncated_px": _worst(cases, "truncated"),
        "center_refuses_air": refused,
        "case": cases,
    }


def _worst(cases: dict[str, float], prefix: str) -> float:
    """Return the largest error; a refusal of a good scan is as bad as any."""
    errors = [abs(e) for name, e in cases.items() if name.startswith(prefix)]
    return float("inf") if np.isnan(errors).any() else max(errors)


def with_noise(exact: NDArray[np.float32], photons: int) -> NDArray[np.float32]:
    counts = np.random.default_rng(0).poisson(photons * np.exp(-exact))
    return -np.log(np.maximum(counts, 0.5) / photons).astype(np.float32)


def zingers(quick: bool, threads: int) -> dict[str, Any]:
    """Light pixels at random in a golden scan, and see which are found."""
    columns, angles, rows = (256, 60, 32) if quick else (512, 120, 64)
    exact = Foam(columns, rows, seed=6).project(angles_of("golden", angles))
    clean = np.exp(-with_noise(exact, 20_000)).astype(np.float32)
    rng = np.random.default_rng(1)
    hit = rng.random(clean.shape) < 3e-4
    lit = clean + hit * rng.uniform(0.3, 3, clean.shape).astype(np.float32)
    stage = RemoveZingers()
    found = stage(lit) != lit
    return {
        "zinger_detection": float(found[hit].mean()),
        "zinger_false": float((stage(clean) != clean).mean()),
        "case": {"hit": int(hit.sum()), "pixels": hit.size},
    }


def halves(quick: bool, threads: int) -> dict[str, Any]:
    """Ask the halves what they say of noise and resolution; the worst of complete."""
    found = complete_scans(256, 4) if quick else complete_scans()
    return {key: found[key] for key in found if key != "cases"} | {
        "case": found["cases"]
    }
