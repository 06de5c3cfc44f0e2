"""An offset detector over a full turn is a detector of twice the width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import circle, nufft_fbp

from ebl_stream.engine.field import MIN_OVERLAP_PX, Field
from ebl_stream.errors import InputError
from ebl_stream.numerics.weights import (
    FULL_TURN,
    HALF_TURN,
    alternate,
    angular_weights,
)
from ebl_stream.simulation.phantom import Asymmetric, Foam
from ebl_stream.stages.reconstruct import Fourier

GOLDEN_TURN = np.pi * (np.sqrt(5) - 1)


def psnr(image, truth):
    inside = circle(len(truth), 0.95)
    error = np.sqrt(np.mean((image - truth)[inside] ** 2))
    return 20 * np.log10(np.ptp(truth) / error)


def seen_by(phantom, theta, n_detector, center):
    """Project onto a detector whose axis is at ``center``: its columns only."""
    middle = (phantom.n_columns - 1) / 2
    # Whole columns of shift keep the projections exact.
    exact = phantom.project(theta, rotation_center=middle + center % 1)
    first = int(np.floor(middle)) - int(np.floor(center))
    if middle % 1:
        exact = phantom.project(theta, rotation_center=np.floor(middle) + center % 1)
    lead = max(0, -first)
    padded = np.pad(exact, ((0, 0), (0, 0), (lead, n_detector)))
    return padded[:, :, first + lead : first + lead + n_detector]


def through_field(phantom, theta, n_detector, center, row=0):
    field = Field(n_detector, center, offset=True)
    wide = field.spread(seen_by(phantom, theta, n_detector, center))
    assert wide.dtype == np.float32
    assert wide.shape[-1] == field.n_columns
    weights = angular_weights(theta, field.period)
    image = nufft_fbp(
        wide[:, row].astype(float),
        theta,
        field.rotation_center,
        weights,
        2 * field.n_columns,
    )
    return field, image


@given(st.integers(20, 300), st.floats(0, 1))
def test_a_ray_and_its_opposite_count_as_one(n, place):
    center = MIN_OVERLAP_PX + place * (n - 1 - 2 * MIN_OVERLAP_PX)
    field = Field(n, center, offset=True)
    weight = field.spread(np.ones((1, 1, n), np.float32))[0, 0]
    s = np.arange(field.n_columns) - field.rotation_center
    opposite = np.interp(-s, s, weight)
    overlap = min(center, n - 1 - center)
    fine = overlap > 30  # interpolation must not be what is measured
    np.testing.assert_allclose(
        (weight + opposite)[abs(s) <= s[-1] - 1], 1, atol=1e-3 if fine else 0.05
    )
    assert abs(field.rotation_center - (field.n_columns - 1) / 2) <= 0.5


@pytest.fixture(scope="module")
def foam():
    """A foam that is as wide as a detector of 512 columns with its axis at 60 sees."""
    return Foam(903, 1, seed=1)


@pytest.fixture(scope="module")
def full_width_db(foam):
    theta = np.arange(804) * np.pi / 804
    values = foam.project(theta)[:, 0].astype(float)
    image = nufft_fbp(values, theta, 451.0, n_padded=2 * 903)
    return psnr(image, foam.volume()[0])


def test_it_is_as_good_as_a_full_width_detector(foam, full_width_db):
    theta = np.arange(1608) * 2 * np.pi / 1608
    field, image = through_field(foam, theta, 512, 60.0)
    assert (field.n_columns, field.rotation_center) == (903, 451.0)
    assert psnr(image, foam.volume()[0]) == pytest.approx(full_width_db, abs=0.05)


def test_golden_angles_over_the_full_turn(foam, full_width_db):
    theta = np.arange(1608) * GOLDEN_TURN
    _, image = through_field(foam, theta, 512, 60.0)
    truth = foam.volume()[0]
    assert psnr(image, truth) > full_width_db - 1
    # Weights of the half circle are wrong here: the sides are different rays.
    field = Field(512, 60.0, offset=True)
    wide = field.spread(seen_by(foam, theta, 512, 60.0))[:, 0].astype(float)
    wrong = 2 * angular_weights(theta)
    mutant = nufft_fbp(wide, theta, field.rotation_center, wrong, 2 * 903)
    assert psnr(mutant, truth) < psnr(image, truth) - 0.5


def test_our_own_grids_take_the_wide_field():
    foam = Foam(225, 2, seed=2)
    once, turn = np.arange(360) * np.pi / 360, np.arange(720) * np.pi / 360
    field = Field(128, 15.0, offset=True)
    wide = field.spread(seen_by(foam, turn, 128, 15.0))
    grids = Fourier().accumulator(2, field.n_columns, field.rotation_center)
    shares = np.zeros((720, 2))
    shares[np.arange(720), alternate(turn, field.period)] = angular_weights(
        turn, field.period
    )
    grids.add(wide, turn, shares)
    full = Fourier()(foam.project(once), once, 112.0)
    truth = foam.volume()[1]
    expected = pytest.approx(psnr(full[1], truth), abs=0.05)
    assert psnr(grids.volume()[1], truth) == expected


@pytest.mark.parametrize("center", [22.25, 48.0, 77.4, 101.0])
def test_either_side_and_any_fraction_of_a_pixel(center):
    """The axis near the left or the right edge; no mirror passes for the other."""
    n_detector = 128
    missing = abs(n_detector - 1 - 2 * center)
    phantom = Asymmetric(n_detector + int(np.ceil(missing)), 2)
    theta = np.arange(640) * 2 * np.pi / 640
    _, image = through_field(phantom, theta, n_detector, center, row=1)
    truth = phantom.volume()[1]
    assert psnr(image, truth) > 28
    assert psnr(image[::-1], truth) < 25
    assert psnr(image[:, ::-1], truth) < 25


def test_a_plain_detector_is_its_own_field():
    values = np.ones((2, 3, 32), np.float32)
    field = Field(32, None)
    assert field.spread(values) is values
    assert (field.n_columns, field.rotation_center) == (32, None)
    assert field.period == HALF_TURN
    assert field.unseen(np.zeros(1)) is None


def test_without_a_center_it_says_what_to_do():
    with pytest.raises(InputError, match=r"must be known.*geometry\.rotation_center"):
        Field(512, None, offset=True)


@pytest.mark.parametrize("center", [-20.0, 1.5, 510.0, 600.0, np.nan])
def test_an_axis_at_the_edge_is_refused(center):
    with pytest.raises(InputError, match="both sides do not meet"):
        Field(512, center, offset=True)


@pytest.mark.parametrize("degrees", [180, 270, 345])
def test_less_than_a_turn_is_said(degrees):
    theta = np.deg2rad(np.arange(degrees))
    field = Field(512, 60.0, offset=True)
    assert field.period == FULL_TURN
    assert "of 360 degrees" in (field.unseen(theta) or "")
    assert Field(512, None).unseen(theta) is None


@pytest.mark.parametrize("theta", [np.arange(360) * np.pi / 180, np.arange(900) * 2.4])
def test_a_whole_turn_in_any_order_is_enough(theta):
    lost = np.random.default_rng(0).choice(len(theta), len(theta) // 20, replace=False)
    assert Field(512, 60.0, offset=True).unseen(np.delete(theta, lost)) is None
