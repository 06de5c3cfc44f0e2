"""The rotation center: found where it can be, and never guessed."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from ebl_stream.simulation.phantom import Foam
from ebl_stream.stages import CenterVerdict
from ebl_stream.stages.center import OppositePairs
from ebl_stream.stages.opposite import MAX_PAIRS, find_pairs

DATA = Path(
    os.environ.get("EBL_STREAM_TEST_DATA", Path(__file__).parents[1] / "../shared/data")
)
GOLDEN = np.pi * (np.sqrt(5) - 1)
N = 192
ORDERS = {
    "half a turn, open": np.arange(300) * np.pi / 300,
    "half a turn, closed": np.linspace(0, np.pi, 301),
    "-90 to 90": np.linspace(-np.pi / 2, np.pi / 2, 301),
    "a turn": np.arange(300) * 2 * np.pi / 300,
    "a turn, odd": np.arange(301) * 2 * np.pi / 301,
    "golden, many turns": np.arange(300) * GOLDEN,
    "golden, half a turn": np.mod(np.arange(300) * GOLDEN / 2, np.pi),
    "interlaced": (np.arange(304) % 38 * 8 + np.arange(304) // 38) * np.pi / 304,
    "backwards": np.linspace(2 * np.pi, 0, 301),
}
# (fraction of the width off the middle, cut by the field)
PLACES = {
    "whole": (0.0017, False),
    "whole, 20 % off": (-0.2, False),
    "cut": (0.05, True),
    "cut, 20 % off": (0.2, True),
}


@pytest.fixture(scope="module")
def whole() -> Foam:
    return Foam(N, 8, seed=3, radius=0.28 * N)


@pytest.fixture(scope="module")
def wide() -> Foam:
    return Foam(2 * N, 8, seed=4)


def scan(
    foam: Foam, theta: np.ndarray, center: float, photons: float, rings: float = 0
) -> np.ndarray:
    """Line integrals of the middle N columns, the axis at ``center`` of them."""
    start = (foam.n_columns - N) // 2
    values = foam.project(theta, center + start)[:, :, start : start + N]
    rng = np.random.default_rng(0)
    counts = rng.poisson(photons * np.exp(-values.astype(np.float64)))
    noisy = -np.log(np.maximum(counts, 0.5) / photons)
    return (noisy + rng.normal(0, rings, values.shape[1:])).astype(np.float32)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("photons", [2e4, 2e3])
def test_found_in_any_order_of_angles(
    order: str, place: str, photons: float, whole: Foam, wide: Foam
) -> None:
    off, is_cut = PLACES[place]
    center = (N - 1) / 2 + off * N
    foam = wide if is_cut else whole
    verdict = OppositePairs()(scan(foam, ORDERS[order], center, photons), ORDERS[order])
    assert verdict.reliable, verdict.why
    assert verdict.center == pytest.approx(center, abs=0.25)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("order", ["half a turn, closed", "a turn"])
def test_strong_rings_do_not_pull_it_to_the_middle(
    order: str, place: str, whole: Foam, wide: Foam
) -> None:
    off, is_cut = PLACES[place]
    center = (N - 1) / 2 + off * N
    values = scan(wide if is_cut else whole, ORDERS[order], center, 2e4, rings=0.1)
    verdict = OppositePairs()(values, ORDERS[order])
    assert verdict.reliable, verdict.why
    assert verdict.center == pytest.approx(center, abs=0.25)


def test_two_projections_are_enough(whole: Foam) -> None:
    theta = np.array([0.3, 0.3 + np.pi])
    verdict = OppositePairs()(scan(whole, theta, 100.4, 2e4), theta)
    assert verdict.reliable, verdict.why
    assert verdict.center == pytest.approx(100.4, abs=0.25)


def test_pixels_without_a_value_do_no_harm(whole: Foam) -> None:
    theta = ORDERS["a turn"]
    values = scan(whole, theta, 100.4, 2e4)
    values[:, 3, 40] = np.nan
    values[5] = np.nan
    verdict = OppositePairs()(values, theta)
    assert verdict.reliable, verdict.why
    assert verdict.center == pytest.approx(100.4, abs=0.25)


def refused(verdict: CenterVerdict, why: str) -> None:
    assert not verdict.reliable
    assert why in verdict.why
    assert "\n" not in verdict.why


def test_no_verdict_before_two_projections_face_each_other(whole: Foam) -> None:
    theta = np.linspace(0, np.radians(170), 200)
    verdict = OppositePairs()(scan(whole, theta, 100, 2e4), theta)
    refused(verdict, "no two of 200 projections face each other")
    assert verdict.center is None


@pytest.mark.parametrize("miss_deg", [0.5, 1.5, 3.8])
def test_one_pair_that_is_off_knows_how_little_it_knows(
    miss_deg: float, whole: Foam
) -> None:
    theta = np.array([0.3, 0.3 + np.radians(180 - miss_deg)])
    verdict = OppositePairs()(scan(whole, theta, 100, 2e4), theta)
    assert verdict.center == pytest.approx(100, abs=3 * verdict.spread_px)
    exact = OppositePairs()(
        scan(whole, np.array([0, np.pi]), 100, 2e4), np.array([0, np.pi])
    )
    assert verdict.spread_px > 3 * exact.spread_px
    strict = OppositePairs(max_spread_px=verdict.spread_px / 2)
    refused(strict(scan(whole, theta, 100, 2e4), theta), "px only")


@pytest.mark.parametrize("n", [0, 1])
def test_no_verdict_from_less_than_two(n: int) -> None:
    values = np.ones((n, 4, 64), np.float32)
    refused(OppositePairs()(values, np.zeros(n)), "face each other")


def test_no_verdict_from_noise() -> None:
    theta = ORDERS["a turn"]
    values = np.random.default_rng(1).normal(0, 1, (300, 8, N)).astype(np.float32)
    refused(OppositePairs()(values, theta), "opposite projections are not alike")


@pytest.mark.parametrize("n_angles", [2, 300])
def test_no_verdict_from_the_detectors_own_pattern(n_angles: int) -> None:
    theta = np.arange(n_angles) * 2 * np.pi / n_angles
    rng = np.random.default_rng(2)
    values = rng.normal(0, 1, (1, 8, N)) + rng.normal(0, 0.05, (n_angles, 8, N))
    assert not OppositePairs()(values.astype(np.float32), theta).reliable


def test_no_verdict_from_nothing() -> None:
    theta = ORDERS["a turn"]
    refused(OppositePairs()(np.ones((300, 4, N), np.float32), theta), "show nothing")


def test_no_verdict_from_a_few_columns() -> None:
    values = np.random.default_rng(3).normal(0, 1, (300, 4, 12)).astype(np.float32)
    refused(OppositePairs()(values, ORDERS["a turn"]), "12 columns are too few")


def test_no_verdict_when_the_sample_moved(whole: Foam) -> None:
    theta = ORDERS["a turn"]
    values = scan(whole, theta, 100, 2e4)
    drift = np.random.default_rng(4).integers(-30, 30, 300)
    moved = np.stack(
        [np.roll(v, d, axis=1) for v, d in zip(values, drift, strict=True)]
    )
    assert not OppositePairs()(moved, theta).reliable


@pytest.mark.parametrize("order", ORDERS)
def test_pairs_face_each_other(order: str) -> None:
    theta = ORDERS[order]
    pairs = find_pairs(theta, np.radians(4))
    assert 0 < len(pairs) <= MAX_PAIRS
    facing = theta[pairs.second] - theta[pairs.first] - np.pi - pairs.miss
    np.testing.assert_allclose(np.mod(facing + 1, 2 * np.pi), 1, atol=1e-9)
    assert abs(pairs.miss).max() <= np.radians(4)
    each = {frozenset(pair) for pair in zip(pairs.first, pairs.second, strict=True)}
    assert len(each) == len(pairs)
    assert all(len(pair) == 2 for pair in each)
    assert pairs.weights(N).sum() == pytest.approx(1)


MEASURED = {
    "aps_tooth": (295.6, 0.5),
    "helsinki_pepper_normal": (279.5, 0.5),
    "helsinki_pepper_lowdose": (279.5, 0.5),
    "ssrl_txm_tomo77": (39.0, 0.75),
    "itb_bone": (74.5, 0.75),
    # Not measurable by the source's own account; 26 columns.
    "dls_k11_stream": (12.5, 1.0),
}


@pytest.mark.parametrize("name", MEASURED)
def test_found_in_measured_scans(name: str) -> None:
    path = DATA / f"{name}.h5"
    if not path.is_file():
        pytest.skip(f"no measured scans at {DATA} (set EBL_STREAM_TEST_DATA)")
    with h5py.File(path) as file:
        data, white, dark, theta = (
            np.asarray(file[f"exchange/{key}"][()], np.float64)  # type: ignore[index]
            for key in ("data", "data_white", "data_dark", "theta")
        )
    beam = white.mean(axis=0) - dark.mean(axis=0)
    transmission = (data - dark.mean(axis=0)) / np.where(beam > 0, beam, np.nan)
    integrals = -np.log(np.maximum(transmission, 1e-5)).astype(np.float32)
    verdict = OppositePairs()(integrals, np.radians(theta))
    expected, tolerance = MEASURED[name]
    assert verdict.reliable, verdict.why
    assert verdict.center == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("center", [3.5, 11.0, 116.0, 124.0])
def test_a_center_out_of_reach_is_refused_instead_of_guessed(center):
    theta = np.arange(181) * np.pi / 180
    values = Foam(128, 8).project(theta, rotation_center=center)
    noisy = values + np.random.default_rng(0).normal(0, 0.01, values.shape)
    verdict = OppositePairs()(noisy.astype(np.float32), theta)
    assert not verdict.reliable, verdict
