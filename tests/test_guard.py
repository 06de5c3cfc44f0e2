"""Nobody is believed: who makes a slab worse is never published."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

pytest.importorskip("torch")

from noisy import error, noisy_foam, ramped

from ebl_stream.nets import pairs as pairing
from ebl_stream.nets.guard import (
    RAW_SHARE,
    Candidate,
    Denoise,
    Standing,
    linear,
    raw,
    rounded,
    split_loss,
)
from ebl_stream.nets.pairs import Pairs, excerpt_rows, excerpt_slabs

NOISES = [0.0, 0.1, 1.0, 5.0, 30.0]


def pairs_of(noise: float = 1.0, n: int = 64, rows: int = 8, seed: int = 0) -> Pairs:
    _, volume, difference = noisy_foam(n, rows, seed, noise)
    return Pairs([(volume, difference)])


def by(work: Callable[[np.ndarray], np.ndarray]) -> Denoise:
    def denoise(seen: np.ndarray, rows: Sequence[int] | None = None) -> np.ndarray:
        return work(raw(seen, rows))

    return denoise


def best_beside(sabotage: Denoise, pairs: Pairs) -> set[str]:
    """Return who wins over the saboteur, with the filter and alone."""
    best: set[str] = set()
    for others in ([], [linear(pairs)]):
        standing = Standing(pairs)
        for each in (*others, Candidate("adapted", sabotage, "a1", 100)):
            standing.enter(each)
        best.add(standing.best.name)
    return best


# --- the three that are never published ---------------------------------------------


@pytest.mark.parametrize("noise", NOISES)
def test_a_net_that_makes_noise_is_never_published(noise: float) -> None:
    rng = np.random.default_rng(1)
    sabotage = by(lambda seen: rng.normal(size=seen.shape).astype(np.float32))
    assert "adapted" not in best_beside(sabotage, pairs_of(noise))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_net_that_makes_a_constant_is_never_published(
    noise: float, value: float
) -> None:
    sabotage = by(lambda seen: np.full_like(seen, value))
    assert "adapted" not in best_beside(sabotage, pairs_of(noise))


@pytest.mark.parametrize("noise", NOISES)
def test_a_net_that_returns_what_it_was_given_is_never_published(noise: float) -> None:
    assert "adapted" not in best_beside(raw, pairs_of(noise))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("share", ["everywhere", "here and there"])
def test_a_net_that_makes_what_is_not_finite_is_never_published(
    value: float, share: str
) -> None:
    def spoil(seen: np.ndarray) -> np.ndarray:
        made = ndimage.gaussian_filter(seen, (0, 1, 1))  # good, but for that
        places = slice(None, None, 1 if share == "everywhere" else 8)
        made[:, places, places] = value
        return made

    pairs = pairs_of()
    assert "adapted" not in best_beside(by(spoil), pairs)
    assert rounded({"adapted": split_loss(by(spoil), pairs)})["adapted"] != value


def test_who_knows_by_heart_what_was_learned_from_is_never_published() -> None:
    """Right to the last grain wherever targets were; as it came elsewhere."""
    pairs = pairs_of(rows=4)
    ((one, other),) = pairs.halves
    learned = (known_targets(pairs, 400)[0] > 0)[0]
    assert learned.mean() > 0.3

    def by_heart(seen: np.ndarray, rows: Sequence[int] | None = None) -> np.ndarray:
        assert rows is not None
        made = raw(seen, rows).copy()
        for plane, row in zip(made, rows, strict=True):
            for a, b in ((one, other), (other, one)):
                place = place_of(seen[row], a[row])
                if place is not None:
                    y, x = (
                        slice(p, p + s) for p, s in zip(place, plane.shape, strict=True)
                    )
                    plane[...] = np.where(learned[row, y, x], b[row, y, x], plane)
        return made

    whole = by_heart(one, range(4))
    assert np.mean((whole - other)[learned] ** 2) == 0  # it does know
    standing = Standing(pairs)
    standing.enter(Candidate("adapted", by_heart, "a1", 100))
    assert standing.best.name == "fbp"


def place_of(part: np.ndarray, plane: np.ndarray) -> tuple[int, int] | None:
    """Return where a part lies in a slice."""
    for y, x in np.argwhere(plane == part[0, 0]):
        if np.array_equal(plane[y : y + len(part), x : x + part.shape[1]], part):
            return int(y), int(x)
    return None


# --- who deserves it ----------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.5, 1.0, 5.0])
def test_a_good_one_wins(noise: float) -> None:
    truth, *_ = noisy_foam(64, 8, 0, noise)
    pairs = pairs_of(noise)
    wanted = pairs.scale.to_net(truth)

    def oracle(seen: np.ndarray, rows: Sequence[int] | None = None) -> np.ndarray:
        for window in pairs.windows:  # it is told where it looks by what it sees
            if rows == [window.row] and len(wanted) == len(seen):
                for half in pairs.halves[0]:
                    place = place_of(seen[rows[0]], half[rows[0]])
                    if place is not None:
                        y, x = (
                            slice(p, p + s)
                            for p, s in zip(place, seen.shape[1:], strict=True)
                        )
                        return wanted[rows][:, y, x]
        raise AssertionError("never seen")

    assert best_beside(oracle, pairs) == {"adapted"}


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_a_blur_wins_where_nobody_else_is(noise: float) -> None:
    truth, volume, _ = noisy_foam(64, 8, 0, noise)
    pairs = pairs_of(noise)
    blur = by(lambda seen: ndimage.gaussian_filter(seen, (0, 1.5, 1.5)))
    made = pairs.scale.to_volume(blur(pairs.scale.to_net(volume), None))
    assert error(made, truth) < error(volume, truth)
    standing = Standing(pairs)
    standing.enter(Candidate("adapted", blur, "a1", 100))
    assert standing.best.name == "adapted"


def test_clean_input_stays_as_it_is() -> None:
    """No harm: even a denoiser that is nearly perfect loses against the truth."""
    pairs = pairs_of(0.0)
    standing = Standing(pairs)
    assert standing.losses["fbp"] == 0
    standing.enter(linear(pairs))
    standing.enter(Candidate("warm", by(lambda seen: seen * np.float32(1.0001))))
    assert standing.best.name == "fbp"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sigma", [0.25, 0.35, 0.5, 0.7, 1.0])
def test_the_verdict_is_that_of_the_truth(sigma: float, seed: int) -> None:
    """A blur is published where it helps, and is not where it harms.

    Nearly clean slices are where it matters; where the true errors are within a tenth
    of each other, either verdict is right.
    """
    for noise in (0.02, 0.1, 0.3):
        truth, volume, difference = noisy_foam(64, 8, seed, noise)
        pairs = Pairs([(volume, difference)])
        blur = by(lambda seen: ndimage.gaussian_filter(seen, (0, sigma, sigma)))
        made = pairs.scale.to_volume(blur(pairs.scale.to_net(volume), None))
        ratio = error(made, truth) / error(volume, truth)
        standing = Standing(pairs)
        standing.enter(Candidate("warm", blur))
        if ratio > 1.1:
            assert standing.best.name == "fbp", (noise, ratio)
        if ratio < 0.7:
            assert standing.best.name == "warm", (noise, ratio)


def test_the_share_of_the_raw_loss_is_right() -> None:
    """Against a third measurement like the halves, of which there is none in a scan."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(8, 64, 64))
    one, other, third = (truth + 0.7 * ramped(rng, truth.shape) for _ in range(3))
    between = np.mean((one - other) ** 2)
    whole = np.mean(((one + other) / 2 - third) ** 2)
    assert whole / between == pytest.approx(RAW_SHARE, rel=0.02)
    # And the guard's own loss is that of a half: it is the share that makes it fair.
    volume, difference = (one + other) / 2, (one - other) / 2
    pairs = Pairs([(volume.astype(np.float32), difference.astype(np.float32))])
    loss = split_loss(raw, pairs) * pairs.scale.gain**2
    assert loss == pytest.approx(between, rel=0.1)
    assert Standing(pairs).losses["fbp"] == RAW_SHARE * split_loss(raw, pairs)


def test_the_best_of_a_name_stays() -> None:
    pairs = pairs_of()
    standing = Standing(pairs)
    good = Candidate(
        "adapted", by(lambda s: ndimage.gaussian_filter(s, (0, 1, 1))), "a"
    )
    assert standing.enter(good)
    assert not standing.enter(Candidate("adapted", raw, "b"))
    assert standing.holder("adapted") is good
    assert standing.best is good


# --- what is held out ---------------------------------------------------------------


def known_targets(pairs: Pairs, n: int) -> list[np.ndarray]:
    """Count how often each value of a half was a target, by excerpt and half."""
    values = [np.arange(half.size).reshape(half.shape) for half, _ in pairs.halves]
    kept = pairs.halves
    starts = np.cumsum([0, *(2 * each.size for each in values)])
    pairs.halves = [
        (start + each.astype(float), start + each.size + each.astype(float))
        for start, each in zip(starts[:-1], values, strict=True)
    ]
    try:
        _, targets = pairs.crops(np.random.default_rng(0), n, 3)
    finally:
        pairs.halves = kept
    found = targets[np.isfinite(targets)].astype(int)
    all_counts = np.bincount(found, minlength=starts[-1])
    parts = np.split(all_counts, starts[1:-1])
    return [part.reshape(2, *v.shape) for part, v in zip(parts, values, strict=True)]


@settings(max_examples=10, deadline=None)
@given(
    st.integers(8, 96),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_what_judges_is_never_learned_from(n: int, rows: list[int]) -> None:
    """Down to one tiny slice: the windows' pixels are nobody's target."""
    rng = np.random.default_rng(n)
    both = [rng.normal(size=(2, k, n, n)).astype(np.float32) for k in rows]
    pairs = Pairs([(volume, difference) for volume, difference in both])
    counted = known_targets(pairs, 24)
    assert n < 32 or sum(each.sum() for each in counted) > 0
    for window in pairs.windows:
        y, x = (slice(start, start + window.size) for start in (window.y, window.x))
        assert window.y + window.size <= n
        assert window.x + window.size <= n
        assert counted[window.excerpt][:, window.row, y, x].sum() == 0


def test_both_halves_are_inputs_and_targets_of_the_same_place() -> None:
    """Turned and mirrored alike, and the slice in the middle is the one wanted."""
    base = np.arange(4 * 64 * 64, dtype=np.float32).reshape(4, 64, 64)
    pairs = pairs_of(rows=4)
    pairs.halves = [(base, base + 2**20)]
    inputs, targets = pairs.crops(np.random.default_rng(0), 32, 3)
    apart = (targets - inputs[:, 1:2])[np.isfinite(targets)]
    assert set(np.unique(apart)) == {-(2.0**20), 2.0**20}
    assert inputs.shape == (32, 3, 64, 64)
    steps = (inputs[:, 2] - inputs[:, 1])[:, 0, 0]
    assert {-4096.0, 4096.0} <= set(steps.tolist())


def test_windows_are_the_same_at_every_look() -> None:
    """Else the guard would judge by what an earlier look has taught."""
    assert pairs_of(1.0).windows == pairs_of(0.2, seed=3).windows


def test_the_halves_are_what_was_measured() -> None:
    truth, volume, difference = noisy_foam(64, 4)
    pairs = Pairs([(volume[:2], difference[:2]), (volume[2:], difference[2:])])
    found = [np.concatenate(half) for half in zip(*pairs.halves, strict=True)]
    for half, sign in zip(found, (1, -1), strict=True):
        np.testing.assert_allclose(
            pairs.scale.to_volume(half), volume + sign * difference, atol=1e-6
        )
    noises = [(half - pairs.scale.to_net(truth)).ravel() for half in found]
    assert abs(np.corrcoef(*noises)[0, 1]) < 0.05


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 7.0])
def test_slices_without_anything_stay_as_they_are(value: float) -> None:
    slab = np.full((2, 16, 16), value, np.float32)
    pairs = Pairs([(slab, np.zeros_like(slab))])
    assert best_beside(by(lambda seen: seen + 1), pairs) == {"fbp"}
    assert all(np.isfinite(half).all() for each in pairs.halves for half in each)


# --- what it takes ------------------------------------------------------------------


@given(st.integers(8, 4096), st.integers(1, 128), st.integers(1, 4))
def test_excerpts_fit_into_their_memory(n: int, n_rows: int, wanted: int) -> None:
    n_slabs = min(wanted, excerpt_slabs(n))
    start, stop = excerpt_rows(n, n_rows, n_slabs)
    assert 0 <= start < stop <= n_rows
    assert abs(start - (n_rows - stop)) <= 1  # in the middle
    assert n_slabs * (stop - start) * 2 * 4 * n**2 <= pairing.EXCERPT_BYTES
    if n_slabs > 1:
        assert stop - start >= min(n_rows, pairing.FEWEST_ROWS)
