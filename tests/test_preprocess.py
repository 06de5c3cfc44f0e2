"""The preprocess room: every stage does its work, and one kernel does several at once.

What only a stage's author could get wrong is here; what all stages owe alike is in
``test_stages.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ebl_stream.engine.prepared import run
from ebl_stream.engine.preprocessing import Preprocessor
from ebl_stream.engine.references import ReferenceFrames
from ebl_stream.engine.rooms import Rooms
from ebl_stream.errors import InputError
from ebl_stream.frames import Kind
from ebl_stream.numerics import line_integrals
from ebl_stream.numerics.zingers import noise
from ebl_stream.profile import Profile
from ebl_stream.stages import References
from ebl_stream.stages.preprocess import (
    FlatField,
    MinusLog,
    NormalizeBeam,
    RemoveZingers,
    RetrievePhase,
    repair,
)
from ebl_stream.stages.preprocess.pixels import find_bad_pixels

PHASE = RetrievePhase(energy_kev=20, distance_mm=60, pixel_size_um=1.5, delta_beta=400)
USUAL = (FlatField(), RemoveZingers(), MinusLog())
CHAINS = [
    (FlatField(), MinusLog()),
    USUAL,
    (FlatField(), NormalizeBeam(columns=3), RemoveZingers(), MinusLog(clip=1e-3)),
    (FlatField(), NormalizeBeam(sides="right"), MinusLog()),
    (FlatField(), RemoveZingers(max_pixels=1), PHASE, MinusLog()),
    (FlatField(),),
]
DTYPES = ["u1", "u2", ">u2", "u4", "i2", "i4", "f4", "f8"]


@dataclass(frozen=True)
class Smooth:
    """A stranger's filter along the rows' axis, after the logarithm."""

    per_frame = True
    needs_references = False
    whole_frame = False
    halo = 2
    takes = role = "line_integral"

    def __call__(self, values: Any, references: Any = None) -> Any:
        return ndimage.uniform_filter1d(values, 5, axis=1, mode="nearest")


@dataclass(frozen=True)
class Silent:
    """A stranger's stage that does not say how far it looks: as far as it can."""

    per_frame = True
    needs_references = False
    takes = role = "line_integral"

    def __call__(self, values: Any, references: Any = None) -> Any:
        return values - values.mean(axis=(1, 2), keepdims=True)


def counts(
    shape: tuple[int, int, int], dtype: str, seed: int
) -> tuple[list[Any], References]:
    """Return raw frames with zingers, and references with dead pixels and holes."""
    rng = np.random.default_rng(seed)
    _, n_rows, n_columns = shape
    top = 200 if dtype == "u1" else 9000
    flat = rng.uniform(0.8 * top, top, shape[1:]).astype(np.float32)
    dark = np.full(shape[1:], 0.01 * top, np.float32)
    sample = 0.3 + 0.6 * np.abs(
        np.sin(np.arange(n_columns) / 7 + rng.random(n_rows)[:, None])
    )
    images = rng.poisson(sample * (flat - dark) + dark, shape).astype(float)
    images[rng.random(shape) < 2e-3] *= 2
    flat[rng.random(flat.shape) < 5e-3] = 0
    flat[n_rows // 3 : n_rows // 3 + 4, 2 : n_columns // 3] = dark[0, 0]
    flat[0, 0], flat[-1, -2:] = np.nan, 0
    scale = 255 if dtype == "u1" else 32767
    return [image.clip(0, scale).astype(dtype) for image in images], References(
        flat, dark
    )


def drifting(references: References) -> References:
    flat = references.flat
    groups = ((0.0, flat), (4.0, flat * np.float32(1.1)), (7.0, flat * np.float32(0.9)))
    return References(flat, references.dark, groups=groups)


# --- one kernel, slab by slab ---------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    chain=st.sampled_from(CHAINS),
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(1, 3), st.integers(3, 40), st.integers(5, 45)),
    height=st.integers(1, 40),
    drift=st.booleans(),
    seed=st.integers(0, 99),
)
@example(USUAL, "u2", (2, 33, 40), 8, True, 1)
def test_slabs_are_the_stages_one_after_the_other(
    chain: Any,
    dtype: str,
    shape: tuple[int, int, int],
    height: int,
    drift: bool,
    seed: int,
) -> None:
    images, references = counts(shape, dtype, seed)
    if drift:
        references = drifting(references)
    positions = [1.0, 5.0, 9.0][: shape[0]]
    whole = np.stack(images).astype(np.float32)
    expected = run(chain, whole, references.at(positions))
    prepared = Preprocessor(chain).prepare(images, references, positions)
    total = np.zeros(shape[1:])
    slabs = [(z, min(z + height, shape[1])) for z in range(0, shape[1], height)]
    found = [prepared.rows(slab, total=total) for slab in slabs]
    np.testing.assert_allclose(np.concatenate(found, 1), expected, 1e-6, 2e-6)
    np.testing.assert_array_equal(
        total, np.concatenate(found, 1).sum(0, dtype=np.float64)
    )


def test_the_usual_chains_are_fused_and_others_not() -> None:
    fused = [Preprocessor(chain).fused for chain in CHAINS]
    assert fused == [True, True, True, True, False, True]
    assert Preprocessor(CHAINS[4]).whole_frame
    assert not Preprocessor((*USUAL, Smooth())).fused
    assert not Preprocessor(()).fused


@pytest.mark.parametrize("chain", [USUAL, CHAINS[4], (*USUAL, Smooth())])
def test_threads_change_no_bit(chain: Any) -> None:
    images, references = counts((5, 60, 70), "u2", 3)
    rooms = Preprocessor(chain)
    one = rooms(images, references, (0, 60))
    with ThreadPoolExecutor(4) as pool:
        prepared = rooms.prepare(images, references, each=pool.map)
        slabs = list(pool.map(lambda z: prepared.rows((z, z + 6)), range(0, 60, 6)))
    np.testing.assert_array_equal(np.concatenate(slabs, axis=1), one)


@pytest.mark.parametrize("stranger", [Smooth(), Silent()])
def test_a_strangers_stage_sees_the_rows_that_it_needs(stranger: Any) -> None:
    images, references = counts((3, 31, 40), "u2", 4)
    whole = np.stack(images).astype(np.float32)
    expected = run((*USUAL, stranger), whole, references)
    prepared = Preprocessor((*USUAL, stranger)).prepare(images, references)
    found = [prepared.rows((z, min(z + 7, 31))) for z in range(0, 31, 7)]
    np.testing.assert_allclose(np.concatenate(found, 1), expected, 1e-6, 2e-6)


@pytest.mark.parametrize("chain", [USUAL, CHAINS[4], (*USUAL, Smooth()), ()])
def test_holes_in_a_frame_are_filled_across_slabs(chain: Any) -> None:
    images, references = counts((3, 31, 40), "f4", 5)
    images[1][4:19, 10:20] = np.nan
    images[2][7, :] = np.inf
    expected = run(chain, np.stack(images), references)
    repair(expected)
    assert np.isfinite(expected).all()
    prepared = Preprocessor(chain).prepare(images, references)
    found = [prepared.rows((z, min(z + 7, 31))) for z in range(0, 31, 7)]
    np.testing.assert_allclose(np.concatenate(found, 1), expected, 1e-6, 2e-6)


def test_a_projection_is_summed_as_often_as_asked() -> None:
    images, references = counts((3, 20, 30), "u2", 6)
    for chain in (USUAL, (*USUAL, Smooth())):
        prepared = Preprocessor(chain).prepare(images, references)
        total, out = np.ones((20, 30)), np.empty((3, 5, 30), np.float32)
        values = prepared.rows((5, 10), total=total, signs=[1, 0, -1], out=out)
        assert values is out
        expected = 1 + values[0].astype(np.float64) - values[2]
        np.testing.assert_allclose(total[5:10], expected, rtol=1e-12)
        assert (total[:5] == 1).all()
        assert (total[10:] == 1).all()


def test_what_does_not_fit_is_refused() -> None:
    images, references = counts((2, 20, 30), "u2", 7)
    rooms = Preprocessor(USUAL)
    with pytest.raises(ValueError, match="as the flats are"):
        rooms([image[:9] for image in images], references, (0, 9))
    with pytest.raises(ValueError, match="flat and a dark"):
        rooms(images, None, (0, 9))
    prepared = rooms.prepare(images, references)
    for rows in ((-1, 4), (4, 4), (15, 21)):
        with pytest.raises(ValueError, match="are not within"):
            prepared.rows(rows)
    with pytest.raises(ValueError, match="out must be"):
        prepared.rows((0, 4), out=np.empty((2, 5, 30), np.float32))
    with pytest.raises(ValueError, match="total must be"):
        prepared.rows((0, 4), total=np.zeros((4, 30)))


def test_warming_up_serves_any_dtype() -> None:
    for chain in (USUAL, CHAINS[4], ()):
        Preprocessor(chain).warm_up(np.uint8)


# --- flat field, beam, logarithm --------------------------------------------------


def test_flat_field_and_minus_log_restore_line_integrals() -> None:
    rng = np.random.default_rng(0)
    integrals = rng.uniform(0, 5, (4, 8, 30)).astype(np.float32)
    flat = rng.uniform(9e3, 1.1e4, (8, 30)).astype(np.float32)
    references = References(flat, np.full((8, 30), 100, np.float32))
    raw = np.exp(-integrals) * (flat - 100) + 100
    restored = MinusLog()(FlatField()(raw.astype(np.float32), references))
    np.testing.assert_allclose(restored, integrals, atol=2e-5)


def test_flat_field_needs_references() -> None:
    with pytest.raises(ValueError, match="flat and a dark"):
        FlatField()(np.ones((1, 2, 2), np.float32), None)


def test_minus_log_clips_what_is_dark_and_keeps_nan() -> None:
    values = np.array([[[0.0, -1.0, 1.0, np.nan, np.inf, 1e38]]], np.float32)
    found = MinusLog(clip=1e-5)(values)[0, 0]
    expected = [11.512925, 11.512925, 0, np.nan, np.nan, -87.49823]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_the_logarithm_is_right_to_float32(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.exp(rng.uniform(-60, 60, 4096)).astype(np.float32)
    values[:2048] = 1 + rng.normal(0, 10.0 ** rng.integers(-6, -1), 2048)
    logs = values.copy()
    line_integrals.minus_log(values, np.float32(1e-30), logs)
    exact = -np.log(values.astype(np.float64))
    np.testing.assert_allclose(logs, exact, rtol=2.5e-7, atol=1e-12)


def test_a_beam_that_decays_and_wanders_leaves_no_trace() -> None:
    rng = np.random.default_rng(1)
    sample = np.ones((6, 12, 50), np.float32)
    sample[:, :, 12:38] = rng.uniform(0.2, 0.9, (6, 12, 26))
    beam = rng.uniform(0.5, 1.2, (6, 1, 1)) * (
        1 + rng.uniform(-0.2, 0.2, (6, 1, 1)) * np.linspace(-1, 1, 50)
    )
    seen = (sample * beam).astype(np.float32)
    seen[:, 3, 4] = 5  # a zinger in the air
    cleaned = NormalizeBeam(columns=9)(seen)
    cleaned[:, 3, 4] = 1
    np.testing.assert_allclose(cleaned, sample, rtol=2e-3)
    level = (sample * rng.uniform(0.5, 1.2, (6, 1, 1))).astype(np.float32)
    for side in ("left", "right"):
        found = NormalizeBeam(columns=9, sides=side)(level)
        np.testing.assert_allclose(found, sample, rtol=1e-5)


def test_an_edge_without_light_is_no_measure_of_the_beam() -> None:
    dark = np.full((1, 5, 30), 0.5, np.float32)
    dark[..., -10:] = 0
    np.testing.assert_array_equal(NormalizeBeam()(dark), dark)


# --- flats and darks ------------------------------------------------------------------


def collect(flats: Any, darks: Any = (), positions: Any = None) -> ReferenceFrames:
    frames = ReferenceFrames()
    where = np.zeros(len(flats)) if positions is None else positions
    for k, (image, at) in enumerate(zip(flats, where, strict=True)):
        frames.add(Kind.FLAT, k, image, float(at))
    for k, image in enumerate(darks):
        frames.add(Kind.DARK, k, image)
    return frames


@pytest.fixture
def stack(measured_scan: Callable[[str], Path]) -> Callable[[str], Any]:
    """Return projections, flats and darks of a measured scan."""

    def read(name: str) -> Any:
        with h5py.File(measured_scan(name)) as file:
            group: Any = file["exchange"]
            return [group[key][:] for key in ("data", "data_white", "data_dark")]

    return read


@pytest.mark.parametrize("n", [2, 3, 10, 50])
def test_a_zinger_in_one_flat_or_dark_does_not_survive(n: int) -> None:
    rng = np.random.default_rng(n)
    beam = np.broadcast_to(np.linspace(2e3, 2e4, 80), (60, 80))
    flats = rng.poisson(beam * rng.normal(1, 0.01, (n, 1, 1))).astype(np.uint16)
    darks = rng.normal(100, 2, flats.shape).round().astype(np.uint16)
    clean = collect(flats, darks).measured((60, 80))
    flats[n // 2, 20, 30] += 9000
    flats[0, 0, 0], darks[0, 40, 50] = 60_000, 4000
    lit = collect(flats, darks).measured((60, 80))
    assert clean is not None
    assert lit is not None
    assert abs(lit.flat / clean.flat - 1).max() < 6 / np.sqrt(2e3)
    assert abs(lit.dark - clean.dark).max() < 5
    # What is no zinger is in the mean, to the last photon.
    plain = flats.mean(0, dtype=np.float64).astype(np.float32)
    assert (lit.flat != plain).sum() == 2


def test_measured_darks_have_zingers_that_go(stack: Callable[[str], Any]) -> None:
    for name in ("aps_tooth.h5", "dls_k11_stream.h5"):
        data, flats, darks = stack(name)
        found = collect(flats, darks).measured(data.shape[1:])
        assert found is not None
        sigma = np.sqrt(np.median(darks.astype(float).var(axis=0, ddof=1)))
        median = np.median(darks, axis=0)
        plain = abs(darks.mean(0) - median).max()
        assert abs(found.dark - median).max() < 3 * sigma
        assert abs(found.dark - median).max() <= plain
        # Nothing is wrong with these detectors' pixels.
        assert found.dead.sum() == 0


def test_flats_that_drift_are_interpolated(stack: Callable[[str], Any]) -> None:
    """k11: the beam rose by 1.4 % from the flats before to those after the scan."""
    data, flats, darks = stack("dls_k11_stream.h5")
    n = len(data)
    before, after = flats[:50], flats[50:]
    kept = np.concatenate([before[::2], after[::2]])
    where = np.repeat([0, n], 25)
    found = collect(kept, darks, where).measured(data.shape[1:])
    constant = collect(kept, darks).measured(data.shape[1:])
    assert found is not None
    assert constant is not None
    own, one = Preprocessor((FlatField(),)), (0, data.shape[1])
    for held, position in ((before[1::2], 0), (after[1::2], n)):
        images, places = list(held), [position] * len(held)
        good = own(images, found, one, positions=places)
        bad = own(images, constant, one, positions=places)
        assert abs(good.mean() - 1) < 0.002
        assert abs(bad.mean() - 1) > 0.005
    middle = found.at([n / 2]).flat[0]
    np.testing.assert_allclose(middle, constant.flat, rtol=1e-5)


def test_flats_are_interpolated_in_time_and_held_beyond() -> None:
    levels = [(0.0, 100.0), (10.0, 200.0), (40.0, 50.0)]
    images = [np.full((4, 5), level, np.uint16) for _, level in levels]
    where = [at for at, _ in levels]
    shuffled = [2, 0, 1]
    found = collect([images[k] for k in shuffled], (), [where[k] for k in shuffled])
    references = found.measured((4, 5))
    assert references is not None
    positions = [-3, 0, 5, 10, 20, 40, 99]
    flats = references.at(positions).flat[:, 0, 0]
    np.testing.assert_allclose(flats, [100, 100, 150, 200, 150, 50, 50])
    assert references.flat[0, 0] == pytest.approx(350 / 3)
    assert references.same(references)
    single = collect(images[:1]).measured((4, 5))
    assert single is not None
    assert not references.same(single)
    assert not single.same(None)
    assert single.at([3]) is single


def test_bad_pixels_are_found_and_only_those() -> None:
    rng = np.random.default_rng(2)
    rows = np.arange(200)[:, None]
    beam = np.broadcast_to(2e4 * np.exp(-(((rows - 90) / 60) ** 2)) + 200, (200, 180))
    flat = rng.poisson(beam).astype(np.float32) + 100
    dark = np.full(flat.shape, 100, np.float32)
    assert not find_bad_pixels(flat, dark).any()
    bad = np.zeros(flat.shape, bool)
    bad[[5, 90, 199], [7, 100, 179]] = True
    flat[bad] = 0.1 * beam[bad] + 100  # answers to a tenth of the light
    flat[120, 50:53], dark[120, 50:53] = 2e4, 1.5e4  # hot
    flat[60, 60] = 3e5  # stuck bright
    dark[30, 30] = np.nan
    for where in ((120, slice(50, 53)), (60, 60), (30, 30)):
        bad[where] = True
    np.testing.assert_array_equal(find_bad_pixels(flat, dark), bad)


def test_pixels_without_a_beam_are_nan_until_repaired() -> None:
    flat = np.full((8, 128), 1e4, np.float32)
    flat[2, 5], flat[3, 9], flat[7, 127] = 100, np.nan, 20
    dead = np.zeros(flat.shape, bool)
    dead[[2, 3, 7], [5, 9, 127]] = True
    raw = np.full((2, 8, 128), 5000, np.float32)
    values = FlatField()(raw, References(flat, np.full_like(flat, 100)))
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


# --- the room -------------------------------------------------------------------------


def test_stages_for_the_final_volume_stand_apart() -> None:
    chain = ["flat_field", "minus_log", "remove_rings", "remove_stripes"]
    rooms = Rooms.furnish(Profile(name="x", preprocess=(*chain, "filter_stripes")))
    names = [next(iter(entry)) for entry in rooms.as_dict()["preprocess"]]
    assert names == [*chain, "filter_stripes"]
    assert len(rooms.final) == 2
    assert rooms.preprocessor.fused
    assert rooms.preprocessor is rooms.preprocessor


def test_a_stage_of_all_angles_that_is_not_for_the_end_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @dataclass(frozen=True)
    class Greedy(Silent):
        per_frame = False

    def stages(_: Sequence[Any]) -> tuple[Any, ...]:
        return (FlatField(), MinusLog(), Greedy())

    monkeypatch.setattr("ebl_stream.engine.rooms.build_preprocess", stages)
    with pytest.raises(InputError, match="needs all angles at once"):
        Rooms.furnish(Profile(name="x"))


def test_frames_keep_what_they_are_while_they_are_worked_on() -> None:
    for dtype in ("u2", "f4"):
        images, references = counts((2, 20, 30), dtype, 8)
        references = drifting(references)
        kept = [*images, references.flat, references.dark]
        kept += [flat for _, flat in references.groups]
        before = [array.copy() for array in kept]
        Preprocessor(CHAINS[2])(images, references, (0, 20), positions=[1, 5])
        for array, copy in zip(kept, before, strict=True):
            np.testing.assert_array_equal(array, copy)


def test_noise_is_that_of_the_photons() -> None:
    rng = np.random.default_rng(9)
    for photons in (200, 2e4):
        sample = rng.uniform(0.2, 1, (1, 20)).repeat(20, axis=1)
        image = rng.poisson(photons * sample, (200, 400)) / photons
        image[50:60] = 3  # an edge does not count
        found = noise(image.astype(np.float32))
        assert found == pytest.approx(1 / np.sqrt(photons), rel=0.15)
