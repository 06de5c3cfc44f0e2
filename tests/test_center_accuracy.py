"""How exactly the rotation center is found, on a phantom and on measured scans."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from ebl_stream.simulation.phantom import Foam
from ebl_stream.stages import CenterVerdict
from ebl_stream.stages.center import OppositePairs
from ebl_stream.stages.center_auto import Auto
from ebl_stream.stages.center_centroid import Centroid
from ebl_stream.stages.center_wedge import DoubleWedge

N, ROWS, ANGLES = 512, 16, 800
CENTER = (N - 1) / 2 + 3.37
ORDERS = {
    "half a turn": np.arange(ANGLES) * np.pi / ANGLES,
    "golden": np.arange(ANGLES) * np.pi * (np.sqrt(5) - 1) / 2 % np.pi,
}
PHOTONS = {"clean": None, "2e4": 2e4, "2e3": 2e3}


@pytest.fixture(scope="module", params=ORDERS)
def theta(request: pytest.FixtureRequest) -> np.ndarray:
    return ORDERS[request.param]


@pytest.fixture(scope="module", params=["whole", "cut"])
def exact(request: pytest.FixtureRequest, theta: np.ndarray) -> np.ndarray:
    """Line integrals; a cut sample is 1.5 times as wide as the field."""
    wide = 2 * N if request.param == "cut" else N
    foam = Foam(wide, ROWS, seed=1, radius=0.42 * N if wide == N else 0.75 * N)
    start = (wide - N) // 2
    return foam.project(theta, CENTER + start)[:, :, start : start + N]


def measured(exact: np.ndarray, photons: float | None) -> np.ndarray:
    """Two attenuation lengths at the thickest place, counted."""
    if photons is None:
        return exact
    scale = 2 / exact.max()
    rng = np.random.default_rng(2)
    counts = rng.poisson(photons * np.exp(-scale * exact.astype(np.float64)))
    return (-np.log(np.maximum(counts, 1) / photons) / scale).astype(np.float32)


@pytest.mark.parametrize("photons", PHOTONS)
@pytest.mark.parametrize("stage", [OppositePairs(), Auto()])
def test_within_a_twentieth_or_a_tenth_of_a_pixel(
    exact: np.ndarray, theta: np.ndarray, photons: str, stage: Auto | OppositePairs
) -> None:
    values = measured(exact, PHOTONS[photons])
    verdict = stage(values, theta)
    assert verdict.reliable, verdict.why
    assert verdict.center is not None
    error = abs(verdict.center - CENTER)
    assert error < (0.05 if photons == "clean" else 0.1)
    assert error < max(5 * verdict.spread_px, 0.01)
    assert verdict.spread_px < 0.1


@pytest.mark.parametrize("photons", PHOTONS)
def test_the_double_wedge_is_blunter_but_right(
    exact: np.ndarray, theta: np.ndarray, photons: str
) -> None:
    verdict = DoubleWedge()(measured(exact, PHOTONS[photons]), theta)
    assert verdict.reliable, verdict.why
    assert verdict.center == pytest.approx(CENTER, abs=1.0)


@pytest.mark.parametrize("photons", PHOTONS)
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_center_of_mass_needs_a_quarter_of_the_angles(
    photons: str, share: float
) -> None:
    theta = ORDERS["half a turn"][: int(share * ANGLES)]
    foam = Foam(N, ROWS, seed=5, radius=0.42 * N)
    verdict = Centroid()(measured(foam.project(theta, CENTER), PHOTONS[photons]), theta)
    assert verdict.center == pytest.approx(CENTER, abs=max(0.01, 4 * verdict.spread_px))
    assert verdict.reliable == (verdict.spread_px <= 0.25)
    if share == 1 or photons == "clean":
        assert verdict.center == pytest.approx(CENTER, abs=0.05)
        assert verdict.reliable, verdict.why


REFERENCES = {
    # From the 0/180 mirror and from the wedge metric; margin in px.
    "aps_tooth": (295.6, 295.85, 0.1),
    "helsinki_pepper_normal": (279.5, 279.5, 0.2),
    "helsinki_pepper_lowdose": (279.5, 279.5, 0.2),
    "ssrl_txm_tomo77": (38.85, 39.0, 0.1),
    "itb_bone": (74.5, 74.5, 0.1),
}


def integrals(path: object) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(str(path)) as file:
        data, white, dark, theta_deg = (
            np.asarray(file[f"exchange/{key}"][()], np.float64)  # type: ignore[index]
            for key in ("data", "data_white", "data_dark", "theta")
        )
    beam = white.mean(axis=0) - dark.mean(axis=0)
    transmission = (data - dark.mean(axis=0)) / np.where(beam > 0, beam, np.nan)
    values = -np.log(np.maximum(transmission, 1e-5)).astype(np.float32)
    return values, np.radians(theta_deg)


@pytest.mark.parametrize("name", REFERENCES)
def test_measured_scans_between_their_references(name: str, measured_scan) -> None:
    values, theta = integrals(measured_scan(f"{name}.h5"))
    low, high, margin = REFERENCES[name]
    rows = values[:, :: max(1, values.shape[1] // ROWS)][:, :ROWS]
    stage = Auto()
    for every in (1, 2):
        some, angles = rows[::every], theta[::every]
        verdict = stage.confirm(stage(some, angles), some, angles)
        assert verdict.reliable, verdict.why
        assert verdict.center is not None
        assert low - margin <= verdict.center <= high + margin


def test_a_center_of_26_columns_is_not_claimed_to_be_exact(measured_scan) -> None:
    values, theta = integrals(measured_scan("dls_k11_stream.h5"))
    verdict: CenterVerdict = Auto()(values, theta)
    assert not verdict.reliable or verdict.spread_px > 0.1
