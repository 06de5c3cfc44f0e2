"""The GPU's accumulation, its kernels run on the CPU, against the CPU's own."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from cuda_on_cpu.emulator import EmulatedDevice, parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import nrmse, nufft_fbp

from ebl_stream.gpu.accumulator import GpuAccumulator
from ebl_stream.gpu.device import KERNELS
from ebl_stream.gpu.layout import Layout
from ebl_stream.gpu.raw import RawGpuAccumulator
from ebl_stream.numerics.accumulate import Accumulator
from ebl_stream.numerics.fan import Common, Fan
from ebl_stream.numerics.fourier_plan import FourierPlan
from ebl_stream.simulation.phantom import Asymmetric
from ebl_stream.stages import References
from ebl_stream.stages.preprocess import FlatField, MinusLog

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="CUDA source runs on the CPU through g++"
)


def random_scan(rng, n_angles, n_rows, n_columns):
    """Return white noise at any angles, with shares of every kind."""
    values = rng.normal(size=(n_angles, n_rows, n_columns)).astype(np.float32)
    theta = rng.uniform(-np.pi, 3 * np.pi, n_angles)
    shares = rng.uniform(0.1, 0.3, (n_angles, 2))
    shares[np.arange(n_angles), rng.integers(2, size=n_angles)] = 0
    shares[::5] = rng.uniform(0.1, 0.3, shares[::5].shape)  # moved between halves
    shares[::7] *= -1
    return values, theta, shares


def assert_alike(ours, reference, scale=None):
    """To 1e-5 of the largest value, as agreed between backends."""
    assert ours.shape == reference.shape
    largest = np.abs(reference if scale is None else scale).max()
    assert np.abs(ours - reference).max() <= 1e-5 * largest


@settings(max_examples=20, deadline=None)
@given(
    n_columns=st.integers(8, 70),
    n_rows=st.sampled_from([1, 2, 3, 31, 64, 67]),
    n_angles=st.integers(5, 20),
    taps=st.sampled_from([4, 6]),
    padding=st.sampled_from(["zero", "edge"]),
    halves=st.booleans(),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_cpu_for_any_size(
    n_columns, n_rows, n_angles, taps, padding, halves, batch, seed
):
    rng = np.random.default_rng(seed)
    plan = FourierPlan(n_columns, taps=taps, padding=padding)
    scan = random_scan(rng, n_angles, n_rows, n_columns)
    center = (n_columns - 1) / 2 + rng.uniform(-3, 3)
    device = EmulatedDevice()
    grids = GpuAccumulator(
        plan, n_rows, center, halves=halves, device=device, batch=batch
    )
    reference = Accumulator(plan, n_rows, center, halves=halves)
    assert grids.halves == reference.halves
    for some in (slice(0, 4), slice(4, None)):
        grids.add(*(part[some] for part in scan))
        reference.add(*(part[some] for part in scan))
    look = {"window": "parzen", "shift": 0.3, "first_theta": 0.7}
    assert_alike(grids.volume(), reference.volume())
    assert_alike(grids.volume(**look), reference.volume(**look))
    if halves:
        assert_alike(grids.half_difference(), reference.half_difference())
        assert_alike(grids.half("b"), reference.half("b"))
    device.check_guards()


def test_equals_exact_nufft_fbp():
    rng = np.random.default_rng(3)
    plan, theta = FourierPlan(45), rng.uniform(0, np.pi, 30)
    values = rng.normal(size=(30, 3, 45)).astype(np.float32)
    weights = rng.uniform(0.05, 0.15, 30)
    grids = GpuAccumulator(plan, 3, 21.3, device=EmulatedDevice())
    grids.add(values, theta, np.stack([weights, 0 * weights], 1))
    exact = nufft_fbp(
        values[:, 2].astype(float), theta, 21.3, weights, n_padded=plan.n_padded
    )
    assert nrmse(grids.volume()[2], exact) < 0.01


def test_what_every_projection_has_too_much_is_taken_away():
    rng = np.random.default_rng(0)
    values, theta, shares = random_scan(rng, 12, 5, 33)
    profile = rng.normal(size=(5, 33)).astype(np.float32)
    device, plan = EmulatedDevice(), FourierPlan(33)
    clean, dirty = (GpuAccumulator(plan, 5, 15.0, device=device) for _ in range(2))
    clean.add(values, theta, shares)
    dirty.add(values + profile, theta, shares)
    for signs, look in (((1, 1), "volume"), ((1, -1), "half_difference")):
        less = Common(profile, Fan(plan, 15.0, theta, shares @ signs))
        expected = getattr(clean, look)()
        assert np.abs(getattr(dirty, look)() - expected).max() > 1e-3
        for _ in range(2):
            found = getattr(dirty, look)(less=less)
            np.testing.assert_allclose(found, expected, atol=3e-6)


def test_what_is_taken_back_is_gone_and_the_halves_add_up():
    rng = np.random.default_rng(0)
    values, theta, shares = random_scan(rng, 12, 5, 33)
    device = EmulatedDevice()
    grids, other = (
        GpuAccumulator(FourierPlan(33), 5, 15.0, device=device) for _ in range(2)
    )
    grids.add(values, theta, shares)
    grids.add(values[6:], theta[6:], -shares[6:])
    other.add(values[:6], theta[:6], shares[:6])
    expected = other.volume()
    np.testing.assert_allclose(grids.volume(), expected, atol=3e-6)
    a, b = grids.half("a"), grids.half("b")
    np.testing.assert_allclose(a + b, expected, atol=3e-6)
    np.testing.assert_allclose(grids.half_difference(), a - b, atol=3e-6)
    grids.reset(17.0)
    other.reset(17.0)
    other.add(values, theta, shares)
    assert not grids.volume().any()
    assert np.abs(other.volume() - expected).max() > 0.01


def test_raw_counts_become_line_integrals_and_their_sum():
    rng = np.random.default_rng(1)
    n_angles, n_rows, n_columns = 10, 5, 41
    dark = rng.uniform(90, 110, (n_rows, n_columns)).astype(np.float32)
    flat = rng.uniform(900, 1100, (n_rows, n_columns)).astype(np.float32)
    _, theta, shares = random_scan(rng, n_angles, n_rows, n_columns)
    references = References(flat=flat, dark=dark)
    for dtype in (np.uint8, np.uint16, np.float32):
        raw = rng.integers(40, 250, (n_angles, n_rows, n_columns)).astype(dtype)
        values = MinusLog()(FlatField()(raw.astype(np.float32), references))
        for padding in ("zero", "edge"):
            plan = FourierPlan(n_columns, padding=padding)
            reference = Accumulator(plan, n_rows, 20.5)
            reference.add(values, theta, shares)
            grids = RawGpuAccumulator(
                plan, n_rows, 20.5, device=EmulatedDevice(), batch=4, frames=dtype
            )
            grids.set_references(dark, flat)
            grids.add_raw(raw, theta, shares)
            # Taken back and added again: not once more in the sum.
            grids.add_raw(raw[:3], theta[:3], -shares[:3], in_total=False)
            grids.add_raw(raw[:3], theta[:3], shares[:3], in_total=False)
            assert_alike(grids.volume(), reference.volume())
            total = values.sum(0, dtype=np.float64)
            np.testing.assert_allclose(grids.total(), total, rtol=1e-6)
            grids.reset()
            assert not grids.total().any()


@pytest.mark.parametrize(
    ("file", "center", "row"),
    [("ssrl_txm_tomo77.h5", 39.0, 45), ("itb_bone.h5", 74.5, 20)],
)
def test_measured_counts_equal_the_cpu(measured_scan, file, center, row):
    h5py = pytest.importorskip("h5py")
    rows = slice(row, row + 3)
    with h5py.File(measured_scan(file)) as scan:
        raw = scan["exchange/data"][:, rows]
        flat = scan["exchange/data_white"][:, rows].mean(0)
        dark = scan["exchange/data_dark"][:, rows].mean(0)
        theta = np.deg2rad(scan["exchange/theta"][:])
    shares = np.zeros((len(theta), 2))
    shares[np.arange(len(theta)), np.arange(len(theta)) % 2] = np.pi / len(theta)
    plan = FourierPlan(raw.shape[2], padding="edge")
    grids = RawGpuAccumulator(
        plan, 3, center, device=EmulatedDevice(), frames=raw.dtype
    )
    grids.set_references(dark, flat)
    grids.add_raw(raw, theta, shares)
    transmission = (raw.astype(np.float32) - dark) / (flat - dark)
    values = -np.log(np.maximum(transmission, 1e-5)).astype(np.float32)
    reference = Accumulator(plan, 3, center)
    reference.add(values, theta, shares)
    volume = reference.volume()
    assert_alike(grids.volume(), volume)
    assert_alike(grids.half_difference(), reference.half_difference(), scale=volume)


def test_a_look_in_chunks_is_the_same_look():
    rng = np.random.default_rng(2)
    scan = random_scan(rng, 6, 11, 24)
    plan, device = FourierPlan(24), EmulatedDevice()
    whole = GpuAccumulator(plan, 11, 11.0, device=device)
    parts = GpuAccumulator(plan, 11, 11.0, device=device, look_bytes=1)
    assert (whole.layout.chunk, parts.layout.chunk) == (6, 1)
    for grids in (whole, parts):
        grids.add(*scan)
    strided = np.zeros((22, 24, 24), np.float32)
    assert parts.volume(out=strided[::2]).base is strided
    np.testing.assert_array_equal(strided[::2], whole.volume())
    assert not strided[1::2].any()


def test_a_preview_shows_the_volume_where_it_is():
    phantom = Asymmetric()
    theta = np.arange(90) * np.pi / 90
    center = (phantom.n_columns - 1) / 2 + 1.3
    values = phantom.project(theta, rotation_center=center)[:, :4]
    shares = np.full((90, 2), np.pi / 180)
    n = phantom.n_columns
    grids = GpuAccumulator(FourierPlan(n), 4, center, device=EmulatedDevice())
    grids.add(values, theta, shares)
    volume = grids.volume(window="hann").astype(float)
    for factor in (2, 3, 4):
        values, voxel = grids.preview(factor)
        assert voxel == pytest.approx(factor, rel=0.15)
        side = values.shape[1]
        assert 0 <= n / voxel - side < 1
        x, coarse = np.arange(n) - (n - 1) / 2, np.arange(side) - (side - 1) / 2
        coarse = coarse * voxel
        whole, seen = volume[:2].sum(0), values[:2].sum(0) * voxel**2
        assert seen.sum() == pytest.approx(whole.sum(), rel=0.06)
        for axis in (0, 1):
            where = (whole.sum(1 - axis) * x).sum() / whole.sum()
            seen_at = (seen.sum(1 - axis) * coarse).sum() / seen.sum()
            assert seen_at == pytest.approx(where, abs=0.25)


def test_every_kernel_is_used_and_what_is_taken_was_said():
    launched = set()
    for taps in (4, 6):
        plan = FourierPlan(20, taps=taps, padding="edge")
        device = EmulatedDevice()
        grids = RawGpuAccumulator(plan, 3, 9.0, device=device, batch=2)
        guards = sum(512 for _ in device.guarded)
        layout, work_areas = (
            grids.layout,
            8 * (2 * 2 * plan.n_padded + 2 * plan.n_grid * (plan.n_grid + 20)),
        )
        taken = sum(whole.nbytes for whole in device.guarded) - guards
        assert taken + work_areas == layout.device_bytes()
        assert layout.pinned_bytes() < layout.device_bytes()
        assert grids.nbytes == 2 * plan.stride**2 * 2 * 8
        zeros = np.zeros((3, 20), np.float32)
        grids.set_references(zeros, zeros + 1)
        grids.add(zeros[None], [0.1], [[1, 0]])
        for dtype in (np.uint8, np.uint16, np.float32):
            grids.add_raw(np.ones((1, 3, 20), dtype), [0.1], [[1, 0]])
        grids.volume()
        launched |= set(device.launched)
    assert launched == set(parameters(KERNELS.read_text()))


@pytest.mark.parametrize("settings", [{"batch": 0}, {"n_slots": 1}, {"n_rows": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Layout(FourierPlan(20), **({"n_rows": 2} | settings))


def test_bad_input_is_refused_and_nothing_is_added():
    device = EmulatedDevice()
    grids = RawGpuAccumulator(FourierPlan(20), 3, 9.0, device=device, halves=False)
    values = np.ones((2, 3, 20), np.float32)
    shares = np.ones((2, 2))
    for bad in (
        (values[:, :2], [0, 1], shares),
        (values, [0], shares),
        (values, [0, 1], shares[:, :1]),
    ):
        with pytest.raises(ValueError, match=r"must be|do not match"):
            grids.add(*bad)
    with pytest.raises(ValueError, match="set_references"):
        grids.add_raw(values, [0, 1], shares)
    dead = np.ones((3, 20))
    dead[1, 2] = 0
    with pytest.raises(ValueError, match="1 pixels see no beam"):
        grids.set_references(0 * dead, dead)
    grids.set_references(0 * dead, dead + 1)
    with pytest.raises(ValueError, match="not int32"):
        grids.add_raw(values.astype(np.int32), [0, 1], shares)
    with pytest.raises(ValueError, match="0 are reserved"):
        grids.add_reserved([0, 1], shares)
    for wrong in (grids.half_difference, lambda: grids.half("a")):
        with pytest.raises(ValueError, match="halves"):
            wrong()
    with pytest.raises(ValueError, match="out must be"):
        grids.volume(out=np.empty((3, 20, 20)))
    fan = Fan(FourierPlan(20), 8.0, np.zeros(1), np.ones(1))
    with pytest.raises(ValueError, match="less"):
        grids.volume(less=Common(np.zeros((3, 20), np.float32), fan))
    assert not grids.volume().any()
