"""Lessons from files of pairs, archived runs and simulated scans."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from reference import circle

from ebl_stream.errors import InputError
from ebl_stream.nets.train.lessons import Crops, Stack, hold_out, of_halves
from ebl_stream.simulation.library import Library
from ebl_stream.simulation.phantom import Foam
from ebl_stream.stages.reconstruct import Fourier
from ebl_stream.training_data import scans, simulated, tomogan_hdf5

N, N_ROWS, N_ANGLES = 64, 8, 120
SMALL = Library(families=("foam",), scans=2, seed=7, n_columns=N, n_rows=4)


# ------------------------------------------------------------------------ stacks


def numbered(first: int, n_slices: int) -> Stack:
    """Slices that say in every pixel which one they are, and where the pixel lies."""
    number = np.arange(first, first + n_slices, dtype=np.float32) * 1e4
    where = np.arange(24 * 32, dtype=np.float32).reshape(24, 32)
    slab = number[:, None, None] + where
    return Stack("numbered", ((slab, slab + 0.5),))


def test_crops_keep_slices_together_and_the_middle_is_what_is_wanted():
    crops = Crops([numbered(0, 3), numbered(50, 4)], 5, 16, 8)
    assert crops.size == 16
    seen_of, middles = {}, set()
    for k in range(40):
        batch = crops.batch(np.random.default_rng(k), 4)
        assert batch.seen.shape == (4, 5, 16, 16)
        assert batch.wanted.shape == (4, 1, 16, 16)
        np.testing.assert_array_equal(batch.seen[:, 2:3] + 0.5, batch.wanted)
        slices = np.round(batch.seen.min((2, 3)) // 1e4).astype(int)
        for row, planes in zip(slices, batch.seen, strict=True):
            assert len({int(n) // 50 for n in row}) == 1  # of one sample
            low, high = (0, 2) if row[2] < 50 else (50, 53)
            up = np.clip(row[2] + np.arange(-2, 3), low, high)
            assert list(row) in (list(up), list(up[::-1]))
            # One turn for all slices, and pixels stay neighbors.
            offsets = planes - planes[:1] - (row - row[0])[:, None, None] * 1e4
            assert not offsets.any()
            steps = np.abs(np.diff(planes[2], axis=1)[0])
            assert set(np.unique(steps)) <= {1.0, 32.0}
            seen_of[planes[2].argmin()] = True
            middles.add(int(row[2]))
    assert middles == {0, 1, 2, 50, 51, 52, 53}
    assert len(seen_of) == 4  # all four corners have been the first: turned


def test_slices_that_are_held_out_are_not_learned_from():
    found = hold_out(numbered(0, 20))
    learned = {int(s) for t in found.train for s in t.ways[0][0][:, 0, 0] // 1e4}
    held = {int(s) for t in found.held for s in t.ways[0][0][:, 0, 0] // 1e4}
    assert held == {9, 10}
    assert learned == set(range(20)) - held
    with pytest.raises(InputError, match="3 slices are too few"):
        hold_out(numbered(0, 3))


def test_halves_teach_each_other_and_clean_stacks_count_more():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.normal(0, 2, (1, N, N)), 4, 0).astype(np.float32)
    weights = []
    for noise in (0.01, 1.0):
        a, b = (truth / 2 + rng.normal(0, noise, truth.shape) for _ in "ab")
        volume, difference = (a + b).astype(np.float32), (a - b).astype(np.float32)
        stack = of_halves("x", volume, difference)
        (see, want), (see_too, want_too) = stack.ways
        np.testing.assert_array_equal(see, want_too)
        np.testing.assert_array_equal(want, see_too)
        signal = np.cov(see[:, circle(N)].ravel(), want[:, circle(N)].ravel())[0, 1]
        assert signal == pytest.approx(1, rel=0.1)  # the nets' scale
        weights.append(stack.weight)
    assert weights[0] > 10 * weights[1]


def test_slices_too_small_for_a_net_are_one_clear_error():
    tiny = Stack("x", ((np.zeros((4, 12, 12), np.float32),) * 2,))
    with pytest.raises(InputError, match="12 px are too small"):
        Crops([tiny], 1, 64, 8)
    with pytest.raises(InputError, match="nothing to learn from"):
        Crops([], 1, 64, 8)


# -------------------------------------------------------------------- simulated


@pytest.mark.parametrize("kind", ["noise2inverse", "tomogan"])
def test_simulated_scans_teach_the_truth(kind):
    told: list[tuple[int, int]] = []
    held = replace(SMALL, scans=1, seed=90)
    found = simulated.lessons(kind, SMALL, held, report=lambda *n: told.append(n))
    assert (len(found.train), len(found.held)) == (2, 1)
    assert told == [(1, 3), (2, 3), (3, 3)]
    for stack in (*found.train, *found.held):
        assert len(stack.ways) == (2 if kind == "noise2inverse" else 1)
        for see, want in stack.ways:
            assert stack.truth is not None
            np.testing.assert_array_equal(want, stack.truth)
            inside = circle(N)
            alike = np.corrcoef(see[:, inside].ravel(), want[:, inside].ravel())[0, 1]
            assert alike > 0.1
    (source,) = found.about["sources"]
    assert source["train"]["seed"] == 7
    assert source["held_out"]["seed"] == 90


# ---------------------------------------------------------------- files of pairs


def write_pairs(path: Path, **arrays: object) -> Path:
    rng = np.random.default_rng(0)
    images = {
        name: rng.integers(0, 255, (6, 40, 48)).astype(np.uint8)
        for name in ("train_ns", "train_gt", "test_ns", "test_gt")
    } | arrays
    with h5py.File(path, "w") as file:
        for name, value in images.items():
            if value is not None:
                file[name] = value
    return path


def test_the_published_layout_is_read_as_it_is(tmp_path: Path):
    path = write_pairs(tmp_path / "pairs.h5")
    assert tomogan_hdf5.is_layout(path)
    found = tomogan_hdf5.lessons(path)
    assert [s.shape for s in found.train + found.held] == [(6, 40, 48)] * 2
    with h5py.File(path) as file:
        wanted = file["train_gt"][()].astype(float)
    (see, want), *_ = found.train[0].ways
    np.testing.assert_allclose(
        np.corrcoef(want.ravel(), wanted.ravel())[0, 1], 1, atol=1e-6
    )
    assert want[:, 20, 24].std() < 10  # no grey values of 8 bits any more
    assert see.dtype == np.float32
    (source,) = found.about["sources"]
    assert source["file"] == "pairs.h5"
    other = write_pairs(tmp_path / "other.h5", train_ns=np.ones((6, 40, 48)))
    assert tomogan_hdf5.lessons(other).about["sources"][0]["sha256"] != source["sha256"]


def test_what_is_written_is_read_back_sample_by_sample(tmp_path: Path):
    path = tmp_path / "new" / "library.h5"
    known, held = list(SMALL.known()), list(replace(SMALL, scans=1, seed=90).known())
    tomogan_hdf5.write(path, known, held)
    assert [p.name for p in path.parent.iterdir()] == ["library.h5"]
    found = tomogan_hdf5.lessons(path)
    assert len(found.train) == 2  # slices of one sample never meet those of another
    for stack, one in zip(found.train + found.held, known + held, strict=True):
        see, want = stack.ways[0]
        gain = one.truth[:, circle(N, 0.9)].std()
        np.testing.assert_allclose(
            see - want, (one.volume - one.truth) / gain, atol=2e-3 * np.abs(see).max()
        )


def test_without_test_images_some_are_held_out(tmp_path: Path):
    path = write_pairs(tmp_path / "pairs.h5", test_ns=None, test_gt=None)
    found = tomogan_hdf5.lessons(path)
    assert [s.shape[0] for s in found.train] == [2, 3]
    assert [s.shape[0] for s in found.held] == [1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"test_gt": None}, "test_gt"),
        ({"train_gt": np.zeros((5, 40, 48))}, r"train_gt is \(5, 40, 48\), its twin"),
        ({"train_ns": np.zeros((40, 48))}, r"images \[image, y, x\] are wanted"),
        ({"train_ns": np.zeros((0, 40, 48))}, "images"),
        ({"train_ns": np.full((6, 40, 48), np.nan)}, "image 0 holds NaN"),
        ({"train_ns": "words"}, "train_ns"),
        ({"train_ns": h5py.ExternalLink("/etc/passwd", "x")}, "train_ns"),
    ],
)
def test_bad_files_of_pairs_are_one_clear_error(tmp_path: Path, wrong, says):
    path = write_pairs(tmp_path / "pairs.h5", **wrong)
    with pytest.raises(InputError, match=says) as caught:
        tomogan_hdf5.lessons(path)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_file_that_is_no_hdf5_is_no_layout(tmp_path: Path):
    path = tmp_path / "pairs.h5"
    path.write_bytes(b"no HDF5")
    assert not tomogan_hdf5.is_layout(path)
    assert not tomogan_hdf5.is_layout(tmp_path / "absent.h5")


# ---------------------------------------------------------------- archived runs


def write_scan(path: Path, *, photons: float, seed: int, turn_deg: float = 0) -> Path:
    """Write noisy frames of one foam as APS Data Exchange."""
    theta = np.arange(N_ANGLES) * np.pi / N_ANGLES
    lines = Foam(N, N_ROWS, seed=3).project(theta)
    rng = np.random.default_rng(seed)
    # The beam is not even: every row has a noise of its own.
    beam = photons * np.linspace(0.3, 1.2, N_ROWS)[:, None] * np.ones((N_ROWS, N))
    with h5py.File(path, "w") as file:
        file["exchange/data"] = rng.poisson(beam * np.exp(-lines)).astype(np.uint16)
        flat = np.repeat(np.rint(beam)[None], 3, 0).astype(np.uint16)
        file["exchange/data_white"] = flat
        file["exchange/data_dark"] = 0 * flat
        file["exchange/theta"] = np.rad2deg(theta) - turn_deg
    return path


HOW = scans.How(
    None,
    {
        "preprocess": ["flat_field", {"minus_log": {"clip": 1e-5}}],
        "geometry.rotation_center": (N - 1) / 2,
    },
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "poor": write_scan(folder / "poor.h5", photons=500, seed=1),
        "again": write_scan(folder / "again.h5", photons=500, seed=2),
        "rich": write_scan(folder / "rich.h5", photons=50_000, seed=3),
        "turned": write_scan(folder / "turned.h5", photons=50_000, seed=4, turn_deg=50),
    }


def test_a_replayed_run_comes_with_its_halves_at_their_places(
    runs, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # Several slabs, so that one at a wrong place is noticed.
    how = replace(HOW, overrides={**HOW.overrides, "refresh.slab_rows": 4})
    found = scans.reconstruct(str(runs["poor"]), how)
    assert found.volume.shape == found.half_difference.shape == (N_ROWS, N, N)
    assert not list(tmp_path.iterdir())  # what it wrote is gone
    theta = np.arange(N_ANGLES) * np.pi / N_ANGLES
    center = (N - 1) / 2
    clean = Fourier()(Foam(N, N_ROWS, seed=3).project(theta), theta, center)
    error = (found.volume - clean)[:, circle(N)].std(1)
    assert error[0] > 1.5 * error[-1]  # so that a wrong place is noticed
    halves = found.half_difference[:, circle(N)].std(1)
    np.testing.assert_allclose(halves, error, rtol=0.15)
    # V + D and V - D are 2A and 2B: signs and scales belong together.
    for sign in (1, -1):
        half = found.volume + sign * found.half_difference - clean
        noise = half[:, circle(N)].std(1)
        np.testing.assert_allclose(noise, np.sqrt(2) * error, rtol=0.15)
    assert found.about["projections"] == N_ANGLES


def test_one_noisy_run_teaches_its_halves(runs):
    found = scans.lessons("noise2inverse", str(runs["poor"]), HOW)
    assert [s.shape[0] for s in found.train] == [3, 4]
    (see, want), (see_too, want_too) = found.held[0].ways
    np.testing.assert_array_equal(see, want_too)
    np.testing.assert_array_equal(want, see_too)
    assert found.held[0].truth is None
    with pytest.raises(InputError, match="--target or --repeat"):
        scans.lessons("tomogan", str(runs["poor"]), HOW)


@pytest.mark.parametrize("kind", ["noise2inverse", "tomogan"])
def test_a_dose_pair_is_brought_to_the_same_greys(runs, kind, monkeypatch):
    made = {
        str(path): scans.reconstruct(str(path), HOW)
        for name, path in runs.items()
        if name in ("poor", "rich")
    }
    rich = made[str(runs["rich"])]
    other = replace(rich, volume=(0.5 * rich.volume + 0.003).astype(np.float32))
    made[str(runs["rich"])] = other
    monkeypatch.setattr(scans, "reconstruct", lambda address, *_: made[address])
    poor, target = str(runs["poor"]), str(runs["rich"])
    found = scans.lessons(kind, poor, HOW, target=target)
    inside = circle(N, 0.9)
    wrong = [(see - want)[:, inside].mean() for see, want in found.train[0].ways]
    gains = [
        np.polyfit(want[:, inside].ravel(), see[:, inside].ravel(), 1)[0]
        for see, want in found.train[0].ways
    ]
    assert np.abs(wrong).max() < 0.05
    np.testing.assert_allclose(gains, 1, atol=0.1)


def test_repeats_teach_each_other(runs):
    poor, again = str(runs["poor"]), str(runs["again"])
    found = scans.lessons("tomogan", poor, HOW, repeat=again)
    assert len(found.held) == 2
    (one,), (other,) = (stack.ways for stack in found.held)
    np.testing.assert_allclose(
        np.corrcoef(one[0].ravel(), other[1].ravel())[0, 1], 1, atol=1e-5
    )
    (source,) = found.about["sources"]
    assert source["sha256"] != source["repeat"]["sha256"]


def test_a_turned_target_is_turned_back_or_refused(runs):
    poor, turned = str(runs["poor"]), str(runs["turned"])
    with pytest.raises(InputError, match="rotate-deg"):
        scans.lessons("noise2inverse", poor, HOW, target=turned)
    found = scans.lessons("noise2inverse", poor, HOW, target=turned, rotate_deg=50)
    straight = scans.lessons("noise2inverse", poor, HOW, target=str(runs["rich"]))
    one, other = (x.held[0].ways[0][1][:, circle(N, 0.9)] for x in (found, straight))
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99
    assert found.about["sources"][0]["target"]["rotate_deg"] == 50
