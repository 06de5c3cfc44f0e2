"""The filter that halves ask for: the least squares it claims to be."""

from __future__ import annotations

import numpy as np
import pytest
from noisy import error, noisy_foam

from ebl_stream.numerics import noise2filter
from ebl_stream.numerics.noise2filter import NormalEquations, filter_slices
from ebl_stream.numerics.quality import rings, soft_circle
from ebl_stream.stages.denoise import Noise2Filter


def asked(*slabs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    equations = NormalEquations(slabs[0][0].shape[-1])
    for volume, difference in slabs:
        equations.add(volume, difference)
    return equations.solve()


@pytest.mark.parametrize("n", [8, 15, 24])
def test_it_is_the_least_squares_over_its_basis(n: int) -> None:
    """By brute force: every bin of taps makes images, the other half is the target."""
    rng = np.random.default_rng(n)
    blob = np.exp(-np.square(np.linspace(-2, 2, n)))
    truth = 3 * np.outer(blob, blob)
    halves = truth + rng.normal(size=(2, 3, n, n))
    volume, difference = halves.mean(0), (halves[0] - halves[1]) / 2
    ring = rings((n, n), half=True)
    basis = noise2filter._responses(n)
    seen = halves * soft_circle((n, n))

    def made(response: np.ndarray) -> np.ndarray:
        return np.fft.irfft2(np.fft.rfft2(seen) * response[ring], (n, n))

    columns = np.stack([made(response).ravel() for response in basis], axis=1)
    weights = np.linalg.lstsq(columns, seen[::-1].ravel(), rcond=None)[0]
    found = asked((volume.astype(np.float32), difference.astype(np.float32)))
    np.testing.assert_allclose(found, weights @ basis, atol=1e-4)


def test_equations_of_slices_and_slabs_add_up() -> None:
    _, volume, difference = noisy_foam(48, 8)
    parts = [(volume[a:b], difference[a:b]) for a, b in ((0, 1), (1, 4), (4, 8))]
    together = asked((volume, difference))
    np.testing.assert_allclose(asked(*parts), together, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(asked(*parts[::-1]), together, rtol=1e-5, atol=1e-6)
    assert abs(asked(parts[0]) - together).max() > 1e-3


def test_it_lowers_the_true_error() -> None:
    truth, volume, difference = noisy_foam(64, 4)
    made = Noise2Filter()(volume, difference)
    assert error(made, truth) < 0.6 * error(volume, truth)


def test_clean_slices_pass() -> None:
    truth, *_ = noisy_foam(64, 2)
    response = asked((truth, np.zeros_like(truth)))
    np.testing.assert_allclose(response, 1, atol=1e-3)
    made = Noise2Filter()(truth, np.zeros_like(truth))
    assert error(made, truth) < 1e-3 * truth.std()


def test_what_is_noise_alone_does_not_pass() -> None:
    rng = np.random.default_rng(0)
    halves = rng.normal(size=(2, 8, 64, 64)).astype(np.float32)
    response = asked((halves.mean(0), (halves[0] - halves[1]) / 2))
    assert abs(response[3:]).max() < 0.1  # of below, there are but few values


@pytest.mark.parametrize("n_x", [8, 63, 100])
def test_any_size_is_filtered_by_any_response(n_x: int) -> None:
    """A wave is multiplied by what the response says at its frequency."""
    response = np.linspace(1, 0, 34).astype(np.float32)  # of 64 columns
    wave = np.cos(2 * np.pi * 2 * np.arange(n_x) / n_x).astype(np.float32)
    slab = np.broadcast_to(wave, (1, 40, n_x)).copy()
    expected = response[round(2 / n_x * 64)]
    np.testing.assert_allclose(
        filter_slices(slab, response), expected * slab, atol=1e-6
    )


def test_a_slice_that_is_not_finite_costs_no_other() -> None:
    _, volume, difference = noisy_foam(64, 4)
    damaged = volume.copy()
    damaged[1, 20, 20] = np.nan
    made = Noise2Filter()(damaged, difference)
    assert np.isfinite(made).all()
    rest = [0, 2, 3]
    np.testing.assert_array_equal(
        made[rest], Noise2Filter()(volume[rest], difference[rest])
    )


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_where_nothing_is_known_everything_passes(value: float) -> None:
    slab = np.full((2, 16, 16), value, np.float32)
    np.testing.assert_array_equal(asked((slab, slab)), 1)
