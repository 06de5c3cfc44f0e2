"""Angular weights and the split into halves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import voronoi_weights

from ebl_stream.numerics.weights import (
    FULL_TURN,
    HALF_TURN,
    HalfSplit,
    alternate,
    angular_weights,
    rebalanced,
)

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
    np.testing.assert_allclose(weights[[0, -1]], 3.5 * step)


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


@given(st.integers(0, 2**32 - 1), st.integers(2, 200))
def test_a_full_turn_tells_opposite_sides_apart(seed, n):
    rng = np.random.default_rng(seed)
    theta = (np.arange(n) + rng.uniform(-0.3, 0.3, n)) * 2 * np.pi / n
    # A circle twice as wide: as if all angles were halved.
    expected = 2 * voronoi_weights(theta / 2)
    np.testing.assert_allclose(angular_weights(theta, FULL_TURN), expected, atol=1e-9)


def test_random_angles_keep_the_whole_half_circle():
    for seed in range(5):
        theta = np.random.default_rng(seed).random(800) * np.pi
        assert angular_weights(theta).sum() == pytest.approx(np.pi, rel=0.01)


@given(st.integers(0, 2**32 - 1), st.integers(3, 300))
def test_a_monotone_encoder_gives_the_trapezoid_rule(seed, n):
    """Steps of 0.5 to 1.5: nothing is capped, and the wrap closes the half circle."""
    steps = np.random.default_rng(seed).uniform(0.5, 1.5, n)
    theta = np.cumsum(steps) * np.pi / steps.sum()
    weights = angular_weights(theta)
    np.testing.assert_allclose(weights[1:-1], (theta[2:] - theta[:-2]) / 2, rtol=1e-9)
    np.testing.assert_allclose(weights.sum(), np.pi)


def test_back_and_forth_counts_as_often_as_it_went_by():
    """A stage that goes on, back and on again over the same directions."""
    there = np.arange(60) * np.pi / 120
    theta = np.concatenate([there, there[::-1], np.arange(120) * np.pi / 120])
    weights = angular_weights(theta)
    np.testing.assert_allclose(weights[120:180], np.pi / 120 / 3)
    np.testing.assert_allclose(weights[180:], np.pi / 120)


@given(
    st.lists(
        st.floats(-10, 10) | st.integers(0, 12).map(lambda k: k * np.pi / 12),
        min_size=1,
        max_size=100,
    ),
    st.randoms(use_true_random=False),
    st.sampled_from([HALF_TURN, FULL_TURN]),
)
def test_weights_are_those_of_the_set_bit_by_bit(angles, random, period):
    """Whatever came, left or came again in whatever order: only the set counts."""
    shuffled = random.sample(range(len(angles)), len(angles))
    theta = np.array(angles)
    weights = angular_weights(theta, period)
    again = angular_weights(theta[shuffled], period)
    np.testing.assert_array_equal(again, weights[shuffled])


@pytest.mark.parametrize(
    ("theta", "block", "most"),
    [
        (np.arange(1600) * np.pi / 1600, 16, 1.1),
        (np.arange(1600) * GOLDEN, 16, 3.0),
        (np.arange(1600) * GOLDEN, 160, 2.7),
    ],
)
def test_exact_weights_cost_few_scatters(theta, block, most):
    """A new direction changes its own weight and those of two neighbors."""
    applied, scatters = np.zeros(len(theta)), 0
    for n in range(block, len(theta) + 1, block):
        weights = angular_weights(theta[:n])
        scatters += np.count_nonzero(abs(weights - applied[:n]) > 1e-6 * weights)
        applied[:n] = weights
    assert 1 < scatters / len(theta) < most


# ------------------------------------------------------------------- the halves


def test_a_removed_projection_no_longer_counts():
    split, fresh = HalfSplit(), HalfSplit()
    assert split.assign(1.0) == 0
    half = split.assign(2.0)
    split.remove(2.0, half)
    split.remove(0.5, 0)
    fresh.assign(1.0)
    for angle in (2.5, 0.3, 1.4):
        assert split.assign(angle) == fresh.assign(angle)


def test_sides_of_an_offset_detector_are_split_apart():
    """Opposite projections are other rays: each side alternates by itself."""
    theta = np.arange(400) * 2 * np.pi / 400
    split = HalfSplit(FULL_TURN)
    online = np.array([split.assign(angle) for angle in theta])
    for halves in (online, alternate(theta, FULL_TURN)):
        assert (np.diff(halves) != 0).all()


SCANS = {
    "sequential": np.arange(402) * np.pi / 402,
    "both ends": np.linspace(0, np.pi, 401),
    "two turns": np.arange(402) * 2 * np.pi / 402,
    "noisy turns": np.arange(402) * 2 * np.pi / 402
    + np.random.default_rng(2).normal(0, 1e-4, 402),
    "stopped": np.arange(150) * np.pi / 402,
    "lossy": np.delete(np.arange(402), [3, 77, 78, 79, 200, 399]) * np.pi / 402,
}


@pytest.mark.parametrize("name", SCANS)
def test_a_sequential_scan_moves_nothing_at_its_end(name):
    split = HalfSplit()
    halves = np.array([split.assign(t) for t in SCANS[name]], np.int8)
    np.testing.assert_array_equal(rebalanced(SCANS[name], halves), halves)


@pytest.mark.parametrize(
    "theta",
    [np.arange(402) * GOLDEN, np.random.default_rng(3).random(402) * np.pi],
)
def test_uneven_halves_are_made_to_alternate(theta):
    split = HalfSplit()
    halves = np.array([split.assign(t) for t in theta], np.int8)
    final = rebalanced(theta, halves)
    ordered = final[np.argsort(np.mod(theta, np.pi), kind="stable")]
    assert (np.diff(ordered) != 0).all()
    assert 0 < np.mean(final != halves) <= 0.5


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_projections_have_halves_too(n):
    theta = np.arange(n) * 0.7
    halves = np.zeros(n, np.int8)
    assert len(rebalanced(theta, halves)) == n
