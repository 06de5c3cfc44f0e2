"""What becomes of a slab: whatever goes wrong, the volume is there as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from learners import Documents, learner, steps_of
from noisy import error, noisy_foam

from ebl_stream.nets import in_scan
from ebl_stream.nets.guard import Candidate
from ebl_stream.nets.in_scan import InScan
from ebl_stream.nets.trainer import Trainer
from ebl_stream.numerics.quality import inside_circle


@pytest.fixture(scope="module")
def look() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The truth, A + B and A - B."""
    return noisy_foam(48, 8)


# --- what becomes of a slab ---------------------------------------------------------


@pytest.fixture(scope="module")
def taught(look: Any) -> InScan:
    one = learner(uncertainty_map=True)
    one.finish([look[1:]])
    assert one.report()["by"] != "fbp"
    return one


def test_it_lowers_the_true_error(taught: InScan, look: Any) -> None:
    truth, volume, difference = look
    made = taught.denoise(volume, difference)
    assert error(made.volume, truth) < 0.6 * error(volume, truth)
    assert made.by == taught.report()["by"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_and_harms_nothing(
    taught: InScan, look: Any, value: float
) -> None:
    _, volume, difference = look
    damaged, other = volume.copy(), difference.copy()
    damaged[3, 20:22, 24] = value
    other[5, 10, 10] = value
    made = taught.denoise(damaged, other)
    expected = ~np.isfinite(damaged)
    np.testing.assert_array_equal(~np.isfinite(made.volume), expected)
    np.testing.assert_array_equal(made.volume[3, 20:22, 24], value)
    assert np.isfinite(made.as_row()["uncertainty_split"])
    everywhere = taught.denoise(np.full_like(volume, value), difference)
    np.testing.assert_array_equal(everywhere.volume, np.full_like(volume, value))


@pytest.mark.parametrize("shape", [(1, 48, 48), (1, 8, 8), (3, 9, 9), (2, 16, 16)])
def test_slabs_of_any_size(taught: InScan, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    made = taught.denoise(*values)
    assert made.volume.shape == made.map.shape == shape
    assert np.isfinite(made.volume).all()


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_scan_without_anything_stays_as_it_is(value: float) -> None:
    one = learner(3)
    slab = np.full((4, 16, 16), value, np.float32)
    one.finish([(slab, np.zeros_like(slab))])
    made = one.denoise(slab, np.zeros_like(slab))
    np.testing.assert_array_equal(made.volume, slab)
    assert made.by == "fbp"


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 64, 64), (2, 13, 13)])
def test_a_tiny_scan(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    one = learner(3)
    one.finish([(values[0], values[1])])
    assert "failed" not in one.report()
    assert steps_of(one) == 3
    assert np.isfinite(one.denoise(*values).volume).all()


def test_one_damaged_voxel_stops_no_learning(look: Any) -> None:
    _, volume, difference = look
    damaged = volume.copy()
    damaged[0, 24, 24] = np.nan
    one = learner(3)
    one.finish([(damaged, difference)])
    assert one.report()["by"] != "fbp"


def test_clean_input_stays_as_it_is(look: Any) -> None:
    truth = look[0]
    one = learner(6)
    one.finish([(truth, np.zeros_like(truth))])
    made = one.denoise(truth, np.zeros_like(truth))
    np.testing.assert_array_equal(made.volume, truth)
    assert (made.by, made.weights, made.steps) == ("fbp", "", 0)


def test_before_the_first_look_the_volume_is_as_it_is(look: Any) -> None:
    _, volume, difference = look
    made = learner().denoise(volume, difference)
    np.testing.assert_array_equal(made.volume, volume)
    assert made.volume is not volume
    circle = inside_circle(volume.shape, 0.9)
    assert made.split == pytest.approx(np.sqrt((difference[:, circle] ** 2).mean()))


def test_the_unit_does_not_matter(look: Any) -> None:
    _, volume, difference = look
    made = {}
    for unit, offset in ((1, 0.0), (1024, 0.0), (1000, 0.0), (1, 0.05)):
        one = learner(6)
        seen = (unit * volume + offset).astype(np.float32)
        apart = (unit * difference).astype(np.float32)
        one.finish([(seen, apart)])
        made[unit, offset] = (one.denoise(seen, None).volume - offset) / unit
    base = made[1, 0.0]
    np.testing.assert_array_equal(made[1024, 0.0], base)
    # Rounding grows while it is learned with: bfloat16 has eight bits.
    for other in ((1000, 0.0), (1, 0.05)):
        assert np.std(made[other] - base) < 0.01 * base.std()


# --- what goes wrong ----------------------------------------------------------------


@pytest.fixture(params=[RuntimeError("no"), MemoryError()], ids=["fault", "memory"])
def fault(request: pytest.FixtureRequest) -> Exception:
    return request.param


def raising(fault: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise fault

    return fail


@pytest.mark.parametrize("what", ["step", "__init__"])
@pytest.mark.parametrize("is_live", [False, True])
def test_where_learning_dies_others_denoise(
    fault: Exception,
    what: str,
    is_live: bool,
    look: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trainer, what, raising(fault))
    truth, volume, difference = look
    one = learner(is_behind=Documents() if is_live else None)
    one.learn([(volume, difference)], 0.5)
    one.finish([(volume, difference)])
    told = one.report()
    assert told["failed"].startswith(type(fault).__name__)
    made = one.denoise(volume, difference)
    assert made.by == "noise2filter"
    assert error(made.volume, truth) < 0.6 * error(volume, truth)
    one.close()


@pytest.mark.parametrize("is_live", [False, True])
def test_where_learning_dies_the_guard_goes_on(
    is_live: bool, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was best at the first look, in the worst noise, need not be so later."""
    monkeypatch.setattr(Trainer, "step", raising(RuntimeError("no")))
    truth, clean = look[0], np.zeros_like(look[0])
    one = learner(is_behind=Documents() if is_live else None)
    one.finish([noisy_foam(48, 8, noise=20.0)[1:]])
    assert one.report()["by"] != "fbp"
    one.finish([(truth, clean)])
    assert one.report()["by"] == "fbp"
    np.testing.assert_array_equal(one.denoise(truth, clean).volume, truth)
    one.close()


@pytest.mark.parametrize("what", ["Pairs", "Standing", "linear"])
@pytest.mark.parametrize("is_live", [False, True])
def test_where_judging_dies_the_volume_stays(
    fault: Exception,
    what: str,
    is_live: bool,
    look: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(in_scan, what, raising(fault))
    _, volume, difference = look
    one = learner(is_behind=Documents() if is_live else None)
    one.learn([(volume, difference)], 0.5)
    one.finish([(volume, difference)])
    assert one.report()["failed"].startswith(type(fault).__name__)
    made = one.denoise(volume, difference)
    np.testing.assert_array_equal(made.volume, volume)
    assert made.by == "fbp"
    one.close()


def test_where_denoising_dies_the_volume_stays(
    fault: Exception, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, volume, difference = look
    one = learner(3)
    one.finish([(volume, difference)])
    dying = Candidate("adapted", raising(fault), "a1", 3)
    monkeypatch.setattr(
        one, "_chosen", in_scan.Chosen(dying, one._chosen.scale, {"adapted": 0.1})
    )
    made = one.denoise(volume, difference)
    np.testing.assert_array_equal(made.volume, volume)
    assert (made.by, made.weights) == ("fbp", "")
    assert one.report()["failed"].startswith(type(fault).__name__)


def test_the_spread_of_nets_is_not_said_of_a_filter(look: Any) -> None:
    _, volume, difference = look
    one = learner(3)
    one.finish([(volume, difference)])
    chosen = one._chosen
    blur = Candidate("noise2filter", lambda seen, rows=None: seen)
    members = (chosen.candidate.denoise, lambda seen, rows=None: 2 * seen)
    one._chosen = in_scan.Chosen(blur, chosen.scale, {}, members)
    assert one.denoise(volume, difference).as_row()["uncertainty_ensemble"] is None
    one._chosen = in_scan.Chosen(
        Candidate("adapted", blur.denoise, "a1", 3), chosen.scale, {}, members
    )
    assert one.denoise(volume, difference).as_row()["uncertainty_ensemble"] > 0
