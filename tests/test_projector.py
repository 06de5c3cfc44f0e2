"""The projector against closed forms, and against its adjoint."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebl_stream.numerics.projector import Sirt, backproject, project
from ebl_stream.numerics.quality import inside_circle
from ebl_stream.simulation.phantom import Asymmetric, Foam, golden_angles

N = 64
THETA = golden_angles(40)


def white(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 60),
    st.floats(-20, 60),
    st.lists(st.floats(-20, 20), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_backprojection_is_the_exact_adjoint(n, n_columns, center, theta, seed):
    """<A x, y> = <x, A^T y>, wherever the axis is and however wide the detector."""
    angles = np.array(theta)
    x, y = white(seed, 2, n, n), white(seed + 1, len(angles), 2, n_columns)
    made = project(x, angles, center, n_columns)
    back = backproject(y, angles, center, n)
    assert made.shape == y.shape
    assert back.shape == x.shape
    scale = np.linalg.norm(made) * np.linalg.norm(y)
    ahead, behind = np.vdot(made.astype(float), y), np.vdot(x.astype(float), back)
    assert abs(ahead - behind) <= 1e-5 * scale + 1e-12


@pytest.mark.parametrize("center", [(N - 1) / 2, 29.2, 34.75])
def test_projections_are_those_of_the_phantom(center):
    """Sign, orientation and scale: no mirror image comes near."""
    phantom = Asymmetric(N, 6)
    volume = phantom.volume()
    exact = phantom.project(THETA, rotation_center=center)
    assert relative(project(volume, THETA, center), exact) < 0.008
    for wrong in (volume[:, ::-1], volume[:, :, ::-1], volume.transpose(0, 2, 1)):
        assert relative(project(wrong, THETA, center), exact) > 0.15
    assert relative(project(volume, THETA, center + 1), exact) > 0.04


def test_a_narrow_detector_sees_a_part_of_the_slices():
    """As an offset detector does: the axis near its edge, columns left out."""
    phantom = Asymmetric(N, 2)
    whole = project(phantom.volume(), THETA, 31.5)
    part = project(phantom.volume(), THETA, 31.5 - 25, 30)
    np.testing.assert_allclose(part, whole[:, :, 25:55], atol=1e-4)


@pytest.mark.parametrize("n", [1, 8, 9])
def test_one_angle_of_one_row_is_a_sum(n):
    """Along a column of pixels nothing is interpolated; corners are not seen."""
    image = white(3, 1, n, n)
    inside = np.where(inside_circle(image.shape), image, 0)
    middle = (n - 1) / 2
    for theta, sums in ((0.0, inside.sum(1)), (np.pi / 2, inside.sum(2))):
        made = project(image, np.array([theta]), middle)
        np.testing.assert_allclose(made[0], sums, atol=1e-5)


def test_what_is_not_square_is_refused():
    with pytest.raises(ValueError, match=r"slices must be \[z, n, n\]"):
        project(np.zeros((1, 8, 9), np.float32), THETA, 4.0)


def test_every_step_comes_nearer_to_the_data():
    """Also where the axis is off the middle, and rays only graze the circle."""
    foam, center = Foam(N, 1, seed=4, radius=20), 27.3
    measured = foam.project(THETA, rotation_center=center)[:, 0]
    sirt = Sirt(THETA, center, N, N)
    image, found = np.zeros((N, N), np.float32), []
    for _ in range(12):
        lacks = sirt.residual(image, measured)
        found.append(np.linalg.norm(lacks))
        image = sirt.step(image, lacks)
    assert (np.diff(found) < 0).all()
    assert found[-1] < 0.1 * found[0]
    assert not image[~inside_circle(image.shape, 1.05)].any()
