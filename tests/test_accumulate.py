"""The accumulator against independent references."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import circle, nrmse, nufft_fbp

from ebl_stream.numerics.accumulate import Accumulator
from ebl_stream.numerics.fan import Common, Fan
from ebl_stream.numerics.fourier_plan import FourierPlan, half_turn_start
from ebl_stream.numerics.tiles import CHOICE, tiles
from ebl_stream.numerics.weights import angular_weights
from ebl_stream.numerics.windows import window_response
from ebl_stream.simulation.phantom import Asymmetric, Foam
from ebl_stream.stages.reconstruct import Fourier

GOLDEN = np.pi * (np.sqrt(5) - 1) / 2


@settings(max_examples=25, deadline=None)
@given(
    n_columns=st.integers(8, 97),
    n_rows=st.integers(1, 5),
    n_angles=st.integers(3, 40),
    shift=st.floats(-3, 3),
    taps=st.sampled_from([4, 6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_exact_nufft_fbp_for_any_size(
    n_columns, n_rows, n_angles, shift, taps, seed
):
    rng = np.random.default_rng(seed)
    theta = rng.uniform(-np.pi, 2 * np.pi, n_angles)
    values = rng.normal(size=(n_angles, n_rows, n_columns)).astype(np.float32)
    center = (n_columns - 1) / 2 + shift
    volume = Fourier(taps=taps, padding="zero")(values, theta, center)
    assert volume.shape == (n_rows, n_columns, n_columns)
    row = n_rows - 1
    # White noise is the hardest input: all its power is at high frequency. With
    # the same padding, what differs is the gridding kernel alone.
    exact = nufft_fbp(
        values[:, row].astype(float),
        theta,
        center,
        angular_weights(theta),
        n_padded=FourierPlan(n_columns).n_padded,
    )
    assert nrmse(volume[row], exact) < (0.006 if taps == 4 else 0.0005)


def test_orientation_sign_and_scale_without_any_fit():
    phantom = Asymmetric()
    theta = np.arange(400) * np.pi / 400
    center = (phantom.n_columns - 1) / 2 + 4.3
    values = phantom.project(theta, rotation_center=center)
    volume, truth = Fourier()(values, theta, center), phantom.volume()
    assert nrmse(volume, truth) < 0.2
    slope = np.vdot(volume, truth) / np.vdot(truth, truth)
    assert slope == pytest.approx(1, abs=0.01)
    for mirrored in (truth[:, ::-1], truth[:, :, ::-1], truth.transpose(0, 2, 1)):
        assert nrmse(volume, mirrored) > 0.5


def random_scan(seed, n_angles, n_rows, n_columns):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n_angles, n_rows, n_columns)).astype(np.float32)
    theta = rng.uniform(-np.pi, 2 * np.pi, n_angles)
    shares = rng.uniform(-0.1, 0.2, (n_angles, 2)) * rng.integers(0, 2, (n_angles, 2))
    return values, theta, shares


def both_backends(plan, n_rows, center, monkeypatch):
    """An accumulator with vector kernels, and one with plain kernels."""
    made = []
    for choice in ("simd", "plain"):
        monkeypatch.setenv(CHOICE, choice)
        made.append(Accumulator(plan, n_rows, center))
    return made


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    n_columns=st.integers(8, 75),
    n_rows=st.integers(1, 70),
    n_angles=st.integers(1, 40),
    taps=st.sampled_from([4, 6]),
    oversampling=st.sampled_from([1.125, 1.25, 2]),
    padding=st.sampled_from(["zero", "edge"]),
    window=st.sampled_from(["ramp", "hann"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_vector_kernels_equal_plain_ones(
    monkeypatch, n_columns, n_rows, n_angles, taps, oversampling, padding, window, seed
):
    plan = FourierPlan(n_columns, oversampling, taps, padding)
    values, theta, shares = random_scan(seed, n_angles, n_rows, n_columns)
    pair = both_backends(plan, n_rows, n_columns / 2 + 1.3, monkeypatch)
    for accumulator in pair:
        accumulator.add(values, theta, shares)
    # A and B may cancel, their rounding does not.
    largest = max(float(np.abs(pair[1].half(which)).max()) for which in "ab")
    for look in ("volume", "half_difference"):
        # In the corners, undoing the kernel magnifies the rounding.
        inside = circle(n_columns, 1.001)
        fast, plain = (getattr(a, look)(window=window) for a in pair)
        atol = 1e-5 * max(largest, 1e-6)
        np.testing.assert_allclose(fast[:, inside], plain[:, inside], atol=atol)


def test_layout_of_the_input_does_not_matter():
    plan = FourierPlan(33)
    values, theta, shares = random_scan(3, 12, 40, 33)
    wide = np.full((12, 80, 50), np.nan, np.float32)
    wide[:, 20:60, 7:40] = values
    frozen = values.copy()
    frozen.flags.writeable = False
    inputs = {
        "view": wide[:, 20:60, 7:40],
        "read-only": frozen,
        "double": values.astype(np.float64),
        "fortran": np.asfortranarray(values),
        "backwards": values[::-1].copy()[::-1],
    }
    expected = Accumulator(plan, 40, 16.0)
    expected.add(values, theta, shares)
    for name, layout in inputs.items():
        accumulator = Accumulator(plan, 40, 16.0)
        accumulator.add(layout, theta, shares)
        np.testing.assert_array_equal(
            accumulator.volume(), expected.volume(), err_msg=name
        )
    repeated = np.broadcast_to(values[:1], values.shape)
    accumulator.reset()
    accumulator.add(repeated, theta, shares)
    expected.reset()
    expected.add(repeated.copy(), theta, shares)
    np.testing.assert_array_equal(accumulator.volume(), expected.volume())


def test_output_goes_where_it_is_wanted():
    plan = FourierPlan(40)
    values, theta, shares = random_scan(4, 20, 35, 40)
    accumulator = Accumulator(plan, 35, 19.5)
    accumulator.add(values, theta, shares)
    expected = accumulator.volume()
    room = np.zeros((60, 44, 51), np.float32)
    out = room[5:40, 2:42, 3:43]
    assert accumulator.volume(out=out) is out
    np.testing.assert_array_equal(out, expected)
    out[...] = 0
    assert not room.any()  # nothing was written beside it
    for wrong in (room, room[5:40, 2:42, 3:43].astype(np.float64)):
        with pytest.raises(ValueError, match="out must be float32"):
            accumulator.volume(out=wrong)


@pytest.mark.parametrize("backend", ["simd", "plain"])
def test_negative_shares_take_projections_back(monkeypatch, backend):
    monkeypatch.setenv(CHOICE, backend)
    plan = FourierPlan(40)
    values, theta, shares = random_scan(0, 30, 3, 40)
    accumulator = Accumulator(plan, 3, 19.5)
    accumulator.add(values, theta, shares)
    largest = np.abs(accumulator.volume()).max()
    accumulator.add(values[10:], theta[10:], -shares[10:])
    rest = Accumulator(plan, 3, 19.5)
    rest.add(values[:10], theta[:10], shares[:10])
    np.testing.assert_allclose(accumulator.volume(), rest.volume(), atol=1e-6 * largest)
    accumulator.add(values[:10], theta[:10], -shares[:10])
    assert np.abs(accumulator.volume()).max() < 1e-6 * largest


def test_halves_and_single_grid_agree():
    plan = FourierPlan(50)
    values, theta, shares = random_scan(1, 40, 34, 50)
    split, single = (
        Accumulator(plan, 34, 24.5),
        Accumulator(plan, 34, 24.5, halves=False),
    )
    for accumulator in (split, single):
        accumulator.add(values, theta, shares)
    volume = split.volume()
    atol = 2e-6 * np.abs(volume).max()
    a, b = split.half("a"), split.half("b")
    np.testing.assert_allclose(volume, a + b, atol=atol)
    np.testing.assert_allclose(split.half_difference(), a - b, atol=atol)
    np.testing.assert_allclose(single.volume(), volume, atol=atol)
    assert 2 * single.nbytes == split.nbytes
    with pytest.raises(ValueError, match="halves"):
        single.half_difference()
    with pytest.raises(ValueError, match="halves"):
        single.half("a")


@pytest.mark.parametrize("kernels", ["simd", "plain"])
@pytest.mark.parametrize(
    ("n_columns", "taps", "padding"), [(8, 4, "zero"), (30, 4, "edge"), (37, 6, "zero")]
)
@pytest.mark.parametrize("turn", [np.pi, 2 * np.pi, 1.0])
def test_what_every_projection_has_too_much_is_taken_away(
    kernels, n_columns, taps, padding, turn, monkeypatch
):
    """Gathered, it is what it would be if it were spread like the projections."""
    monkeypatch.setenv(CHOICE, kernels)
    plan, center = FourierPlan(n_columns, taps=taps, padding=padding), n_columns / 2.1
    values, _, shares = random_scan(2, 40, 35, n_columns)
    theta = np.random.default_rng(1).uniform(-turn / 2, turn / 2, 40)
    shares[3:5] = 0
    shares[7] *= -1
    profile = values[0] * np.float32(0.5)
    clean, dirty = (Accumulator(plan, 35, center) for _ in range(2))
    clean.add(values, theta, shares)
    dirty.add(values + profile, theta, shares)
    for signs, look in (((1, 1), "volume"), ((1, -1), "half_difference")):
        less = Common(profile, Fan(plan, center, theta, shares @ signs))
        expected = getattr(clean, look)(window="hann", shift=0.2)
        found = getattr(dirty, look)(window="hann", shift=0.2, less=less)
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=atol)


def test_a_fan_is_the_same_on_any_number_of_threads():
    theta, weights = np.arange(50) * 0.3, np.ones(50)
    fans = [Fan(FourierPlan(60), 29.5, theta, weights) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        tables = [fans[0].table(), fans[1].table(pool.map), fans[2].table(pool.map)]
    for table in tables[1:]:
        for one, other in zip(tables[0], table, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("plan", "rows", "center"),
    [
        (FourierPlan(31), 5, 14.5),
        (FourierPlan(30), 4, 14.5),
        (FourierPlan(30), 5, 14.0),
    ],
)
def test_what_does_not_fit_is_not_taken_away(plan, rows, center):
    fan = Fan(plan, center, np.zeros(1), np.ones(1))
    profile = np.zeros((rows, plan.n_columns), np.float32)
    with pytest.raises(ValueError, match="same plan"):
        Accumulator(FourierPlan(30), 5, 14.5).volume(less=Common(profile, fan))


def test_reset_forgets_and_may_move_the_center():
    plan = FourierPlan(30)
    values, theta, shares = random_scan(5, 10, 2, 30)
    moved, fresh = Accumulator(plan, 2, 10.0), Accumulator(plan, 2, 16.2)
    moved.add(values, theta, shares)
    moved.reset()
    assert not moved.volume().any()
    assert moved.rotation_center == 10.0
    moved.reset(16.2)
    for accumulator in (moved, fresh):
        accumulator.add(values, theta, shares)
    np.testing.assert_array_equal(moved.volume(), fresh.volume())


def test_shapes_that_do_not_fit_are_refused():
    accumulator = Accumulator(FourierPlan(30), 2, 14.5)
    values, theta, shares = random_scan(5, 10, 2, 30)
    for wrong in (values[:, :1], values[:, :, :29], values[:5], values[0]):
        with pytest.raises(ValueError, match="values must be"):
            accumulator.add(wrong, theta, shares)
    with pytest.raises(ValueError, match="shares"):
        accumulator.add(values, theta, shares[:, :1])
    with pytest.raises(ValueError, match="n_rows"):
        Accumulator(FourierPlan(30), 0, 14.5)


def test_bit_identical_on_any_number_of_threads():
    plan = FourierPlan(64)
    values, theta, shares = random_scan(6, 70, 4 * 40, 64)

    def slab(k):
        accumulator = Accumulator(plan, 40, 31.0)
        for first in range(0, 70, 16):
            some = slice(first, first + 16)
            accumulator.add(
                values[some, 40 * k : 40 * k + 40], theta[some], shares[some]
            )
        return accumulator.volume(window="hann"), accumulator.half_difference()

    expected = [slab(k) for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, wanted in zip(pool.map(slab, range(4)), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)


def test_scratch_is_reserved_used_and_freed(monkeypatch):
    monkeypatch.setenv(CHOICE, "simd")
    plan = FourierPlan(48)
    values, theta, shares = random_scan(8, 33, 3, 48)
    footprint, out = plan.footprint(theta), np.empty((3, 48, 48), np.float32)
    backend = tiles()
    backend.release()
    tracemalloc.start()
    backend.reserve(plan, 3)
    reserved = tracemalloc.get_traced_memory()[0]
    accumulator = Accumulator(plan, 3, 23.5)
    before = tracemalloc.get_traced_memory()[0]
    accumulator.add(values, theta, shares, footprint=footprint)
    accumulator.volume(out=out)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    backend.release()
    assert reserved > 3 * 4 * 32 * plan.n_grid * plan.n_columns
    # Then nothing of weight is taken any more.
    assert after - before < 0.02 * reserved


def test_precomputed_footprint_is_the_same():
    plan = FourierPlan(30)
    values, theta, shares = random_scan(7, 40, 2, 30)
    one, other = (Accumulator(plan, 2, 14.5) for _ in range(2))
    one.add(values, theta, shares)
    other.add(values, theta, shares, footprint=plan.footprint(theta))
    np.testing.assert_array_equal(one.volume(), other.volume())


@pytest.mark.parametrize("kind", ["sharp", "noisy"])
def test_foam_is_as_good_as_exact_nufft_fbp(kind):
    foam = Foam(256, 2, seed=4)
    theta = np.arange(402) * np.pi / 402
    values = foam.project(theta)
    if kind == "noisy":
        counts = np.random.default_rng(0).poisson(2e4 * np.exp(-values))
        values = -np.log(np.maximum(counts, 0.5) / 2e4)
    volume = Fourier()(values.astype(np.float32), theta, 127.5)
    truth = foam.volume()
    exact = np.array(
        [nufft_fbp(values[:, row].astype(float), theta, 127.5) for row in range(2)]
    )
    inside = circle(256, 0.95)

    def psnr(image):
        error = np.mean((image - truth)[:, inside] ** 2)
        return 10 * np.log10(np.ptp(truth) ** 2 / error)

    assert abs(psnr(volume) - psnr(exact)) < 0.05


@pytest.mark.parametrize(
    "window", ["shepp_logan", "cosine", "hann", "parzen", "butterworth", "sinc2"]
)
def test_window_at_the_look_equals_windowed_filter(window):
    errors = []
    for n, n_angles in ((96, 150), (192, 300)):
        center = (n - 1) / 2
        theta = np.arange(n_angles) * np.pi / n_angles
        values = Foam(n, 1, seed=4).project(theta)
        accumulator = Accumulator(FourierPlan(n), 1, center)
        shares = np.full((n_angles, 2), np.pi / n_angles / 2)
        accumulator.add(values.astype(np.float32), theta, shares)
        late, plain = accumulator.volume(window=window), accumulator.volume()
        early, exact = (
            nufft_fbp(values[:, 0], theta, center, n_padded=2 * n, low_pass=low_pass)
            for low_pass in (partial(window_response, window=window), None)
        )
        # The gridding error is in both, so it is taken out.
        errors.append(nrmse(late[0] - plain[0] + exact, early))
        assert nrmse(plain[0], early) > 10 * errors[-1]
    # What differs is that the window sees the slice with the kernel's shading, which
    # shifts detail by a hundredth of a pixel, and less on larger slices.
    print(errors)
    assert errors[0] < 0.02
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("first_degree", [0, -90, 130])
@pytest.mark.parametrize(("shift", "loss_db"), [(0.25, 0.3), (-0.5, 0.8)])
def test_center_can_be_moved_at_the_look(first_degree, shift, loss_db):
    foam = Foam(256, 1, seed=4)
    theta = np.deg2rad(first_degree) + np.arange(400) * np.pi / 400
    values = foam.project(theta, rotation_center=127.5 + shift).astype(np.float32)
    truth, inside = foam.volume(), circle(256)
    accumulator = Accumulator(FourierPlan(256), 1, 127.5)
    accumulator.add(values, theta, np.full((400, 2), np.pi / 800))
    right = Accumulator(FourierPlan(256), 1, 127.5 + shift)
    right.add(values, theta, np.full((400, 2), np.pi / 800))

    def psnr(image):
        return -10 * np.log10(np.mean((image - truth)[:, inside] ** 2))

    start = half_turn_start(theta)
    moved = psnr(accumulator.volume(shift=shift, first_theta=start))
    assert moved > psnr(right.volume()) - loss_db
    assert psnr(accumulator.volume()) < moved - 2
    wrong_way = accumulator.volume(shift=-shift, first_theta=start)
    assert psnr(wrong_way) < psnr(accumulator.volume())


@pytest.mark.parametrize("order", ["shuffled", "doubled"])
def test_any_order_gives_the_same_volume(order):
    rng = np.random.default_rng(1)
    theta = np.arange(120) * GOLDEN
    values = rng.normal(size=(120, 2, 64)).astype(np.float32)
    expected = Fourier()(values, theta, 31.5)
    if order == "shuffled":
        some = rng.permutation(120)
    else:
        some = np.concatenate([np.arange(120), np.arange(120)])
    volume = Fourier()(values[some], theta[some], 31.5)
    np.testing.assert_allclose(volume, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("file", "center", "row"),
    [
        ("aps_tooth.h5", 295.6, 0),
        ("helsinki_pepper_normal.h5", 279.5, 20),
        ("ssrl_txm_tomo77.h5", 39.0, 45),
        ("itb_bone.h5", 74.5, 20),
    ],
)
def test_measured_scans_equal_exact_nufft_fbp(measured_scan, file, center, row):
    h5py = pytest.importorskip("h5py")
    with h5py.File(measured_scan(file)) as scan:
        raw = scan["exchange/data"][:, row : row + 1].astype(float)
        flat = scan["exchange/data_white"][:, row : row + 1].mean(0)
        dark = scan["exchange/data_dark"][:, row : row + 1].mean(0)
        theta = np.deg2rad(scan["exchange/theta"][:])
    values = -np.log(np.clip((raw - dark) / (flat - dark), 1e-5, None))
    fourier = Fourier(padding="zero")
    volume = fourier(values.astype(np.float32), theta, center)
    exact = nufft_fbp(values[:, 0], theta, center)
    assert nrmse(volume[0], exact) < 0.01
