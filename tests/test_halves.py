"""The gate on the split halves: A - B must tell the volume's true error."""

from __future__ import annotations

import numpy as np
import pytest
from reference import circle

from ebl_stream.numerics.quality import frc, resolution_px, split_threshold
from ebl_stream.numerics.weights import (
    HalfSplit,
    alternate,
    angular_weights,
    rebalanced,
)
from ebl_stream.simulation.phantom import Foam, angles_of
from ebl_stream.stages.reconstruct import Fourier

N, N_ANGLES = 128, 200
ORDERS = {
    name: angles_of(name, N_ANGLES) for name in ("sequential", "golden", "interlaced")
}
PHOTONS = [20_000, 2_000]


@pytest.fixture(scope="module")
def foam():
    return Foam(N, 8, seed=1)


def measured(foam, theta, photons):
    """Line integrals with Poisson noise."""
    exact = foam.project(theta)
    counts = np.random.default_rng(0).poisson(photons * np.exp(-exact))
    return -np.log(np.maximum(counts, 0.5) / photons).astype(np.float32)


def reconstruct(values, theta, halves):
    """A + B and A - B, by the grids."""
    shares = np.zeros((len(theta), 2))
    shares[np.arange(len(theta)), halves] = angular_weights(theta)
    grids = Fourier().accumulator(values.shape[1], N, (N - 1) / 2)
    grids.add(values, theta, shares)
    return grids.volume(), grids.half_difference()


def rms(stack):
    return np.sqrt(np.mean(stack[:, circle(N)] ** 2))


def online(theta):
    split = HalfSplit()
    return np.array([split.assign(angle) for angle in theta], np.int8)


@pytest.mark.parametrize("photons", PHOTONS)
@pytest.mark.parametrize("order", ORDERS)
def test_half_difference_is_the_true_error_of_a_complete_scan(foam, order, photons):
    theta = ORDERS[order]
    values = measured(foam, theta, photons)
    halves = rebalanced(theta, online(theta))
    volume, difference = reconstruct(values, theta, halves)
    assert 0.9 <= rms(difference) / rms(volume - foam.volume()) <= 1.15


@pytest.mark.parametrize("order", ["golden", "interlaced"])
def test_halves_as_they_come_beat_chance_and_the_nearest_alone(foam, order):
    theta = ORDERS[order]
    values = measured(foam, theta, 20_000)
    rng = np.random.default_rng(1)
    rules = [
        online(theta),
        opposite_of_the_nearest(theta),
        rng.integers(0, 2, N_ANGLES),
    ]
    found = [rms(reconstruct(values, theta, halves)[1]) for halves in rules]
    assert found[0] < 0.97 * found[1]
    assert found[0] < 0.8 * found[2]


def opposite_of_the_nearest(theta):
    halves = np.zeros(len(theta), int)
    for k in range(1, len(theta)):
        apart = np.mod(theta[:k] - theta[k], np.pi)
        halves[k] = 1 - halves[np.argmin(np.minimum(apart, np.pi - apart))]
    return halves


def test_a_split_by_time_fails_that_gate(foam):
    theta = ORDERS["golden"]
    values = measured(foam, theta, 20_000)
    volume, difference = reconstruct(values, theta, np.arange(len(theta)) % 2)
    assert rms(difference) / rms(volume - foam.volume()) > 1.15


@pytest.mark.parametrize("n", [50, 100, 150, 200])
@pytest.mark.parametrize("order", ORDERS)
def test_split_resolution_does_not_promise_more_than_the_truth(foam, order, n):
    theta = ORDERS[order][:n]
    values = measured(foam, theta, 2_000)
    volume, difference = reconstruct(values, theta, online(theta))
    a, b = (volume + difference) / 2, (volume - difference) / 2
    threshold = split_threshold(angular_weights(theta).sum() / np.pi)
    split_px = resolution_px(frc(a, b), threshold)
    true_px = resolution_px(frc(volume, foam.volume()), threshold=0.5)
    assert true_px / split_px <= 1.05


def test_half_a_scan_promises_too_much_at_the_usual_threshold(foam):
    """Both halves lack the same directions: they agree on what neither saw."""
    theta = ORDERS["sequential"][:100]
    values = measured(foam, theta, 2_000)
    volume, difference = reconstruct(values, theta, alternate(theta))
    split_px = resolution_px(frc(volume + difference, volume - difference))
    true_px = resolution_px(frc(volume, foam.volume()), threshold=0.5)
    assert true_px / split_px > 1.05
