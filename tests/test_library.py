"""Simulated libraries: the same seed is the same scan, and scans are what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reference import circle

from ebl_stream.cli.train import _libraries
from ebl_stream.errors import InputError
from ebl_stream.simulation.families import FAMILIES, Leaning
from ebl_stream.simulation.library import Known, Library
from ebl_stream.simulation.phantom import Foam
from ebl_stream.stages.reconstruct import Fourier

N, N_ROWS = 64, 4
SMALL = Library(scans=5, seed=7, n_columns=N, n_rows=N_ROWS)
ARRAYS = ("truth", "volume", "half_difference")


def same(one: Known, other: Known) -> bool:
    return one.settings == other.settings and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ARRAYS
    )


def rms(slab) -> float:
    return float(np.sqrt(np.mean(np.square(slab[:, circle(slab.shape[-1])]))))


# ---------------------------------------------------------------------- samples


def test_upright_bodies_are_those_of_a_phantom():
    foam = Foam(N, N_ROWS, seed=3)
    bodies = np.concatenate([foam.bodies, np.zeros((len(foam.bodies), 2))], axis=1)
    sample = Leaning(N, N_ROWS, bodies)
    theta = np.linspace(0, np.pi, 7)
    np.testing.assert_allclose(sample.volume(), foam.volume(), atol=1e-7)
    np.testing.assert_allclose(sample.project(theta), foam.project(theta), atol=1e-5)


def test_a_leaning_body_moves_from_row_to_row_and_its_shadow_with_it():
    body = np.array([[3.0, -2.0, 4.0, 6.0, 3.0, 40.0, 0.4, 1.0, 1.5, -0.5]])
    sample = Leaning(N, 9, body)
    truth = sample.volume().astype(float)
    at = np.arange(N) - (N - 1) / 2
    mass = truth.sum((1, 2))
    x, y = (truth.sum(1) * at).sum(1) / mass, (truth.sum(2) * at).sum(1) / mass
    dz = np.arange(9) - 4
    np.testing.assert_allclose(x, 3 + 1.5 * dz, atol=0.02)
    np.testing.assert_allclose(y, -2 - 0.5 * dz, atol=0.02)
    theta = np.array([0.0, 1.0, np.pi / 2])
    shadow = sample.project(theta).astype(float)
    np.testing.assert_allclose(shadow.sum(2), np.tile(mass, (3, 1)), rtol=1e-3)
    seen = (shadow * at).sum(2) / shadow.sum(2)
    expected = np.cos(theta)[:, None] * x + np.sin(theta)[:, None] * y
    np.testing.assert_allclose(seen, expected, atol=0.03)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_lie_inside_the_field_and_have_something_to_see(family):
    for seed in range(5):
        bodies = FAMILIES[family](np.random.default_rng(seed), N, N_ROWS)
        sample = Leaning(N, N_ROWS, bodies)
        volume = sample.volume()
        assert np.isfinite(volume).all()
        inside = volume[:, circle(N)]
        assert inside.std() > 0.01 * np.abs(inside).max() > 0
        shadow = np.abs(sample.project(np.linspace(0, np.pi, 11)))
        assert shadow[..., [0, -1]].max() < 0.05 * shadow.max()


# ------------------------------------------------------------------------ scans


def test_a_scan_follows_from_its_seed_alone():
    alone = SMALL.scan(3)
    assert same(list(SMALL.known())[3], alone)
    later = replace(SMALL, seed=SMALL.seed + 1, families=(*SMALL.families[1:], "foam"))
    assert same(later.scan(2), alone)
    assert not same(replace(SMALL, seed=8).scan(3), alone)


def test_with_light_and_views_enough_the_volume_is_the_truth():
    """In every family, blur and window: the truth is what the scan shows."""
    rich = Library(scans=15, seed=7, n_columns=N, n_rows=N_ROWS)
    rich = replace(rich, i0=(20_000, 20_000), views=(400, 400))
    for known in rich.known():
        wrong = rms(known.volume - known.truth)
        signal = known.truth[:, circle(N)].std()
        noise = rms(known.half_difference)
        assert wrong**2 < (1.3 * noise) ** 2 + (0.14 * signal) ** 2, known.settings


def test_noise_falls_as_the_dose_rises_and_the_halves_tell_it():
    known = {
        i0: replace(SMALL, i0=(i0, i0), views=(400, 400)).scan(0)
        for i0 in (300.0, 30_000.0)
    }
    poor, rich = known[300.0], known[30_000.0]
    np.testing.assert_array_equal(poor.truth, rich.truth)
    assert 7 < rms(poor.half_difference) / rms(rich.half_difference) < 13
    assert rms(poor.half_difference) == pytest.approx(
        rms(poor.volume - poor.truth), rel=0.15
    )


# ------------------------------------------------------------------------ cache


def test_what_is_cached_is_not_made_again(tmp_path: Path, monkeypatch):
    fresh = list(SMALL.known(tmp_path))
    monkeypatch.setattr(Library, "scan", lambda self, k: pytest.fail("made again"))
    assert all(map(same, SMALL.known(tmp_path), fresh))
    longer = replace(SMALL, scans=4)
    assert all(map(same, longer.known(tmp_path), fresh))
    with pytest.raises(pytest.fail.Exception):
        list(replace(SMALL, i0=(200.0, 300.0)).known(tmp_path))


def test_a_damaged_cache_is_made_again_and_never_unpickled(tmp_path: Path):
    small = replace(SMALL, scans=1)
    (fresh,) = small.known(tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damage in (whole[:1000], b"", b"not a zip"):
        path.write_bytes(damage)
        assert same(next(iter(small.known(tmp_path))), fresh)
        assert path.read_bytes() == whole
    trap = np.empty(1, object)
    trap[0] = Trap()
    np.savez(path, about=trap)
    assert same(next(iter(small.known(tmp_path))), fresh)
    assert not Trap.sprung


class Trap:
    sprung = False

    def __reduce__(self):
        return (_spring, ())


def _spring():
    Trap.sprung = True
    return 0


# ----------------------------------------------------------------------- wishes


def test_an_unknown_family_or_no_size_is_one_clear_error():
    with pytest.raises(InputError, match=r"'foams' \(there are: foam, grains"):
        Library(families=("foam", "foams"))
    with pytest.raises(InputError, match="64 columns"):
        Library(n_columns=32)


def test_training_and_held_out_scans_never_share_a_seed():
    train, held = _libraries("foam,grains", 100, 5)
    assert held.scans == 25
    seeds = [set(range(lib.seed, lib.seed + lib.scans)) for lib in (train, held)]
    assert not seeds[0] & seeds[1]
    assert min(seeds[0]) >= 1_000_000
    assert min(seeds[1]) >= 2_000_000
    with pytest.raises(InputError, match="together"):
        _libraries("foam", 100_000, 950_000)


def test_the_halves_are_those_of_the_batch_reconstruction():
    """A + B of a scan without blur is what the house makes of the same counts."""
    library = replace(SMALL, i0=(60_000, 60_000), views=(64, 64))
    known = library.scan(0)
    how = known.settings
    sample = np.random.default_rng(how["seed"])
    bodies = FAMILIES["foam"](sample, N, N_ROWS)
    theta = np.linspace(0, np.pi, 64, endpoint=False)
    exact = Leaning(N, N_ROWS, bodies).project(theta)
    gain = how["depth"] / exact.max()
    clean = Fourier(window=how["window"])(gain * exact, theta, (N - 1) / 2)
    assert np.corrcoef(clean.ravel(), known.volume.ravel())[0, 1] > 0.98
