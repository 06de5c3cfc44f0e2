"""Which center counts, when to look for it, and what a look must correct."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ebl_stream.engine.rotation_center import SETTLED_PX, CenterFinder
from ebl_stream.errors import InputError
from ebl_stream.profile import Profile
from ebl_stream.simulation.phantom import Foam
from ebl_stream.stages import CenterVerdict
from ebl_stream.stages.center_auto import Auto

N, ROWS, CENTER = 128, 8, 66.3
THETA = np.arange(200) * np.pi / 200


def finder(
    *,
    given: float | None = None,
    in_file: float | None = None,
    previous: float | None = None,
    stage: Any = None,
    **geometry: Any,
) -> CenterFinder:
    profile = Profile.model_validate(
        {"geometry": {"rotation_center": given, **geometry}}
    )
    scan: Any = SimpleNamespace(rotation_center=in_file)
    made = CenterFinder(scan, profile, stage or Auto(), previous)
    made.begin(N)
    return made


@pytest.fixture(scope="module")
def foam() -> Foam:
    return Foam(N, ROWS, seed=3, radius=0.36 * N)


def scan(foam: Foam, theta: np.ndarray, center: float = CENTER) -> np.ndarray:
    values = foam.project(theta, center)
    noise = np.random.default_rng(0).normal(0, 0.005, values.shape)
    return (values + noise).astype(np.float32)


class Scripted:
    """Gives prepared verdicts, one after the other."""

    def __init__(self, *verdicts: CenterVerdict) -> None:
        self._verdicts = list(verdicts)

    def __call__(self, projections: Any, theta: Any) -> CenterVerdict:
        return self._verdicts.pop(0)


def at(center: float, spread: float = 0.02, reliable: bool = True) -> CenterVerdict:
    return CenterVerdict(center, reliable, spread, "as scripted", "pairs")


VALUES = np.zeros((2, 1, N), np.float32)


# ------------------------------------------------------------ order of trust


def test_what_is_stated_counts_in_order() -> None:
    assert finder(given=60, in_file=61, previous=62).source == "given"
    assert finder(in_file=61, previous=62).position == 61
    assert finder(in_file=61, previous=62, use_file_center=False).position == 62
    assert finder().position == (N - 1) / 2
    assert finder().source == "assumed"
    for stated in (finder(given=60), finder(in_file=61)):
        assert not stated.may_be_measured
        assert stated.settled
        assert not stated.wants(THETA)


def test_a_center_far_outside_is_refused() -> None:
    with pytest.raises(InputError, match="far outside"):
        finder(given=5 * N)


def test_a_measurement_overrules_the_last_scan(foam: Foam) -> None:
    found = finder(previous=60.0)
    assert found.find(scan(foam, THETA), THETA)
    assert found.source == "measured"
    assert found.position == pytest.approx(CENTER, abs=0.1)
    told = found.as_dict()
    assert told["method"] == "pairs"
    assert told["checks"]["previous"] == 60.0
    assert told["checks"]["centroid"] == pytest.approx(CENTER, abs=0.5)
    assert told["checks"]["double_wedge"] == pytest.approx(CENTER, abs=0.5)
    assert told["why"] == ""


def test_a_refusal_keeps_the_last_scan_and_says_why() -> None:
    found = finder(previous=60.0)
    air = np.random.default_rng(0).normal(0, 0.05, (200, ROWS, N)).astype(np.float32)
    assert not found.find(air, THETA)
    assert (found.source, found.position) == ("previous", 60.0)
    assert found.as_dict()["why"]


# ---------------------------------------------------------------- when to ask


def asked(order: np.ndarray, foam: Foam, block: int = 16) -> list[tuple[int, str]]:
    """Feed blocks; return after how many projections which method measured."""
    found, told = finder(), []
    for n in range(2, len(order) + 1):
        if n % block and n != 2:
            continue
        theta = order[:n]
        if found.wants(theta):
            found.find(scan(foam, theta), theta, preview=True)
            if found.source == "measured" and (not told or told[-1][1] != found.method):
                told.append((n, found.method))
                assert found.position == pytest.approx(CENTER, abs=0.3)
    return told


def test_a_pre_shot_is_used_at_once(foam: Foam) -> None:
    order = np.concatenate([[0, np.pi], THETA])
    assert asked(order, foam)[0] == (2, "preshot")


def test_the_center_of_mass_from_a_quarter_of_the_angles(foam: Foam) -> None:
    first = asked(THETA, foam)[0]
    assert first[1] == "centroid"
    assert len(THETA) / 4 - 16 <= first[0] <= len(THETA) / 2


def test_golden_angles_are_measured_early(foam: Foam) -> None:
    order = np.arange(200) * np.pi * (np.sqrt(5) - 1)
    assert asked(order, foam)[0][0] <= 64


def test_it_does_not_ask_again_and_again(foam: Foam) -> None:
    never = Scripted(*[at(3.0, reliable=False)] * 100)
    found, n_asked = finder(stage=never), 0
    for n in range(1, len(THETA) + 1):
        if found.wants(THETA[:n]):
            n_asked += 1
            found.find(VALUES, THETA[:n], preview=True)
    assert 1 <= n_asked <= 10


def test_settled_ends_the_search() -> None:
    found = finder(stage=Scripted(at(66.3, SETTLED_PX * 2), at(66.3, SETTLED_PX / 2)))
    found.find(VALUES, THETA, preview=True)
    assert not found.settled
    found.find(VALUES, THETA, preview=True)
    assert found.settled
    assert not found.wants(np.tile(THETA, 2))


# ------------------------------------------------------------- when it moves


def test_previews_do_not_move_for_a_trifle_but_the_last_word_counts() -> None:
    steps = (66.30, 66.34, 66.41, 66.31)
    found = finder(stage=Scripted(*map(at, steps)))
    moved = [found.find(VALUES, THETA, preview=True) for _ in range(3)]
    assert moved == [True, False, True]
    assert found.position == pytest.approx(66.4)
    assert found.find(VALUES, THETA)
    assert found.position == pytest.approx(66.3)


def test_the_last_measurement_alone_decides() -> None:
    final = at(66.27)
    with_previews = finder(stage=Scripted(at(65.0), at(66.3), final))
    for _ in range(2):
        with_previews.find(VALUES, THETA, preview=True)
    with_previews.find(VALUES, THETA)
    alone = finder(stage=Scripted(final))
    alone.find(VALUES, THETA)
    assert with_previews.position == alone.position == pytest.approx(66.25)


@pytest.mark.parametrize(
    ("theta", "first"),
    [(THETA, 0.0), (THETA - np.pi / 2, 1.5 * np.pi), (THETA[::-1] + np.pi, np.pi)],
)
def test_a_small_residual_is_corrected_on_the_grid(
    theta: np.ndarray, first: float
) -> None:
    found = finder(given=66.3)
    on_grid = found.shift_for(66.0, theta)
    assert on_grid is not None
    assert on_grid.shift == pytest.approx(0.3)
    assert np.cos(on_grid.first_theta - first) == pytest.approx(1, abs=1e-3)


def test_otherwise_the_grids_are_rebuilt() -> None:
    found = finder(given=66.3)
    assert found.shift_for(65.7, THETA) is None
    assert found.shift_for(66.0, 2 * THETA) is None
    # What is right already needs no correction, whatever the angles.
    assert found.shift_for(66.3, 2 * THETA) == (0.0, 0.0)


def test_the_correction_has_the_sign_that_the_grids_take(foam: Foam) -> None:
    from ebl_stream.numerics.accumulate import Accumulator
    from ebl_stream.numerics.fourier_plan import FourierPlan
    from ebl_stream.numerics.weights import angular_weights

    values = foam.project(THETA, CENTER)
    weights = angular_weights(THETA)
    shares = np.stack([weights, np.zeros_like(weights)], axis=1)

    def volume(center: float, **correction: float) -> np.ndarray:
        grids = Accumulator(FourierPlan(N), ROWS, center, halves=False)
        grids.add(values, THETA, shares)
        return grids.volume(**correction)

    on_grid = finder(given=CENTER).shift_for(CENTER - 0.4, THETA)
    assert on_grid is not None
    right = volume(CENTER)
    wrong = volume(CENTER - 0.4)
    corrected = volume(CENTER - 0.4, **on_grid._asdict())
    assert np.std(corrected - right) < 0.3 * np.std(wrong - right)
