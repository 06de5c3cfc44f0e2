"""Every registered stage keeps what it declares; the built-in ones do their work."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest

from ebl_stream.errors import InputError
from ebl_stream.numerics.quality import inside_circle
from ebl_stream.numerics.weights import alternate, angular_weights
from ebl_stream.profile import ROOMS
from ebl_stream.simulation.phantom import Foam, golden_angles
from ebl_stream.stages import (
    CenterVerdict,
    References,
    available,
    build,
    build_preprocess,
    describe,
)
from ebl_stream.stages.denoise import Gaussian, Wiener
from ebl_stream.stages.preprocess import (
    FlatField,
    MinusLog,
    RemoveRings,
    RemoveZingers,
    repair,
)
from ebl_stream.stages.quantify import PhaseFractions
from ebl_stream.stages.reconstruct import Fourier
from ebl_stream.stages.segment import MultiOtsu

REGISTERED = [(room, name) for room in ROOMS for name in available(room)]
CENTER = 64.2
THETA = golden_angles(90)

OTHER_SETTINGS: dict[str, dict[str, Any]] = {
    "flat_field": {},
    "remove_zingers": {"threshold": 4.0, "size": 5},
    "minus_log": {"clip": 1e-3},
    "remove_rings": {"size": 9, "min_coverage": 0.5},
    "opposite_pairs": {"max_miss_deg": 2.0, "max_spread_px": 0.5},
    "fourier": {"window": "hann", "taps": 6},
    "gaussian": {"sigma_px": 2.0},
    "multi_otsu": {"classes": 2},
}


@pytest.fixture(scope="module")
def foam() -> Foam:
    return Foam(128, 8, seed=2)


@pytest.fixture(scope="module")
def integrals(foam: Foam) -> np.ndarray:
    return foam.project(THETA, CENTER)


@pytest.fixture(scope="module")
def references() -> References:
    rng = np.random.default_rng(0)
    flat = rng.uniform(9e3, 1.1e4, (8, 128)).astype(np.float32)
    return References(flat, np.full((8, 128), 100, np.float32))


@pytest.fixture(scope="module")
def halves(foam: Foam) -> tuple[np.ndarray, np.ndarray]:
    """Volume and half difference of a noisy scan."""
    return look(noisy(foam.project(golden_angles(200), CENTER), 2e3), 200)


def noisy(integrals: np.ndarray, photons: float) -> np.ndarray:
    rng = np.random.default_rng(3)
    counts = rng.poisson(photons * np.exp(-integrals.astype(np.float64)))
    return -np.log(np.maximum(counts, 0.5) / photons).astype(np.float32)


def look(values: np.ndarray, n_angles: int) -> tuple[np.ndarray, np.ndarray]:
    theta = golden_angles(n_angles)
    grids = Fourier().accumulator(values.shape[1], values.shape[2], CENTER)
    weights, half = angular_weights(theta), alternate(theta)
    for k, spokes in enumerate(map(grids.spokes, values[:, None])):
        share = [0.0, 0.0]
        share[half[k]] = float(weights[k])
        grids.add(spokes[0], float(theta[k]), *share)
    return grids.volume(), grids.half_difference()


def psnr(volume: np.ndarray, truth: np.ndarray) -> float:
    inside = inside_circle(truth.shape, 0.9)
    error = np.mean((volume - truth)[:, inside] ** 2)
    return float(10 * np.log10(np.ptp(truth) ** 2 / error))


def nrmse(volume: np.ndarray, truth: np.ndarray) -> float:
    inside = inside_circle(truth.shape, 0.9)
    error = np.sqrt(np.mean((volume - truth)[:, inside] ** 2))
    return float(error / truth[:, inside].std())


# --- the contract, for every stage of every room ----------------------------------


def declaring(word: str) -> list[tuple[str, str]]:
    return [entry for entry in REGISTERED if hasattr(build(*entry), word)]


@pytest.fixture
def arguments(
    room: str,
    name: str,
    foam: Foam,
    integrals: np.ndarray,
    references: References,
    halves: tuple[np.ndarray, np.ndarray],
) -> list[Any]:
    """What a room hands to its stages."""
    volume, difference = halves
    if room == "preprocess":
        takes = build(room, name).takes
        transmission = np.exp(-integrals)
        beam = references.flat - references.dark
        values = {
            "raw": transmission * beam + references.dark,
            "transmission": transmission,
            "line_integral": integrals,
        }
        return [values[takes].astype(np.float32), references]
    return {
        "center": [integrals, THETA],
        "reconstruct": [integrals, THETA, CENTER],
        "denoise": [volume, difference],
        "segment": [volume, volume],
        "quantify": [volume, foam.labels()],
    }[room]


def arrays(arguments: list[Any]) -> list[np.ndarray]:
    flattened = []
    for argument in arguments:
        if isinstance(argument, References):
            flattened += [argument.flat, argument.dark]
        elif isinstance(argument, np.ndarray):
            flattened.append(argument)
    return flattened


def test_every_room_has_a_stage() -> None:
    assert {room for room, _ in REGISTERED} == set(ROOMS)


@pytest.mark.parametrize(("room", "name"), REGISTERED)
def test_a_stage_is_its_settings(room: str, name: str) -> None:
    for settings in ({}, OTHER_SETTINGS.get(name, {})):
        stage = build(room, {name: settings})
        assert describe(stage) == {name: describe(stage)[name] | settings}
        again = build(room, describe(stage))
        assert again == stage
        assert hash(again) == hash(stage)
        scope = vars(importlib.import_module(type(stage).__module__))
        assert eval(repr(stage), dict(scope)) == stage
    fields = dataclasses.fields(build(room, name))
    if fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(build(room, name), fields[0].name, None)


@pytest.mark.parametrize(("room", "name"), REGISTERED)
def test_a_stage_gives_what_its_room_owes(
    room: str, name: str, arguments: list[Any]
) -> None:
    before = [array.copy() for array in arrays(arguments)]
    result = build(room, name)(*arguments)
    for array, copy in zip(arrays(arguments), before, strict=True):
        np.testing.assert_array_equal(array, copy, err_msg="an input was modified")
    if room == "center":
        assert isinstance(result, CenterVerdict)
    elif room == "quantify":
        assert result
        assert all(type(value) is float for value in result.values())
    else:
        shape = (8, 128, 128) if room == "reconstruct" else arguments[0].shape
        assert result.shape == shape
        assert result.dtype == (np.uint8 if room == "segment" else np.float32)
        assert np.isfinite(result).all()


@pytest.mark.parametrize(("room", "name"), REGISTERED)
def test_a_stage_repeats_itself(room: str, name: str, arguments: list[Any]) -> None:
    stage = build(room, name)
    np.testing.assert_equal(stage(*arguments), stage(*arguments))


@pytest.mark.parametrize(("room", "name"), declaring("per_frame"))
def test_a_stage_is_per_frame_as_declared(
    room: str, name: str, arguments: list[Any]
) -> None:
    stage = build(room, name)
    values, references = arguments
    alone = np.concatenate([stage(value[None], references) for value in values])
    assert np.array_equal(alone, stage(values, references)) == stage.per_frame


@pytest.mark.parametrize(("room", "name"), declaring("linear"))
def test_a_stage_is_linear_as_declared(
    room: str, name: str, arguments: list[Any]
) -> None:
    stage = build(room, name)
    assert stage.linear
    values, *rest = arguments
    if room == "preprocess":
        # The profile is the mean's; taking it away from each is what is linear.
        mean = np.asarray(values.mean(axis=0, dtype=np.float64), np.float32)
        expected = values - stage.profile(mean)
        np.testing.assert_allclose(stage(values, *rest), expected, atol=1e-6)
        return
    other = np.roll(values, 7, axis=2)
    joined = stage(values + 2 * other, *rest)
    separate = stage(values, *rest) + 2 * stage(other, *rest)
    np.testing.assert_allclose(joined, separate, atol=1e-5 * abs(joined).max())


# --- the registry -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "entry", "message"),
    [
        ("denoise", "weiner", "denoise: there is no stage 'weiner'; did you mean 'wie"),
        ("denoise", "x", "(there are: gaussian, wiener)"),
        ("denosie", "wiener", "there is no room 'denosie'; did you mean 'denoise'?"),
        ("denoise", {"gaussian": {"sigma": 1}}, "has no setting 'sigma'; did you mean"),
        ("denoise", {"wiener": {"sigma": 1}}, "(it has no settings)"),
        ("denoise", {"gaussian": {"sigma_px": "wide"}}, "sigma_px: Input should be"),
        ("denoise", {"gaussian": {"sigma_px": -1}}, "gaussian: sigma_px must be above"),
        ("denoise", {"gaussian": 3}, "expected a stage's name or"),
        ("denoise", {"gaussian": {}, "wiener": {}}, "expected a stage's name or"),
        ("preprocess", {"remove_zingers": {"size": 4}}, "size must be 3, 5 or 7"),
        ("preprocess", {"remove_zingers": {"threshold": 0}}, "threshold must be above"),
        ("preprocess", {"remove_rings": {"size": 2}}, "size must be odd"),
        ("preprocess", {"remove_rings": {"min_coverage": 2}}, "min_coverage must be"),
        ("preprocess", {"minus_log": {"clip": 0}}, "clip must be between"),
        ("segment", {"multi_otsu": {"classes": 9}}, "classes must be from 2 to 5"),
        ("center", {"opposite_pairs": {"max_miss_deg": 0}}, "max_miss_deg must be"),
        ("center", {"opposite_pairs": {"min_overlap": 2}}, "min_overlap must be"),
        ("center", {"opposite_pairs": {"max_spread_px": 0}}, "max_spread_px must be"),
    ],
)
def test_a_wrong_entry_is_explained_in_one_line(
    room: str, entry: Any, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        build(room, entry)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_left_empty_are_the_defaults() -> None:
    assert build("denoise", {"gaussian": None}) == Gaussian()


def test_the_usual_order_is_accepted_and_another_refused() -> None:
    usual = ["flat_field", "remove_zingers", "minus_log", "remove_rings"]
    stages = build_preprocess(usual)
    assert [next(iter(describe(stage))) for stage in stages] == usual
    with pytest.raises(InputError, match="remove_zingers works on transmission values"):
        build_preprocess(["flat_field", "minus_log", "remove_zingers"])


def test_a_strangers_stage_is_described_by_its_path() -> None:
    @dataclasses.dataclass(frozen=True)
    class Own:
        strength: float = 2.0

    ((name, settings),) = describe(Own()).items()
    assert name.endswith("Own")
    assert settings == {"strength": 2.0}


# --- preprocess -------------------------------------------------------------------


def test_flat_field_and_minus_log_restore_line_integrals(
    integrals: np.ndarray, references: References
) -> None:
    raw = np.exp(-integrals) * (references.flat - references.dark) + references.dark
    restored = MinusLog()(FlatField()(raw.astype(np.float32), references))
    np.testing.assert_allclose(restored, integrals, atol=2e-6)


def test_flat_field_needs_references() -> None:
    with pytest.raises(ValueError, match="flat and a dark"):
        FlatField()(np.ones((1, 2, 2), np.float32), None)


def test_pixels_without_a_beam_are_nan_until_repaired(references: References) -> None:
    flat = references.flat.copy()
    flat[2, 5], flat[3, 9], flat[7, 127] = 100, np.nan, 20
    dead = np.zeros(flat.shape, bool)
    dead[[2, 3, 7], [5, 9, 127]] = True
    raw = np.full((2, 8, 128), 5000, np.float32)
    values = FlatField()(raw, References(flat, references.dark))
    np.testing.assert_array_equal(np.isnan(values), [dead, dead])
    assert repair(values) == 6
    assert np.isfinite(values).all()


def test_repair_fills_holes_from_the_rim_and_leaves_the_rest() -> None:
    ramp = np.tile(np.arange(20, dtype=np.float32), (2, 12, 1))
    broken = ramp.copy()
    broken[0, 3:8, 6:11] = np.nan
    broken[1, :, 10] = np.inf
    n_bad = int((~np.isfinite(broken)).sum())
    untouched = np.isfinite(broken)
    assert repair(broken) == n_bad
    np.testing.assert_array_equal(broken[untouched], ramp[untouched])
    hole = broken[0, 3:8, 6:11]
    assert hole.min() >= 5
    assert hole.max() <= 11
    np.testing.assert_allclose(hole[0], ramp[0, 3, 6:11], atol=1.2)
    np.testing.assert_allclose(broken[1, :, 10], 10)


def test_repair_leaves_an_image_without_any_value() -> None:
    blank = np.full((1, 3, 4), np.nan, np.float32)
    assert repair(blank) == 0
    assert np.isnan(blank).all()


def test_minus_log_clips_what_is_dark() -> None:
    values = np.array([[[0.0, -1.0, 1.0, np.nan]]], np.float32)
    found = MinusLog(clip=1e-5)(values)[0, 0]
    np.testing.assert_allclose(found, [11.512925, 11.512925, 0, np.nan], rtol=1e-6)


@pytest.mark.parametrize("photons", [2e3, 2e4])
def test_zingers_go_and_the_rest_stays(integrals: np.ndarray, photons: float) -> None:
    clean = np.exp(-noisy(integrals, photons))
    assert np.mean(RemoveZingers()(clean) != clean) < 1e-3
    rng = np.random.default_rng(4)
    hit = rng.random(clean.shape) < 1e-3
    hit[0, [0, 0, 7], [0, 60, 127]] = True
    lit = clean + hit * rng.uniform(0.4, 3, clean.shape).astype(np.float32)
    found = RemoveZingers()(lit)
    assert np.mean(found[hit] != lit[hit]) > 0.95
    assert np.mean(found[~hit] != lit[~hit]) < 1e-3
    assert np.median(abs(found - clean)[hit]) < 3 / np.sqrt(photons)


def test_a_zinger_of_three_pixels_goes_and_an_edge_stays() -> None:
    image = np.full((1, 20, 20), 0.3, np.float32)
    image[0, :, 10:] = 0.9
    image[0, 5, 3:6] = 1.0
    found = RemoveZingers()(image)
    np.testing.assert_allclose(found[0, 5, 3:6], 0.3)
    np.testing.assert_array_equal(found[0, :, 10:], image[0, :, 10:])


def test_rings_go_and_a_clean_scan_is_not_harmed() -> None:
    foam = Foam(192, 8, seed=5)
    theta = golden_angles(300)
    truth = foam.volume()
    clean = noisy(foam.project(theta, CENTER + 32), 2e4)
    gains = np.random.default_rng(6).normal(0, 0.02, (1, 8, 192)).astype(np.float32)

    def error(values: np.ndarray) -> float:
        return nrmse(Fourier()(values, theta, CENTER + 32), truth)

    base = error(clean)
    assert error(RemoveRings()(clean)) < 1.02 * base
    assert error(RemoveRings()(clean + gains)) < 1.2 * base
    assert error(clean + gains) > 2 * base


# --- denoise, segment, quantify ---------------------------------------------------


def test_wiener_lowers_noise_more_than_any_blur(
    foam: Foam, halves: tuple[np.ndarray, np.ndarray]
) -> None:
    truth = foam.volume()
    wiener = psnr(Wiener()(*halves), truth)
    assert wiener > psnr(halves[0], truth) + 5
    for sigma in (0.7, 1.0, 1.5, 2.0):
        assert wiener > psnr(Gaussian(sigma)(*halves), truth)


def test_wiener_leaves_a_clean_scan(foam: Foam) -> None:
    truth = foam.volume()
    volume, difference = look(foam.project(golden_angles(400), CENTER), 400)
    assert psnr(Wiener()(volume, difference), truth) > psnr(volume, truth) - 0.5


@pytest.mark.parametrize("shape", [(1, 31, 31), (2, 40, 40), (5, 33, 33)])
def test_wiener_takes_any_slab_and_keeps_the_mean(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(7)
    signal = np.full(shape, 3, np.float32)
    noise = rng.normal(0, 0.1, shape).astype(np.float32)
    found = Wiener()(signal + noise, rng.normal(0, 0.1, shape).astype(np.float32))
    assert found.shape == shape
    assert found.mean() == pytest.approx(3, rel=0.01)
    assert found.std() < noise.std()


def test_wiener_of_nothing_is_nothing() -> None:
    empty = np.zeros((2, 16, 16), np.float32)
    np.testing.assert_array_equal(Wiener()(empty, empty), empty)


def test_otsu_finds_the_phases(
    foam: Foam, halves: tuple[np.ndarray, np.ndarray]
) -> None:
    truth, inside = foam.labels(), inside_circle((128, 128), 0.9)
    labels = MultiOtsu()(halves[0], Wiener()(*halves))
    assert np.mean((labels == truth)[:, inside]) > 0.95
    assert not labels[:, ~inside_circle((128, 128))].any()
    found, expected = (PhaseFractions()(halves[0], x) for x in (labels, truth))
    inner = sum(found.values())
    assert inner == pytest.approx(1)
    assert found["fraction_1"] == pytest.approx(expected["fraction_1"], abs=0.03)


def test_thresholds_of_the_whole_serve_every_slab(foam: Foam) -> None:
    volume, stage = foam.volume(), MultiOtsu()
    thresholds = stage.thresholds(volume)
    assert thresholds.shape == (2,)
    slabs = [stage(part, part, thresholds) for part in (volume[:3], volume[3:])]
    np.testing.assert_array_equal(np.concatenate(slabs), stage(volume, volume))


@pytest.mark.parametrize("value", [0.0, 3.5, np.nan])
def test_a_constant_volume_has_one_phase(value: float) -> None:
    volume = np.full((2, 16, 16), value, np.float32)
    labels = MultiOtsu()(volume, volume)
    assert not labels.any()
    assert PhaseFractions()(volume, labels) == {"fraction_0": 1.0}


def test_the_circle_touches_the_edges() -> None:
    circle = inside_circle((3, 10, 10))
    assert circle.shape == (10, 10)
    assert circle[:, 0].any()
    assert not circle[0, 0]
    assert circle.mean() == pytest.approx(np.pi / 4, abs=0.05)
