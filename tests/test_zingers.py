"""Zingers go, in any order of the angles, and nothing else does: rates, as gates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ebl_stream.numerics.zingers import noise
from ebl_stream.stages.preprocess import RemoveZingers, repair

CLEAN = RemoveZingers()
SHAPES = {
    "1 px": [(0, 0)],
    "2 px": [(0, 0), (0, 1)],
    "diagonal": [(0, 0), (1, 1)],
    "3 px": [(0, 0), (1, 0), (1, 1)],
    "4 px": [(0, 0), (0, 1), (1, 0), (1, 1)],
}


def poisson(transmission: Any, photons: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.poisson(transmission * photons) / photons).astype(np.float32)


def sample(n: int, seed: int) -> np.ndarray:
    """Return a transmission with edges, lines and grains, blurred as optics do."""
    rng = np.random.default_rng(seed)
    image = np.ones((n, n))
    y, x = np.mgrid[:n, :n]
    for _ in range(n * n // 3000):
        (v, u), size = rng.integers(0, n, 2), rng.integers(2, 40)
        down, right = abs(y - v), abs(x - u)
        shapes = (down**2 + right**2 <= size**2, (down < size) & (right < size // 2))
        line = (abs((y - v) - (x - u)) < 2) & (right < 2 * size)
        image[(*shapes, line)[rng.integers(3)]] = rng.uniform(0.05, 1)
    return ndimage.gaussian_filter(image, 0.8)


@pytest.mark.parametrize("photons", [20, 200, 2e3, 2e4, 1e6])
def test_noise_is_no_zinger(photons: float) -> None:
    steps = np.repeat([0.05, 0.2, 0.5, 1.0], 250)[:, None].repeat(1000, axis=1)
    images = np.stack([poisson(steps, photons, seed) for seed in range(3)])
    assert np.mean(CLEAN(images) != images) < 1e-6


@pytest.mark.parametrize("photons", [2e2, 2e3, 2e4, None])
def test_edges_lines_and_grains_are_no_zingers(photons: float | None) -> None:
    images = np.stack([sample(500, seed) for seed in range(4)])
    images = (
        images.astype(np.float32) if photons is None else poisson(images, photons, 1)
    )
    assert np.mean(CLEAN(images) != images) < 1e-5


@pytest.mark.parametrize("photons", [200, 2e3, 2e4])
@pytest.mark.parametrize(
    ("shape", "sigmas"),
    [("1 px", 10), *((shape, n) for shape in SHAPES for n in (15, 30, 300))],
)
def test_zingers_are_found(shape: str, photons: float, sigmas: float) -> None:
    level = np.linspace(0.2, 0.9, 600)[:, None].repeat(600, axis=1)
    clean = poisson(level, photons, 2)
    rng = np.random.default_rng(3)
    lit, hit = clean.copy(), np.zeros(clean.shape, bool)
    sigma = np.sqrt(level / photons)
    for v, u in rng.permutation(3600)[:800, None] // [60, 1] % 60 * 10 + 4:
        for i, j in SHAPES[shape]:
            hit[v + i, u + j] = True
            lit[v + i, u + j] += max(sigmas * sigma[v, u], 0.03)
    found = CLEAN(lit[None])[0]
    assert np.mean(found[hit] != lit[hit]) > 0.99
    assert np.mean(found[~hit] != lit[~hit]) < 1e-5
    # What stands in its place is as good as a measurement.
    assert np.median((abs(found - level) / sigma)[hit]) < 1


def read(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        group: Any = file["exchange"]
        dark = group["data_dark"][:].mean(0)
        beam = group["data_white"][:].mean(0) - dark
        values = ((group["data"][:] - dark) / beam).astype(np.float32)
    repair(values)
    return values


def seen_again(values: np.ndarray, cleaned: np.ndarray) -> np.ndarray:
    """Return what was replaced though the next or previous projection shows it too."""
    replaced, middle = values != cleaned, (values + cleaned) / 2
    again = (np.roll(values, 1, 0) > middle) | (np.roll(values, -1, 0) > middle)
    return replaced[1:-1] & again[1:-1]


@pytest.mark.parametrize(
    "name", ["aps_tooth", "dls_k11_stream", "ssrl_txm_tomo77", "helsinki_pepper_normal"]
)
def test_measured_structure_is_no_zinger(
    measured_scan: Callable[[str], Path], name: str
) -> None:
    values = read(measured_scan(f"{name}.h5"))
    assert seen_again(values, CLEAN(values)).mean() < 1e-5


@pytest.mark.parametrize("amplitude", [1.0, 3.0])
@pytest.mark.parametrize(
    "name", ["aps_tooth", "ssrl_txm_tomo77", "helsinki_pepper_normal"]
)
def test_zingers_are_found_in_measured_projections(
    measured_scan: Callable[[str], Path], name: str, amplitude: float
) -> None:
    values = CLEAN(read(measured_scan(f"{name}.h5")))
    again = CLEAN(values)
    rng = np.random.default_rng(4)
    hit = rng.random(values.shape) < min(1e-3, 1000 / values.size)
    lit = (values + amplitude * hit).astype(np.float32)
    found = CLEAN(lit)
    assert np.mean(found[hit] != lit[hit]) > 0.99
    # Nothing else changes than without them, but for the neighbors of some.
    near = ndimage.binary_dilation(hit, np.ones((1, 5, 5)))
    assert np.mean(found[~near] != again[~near]) < 1e-5


def test_the_tooths_own_zingers_are_found(
    measured_scan: Callable[[str], Path],
) -> None:
    """Three pixels stand out of their projection, and of the ones before and after."""
    values = read(measured_scan("aps_tooth.h5"))
    found = np.argwhere(CLEAN(values) != values)
    assert [152, 0, 289] in found.tolist()
    assert len(found) < 6


def test_an_edge_a_line_and_a_dark_grain_stay() -> None:
    image = np.full((1, 30, 30), 0.3, np.float32)
    image[0, :, 10:] = 0.9
    image[0, :, 3] = 0.8
    image[0, 15] = 1.0
    image[0, 5, 20] = 0.1
    image[0, 25] = 1.2
    np.testing.assert_array_equal(CLEAN(image), image)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (2, 30), (3, 3)])
def test_small_images_are_taken(shape: tuple[int, int]) -> None:
    image = np.full((1, *shape), 0.5, np.float32)
    np.testing.assert_array_equal(CLEAN(image), image)
    if image.size > 4:
        image[0, shape[0] // 2, shape[1] // 2] = 3
        assert (CLEAN(image) == 0.5).all()


@given(st.integers(0, 10**6), st.sampled_from([0.25, 0.5, 2.0, 4.0]))
@settings(max_examples=20, deadline=None)
def test_mirrors_change_nothing(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(0.5, 0.01, (12, 64)).astype(np.float32)
    image[rng.random(image.shape) < 0.02] += np.float32(0.1 * scale)
    variance = np.float32((6 * noise(image)) ** 2)
    assert variance > 0
    once = CLEAN(image[None])[0]
    for flipped in (np.s_[::-1], np.s_[:, ::-1]):
        mirrored = CLEAN(np.ascontiguousarray(image[flipped])[None])[0]
        # The noise is sampled elsewhere, so the limit may differ a little.
        assert np.mean(mirrored[flipped] != once) < 0.01
