"""What has no rotation center gets none; what is told is what is so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebl_stream.simulation.phantom import Foam, Phantom
from ebl_stream.stages import CenterVerdict
from ebl_stream.stages.center_auto import Auto
from ebl_stream.stages.center_centroid import Centroid, covered_arc
from ebl_stream.stages.center_motion import motion_of
from ebl_stream.stages.center_wedge import DoubleWedge

N, ROWS = 160, 8
CENTER = 84.3
GOLDEN = np.pi * (np.sqrt(5) - 1)
HALF_TURN = np.arange(240) * np.pi / 240
ORDERS = {
    "half a turn": HALF_TURN,
    "closed": np.linspace(0, np.pi, 241),
    "a turn": np.arange(240) * 2 * np.pi / 240,
    "golden": np.arange(240) * GOLDEN / 2 % np.pi,
    "golden, many turns": np.arange(240) * GOLDEN,
    "pre-shot": np.concatenate([[0, np.pi], HALF_TURN]),
}
STAGES = [Auto(), Centroid(), DoubleWedge()]


@pytest.fixture(scope="module")
def whole() -> Foam:
    return Foam(N, ROWS, seed=7, radius=0.33 * N)


@pytest.fixture(scope="module")
def wide() -> Foam:
    return Foam(2 * N, ROWS, seed=8, radius=0.75 * N)


def counted(values: np.ndarray, photons: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(photons * np.exp(-values.astype(np.float64)))
    return -np.log(np.maximum(counts, 0.5) / photons).astype(np.float32)


def shifted(body: Phantom, theta: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Project a sample that is moved along the columns, differently at each angle."""
    start = (body.n_columns - N) // 2
    values = [
        body.project(theta[k : k + 1], CENTER + start + by[k])[:, :, start : start + N]
        for k in range(len(theta))
    ]
    return np.concatenate(values)


def final(values: np.ndarray, theta: np.ndarray) -> CenterVerdict:
    stage = Auto()
    return stage.confirm(stage(values, theta), values, theta)


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rings", [0.0, 0.05])
def test_empty_air_has_no_center(stage: Auto, order: str, rings: float) -> None:
    theta = ORDERS[order]
    for seed in range(4):
        values = counted(np.zeros((len(theta), ROWS, N)), 1e3, seed)
        values += np.random.default_rng(seed).normal(0, rings, (ROWS, N))
        verdict = stage(values.astype(np.float32), theta)
        assert not verdict.reliable
        assert verdict.why
        assert "\n" not in verdict.why


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_constant_values_have_no_center(stage: Auto, n: int) -> None:
    values = np.ones((n, ROWS, N), np.float32)
    assert not stage(values, np.linspace(0, np.pi, n)).reliable


@pytest.mark.parametrize("order", ["half a turn", "closed", "a turn"])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("jump", [3.0, 6.0])
def test_a_sample_that_jumped_has_no_center(
    order: str, cut: bool, jump: float, whole: Foam, wide: Foam
) -> None:
    theta = ORDERS[order]
    by = np.where(np.arange(len(theta)) < len(theta) // 2, 0, jump)
    values = counted(shifted(wide if cut else whole, theta, by), 1e4)
    verdict = final(values, theta)
    assert not verdict.reliable
    assert "the sample" in verdict.why
    still = counted(shifted(wide if cut else whole, theta, 0 * by), 1e4)
    assert final(still, theta).reliable


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("cut", [False, True])
def test_projections_that_jitter_have_no_center(
    order: str, cut: bool, whole: Foam, wide: Foam
) -> None:
    theta = ORDERS[order]
    by = np.random.default_rng(3).normal(0, 3, len(theta))
    values = counted(shifted(wide if cut else whole, theta, by), 1e4)
    assert motion_of(values, theta).jitter == pytest.approx(3, rel=0.5)
    assert not final(values, theta).reliable


def test_a_single_bad_projection_is_no_motion(whole: Foam) -> None:
    by = np.zeros(240)
    by[100] = 8
    values = counted(shifted(whole, HALF_TURN, by), 1e4)
    motion = motion_of(values, HALF_TURN)
    assert motion.jump == 0
    assert motion.jitter < 0.2
    verdict = final(values, HALF_TURN)
    assert verdict.reliable, verdict.why
    assert verdict.center == pytest.approx(CENTER, abs=0.1)


def test_what_repeats_fits_at_several_places() -> None:
    """Equal walls, seen along them, so that any period shifts one on the other."""
    bars = [[x, 0, 0, 3, 300, np.inf, 0, 0.004] for x in range(-230, 231, 20)]
    walls = Phantom(3 * N, ROWS, bars)
    theta = np.concatenate([np.arange(-4, 5), np.arange(176, 185)]) * np.radians(0.05)
    theta[9:] = np.pi + theta[:9]
    values = counted(walls.project(theta, CENTER + N)[:, :, N : 2 * N], 1e5)
    verdict = Auto()(values, theta)
    assert not verdict.reliable
    assert "more than one place" in verdict.why


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_center_of_mass_of_a_cut_sample_is_refused(
    order: str, share: float, wide: Foam
) -> None:
    theta = ORDERS[order][: int(share * 240)]
    start = N // 2
    values = wide.project(theta, CENTER + start)[:, :, start : start + N]
    verdict = Centroid()(counted(values, 1e4), theta)
    assert not verdict.reliable
    assert "field" in verdict.why or "arc" in verdict.why or "air" in verdict.why


def test_a_sample_that_leaves_the_field_at_some_angles_is_refused() -> None:
    body = Phantom(N, ROWS, [[40, 0, 0, 20, 20, np.inf, 0, 0.02]])
    values = counted(body.project(HALF_TURN, CENTER + 45), 1e5)
    assert values[0, :, -4:].mean() > 0.1  # it does leave
    verdict = Centroid()(values, HALF_TURN)
    assert not verdict.reliable
    assert "edge of the field" in verdict.why


@pytest.mark.parametrize("height", [0.03, 0.1, 0.3])
def test_methods_that_disagree_refuse_together(height: float, whole: Foam) -> None:
    """A background that stands on the detector pulls the mass, not the pairs."""
    values = whole.project(HALF_TURN, CENTER)
    x = np.linspace(-1, 1, N)
    bump = np.exp(-(((x - 0.5) / 0.1) ** 2)) - np.exp(-(((x + 0.5) / 0.1) ** 2))
    values = counted(values + (height * bump).astype(np.float32), 1e5)
    assert abs((Centroid()(values, HALF_TURN).center or 0) - CENTER) > 0.3
    verdict = final(values, HALF_TURN)
    if verdict.reliable:
        assert verdict.center == pytest.approx(CENTER, abs=0.2)
    else:
        assert "center of mass" in verdict.why
        assert " says " in verdict.why
    assert height < 0.3 or not verdict.reliable


# --------------------------------------------------------------- what it says


def test_each_answer_is_told_beside_the_others(whole: Foam) -> None:
    values = counted(whole.project(HALF_TURN, CENTER), 1e4)
    verdict = final(values, HALF_TURN)
    assert verdict.method == "pairs"
    assert set(verdict.checks) == {"centroid", "double_wedge"}
    assert all(abs(v - CENTER) < 1 for v in verdict.checks.values())


def test_the_center_of_mass_serves_before_projections_face_each_other(
    whole: Foam,
) -> None:
    theta = HALF_TURN[:100]
    verdict = Auto()(counted(whole.project(theta, CENTER), 1e5), theta)
    assert verdict.reliable, verdict.why
    assert verdict.method == "centroid"
    assert verdict.center == pytest.approx(CENTER, abs=0.3)


def test_a_wedge_that_is_sure_of_another_center_overrules(whole: Foam) -> None:
    values = counted(whole.project(HALF_TURN, CENTER), 1e4)
    right = Auto()(values, HALF_TURN)
    wrong = CenterVerdict(CENTER + 8, True, 0.02, "a lie", "pairs")
    verdict = Auto().confirm(wrong, values, HALF_TURN)
    assert not verdict.reliable
    assert "double wedge" in verdict.why
    assert Auto().confirm(right, values, HALF_TURN).reliable


@pytest.mark.parametrize(
    ("theta_deg", "arc_deg"),
    [
        ([], 0),
        ([10], 0),
        ([0, 180], 0),
        ([0, 180, 0, 1, 2, 3], 4),
        (np.arange(0, 180, 2), 180),
        (np.arange(0, 45, 0.5), 45),
        (np.arange(180, 225, 0.5), 45),
        (np.linspace(-90, 90, 91), 180),
    ],
)
def test_arc_of_directions(theta_deg: list[float], arc_deg: float) -> None:
    arc = np.degrees(covered_arc(np.radians(np.asarray(theta_deg, float))))
    assert arc == pytest.approx(arc_deg, abs=2)


# ------------------------------------------------------ never sure and wrong


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 10**6),
    n=st.sampled_from([64, 96, 160]),
    rows=st.sampled_from([2, 4, 8]),
    order=st.sampled_from(sorted(ORDERS)),
    taken=st.sampled_from([2, 20, 80, 240]),
    off=st.floats(-0.2, 0.2),
    radius=st.floats(0.1, 0.9),
    photons=st.sampled_from([100.0, 1e3, 1e5]),
    rings=st.sampled_from([0.0, 0.01, 0.05]),
)
def test_no_confident_wrong_center(
    seed, n, rows, order, taken, off, radius, photons, rings
) -> None:
    theta = ORDERS[order][:taken]
    body = Foam(2 * n, rows, seed=seed, radius=radius * n)
    center, start = (n - 1) / 2 + off * n, n // 2
    values = body.project(theta, center + start)[:, :, start : start + n]
    values *= np.float32(1.5 / max(values.max(), 1e-3))
    rng = np.random.default_rng(seed)
    noisy = counted(values, photons, seed) + rng.normal(0, rings, (rows, n))
    verdict = final(noisy.astype(np.float32), theta)
    if verdict.reliable:
        assert verdict.center is not None
        assert abs(verdict.center - center) < max(0.5, 5 * verdict.spread_px)
