"""Angular weights and the split into halves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import voronoi_weights

from ebl_stream.numerics.weights import HalfSplit, alternate, angular_weights

GOLDEN = np.pi * (np.sqrt(5) - 1) / 2


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=80))
def test_weights_are_positive_and_never_exceed_the_half_circle(angles):
    weights = angular_weights(np.array(angles))
    assert (weights >= 0).all()
    assert weights.sum() <= np.pi * (1 + 1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(2, 200))
def test_weights_do_not_depend_on_order_or_turns(seed, n):
    rng = np.random.default_rng(seed)
    theta = rng.uniform(0, np.pi, n)
    shuffled = rng.permutation(n)
    turned = theta + np.pi * rng.integers(-3, 4, n)
    expected = angular_weights(theta)
    np.testing.assert_allclose(angular_weights(theta[shuffled]), expected[shuffled])
    np.testing.assert_allclose(angular_weights(turned), expected, atol=1e-9)


def test_equal_steps_share_the_half_circle_equally():
    theta = np.arange(180) * np.pi / 180
    np.testing.assert_allclose(angular_weights(theta), np.pi / 180)


@pytest.mark.parametrize("turns", [2, 3, 7, 20])
def test_repeated_turns_share_a_direction(turns):
    once = np.arange(90) * np.pi / 90
    theta = np.concatenate([once + k * np.pi for k in range(turns)])
    weights = angular_weights(theta).reshape(turns, 90)
    np.testing.assert_allclose(weights.sum(0), np.pi / 90, rtol=1e-6)


def test_a_doubled_end_point_shares_its_direction():
    weights = angular_weights(np.linspace(0, np.pi, 181))
    np.testing.assert_allclose(weights[1:-1], np.pi / 180)
    np.testing.assert_allclose(weights[[0, -1]].sum(), np.pi / 180, rtol=1e-6)


@pytest.mark.parametrize("n", [3, 5, 18, 40, 120])
def test_a_missing_wedge_is_not_spread_on_its_edges(n):
    step = np.pi / 180
    weights = angular_weights(np.arange(n) * step)
    np.testing.assert_allclose(weights[1:-1], step)
    np.testing.assert_allclose(weights[[0, -1]], 2.5 * step)


def test_noisy_repeats_of_a_direction_do_not_shrink_the_typical_gap():
    rng = np.random.default_rng(0)
    once = np.arange(90) * np.pi / 90
    theta = np.concatenate([once + rng.normal(0, 1e-4, 90) for _ in range(5)])
    assert angular_weights(theta).sum() == pytest.approx(np.pi, rel=1e-3)


def test_a_short_gap_is_shared_by_its_neighbors():
    kept = np.delete(np.arange(180), [50, 51])
    weights = angular_weights(kept * np.pi / 180)
    np.testing.assert_allclose(weights[kept == 49], 2 * np.pi / 180)
    np.testing.assert_allclose(weights.sum(), np.pi)


def test_against_the_independent_reference_with_losses():
    rng = np.random.default_rng(0)
    kept = rng.permutation(400)[:370]
    theta = (kept * GOLDEN) % np.pi
    np.testing.assert_allclose(angular_weights(theta), voronoi_weights(theta))


@pytest.mark.parametrize(
    ("name", "theta"),
    [
        ("sequential", np.arange(402) * np.pi / 402),
        ("golden", np.arange(402) * GOLDEN),
        ("random", np.random.default_rng(3).random(402) * np.pi),
    ],
)
def test_halves_sample_every_part_of_the_half_circle(name, theta):
    split = HalfSplit()
    halves = np.array([split.assign(t) for t in theta])
    for n in (40, 100, 402):
        direction = np.mod(theta[:n], np.pi)
        in_sorted_order = halves[:n][np.argsort(direction)]
        runs = np.diff(np.flatnonzero(np.diff(in_sorted_order) != 0))
        # Random angles leave runs; a hash split leaves far longer ones.
        assert runs.max(initial=0) <= 4
        assert abs(halves[:n].mean() - 0.5) <= 0.1


def test_balanced_halves_alternate_in_direction():
    theta = np.arange(101) * GOLDEN
    halves = alternate(theta)[np.argsort(np.mod(theta, np.pi))]
    assert (np.diff(halves) != 0).all()


@pytest.mark.parametrize("repeats", [3, 5])
def test_many_shots_of_one_direction_all_count(repeats):
    theta = np.repeat(np.arange(60) * np.pi / 60, repeats)
    np.testing.assert_allclose(angular_weights(theta), np.pi / 60 / repeats)
    turns = np.concatenate([np.linspace(0, np.pi, 61)] * repeats)
    assert angular_weights(turns).min() > 0
    assert angular_weights(turns).sum() == pytest.approx(np.pi)
