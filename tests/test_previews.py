"""Quick looks are parts of the volume."""

import numpy as np
import pytest

from ebl_stream.numerics import previews
from ebl_stream.numerics.accumulate import Accumulator
from ebl_stream.numerics.fourier_plan import FourierPlan
from ebl_stream.numerics.tiles import CHOICE
from ebl_stream.simulation.phantom import Foam

LOOK = {"window": "cosine", "shift": 0.3, "first_theta": 0.2}


def accumulated(n_columns, n_rows, halves=True, plan=None):
    n_angles = max(150, n_columns)
    theta = 0.2 + np.arange(n_angles) * np.pi / n_angles
    values = Foam(n_columns, n_rows, seed=3).project(theta).astype(np.float32)
    accumulator = Accumulator(
        plan or FourierPlan(n_columns), n_rows, (n_columns - 1) / 2, halves=halves
    )
    shares = np.zeros((n_angles, 2))
    shares[np.arange(n_angles), np.arange(n_angles) % 2] = np.pi / n_angles
    accumulator.add(values, theta, shares)
    return accumulator


@pytest.fixture(scope="module", params=["even", "odd, one grid", "six taps"])
def accumulator(request):
    if request.param == "even":
        return accumulated(96, 37)
    if request.param == "six taps":
        return accumulated(50, 4, plan=FourierPlan(50, 1.125, 6, "edge"))
    return accumulated(75, 34, halves=False)


@pytest.mark.parametrize("look", [{}, LOOK], ids=["plain", "window and shift"])
def test_planes_are_planes_of_the_volume(accumulator, look):
    before = accumulator.grids.copy()
    volume = accumulator.volume(**look)
    atol = 1e-5 * np.abs(volume).max()
    n_rows, _, n = volume.shape
    for row in (0, 1, n_rows - 2, n_rows - 1):
        plane = previews.plane_z(accumulator, row, **look)
        np.testing.assert_allclose(plane, volume[row], atol=atol)
    for index in (n // 4, n // 2, n // 2 + 5):
        plane = previews.plane_x(accumulator, index, **look)
        np.testing.assert_allclose(plane, volume[:, :, index], atol=atol)
        plane = previews.plane_y(accumulator, index, **look)
        np.testing.assert_allclose(plane, volume[:, index], atol=atol)
    np.testing.assert_array_equal(accumulator.grids, before)


def test_planes_that_do_not_exist_are_refused(accumulator):
    with pytest.raises(IndexError, match="row"):
        previews.plane_z(accumulator, accumulator.n_rows)
    with pytest.raises(IndexError, match="y -1"):
        previews.plane_y(accumulator, -1)


def block_means(volume, factor):
    """Means over blocks; columns left over on both sides alike are cut off."""
    n = volume.shape[2] // factor
    cut = (volume.shape[2] - n * factor) // 2
    part = volume[:, cut : cut + n * factor, cut : cut + n * factor]
    rows = np.arange(0, len(part), factor)
    part = part.reshape(len(part), n, factor, n, factor).mean((2, 4))
    return np.array([part[row : row + factor].mean(0) for row in rows])


@pytest.mark.parametrize("backend", ["simd", "plain"])
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize(("n_columns", "n_rows"), [(192, 38), (262, 6)])
def test_binned_volume_follows_block_means(
    monkeypatch, backend, factor, n_columns, n_rows
):
    monkeypatch.setenv(CHOICE, backend)
    accumulator = accumulated(n_columns, n_rows)
    small = previews.binned(accumulator, factor)
    expected = block_means(accumulator.volume(), factor)
    assert small.shape == expected.shape
    n = small.shape[1]
    x = np.arange(n) - (n - 1) / 2
    inside = np.hypot(x[:, None], x) < 0.45 * n
    a, b = small[:, inside].ravel(), expected[:, inside].ravel()
    # Means over voxels have aliases, the binned volume has none: on slices of 32
    # voxels, they differ by more.
    assert np.corrcoef(a, b)[0, 1] > (0.99 if n > 50 else 0.987)
    assert np.vdot(a, b) / np.vdot(b, b) == pytest.approx(1, abs=0.01)
    for other in (small[:, ::-1], small.transpose(0, 2, 1)):
        assert np.corrcoef(other[:, inside].ravel(), b)[0, 1] < 0.9


def test_binned_volume_takes_window_and_shift():
    accumulator = accumulated(128, 4)
    moved = Accumulator(accumulator.plan, 4, accumulator.rotation_center + 0.4)
    theta = 0.2 + np.arange(150) * np.pi / 150
    values = Foam(128, 4, seed=3).project(theta).astype(np.float32)
    moved.add(values, theta, np.full((150, 2), np.pi / 300))
    expected = previews.binned(moved, 2)
    late = previews.binned(accumulator, 2, shift=0.4, first_theta=0.2)
    unmoved = previews.binned(accumulator, 2)

    def error(image):
        return np.linalg.norm(image - expected) / np.linalg.norm(expected)

    assert error(late) < 0.5 * error(unmoved)
    assert previews.binned(accumulator, 4, window="hann").std() < unmoved.std()
    for factor in (1, 3, 8):
        with pytest.raises(ValueError, match="factor"):
            previews.binned(accumulator, factor)


def test_oblique_plane():
    z, y, x = np.meshgrid(*map(np.arange, (20, 30, 40)), indexing="ij")
    volume = (1.0 * z + 2 * y - 3 * x).astype(np.float32)
    u, v = previews.oblique_frame([1, 0.3, 0.4])
    normal = np.array([1, 0.3, 0.4])
    assert abs(u @ normal) + abs(v @ normal) + abs(u @ v) + abs(v[0]) < 1e-12
    assert np.linalg.norm(u) == pytest.approx(1)
    origin = np.array([9.5, 12.0, 15.0])
    plane = previews.oblique(volume, origin, u, v, (8, 9))
    i, j = np.meshgrid(np.arange(8), np.arange(9), indexing="ij")
    place = origin + i[..., None] * u + j[..., None] * v
    # Linear interpolation is exact on a linear volume.
    np.testing.assert_allclose(plane, place @ [1, 2, -3], atol=1e-4)
    assert not previews.oblique(volume, [100, 0, 0], u, v, (3, 3)).any()
    assert previews.oblique_frame([2, 0, 0])[1] @ [0, 0, 1] == 1
    with pytest.raises(ValueError, match="normal"):
        previews.oblique_frame([0, 0, 0])
