"""Quality figures tell the truth about signals whose truth is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import ndimage

from ebl_stream.numerics.quality import (
    frc,
    quality_row,
    resolution_px,
    rings,
    soft_circle,
    split_noise,
    split_threshold,
)

N = 128


def white(seed: int, shape: tuple[int, ...] = (6, N, N)) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(values, (0, sigma, sigma))


def test_rings_count_the_frequency() -> None:
    ring = rings((N, N))
    assert ring[0, 0] == 0
    assert ring[0, 10] == ring[10, 0] == ring[0, -10] == 10
    assert ring[0, N // 2] == N // 2
    assert ring[N // 2, N // 2] == N // 2 + 1
    np.testing.assert_array_equal(rings((N, N), half=True), ring[:, : N // 2 + 1])


@pytest.mark.parametrize("n", [31, 32, 150])
def test_a_slab_agrees_with_itself(n: int) -> None:
    slab = white(1, (2, n, n))
    curve = frc(slab, slab)
    assert curve.shape == (n // 2 + 1,)
    np.testing.assert_allclose(curve, 1)
    assert resolution_px(curve) == 2


def test_strangers_do_not_agree() -> None:
    curve = frc(white(1), white(2))
    assert abs(curve[5:]).max() < 1 / 7
    assert resolution_px(curve) > N / 5


def test_the_curve_is_the_ratio_of_signal_to_noise() -> None:
    """FRC = S / (S + N) where signal and noise have known spectra."""
    signal = white(1, (24, N, N))
    curve = frc(signal + white(2, signal.shape), signal + white(3, signal.shape))
    np.testing.assert_allclose(curve[8:], 0.5, atol=0.03)


def test_the_resolution_is_where_the_signal_sinks_into_the_noise() -> None:
    sigma, level = 2.0, 0.05
    signal = blurred(white(1, (24, N, N)), sigma)
    a, b = (signal + level * white(seed, signal.shape) for seed in (2, 3))
    # S = exp(-(2 pi f sigma)^2) = N / 6 where S / (S + N) = 1/7.
    frequency = math.sqrt(-math.log(level**2 / 6)) / (2 * math.pi * sigma)
    assert resolution_px(frc(a, b)) == pytest.approx(1 / frequency, rel=0.05)


def test_more_noise_means_less_resolution() -> None:
    signal = blurred(white(1), 1.5)
    found = [
        resolution_px(frc(signal + s * white(2), signal + s * white(3)))
        for s in (0.02, 0.1, 0.3)
    ]
    assert found == sorted(found)
    assert found[0] < 0.7 * found[-1]


def test_the_crossing_is_interpolated() -> None:
    curve = np.linspace(1, 0, 65)
    assert resolution_px(curve, 0.5) == pytest.approx(4, rel=1e-3)
    assert resolution_px(curve, 0.5 - 1 / 256) == pytest.approx(128 / 32.25, rel=1e-3)


def test_nothing_has_no_resolution() -> None:
    empty = np.zeros((2, 32, 32), np.float32)
    curve = frc(empty, empty)
    assert np.isnan(curve).all()
    assert math.isnan(resolution_px(curve))


def test_a_missing_wedge_asks_for_more_agreement() -> None:
    assert split_threshold(1.0) == pytest.approx(1 / 7)
    assert split_threshold(1.01) == pytest.approx(1 / 7)
    assert split_threshold(0.5) == pytest.approx(1 / 3)
    assert split_threshold(0.2) == 1


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8, 1.0])
def test_that_threshold_is_where_the_truth_is_half_seen(share: float) -> None:
    """Both halves lack a wedge of directions; the truth is known."""
    truth = blurred(white(1, (24, N, N)), 1.2)
    y, x = np.fft.fftfreq(N)[:, None], np.fft.fftfreq(N)[None, :]
    seen = np.mod(np.arctan2(y, x), np.pi) < share * np.pi

    def half(seed: int) -> np.ndarray:
        noisy = truth + 0.1 * white(seed, truth.shape)
        return np.fft.ifft2(np.fft.fft2(noisy) * seen).real.astype(np.float32)

    a, b = half(2), half(3)
    said = resolution_px(frc(a, b), split_threshold(share))
    true = resolution_px(frc(a + b, truth), 0.5)
    assert true / said == pytest.approx(1, abs=0.06)
    if share < 0.7:
        assert true / resolution_px(frc(a, b)) > 1.06  # 1/7 promises too much


def test_corners_do_not_count() -> None:
    signal = blurred(white(1), 1.5)
    corners = 100 * white(4) * (soft_circle((N, N)) == 0)
    np.testing.assert_allclose(frc(signal + corners, signal), 1, atol=1e-6)
    assert split_noise(corners) == 0


def test_split_noise_is_the_noise_of_the_sum() -> None:
    a, b = 0.3 * white(2), 0.3 * white(3)
    assert split_noise(a - b) == pytest.approx(0.3 * math.sqrt(2), rel=0.01)


def test_a_row_is_plain_numbers() -> None:
    a, b = (blurred(white(1), 2) + 0.1 * white(seed) for seed in (2, 3))
    stamp = {"version": 4, "n_used": 70, "coverage": 0.5}
    row = quality_row(2, 32, 38, a + b, a - b, **stamp)
    assert {"slab": 2, "z0": 32, "z1": 38} | stamp == {
        key: row[key] for key in list(row)[:6]
    }
    assert all(type(value) in (int, float) for value in row.values())
    assert row == json.loads(json.dumps(row))
    assert row["resolution_px"] == pytest.approx(resolution_px(frc(a, b)), rel=1e-3)
    wedge = quality_row(2, 32, 38, a + b, a - b, **stamp, angular_coverage=0.5)
    assert wedge["resolution_px"] > row["resolution_px"]
    assert 0 < row["frc_mean"] < 1
    assert row["split_noise"] == pytest.approx(0.1 * math.sqrt(2), rel=0.02)


def test_an_empty_slab_has_a_row_without_a_resolution() -> None:
    empty = np.zeros((2, 32, 32), np.float32)
    row = quality_row(0, 0, 2, empty, empty, version=1, n_used=0, coverage=0.0)
    assert row["resolution_px"] is None
    assert row["frc_mean"] is None
    assert row["split_noise"] == row["std"] == 0
