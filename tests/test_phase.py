"""Phase retrieval gives back the thickness of a sample of one material."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from algotom.prep import filtering

from ebl_stream.stages.preprocess import MinusLog, RetrievePhase

KEV, DISTANCE_MM, PIXEL_UM, DELTA_BETA = 20.0, 20.0, 1.5, 400.0
STAGE = RetrievePhase(KEV, DISTANCE_MM, PIXEL_UM, DELTA_BETA)
N, RADIUS = 256, 70


def attenuation() -> np.ndarray:
    """Return mu * thickness of two grains, as a camera's pixels see them."""
    fine = (np.arange(2 * N) - N + 0.5) / 2
    y, x = fine[:, None], fine
    one = np.sqrt(np.maximum(RADIUS**2 - x**2 - y**2, 0))
    two = np.sqrt(np.maximum(15**2 - (x - 95) ** 2 - (y + 80) ** 2, 0))
    return 0.0018 * (one + two)


def pixels(fine: np.ndarray) -> np.ndarray:
    return fine.reshape(N, 2, N, 2).mean((1, 3))


def propagated(mu_t: np.ndarray) -> np.ndarray:
    """Return the intensity behind the sample (Fresnel propagation of the wave)."""
    wavelength_um = 1.239841984e-3 / KEV
    wave = np.exp(-0.5 * mu_t * (1 + 1j * DELTA_BETA))
    u = np.fft.fftfreq(2 * N, PIXEL_UM / 2)
    square = u[:, None] ** 2 + u**2
    free = np.exp(-1j * np.pi * wavelength_um * DISTANCE_MM * 1e3 * square)
    return abs(np.fft.ifft2(np.fft.fft2(wave) * free)) ** 2


def retrieved(transmission: Any, stage: RetrievePhase = STAGE) -> np.ndarray:
    return MinusLog()(stage(transmission.astype(np.float32)[None]))[0]


def test_the_thickness_of_one_material_comes_back() -> None:
    fine = attenuation()
    truth, seen = pixels(fine), pixels(propagated(fine))
    found = retrieved(seen)
    peak = truth.max()
    inside = truth > 0.2 * peak
    plain = -np.log(seen)
    assert np.sqrt(np.mean((plain - truth)[inside] ** 2)) > 0.05 * peak
    assert np.sqrt(np.mean((found - truth)[inside] ** 2)) < 0.01 * peak
    assert abs(found - truth).max() < 0.06 * peak
    assert (found * inside).sum() == pytest.approx((truth * inside).sum(), rel=0.01)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_another_distance_than_the_true_one_is_worse(factor: float) -> None:
    fine = attenuation()
    truth, seen = pixels(fine), pixels(propagated(fine))
    wrong = RetrievePhase(KEV, DISTANCE_MM * factor, PIXEL_UM, DELTA_BETA)
    good = np.sqrt(np.mean((retrieved(seen) - truth) ** 2))
    assert np.sqrt(np.mean((retrieved(seen, wrong) - truth) ** 2)) > 2 * good


def test_it_is_the_filter_that_algotom_has() -> None:
    rng = np.random.default_rng(0)
    image = np.ones((120, 160), np.float32)
    image[40:80, 50:110] = rng.uniform(0.3, 1, (40, 60))
    stage = RetrievePhase(25, 3, 1.0, 50)
    expected = filtering.fresnel_filter(
        image, stage.strength, dim=2, pad=0, apply_log=False
    )
    np.testing.assert_allclose(stage(image[None])[0], expected, atol=2e-5)


def test_the_filter_is_that_of_the_paper() -> None:
    """1 + delta distance k^2 / mu, mu = 4 pi beta / wavelength: as a wave shows."""
    wavelength, beta = 1.239841984e-9 / KEV, 1e-10
    k = 2 * np.pi / (16 * PIXEL_UM * 1e-6)
    mu, delta = 4 * np.pi * beta / wavelength, DELTA_BETA * beta
    damped = 1 / (1 + delta * DISTANCE_MM * 1e-3 * k**2 / mu)
    wave = 1 + 0.1 * np.cos(2 * np.pi * np.arange(960) / 16)
    found = STAGE(np.tile(wave, (40, 1)).astype(np.float32)[None])[0, 20, 400:560]
    np.testing.assert_allclose(found - 1, damped * (wave[400:560] - 1), atol=1e-5)


def test_an_image_goes_on_beyond_its_edges() -> None:
    step = np.ones((1, 50, 60), np.float32)
    step[..., 30:] = 0.4  # left and right differ: they must not meet
    found = STAGE(step)
    np.testing.assert_allclose(found[..., 0], 1, atol=0.01)
    np.testing.assert_allclose(found[..., -1], 0.4, atol=0.01)
    flat = np.full((2, 31, 47), 0.7, np.float32)
    np.testing.assert_allclose(STAGE(flat), flat, rtol=1e-5)
