"""Each ring stage lowers rings by a stated factor, and harms a clean scan little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebl_stream.numerics.quality import inside_circle
from ebl_stream.simulation.phantom import Foam
from ebl_stream.stages.preprocess import FilterStripes, RemoveRings, RemoveStripes
from ebl_stream.stages.preprocess.rings import sinogram_order
from ebl_stream.stages.reconstruct import Fourier

N, N_ROWS, N_ANGLES = 384, 2, 600
CENTER = (N - 1) / 2
THETA = np.arange(N_ANGLES) * np.pi / N_ANGLES
STAGES = {
    "rings": RemoveRings(),
    "stripes": RemoveStripes(),
    "filter": FilterStripes(),
}

FACTORS = {
    # How much less of the artifact is left, at least.
    ("rings", "pixels"): 3.0,
    ("stripes", "pixels"): 3.0,
    ("filter", "pixels"): 2.0,
    ("stripes", "wide"): 1.6,
    ("stripes", "stuck"): 6.0,
    ("filter", "half"): 1.6,
}

HARM = {"rings": 1.02, "filter": 1.02, "stripes": 1.2}
"""Error of a clean scan after the stage, over the error before it."""


def reconstruct(values: np.ndarray) -> np.ndarray:
    return Fourier()(np.ascontiguousarray(values, np.float32), THETA, CENTER)


def rms(volume: np.ndarray) -> float:
    inside = inside_circle(volume.shape, 0.9)
    return float(np.sqrt(np.mean(volume[:, inside] ** 2)))


@dataclass(frozen=True)
class Scan:
    truth: np.ndarray
    values: np.ndarray
    volume: np.ndarray


@pytest.fixture(scope="module")
def scan() -> Scan:
    """Return a foam as 20000 photons per pixel show it."""
    foam = Foam(N, N_ROWS, seed=5)
    rng = np.random.default_rng(3)
    beam = 2e4 * np.exp(-foam.project(THETA, CENTER).astype(np.float64))
    values = -np.log(np.maximum(rng.poisson(beam), 0.5) / 2e4).astype(np.float32)
    return Scan(foam.volume(), values, reconstruct(values))


def artifact(kind: str, values: np.ndarray) -> np.ndarray:
    """Return what a detector adds to line integrals."""
    rng = np.random.default_rng(6)
    added = np.zeros(values.shape, np.float32)
    if kind == "pixels":
        added += rng.normal(0, 0.02, (1, *values.shape[1:]))
    elif kind == "wide":
        added[:, :, 115:121], added[:, :, 269:277] = 0.03, -0.03
    elif kind == "half":
        added[: len(values) // 2, :, 173] = 0.08
    else:
        for column in (134, 135, 238):
            stuck = rng.normal(1, 0.3, values.shape[:2])
            added[:, :, column] = stuck - values[:, :, column]
    return added


@pytest.mark.parametrize("name", list(STAGES))
def test_a_clean_scan_is_hardly_harmed(name: str, scan: Scan) -> None:
    after = reconstruct(STAGES[name](scan.values))
    assert rms(after - scan.truth) < HARM[name] * rms(scan.volume - scan.truth)


@pytest.mark.parametrize(("name", "kind"), list(FACTORS))
def test_rings_are_lowered(name: str, kind: str, scan: Scan) -> None:
    stage, broken = STAGES[name], scan.values + artifact(kind, scan.values)
    before = rms(reconstruct(broken) - scan.volume)
    # Less what the stage does to a clean scan, for which there is the test above.
    left = reconstruct(stage(broken)) - reconstruct(stage(scan.values))
    assert before > FACTORS[name, kind] * rms(left)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(path) as file:
        group: Any = file["exchange"]
        dark = group["data_dark"][:].mean(0)
        beam = group["data_white"][:].mean(0) - dark
        values = -np.log((group["data"][:] - dark) / beam)
        return values.astype(np.float32), np.deg2rad(group["theta"][:])


@pytest.mark.parametrize(
    ("name", "factor"), [("rings", 3), ("stripes", 3), ("filter", 2)]
)
def test_rings_in_a_measured_scan_are_lowered(
    measured_scan: Callable[[str], Path], name: str, factor: float
) -> None:
    values, theta = read(measured_scan("aps_tooth.h5"))
    stage = STAGES[name]
    gains = np.random.default_rng(7).normal(0, 0.03, values.shape[1:])
    broken = (values + gains).astype(np.float32)

    def slices(integrals: np.ndarray) -> np.ndarray:
        return Fourier()(integrals, theta, 295.6)

    before = rms(slices(broken) - slices(values))
    assert before > factor * rms(slices(stage(broken)) - slices(stage(values)))


@pytest.mark.parametrize("name", ["stripes", "filter"])
def test_rows_of_a_sinogram_are_independent(name: str, scan: Scan) -> None:
    stage, values = STAGES[name], scan.values[::4]
    rows = [stage(values[:, row : row + 1]) for row in range(N_ROWS)]
    np.testing.assert_array_equal(stage(values), np.concatenate(rows, axis=1))


@pytest.mark.parametrize("name", ["stripes", "filter"])
@pytest.mark.parametrize("shape", [(1, 1, 30), (20, 1, 7), (60, 2, 64)])
def test_what_cannot_be_treated_stays(name: str, shape: tuple[int, int, int]) -> None:
    for values in (np.zeros(shape, np.float32), np.full(shape, 1.5, np.float32)):
        found = STAGES[name](values)
        np.testing.assert_allclose(found, values, atol=1e-5)


def test_a_sinogram_begins_after_the_gap_and_has_no_jump() -> None:
    degrees = np.array([10, -80, 30, 75, -20, 0.0])
    order = sinogram_order(np.deg2rad(degrees))
    assert degrees[order].tolist() == [-80, -20, 0, 10, 30, 75]
    assert sinogram_order(np.array([])).size == 0
    assert sinogram_order(np.array([1.0])).tolist() == [0]


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=40, unique=True))
@settings(deadline=None)
def test_sinogram_order_takes_all_and_steps_once_around(theta: list[float]) -> None:
    order = sinogram_order(np.array(theta))
    assert sorted(order) == list(range(len(theta)))
    steps = np.diff(np.array(theta)[order]) % (2 * np.pi)
    steps[steps > 2 * np.pi - 1e-9] = 0
    assert steps.sum() < 2 * np.pi
