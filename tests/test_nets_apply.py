"""A net gives the same however its slab is cut, and harms nothing on its way."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch
from noisy import noisy_foam

from ebl_stream.nets import apply
from ebl_stream.nets.apply import Applied
from ebl_stream.nets.architecture import Architecture
from ebl_stream.nets.scale import Scale

SHAPES = [
    Architecture(kind="fast", depth=3, width=4),
    Architecture(kind="tomogan", depth=3, width=4),
]


def net_of(shape: Architecture, *, precise: bool = True) -> Applied:
    torch.manual_seed(0)
    return Applied(shape.build(), shape, precise=precise)


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: shape.kind)
def net(request: pytest.FixtureRequest) -> Applied:
    return net_of(request.param)


def slab(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(8, 230), st.integers(145, 230), st.sampled_from([8, 16]), st.booleans()
)
def test_tiles_equal_the_whole(
    net: Applied, n_y: int, n_x: int, tile: int, turned: bool
) -> None:
    seen = slab(3, n_x, n_y) if turned else slab(3, n_y, n_x)
    whole = net(seen, [1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apply, "TILE", tile)
        assert len(list(apply._tiles(n_x))) > 1
        np.testing.assert_allclose(net(seen, [1]), whole, atol=2e-6)


@given(st.integers(1, 9000))
def test_tiles_cover_every_pixel_once(n: int) -> None:
    tiles = list(apply._tiles(n))
    assert [a for a, _ in tiles] == [0, *(b for _, b in tiles[:-1])]
    assert tiles[-1][1] == n
    assert all(0 < b - a <= apply.TILE + 2 * apply.HALO for a, b in tiles)
    assert all(a % 8 == 0 for a, _ in tiles)


@pytest.mark.parametrize("n_y", [1, 8, 9, 15, 17])
@pytest.mark.parametrize("n_x", [8, 13])
def test_small_slices(net: Applied, n_y: int, n_x: int) -> None:
    made = net(slab(2, n_y, n_x))
    assert made.shape == (2, n_y, n_x)
    assert made.dtype == np.float32
    assert np.isfinite(made).all()


def test_what_is_added_to_reach_a_multiple_is_the_last_pixel(net: Applied) -> None:
    seen = slab(3, 21, 30)
    padded = np.pad(seen, ((0, 0), (0, 3), (0, 2)), mode="edge")
    np.testing.assert_allclose(net(seen), net(padded)[:, :21, :30], atol=1e-6)


def test_batches_equal_single_slices(net: Applied) -> None:
    seen = slab(7, 24, 32)
    together = net(seen)
    for row in range(7):
        np.testing.assert_allclose(net(seen, [row])[0], together[row], atol=1e-6)
    np.testing.assert_array_equal(net(seen, [5, 2]), together[[5, 2]])


def test_slices_that_are_wanted_see_their_neighbors_alone(net: Applied) -> None:
    seen = slab(7, 24, 24)
    other = seen.copy()
    other[5] += 1
    moved = abs(net(other) - net(seen)).max((1, 2)) > 1e-4
    np.testing.assert_array_equal(moved, [False] * 4 + [True] * 3)


def test_beyond_the_slab_its_last_slice_is_repeated(net: Applied) -> None:
    seen = slab(4, 24, 24)
    repeated = seen[[0, 0, 1, 2, 3, 3]]
    np.testing.assert_allclose(net(seen), net(repeated)[1:-1], atol=1e-6)
    alone = seen[:1]
    np.testing.assert_allclose(net(alone), net(alone[[0, 0, 0]])[1:2], atol=1e-6)


def test_a_net_deeper_than_the_slab() -> None:
    deep = net_of(Architecture(depth=15, width=4))
    assert np.isfinite(deep(slab(2, 16, 16))).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_taken_for_the_mean(net: Applied, value: float) -> None:
    seen = slab(3, 24, 24)
    seen[1, 4:9, 5] = value
    filled = np.where(np.isfinite(seen), seen, 0)
    np.testing.assert_array_equal(net(seen), net(filled.astype(np.float32)))


def test_the_original_stays_and_later_learning_is_not_seen() -> None:
    shape = SHAPES[0]
    original = shape.build()
    before = [p.clone() for p in original.parameters()]
    applied = Applied(original, shape)
    seen = slab(1, 16, 16)
    made = applied(seen)
    assert all(map(torch.equal, before, original.parameters()))
    assert all(
        p.requires_grad and p.dtype == torch.float32 for p in original.parameters()
    )
    with torch.no_grad():
        for p in original.parameters():
            p.add_(1)
    np.testing.assert_array_equal(applied(seen), made)


@pytest.mark.skipif(not apply.has_bfloat16(), reason="this machine has no bfloat16")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.kind)
def test_bfloat16_is_near(shape: Architecture) -> None:
    _, volume, difference = noisy_foam(64, 4)
    seen = Scale.of(volume, difference).to_net(volume)
    exact, near = net_of(shape)(seen), net_of(shape, precise=False)(seen)
    assert 0 < np.std(near - exact) < 0.02 * np.std(exact)


def test_every_thread_computes_on_itself_alone(net: Applied) -> None:
    """Slabs are what goes side by side; each gives what it gives alone."""
    seen = [slab(2, 40, 40) * k for k in range(1, 5)]
    alone = [net(each) for each in seen]
    made: dict[int, np.ndarray] = {}
    threads: dict[int, int] = {}

    def one(k: int) -> None:
        made[k] = net(seen[k])
        threads[k] = torch.get_num_threads()

    running = [threading.Thread(target=one, args=(k,)) for k in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert threads == dict.fromkeys(range(4), 1)
    for k in range(4):
        np.testing.assert_array_equal(made[k], alone[k])


# --- the scale ----------------------------------------------------------------------


def test_the_scale_is_that_of_the_signal() -> None:
    """Its mean and standard deviation, however much noise lies over it."""
    truth, _, zero = noisy_foam(64, 8, noise=0)
    true = Scale.of(truth, zero)
    for noise in (0.3, 1, 3):
        _, volume, difference = noisy_foam(64, 8, noise=noise)
        found = Scale.of(volume, difference)
        assert found.gain == pytest.approx(true.gain, rel=0.1)
        assert found.offset == pytest.approx(true.offset, abs=0.1 * true.gain)
    assert true.to_net(truth).std() == pytest.approx(1, rel=0.3)


@pytest.mark.parametrize(("gain", "offset"), [(1000.0, 0.0), (1e-6, 0.0), (1.0, 0.1)])
def test_the_scale_forgets_the_unit(gain: float, offset: float) -> None:
    _, volume, difference = noisy_foam(64, 4)
    seen = Scale.of(volume, difference).to_net(volume)
    other = (gain * volume + offset).astype(np.float32)
    scale = Scale.of(other, (gain * difference).astype(np.float32))
    np.testing.assert_allclose(scale.to_net(other), seen, atol=2e-5)
    np.testing.assert_allclose(
        scale.to_volume(scale.to_net(other)), other, atol=1e-5 * other.std()
    )


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan, np.inf])
def test_the_scale_of_nothing_is_one(value: float) -> None:
    slab = np.full((2, 16, 16), value, np.float32)
    scale = Scale.of(slab, np.zeros_like(slab))
    assert scale == Scale(value if np.isfinite(value) else 0.0, 1.0)


def test_one_damaged_voxel_does_not_change_the_scale() -> None:
    _, volume, difference = noisy_foam(64, 4)
    known = Scale.of(volume, difference)
    for value in (np.nan, np.inf):
        damaged = volume.copy()
        damaged[2, 30, 30] = value
        found = Scale.of(damaged, difference)
        assert found.gain == pytest.approx(known.gain, rel=1e-3)
        assert found.offset == pytest.approx(known.offset, rel=1e-3)
