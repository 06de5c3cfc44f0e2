"""Every registered stage keeps what it declares; the built-in ones do their work."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest

from ebl_stream.errors import InputError
from ebl_stream.nets.learner import LearningStage
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
from ebl_stream.stages.quantify import PhaseFractions
from ebl_stream.stages.reconstruct import Fourier
from ebl_stream.stages.segment import MultiOtsu

REGISTERED = [(room, name) for room in ROOMS for name in available(room)]
CENTER = 64.2
THETA = golden_angles(90)

OTHER_SETTINGS: dict[str, dict[str, Any]] = {
    "flat_field": {},
    "remove_zingers": {"threshold": 4.0, "max_pixels": 2},
    "normalize_beam": {"columns": 4, "sides": "left"},
    "remove_stripes": {"snr": 4.0, "wide": 9},
    "filter_stripes": {"level": 1, "wavelet": "db5"},
    "minus_log": {"clip": 1e-3},
    "remove_rings": {"size": 9, "min_coverage": 0.5},
    "auto": {"max_miss_deg": 2.0},
    "centroid": {"min_arc_deg": 60.0},
    "double_wedge": {"min_overlap": 0.5},
    "opposite_pairs": {"max_miss_deg": 2.0, "max_spread_px": 0.4},
    "fourier": {"window": "hann", "taps": 6},
    "astra": {"method": "sirt", "iterations": 9},
    "tomocupy": {"method": "linerec", "slab_rows": 4},
    "gaussian": {"sigma_px": 2.0},
    "multi_otsu": {"classes": 2},
}

REQUIRED: dict[str, dict[str, Any]] = {
    "retrieve_phase": {
        "energy_kev": 25.0,
        "distance_mm": 50.0,
        "pixel_size_um": 1.0,
        "delta_beta": 300.0,
    },
}
"""Settings that have no default."""


def make(room: str, name: str, **settings: Any) -> Any:
    return build(room, {name: REQUIRED.get(name, {}) | settings})


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
    shares = np.zeros((n_angles, 2))
    shares[np.arange(n_angles), half] = weights
    grids.add(values, theta, shares)
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


def test_every_preprocess_stage_declares_how_far_it_looks() -> None:
    assert [name for _, name in declaring("halo")] == list(available("preprocess"))
    assert declaring("halo") == declaring("whole_frame") == declaring("per_frame")


def declaring(word: str) -> list[tuple[str, str]]:
    return [entry for entry in REGISTERED if hasattr(make(*entry), word)]


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
    if room == "reconstruct" and hasattr(stage := make(room, name), "check"):
        try:
            stage.check()
        except InputError as error:
            pytest.skip(f"{name}: {error}")
    volume, difference = halves
    if room == "preprocess":
        takes = make(room, name).takes
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


def work(stage: Any, arguments: list[Any]) -> Any:
    """Let a stage work; one that learns sees the look first that it works on."""
    if not isinstance(stage, LearningStage):
        return stage(*arguments)
    learner = stage.begin(None)
    learner.finish([tuple(arguments)])
    return learner.denoise(*arguments).volume


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
        stage = make(room, name, **settings)
        assert describe(stage) == {name: describe(stage)[name] | settings}
        again = build(room, describe(stage))
        assert again == stage
        assert hash(again) == hash(stage)
        scope = vars(importlib.import_module(type(stage).__module__))
        assert eval(repr(stage), dict(scope)) == stage
    fields = dataclasses.fields(make(room, name))
    if fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(make(room, name), fields[0].name, None)


@pytest.mark.parametrize(("room", "name"), REGISTERED)
def test_a_stage_gives_what_its_room_owes(
    room: str, name: str, arguments: list[Any]
) -> None:
    before = [array.copy() for array in arrays(arguments)]
    result = work(make(room, name), arguments)
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
    stage = make(room, name)
    first, second = work(stage, arguments), work(stage, arguments)
    if isinstance(first, CenterVerdict):  # NaN is not equal to itself
        first, second = dataclasses.asdict(first), dataclasses.asdict(second)
    np.testing.assert_equal(first, second)


@pytest.mark.parametrize(("room", "name"), declaring("per_frame"))
def test_a_stage_is_per_frame_as_declared(
    room: str, name: str, arguments: list[Any]
) -> None:
    stage = make(room, name)
    values, references = arguments
    alone = np.concatenate([stage(value[None], references) for value in values])
    assert np.array_equal(alone, stage(values, references)) == stage.per_frame


@pytest.mark.parametrize(("room", "name"), declaring("linear"))
def test_a_stage_is_linear_as_declared(
    room: str, name: str, arguments: list[Any]
) -> None:
    stage = make(room, name)
    values, *rest = arguments
    other = np.roll(values, 7, axis=2)
    joined = stage(values + 2 * other, *rest)
    separate = stage(values, *rest) + 2 * stage(other, *rest)
    error = abs(joined - separate).max() / abs(joined).max()
    assert (error < 3e-5) == stage.linear


@pytest.mark.parametrize(("room", "name"), declaring("halo"))
def test_a_stage_needs_the_rows_that_it_declares(
    room: str, name: str, arguments: list[Any]
) -> None:
    stage = make(room, name)
    values, references = arguments
    # Each row noisier than the one before, and outliers of every size.
    rng = np.random.default_rng(5)
    noise = rng.normal(0, 0.005 * np.arange(1, 9)[:, None], values.shape)
    noise += rng.uniform(0, 0.4, values.shape) * (rng.random(values.shape) < 0.02)
    values = (values * (1 + noise)).astype(np.float32)
    whole = stage(values, references)
    z0, z1 = max(2 - stage.halo, 0), 5 + stage.halo
    part = References(references.flat[z0:z1], references.dark[z0:z1])
    rows = stage(values[:, z0:z1], part)[:, 2 - z0 : 5 - z0]
    assert np.array_equal(rows, whole[:, 2:5]) != stage.whole_frame


def test_ring_removal_takes_a_constant_away_which_is_linear(
    integrals: np.ndarray,
) -> None:
    stage = build("preprocess", "remove_rings")
    mean = np.asarray(integrals.mean(axis=0, dtype=np.float64), np.float32)
    expected = integrals - stage.profile(mean)
    np.testing.assert_allclose(stage(integrals), expected, atol=1e-6)


# --- the registry -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "entry", "message"),
    [
        ("denoise", "weiner", "denoise: there is no stage 'weiner'; did you mean 'wie"),
        (
            "denoise",
            "x",
            "(there are: gaussian, noise2filter, noise2inverse, tomogan, wiener)",
        ),
        ("denosie", "wiener", "there is no room 'denosie'; did you mean 'denoise'?"),
        ("denoise", {"gaussian": {"sigma": 1}}, "has no setting 'sigma'; did you mean"),
        ("denoise", {"wiener": {"sigma": 1}}, "(it has no settings)"),
        ("denoise", {"gaussian": {"sigma_px": "wide"}}, "sigma_px: Input should be"),
        ("denoise", {"gaussian": {"sigma_px": -1}}, "gaussian: sigma_px must be above"),
        ("denoise", {"gaussian": 3}, "expected a stage's name or"),
        ("denoise", {"gaussian": {}, "wiener": {}}, "expected a stage's name or"),
        ("preprocess", {"remove_zingers": {"max_pixels": 5}}, "max_pixels must be"),
        ("preprocess", {"normalize_beam": {"columns": 0}}, "columns must be 1 or"),
        ("preprocess", {"normalize_beam": {"sides": "up"}}, "sides: Input should be"),
        ("preprocess", "retrieve_phase", "energy_kev: Field required"),
        (
            "preprocess",
            {"retrieve_phase": REQUIRED["retrieve_phase"] | {"distance_mm": 0}},
            "distance_mm must be above 0",
        ),
        ("preprocess", {"remove_stripes": {"snr": 1}}, "snr must be above 1"),
        ("preprocess", {"remove_stripes": {"wide": 4}}, "wide must be odd"),
        ("preprocess", {"filter_stripes": {"level": 0}}, "level must be 1 or more"),
        ("preprocess", {"filter_stripes": {"damping": 0}}, "damping must be 1 or"),
        ("preprocess", {"filter_stripes": {"wavelet": "x"}}, "wavelet: Input should"),
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
