"""Lengths, filters and tables that all backends share; padding; the choice of one."""

import logging
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import circle, nufft_fbp

from ebl_stream.numerics import kernel_cache, tiles, tiles_plain
from ebl_stream.numerics.aligned import aligned_empty
from ebl_stream.numerics.fourier_plan import (
    TABLE_ROWS,
    FourierPlan,
    half_turn_start,
)
from ebl_stream.numerics.lane_fft import fft, plan_fft, split_signal
from ebl_stream.numerics.truncation import truncation
from ebl_stream.numerics.weights import angular_weights
from ebl_stream.numerics.windows import ramp_response, window_response
from ebl_stream.stages.reconstruct import Fourier

WINDOWS = ["shepp_logan", "cosine", "hann", "parzen", "butterworth", "sinc2"]

plans = st.builds(
    FourierPlan,
    st.integers(8, 300),
    st.floats(1.1, 2),
    st.sampled_from([4, 6]),
    st.sampled_from(["zero", "edge"]),
)


def largest_prime(n):
    for p in (2, 3, 5):
        while n % p == 0:
            n //= p
    return n


@settings(max_examples=60, deadline=None)
@given(plan=plans)
def test_lengths_are_fast_and_long_enough(plan):
    assert plan.n_padded >= 2 * plan.n_columns
    assert plan.n_grid >= plan.oversampling * plan.n_columns - 1e-6
    assert plan.n_padded % 2 == 0
    assert plan.n_grid % 8 == 0
    assert largest_prime(plan.n_padded) == largest_prime(plan.n_grid) == 1
    assert plan.frequency[0] == -0.5
    assert plan.frequency[-1] == 0.5
    assert len(plan.frequency) == plan.n_frequencies == plan.n_padded + 1
    assert plan.spoke_filter(1.0).shape == (plan.n_frequencies,)
    assert plan.grid_frequency[plan.margin + plan.n_grid // 2] == 0


@settings(max_examples=60, deadline=None)
@given(plan=plans, theta=st.lists(st.floats(-20, 20), min_size=1, max_size=6))
def test_footprints_stay_on_the_stored_grid_and_are_where_they_should(plan, theta):
    theta = np.array([*theta, 0, np.pi / 2, np.pi, -np.pi / 4])
    corner, fraction = plan.footprint(theta)
    row, column = np.divmod(corner, plan.stride)
    for place in (row, column):
        assert place.min() >= 0
        assert place.max() + plan.taps <= plan.stride
    k = plan.frequency * plan.n_grid
    for place, rows, direction in (
        (row, fraction[..., 0], np.cos(theta)),
        (column, fraction[..., 1], np.sin(theta)),
    ):
        # The corner is margin points before the sample, rounded down.
        found = place + rows / TABLE_ROWS - plan.n_grid / 2
        expected = k * direction[:, None]
        np.testing.assert_allclose(found, expected, atol=0.51 / TABLE_ROWS)


def test_opposite_samples_have_mirrored_footprints():
    # Else the two slices of a packed pair leak into each other.
    plan = FourierPlan(45, taps=4)
    corner, fraction = plan.footprint([0.0, 0.3, np.pi / 2, np.pi / 4])
    weights = plan.table[fraction]
    row, column = np.divmod(corner, plan.stride)
    last = plan.n_grid + 2 * plan.margin
    grids = np.zeros((2, plan.stride + plan.taps, plan.stride + plan.taps))
    for sign, grid in enumerate(grids):
        for k, n in np.ndindex(corner.shape):
            taps = np.outer(weights[k, n, 0], weights[k, n, 1])
            y, x = row[k, n], column[k, n]
            y, x = np.arange(y, y + 4), np.arange(x, x + 4)
            if sign:
                y, x = last - y, last - x
            grid[np.ix_(y, x)] += taps * (n + 1 if not sign else len(corner[0]) - n)
    np.testing.assert_allclose(grids[0], grids[1], atol=2e-2)


def test_kernel_table_and_deapodization_undo_each_other():
    plan = FourierPlan(64, taps=6)
    # A constant spoke sample at any fraction gives a flat phase over the slice.
    pixel = np.arange(64) - 31.5
    for row in (0, 1234, TABLE_ROWS // 2, TABLE_ROWS):
        k = np.arange(6) - plan.margin - row / TABLE_ROWS
        wave = np.exp(2j * np.pi * np.outer(pixel / plan.n_grid, k))
        flat = (wave @ plan.table[row]) * np.abs(plan.deapodization)
        np.testing.assert_allclose(flat, 1, atol=3e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_columns": 7},
        {"n_columns": 9, "oversampling": 1.0},
        {"n_columns": 9, "taps": 5},
        {"n_columns": 9, "padding": "mirror"},
    ],
)
def test_plans_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=list(settings)[-1]):
        FourierPlan(**settings)


def test_ramp_is_right_for_every_length():
    for n_padded in range(16, 600, 2):
        response = ramp_response(n_padded)
        frequency = np.abs(np.fft.fftfreq(n_padded))
        # The sampled ramp follows |f| but for the mean, by 2 / (pi n)^2 a lag left out.
        np.testing.assert_allclose(response, frequency, atol=0.3 / n_padded)


@pytest.mark.parametrize("window", WINDOWS)
def test_windows_fall_from_one(window):
    response = window_response(np.linspace(0, 0.5, 101), window)
    assert response[0] == pytest.approx(1)
    assert np.all(np.diff(response) < 0)
    assert -1e-12 < response[-1] < 0.7


def test_unknown_window_is_refused():
    with pytest.raises(ValueError, match="triangle"):
        FourierPlan(20).grid_response("triangle")  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(
    first=st.floats(-7, 7),
    span=st.floats(0, np.pi),
    n=st.integers(1, 50),
    seed=st.integers(0, 1000),
)
def test_half_turn_is_found_wherever_it_begins(first, span, n, seed):
    theta = first + np.random.default_rng(seed).permutation(np.linspace(0, span, n))
    start = half_turn_start(theta)
    assert start is not None
    ahead = np.mod(theta - start + 1e-6, 2 * np.pi)
    assert np.all(ahead <= np.pi + 1e-5)


def test_more_than_half_a_turn_has_no_start():
    assert half_turn_start(np.linspace(0, 2 * np.pi, 50, endpoint=False)) is None
    assert half_turn_start(np.linspace(0, 1.1 * np.pi, 50)) is None


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 8, 40, 90, 128, 225, 600, 625])
def test_lane_fft_equals_numpy(length):
    rng = np.random.default_rng(length)
    signal, parts, other = (aligned_empty((length, 2, 16)) for _ in range(3))
    signal[...] = rng.normal(size=signal.shape)
    expected = np.fft.fft(signal[:, 0] + 1j * signal[:, 1], axis=0)
    plan = plan_fft(length)
    split_signal(signal.reshape(-1), parts.reshape(-1), length, plan.split, plan.turns)
    scale, part = np.abs(expected).max(), length // plan.split
    for k in range(plan.split):
        some = parts[k * part : (k + 1) * part].reshape(-1)
        found = fft(some, other.reshape(-1), part, plan.radices, plan.twiddles)
        found = found[: part * 32].reshape(part, 2, 16)
        wanted = expected[k :: plan.split]
        np.testing.assert_allclose(found[:, 0], wanted.real, atol=1e-6 * scale)
        np.testing.assert_allclose(found[:, 1], wanted.imag, atol=1e-6 * scale)


def test_lane_fft_refuses_other_lengths():
    with pytest.raises(ValueError, match="prime factor"):
        plan_fft(14)


# ----------------------------------------------------------------- truncated objects


def sinogram(path, row):
    """Line integrals ``[angle, column]`` of one row, and theta in rad."""
    with h5py.File(path) as scan:
        raw = scan["exchange/data"][:, row].astype(float)
        flat = scan["exchange/data_white"][:, row].mean(0)
        dark = scan["exchange/data_dark"][:, row].mean(0)
        theta = np.deg2rad(scan["exchange/theta"][:])
    return -np.log(np.clip((raw - dark) / (flat - dark), 1e-5, None)), theta


CROPS = {
    # file: (row, center, first and last column, error at most of its own contrast)
    "aps_tooth.h5": (0, 295.6, 200, 440, 0.35),
    "helsinki_pepper_normal.h5": (20, 279.5, 140, 420, 0.06),
    "itb_bone.h5": (20, 74.5, 40, 110, 0.08),
}


@pytest.mark.parametrize("file", CROPS)
def test_edge_padding_saves_what_is_inside_a_cropped_field(measured_scan, file):
    row, center, first, last, limit = CROPS[file]
    values, theta = sinogram(measured_scan(file), row)
    n, n_all = last - first, values.shape[1]
    cut = (n_all - n) // 2
    whole = nufft_fbp(values, theta, center, angular_weights(theta))
    truth = whole[cut : cut + n, cut : cut + n]
    inside = circle(n)
    cropped = values[:, None, first:last].astype(np.float32)

    def error(padding):
        volume = Fourier(padding=padding)(cropped, theta, center - first)
        difference = (volume[0] - truth)[inside]
        # What is missing outside is smooth: an offset that nothing can tell.
        return difference.std() / truth[inside].std()

    edge, zero = error("edge"), error("zero")
    assert edge < limit
    assert edge < 0.95 * zero


@pytest.mark.parametrize(
    ("file", "columns", "truncated"),
    [
        ("aps_tooth.h5", slice(None), False),
        ("aps_tooth.h5", slice(200, 440), True),
        ("helsinki_pepper_normal.h5", slice(None), True),
        ("helsinki_pepper_lowdose.h5", slice(None), True),
        ("helsinki_pepper_lowdose.h5", slice(140, 420), True),
        ("ssrl_txm_tomo77.h5", slice(None), False),
        ("itb_bone.h5", slice(None), False),
        ("itb_bone.h5", slice(40, 110), True),
    ],
)
def test_truncation_of_measured_scans(measured_scan, file, columns, truncated):
    values = np.stack([sinogram(measured_scan(file), row)[0] for row in (0, 1)], axis=1)
    verdict = truncation(values[:, :, columns])
    assert verdict.truncated == truncated
    assert "edge" in verdict.reason
    assert ("wider" in verdict.reason) == truncated


def test_noise_and_a_dim_beam_are_no_object_at_the_edge():
    rng = np.random.default_rng(0)
    x = np.arange(200) - 99.5
    disc = 0.02 * np.sqrt(np.maximum(60**2 - x**2, 0))
    values = disc + rng.normal(0, 0.1, (90, 4, 200)) + 0.03
    assert not truncation(values).truncated
    wide = 0.02 * np.sqrt(np.maximum(105**2 - x**2, 0))
    verdict = truncation(wide + rng.normal(0, 0.1, (90, 4, 200)))
    assert verdict.truncated
    assert "left edge and" in verdict.reason
    assert not truncation(np.full((9, 2, 30), 0.0)).truncated


# --------------------------------------------------- compiled kernels and their choice


def test_plain_kernels_are_taken_where_vector_kernels_are_wrong(monkeypatch, caplog):
    class Broken:
        """Vector kernels of a machine that miscompiles."""

        add = staticmethod(tiles_plain.add)

        @staticmethod
        def slices(plan, grids, signs, response, out, less=None):
            tiles_plain.slices(plan, grids, signs, response, out, less)
            out[..., 3] *= 1.5

    monkeypatch.delenv(tiles.CHOICE, raising=False)
    monkeypatch.setitem(sys.modules, "ebl_stream.numerics.tiles_simd", Broken)
    tiles.choose.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert tiles.tiles() is tiles_plain
        assert tiles.tiles() is tiles_plain
    assert len(caplog.records) == 1
    assert "off by" in caplog.text
    monkeypatch.setenv(tiles.CHOICE, "simd")
    with pytest.raises(ArithmeticError, match="off by"):
        tiles.tiles()
    tiles.choose.cache_clear()


def test_plain_kernels_are_taken_where_the_vector_type_cannot_be_made(monkeypatch):
    monkeypatch.delenv(tiles.CHOICE, raising=False)
    monkeypatch.setitem(sys.modules, "ebl_stream.numerics.tiles_simd", None)
    tiles.choose.cache_clear()
    assert tiles.tiles() is tiles_plain
    tiles.choose.cache_clear()


def test_unknown_kernels_are_refused(monkeypatch):
    monkeypatch.setenv(tiles.CHOICE, "magic")
    with pytest.raises(ValueError, match="magic"):
        tiles.tiles()


@pytest.mark.parametrize("taps", [4, 6])
@pytest.mark.parametrize("padding", ["zero", "edge"])
def test_plain_kernels_pass_the_self_test(taps, padding):
    tiles.self_test(tiles_plain, taps, padding)  # type: ignore[arg-type]


def test_cache_folder_tells_processors_and_sources_apart(monkeypatch, tmp_path):
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "a.py").write_text("import numba\n")
    (sources / "b.py").write_text("import numpy\n")
    name = kernel_cache.fingerprint(sources)
    (sources / "b.py").write_text("import scipy\n")
    assert kernel_cache.fingerprint(sources) == name
    monkeypatch.setattr(kernel_cache.config, "CPU_NAME", "other-processor")
    other = kernel_cache.fingerprint(sources)
    (sources / "a.py").write_text("import numba\n1\n")
    assert len({name, other, kernel_cache.fingerprint(sources)}) == 3


SCRIPT = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from ebl_stream.numerics import kernel_cache
from ebl_stream.numerics.spoke_kernels import spread_spokes
from ebl_stream.numerics.warm_up import warm_up
warm_up()
print(kernel_cache.folder(), sum(spread_spokes.stats.cache_misses.values()))
"""


def run(**environment):
    clean = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kernels_are_compiled_once(tmp_path):
    first = run(XDG_CACHE_HOME=str(tmp_path)).split()
    assert first[0].startswith(str(tmp_path / "ebl_stream" / "kernels"))
    assert int(first[1]) > 0
    assert int(run(XDG_CACHE_HOME=str(tmp_path)).split()[1]) == 0
