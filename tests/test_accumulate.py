"""The accumulator against independent references."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import nrmse, nufft_fbp
from scipy.fft import next_fast_len

from ebl_stream.numerics.accumulate import Accumulator, ramp_response
from ebl_stream.numerics.weights import angular_weights
from ebl_stream.simulation.phantom import Asymmetric
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
    volume = Fourier(taps=taps)(values, theta, center)
    assert volume.shape == (n_rows, n_columns, n_columns)
    row = n_rows - 1
    # White noise is the hardest input: all its power is at high frequency. With
    # the same padding, what differs is the gridding kernel alone.
    exact = nufft_fbp(
        values[:, row].astype(float),
        theta,
        center,
        angular_weights(theta),
        n_padded=2 * next_fast_len(n_columns),
    )
    assert nrmse(volume[row], exact) < 0.01


def test_ramp_is_right_for_every_length():
    for n_padded in range(16, 600, 2):
        response = ramp_response(n_padded)
        frequency = np.abs(np.fft.fftfreq(n_padded))
        # The sampled ramp follows |f| but for the mean, by 2 / (pi n)^2 a lag left out.
        np.testing.assert_allclose(response, frequency, atol=0.3 / n_padded)


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


def test_negative_weight_takes_a_projection_back():
    rng = np.random.default_rng(0)
    grids, other = (Accumulator(3, 40, 19.5) for _ in range(2))
    spokes = grids.spokes(rng.normal(size=(3, 3, 40)).astype(np.float32))
    for grid in (grids, other):
        grid.add(spokes[0], 0.1, 0.5, 0.0)
        grid.add(spokes[1], 1.2, 0.0, 0.7)
    grids.add(spokes[2], 2.2, 0.3, 0.0)
    grids.add(spokes[2], 2.2, -0.3, 0.0)
    np.testing.assert_allclose(grids.volume(), other.volume(), atol=1e-6)


def test_halves_add_up_to_the_volume():
    rng = np.random.default_rng(0)
    spokes = rng.normal(size=(8, 4, 50)).astype(np.float32)
    split, half_a, half_b = (Accumulator(4, 50, 24.5) for _ in range(3))
    for k, spoke in enumerate(split.spokes(spokes)):
        shares = (0.1 * (k % 2), 0.1 * (1 - k % 2))
        split.add(spoke, 0.3 * k, *shares)
        half_a.add(spoke, 0.3 * k, shares[0], 0.0)
        half_b.add(spoke, 0.3 * k, 0.0, shares[1])
    a, b = half_a.volume(), half_b.volume()
    np.testing.assert_allclose(split.volume(), a + b, atol=1e-6)
    np.testing.assert_allclose(split.half_difference(), a - b, atol=1e-6)


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
    volume = Fourier()(values.astype(np.float32), theta, center)
    exact = nufft_fbp(values[:, 0], theta, center)
    assert nrmse(volume[0], exact) < 0.01
