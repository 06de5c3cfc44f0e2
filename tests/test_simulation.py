"""Phantoms, orders of angles and the detector model, against analytic truths."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.ndimage import map_coordinates

from ebl_stream.errors import InputError
from ebl_stream.simulation.detector import DetectorModel, raw_counts
from ebl_stream.simulation.phantom import (
    Asymmetric,
    Foam,
    Phantom,
    angles_of,
    golden_angles,
    interlaced_angles,
    sequential_angles,
)

# --------------------------------------------------------------- phantoms


def chord(s: float, radius: float) -> float:
    return 2 * np.sqrt(max(radius**2 - s**2, 0.0))


@pytest.mark.parametrize("theta", [0.0, 0.7, np.pi / 2, 3.0])
def test_projection_of_a_disc_is_its_chord_length(theta: float) -> None:
    x, y, radius, density, center = 5.3, -3.1, 11.7, 0.02, 20.25
    disc = Phantom(48, 1, [[x, y, 0, radius, radius, np.inf, 0, density]])
    (line,) = disc.project(theta, rotation_center=center)[0]
    s0 = x * np.cos(theta) + y * np.sin(theta)
    edges = [s0 - radius, s0 + radius]
    for column in range(48):
        s = column - center
        inside = [edge for edge in edges if s - 0.5 < edge < s + 0.5]
        exact, _ = quad(
            lambda t: chord(t - s0, radius), s - 0.5, s + 0.5, points=inside or None
        )
        assert line[column] == pytest.approx(density * exact, abs=1e-6)


def test_projection_of_an_ellipse_is_its_chord_length_along_its_axes() -> None:
    a, b, phi = 12.0, 5.0, 0.4
    ellipse = Phantom(41, 1, [[0, 0, 0, a, b, np.inf, phi, 1.0]])
    across, along = ellipse.project([phi, phi + np.pi / 2])[:, 0, 20]
    # Averaged over the middle pixel; the chord falls by 1 - t^2/(2 w^2) from there.
    assert across == pytest.approx(2 * b * (1 - 1 / 24 / a**2), rel=1e-5)
    assert along == pytest.approx(2 * a * (1 - 1 / 24 / b**2), rel=1e-5)


def test_a_sphere_is_smooth_and_symmetric_along_z() -> None:
    sphere = Phantom(32, 21, [[0, 0, 10, 8, 8, 8, 0, 1.0]])
    mass = sphere.project(0.3).sum(axis=2)[0]
    z = np.arange(21) - 10
    assert mass == pytest.approx(np.pi * np.clip(64 - z**2, 0, None), abs=1e-3)


@pytest.mark.parametrize("phantom", [Foam(96, 12, seed=3), Asymmetric(96, 12)])
def test_mass_is_the_same_at_every_angle_and_in_the_volume(phantom: Phantom) -> None:
    mass = phantom.project(golden_angles(13)).sum(axis=2, dtype=np.float64)
    truth = phantom.volume().sum(axis=(1, 2), dtype=np.float64)
    assert mass == pytest.approx(np.broadcast_to(truth, mass.shape), rel=1e-4)


def ray_sums(volume: np.ndarray, theta: float) -> np.ndarray:
    """Integrate numerically along x cos + y sin = s, as the geometry says."""
    size = volume.shape[2]
    line = np.arange(size) - (size - 1) / 2
    s, t = np.meshgrid(line, line)
    x, y = s * np.cos(theta) - t * np.sin(theta), s * np.sin(theta) + t * np.cos(theta)
    at = [y + (size - 1) / 2, x + (size - 1) / 2]
    slices = [map_coordinates(image, at, order=1).sum(axis=0) for image in volume]
    return np.stack(slices)


MIRRORS = {
    "x": np.s_[:, :, ::-1],
    "y": np.s_[:, ::-1],
    "z": np.s_[::-1],
    "half turn": np.s_[:, ::-1, ::-1],
}


def test_projection_and_volume_agree_in_orientation_sign_and_scale() -> None:
    phantom = Asymmetric(96, 24)
    theta = np.array([0.0, 0.5, 1.3, 2.2, 2.9])
    exact = phantom.project(theta).ravel()
    volume = phantom.volume()

    def brute(volume: np.ndarray) -> np.ndarray:
        return np.stack([ray_sums(volume, angle) for angle in theta]).ravel()

    summed = brute(volume)
    assert np.corrcoef(exact, summed)[0, 1] > 0.999
    assert exact @ summed / (summed @ summed) == pytest.approx(1, abs=0.01)
    for mirror in MIRRORS.values():
        assert np.corrcoef(exact, brute(volume[mirror]))[0, 1] < 0.99
    turned = brute(volume.transpose(0, 2, 1))
    assert np.corrcoef(exact, turned)[0, 1] < 0.99


def test_the_rotation_center_shifts_the_columns() -> None:
    phantom = Asymmetric()
    theta = golden_angles(5)
    assert np.array_equal(phantom.project(theta), phantom.project(theta, 31.5))
    shifted = phantom.project(theta, 33.5)
    np.testing.assert_allclose(
        shifted[..., 2:], phantom.project(theta)[..., :-2], atol=1e-6
    )


def test_rows_are_a_half_open_range() -> None:
    foam = Foam(48, 16)
    theta = golden_angles(3)
    assert np.array_equal(foam.project(theta)[:, 4:9], foam.project(theta, rows=(4, 9)))
    assert np.array_equal(foam.volume()[4:9], foam.volume(rows=(4, 9)))


def test_the_volume_is_averaged_over_pixels() -> None:
    disc = Phantom(32, 1, [[0.3, -0.2, 0, 7.4, 7.4, np.inf, 0, 1.0]])
    (truth,) = disc.volume()
    fine = (np.arange(32 * 128) + 0.5) / 128 - 16
    inside = (fine[None] - 0.3) ** 2 + (fine[:, None] + 0.2) ** 2 < 7.4**2
    averaged = inside.reshape(32, 128, 32, 128).mean(axis=(1, 3))
    np.testing.assert_allclose(truth, averaged, atol=0.003)


def test_foam_has_three_phases_and_its_absorption() -> None:
    foam = Foam()
    volume = foam.volume(rows=(60, 68))
    assert volume.min() >= -1e-7
    assert volume.max() == pytest.approx(2 * foam.matrix, rel=1e-5)
    share = np.bincount(foam.labels(rows=(60, 68)).ravel()) / volume.size
    assert share.size == 3
    assert share.min() > 0.01
    assert 1.2 < foam.project(golden_angles(8)).max() < 2.2


def test_foam_spheres_neither_touch_nor_leave_the_cylinder() -> None:
    foam = Foam(128, 64, seed=5)
    cylinder, spheres = foam.bodies[0], foam.bodies[1:]
    assert len(spheres) > 20
    apart = np.linalg.norm(spheres[:, None, :3] - spheres[None, :, :3], axis=2)
    apart -= spheres[:, None, 3] + spheres[None, :, 3]
    assert apart[~np.eye(len(spheres), dtype=bool)].min() > 1
    assert (np.hypot(*spheres[:, :2].T) + spheres[:, 3]).max() < cylinder[3]


def test_foam_is_the_same_for_the_same_seed_only() -> None:
    assert np.array_equal(Foam(64, 8, seed=1).bodies, Foam(64, 8, seed=1).bodies)
    assert not np.array_equal(Foam(64, 8, seed=1).volume(), Foam(64, 8).volume())


# ----------------------------------------------------------------- angles


def test_golden_angles_fill_the_half_circle_at_every_prefix() -> None:
    for n in (5, 40, 233):
        angles = np.sort(golden_angles(n))
        assert angles[0] >= 0
        assert angles[-1] < np.pi
        gaps = np.diff([*angles, angles[0] + np.pi])
        # Three-gap theorem: no gap is longer than phi^2 times the mean.
        assert gaps.max() < 2.62 * np.pi / n


@pytest.mark.parametrize(("n", "k"), [(16, 4), (400, 8), (10, 3)])
def test_interlaced_angles_visit_the_even_grid_once(n: int, k: int) -> None:
    angles = interlaced_angles(n, k)
    np.testing.assert_allclose(np.sort(angles), np.arange(n) * np.pi / n)
    np.testing.assert_allclose(np.diff(angles[: n // k]), k * np.pi / n)


def test_second_interlaced_pass_halves_the_gaps() -> None:
    two_passes = np.sort(interlaced_angles(16, 4)[:8])
    np.testing.assert_allclose(two_passes, np.arange(8) * np.pi / 8)


def test_sequential_angles_leave_the_end_out() -> None:
    assert sequential_angles(4).tolist() == pytest.approx(
        [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    )
    assert sequential_angles(3, 2 * np.pi)[-1] == pytest.approx(4 * np.pi / 3)


def test_an_unknown_order_is_refused_with_a_hint() -> None:
    with pytest.raises(InputError, match="did you mean 'golden'"):
        angles_of("goldn", 4)


# --------------------------------------------------------------- detector


def test_counts_are_poisson_about_the_transmitted_beam() -> None:
    rng = np.random.default_rng(7)
    path = np.full((400, 500), 0.5)
    counts = raw_counts(path, i0=1000.0, flat_gain=0.8, dark=50.0, rng=rng)
    mean = 800 * np.exp(-0.5)
    signal = counts.astype(np.float64) - 50
    n = path.size
    assert counts.dtype == np.uint16
    assert signal.mean() == pytest.approx(mean, abs=5 * np.sqrt(mean / n))
    assert signal.var() == pytest.approx(mean, rel=5 * np.sqrt(2 / n))


def test_counts_are_clipped_to_the_sensor() -> None:
    rng = np.random.default_rng(0)
    bright = raw_counts(np.zeros((2, 3)), i0=1e6, flat_gain=1, dark=0, rng=rng)
    assert (bright == 65_535).all()


def test_frame_k_is_the_same_whenever_it_is_taken() -> None:
    model = DetectorModel(8, 32, seed=4)
    path = np.random.default_rng(0).random((5, 8, 32))
    together = model.projections(path)
    assert np.array_equal(model.projections(path[3:], first=3), together[3:])
    assert np.array_equal(model.flats(1, first=2)[0], model.flats(4)[2])
    assert np.array_equal(model.darks(1, first=2)[0], model.darks(4)[2])
    assert not np.array_equal(DetectorModel(8, 32, seed=5).projections(path), together)
    assert not np.array_equal(*model.flats(2))


def test_gain_that_drifted_after_the_flats_leaves_rings() -> None:
    model = DetectorModel(64, 128, i0=40_000, zingers=0)
    path = np.zeros((40, 64, 128))
    dark = model.darks(20).mean(axis=0)
    flat = model.flats(40).mean(axis=0) - dark
    ratio = (model.projections(path).mean(axis=0) - dark) / flat
    rings = ratio.mean(axis=0)
    assert np.corrcoef(rings, model.ring_gain[0])[0, 1] > 0.98
    assert rings.std() == pytest.approx(model.ring_gain[0].std(), rel=0.1)


def test_zingers_hit_as_many_pixels_as_asked() -> None:
    model = DetectorModel(64, 64, i0=500, zingers=1e-3)
    hits = (model.flats(50) > 9000).sum()
    expected = 1e-3 * 50 * 64 * 64
    assert abs(hits - expected) < 5 * np.sqrt(expected)
    assert (DetectorModel(64, 64, i0=500, zingers=0).flats(50) < 9000).all()
