"""The gate on the split halves: A - B must tell the volume's true error."""

from __future__ import annotations

import numpy as np
import pytest
from reference import circle

from ebl_stream.numerics.accumulate import Accumulator
from ebl_stream.numerics.quality import frc, resolution_px
from ebl_stream.numerics.weights import HalfSplit, alternate, angular_weights
from ebl_stream.simulation.phantom import Foam

N = 128
GOLDEN = np.pi * (np.sqrt(5) - 1) / 2
ORDERS = {
    "sequential": np.arange(200) * np.pi / 200,
    "golden": np.arange(200) * GOLDEN,
    "interlaced": np.concatenate(
        [np.arange(25) * np.pi / 25 + k * np.pi / 200 for k in (0, 4, 2, 6, 1, 5, 3, 7)]
    ),
}


@pytest.fixture(scope="module")
def foam():
    return Foam(N, 8, seed=1)


def measured(foam, theta, photons):
    """Line integrals with Poisson noise."""
    exact = foam.project(theta)
    counts = np.random.default_rng(0).poisson(photons * np.exp(-exact))
    return -np.log(np.maximum(counts, 0.5) / photons).astype(np.float32)


def accumulate(values, theta, halves):
    grids = Accumulator(values.shape[1], N, (N - 1) / 2)
    for k, weight in enumerate(angular_weights(theta)):
        shares = (weight, 0.0) if halves[k] == 0 else (0.0, weight)
        grids.add(grids.spokes(values[k : k + 1])[0], theta[k], *shares)
    return grids.volume(), grids.half_difference()


def rms(stack):
    return np.sqrt(np.mean(stack[:, circle(N)] ** 2))


@pytest.mark.parametrize("photons", [20_000, 2_000])
@pytest.mark.parametrize("order", ORDERS)
def test_half_difference_is_the_true_error_of_a_complete_scan(foam, order, photons):
    theta = ORDERS[order]
    values = measured(foam, theta, photons)
    volume, difference = accumulate(values, theta, alternate(theta))
    assert 0.9 <= rms(difference) / rms(volume - foam.volume()) <= 1.15


def test_a_split_by_time_fails_that_gate(foam):
    theta = ORDERS["golden"]
    values = measured(foam, theta, 20_000)
    volume, difference = accumulate(values, theta, np.arange(len(theta)) % 2)
    assert rms(difference) / rms(volume - foam.volume()) > 1.15


@pytest.mark.parametrize("n", [50, 100, 150, 200])
@pytest.mark.parametrize("order", ["golden", "interlaced"])
def test_split_resolution_does_not_promise_more_than_the_truth(foam, order, n):
    theta = ORDERS[order][:n]
    values = measured(foam, theta, 2_000)
    split = HalfSplit()
    halves = [split.assign(angle) for angle in theta]
    volume, difference = accumulate(values, theta, halves)
    a, b = (volume + difference) / 2, (volume - difference) / 2
    split_px = resolution_px(frc(a, b))
    true_px = resolution_px(frc(volume, foam.volume()), threshold=0.5)
    assert true_px / split_px <= 1.05
