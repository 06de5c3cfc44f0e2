"""One run through the session: any order, any loss, any rewind."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr
from reference import nrmse, nufft_fbp
from sessions import PLAIN

from ebl_stream import profile_file as profiles
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.session import Session
from ebl_stream.errors import InputError
from ebl_stream.frames import Announced, Closed, Frame, Kind, Rejected, Repeated, Scan
from ebl_stream.publish.output import RunOutput
from ebl_stream.simulation.phantom import Foam
from ebl_stream.stages.reconstruct import Fourier

N_COLUMNS, N_ROWS, N_ANGLES = 64, 6, 120
CENTER = (N_COLUMNS - 1) / 2 + 1.5
GOLDEN = np.pi * (np.sqrt(5) - 1) / 2


@pytest.fixture(scope="module")
def raw():
    """Raw frames [angle, row, column] of a foam, and theta in rad."""
    theta = np.arange(N_ANGLES) * GOLDEN
    exact = Foam(N_COLUMNS, N_ROWS, seed=2).project(theta, rotation_center=CENTER)
    counts = np.random.default_rng(0).poisson(5000 * np.exp(-exact))
    return counts.astype(np.uint16), theta


FLAT = Frame(0, Kind.FLAT, np.nan, np.full((N_ROWS, N_COLUMNS), 5000, np.uint16))
DARK = Frame(0, Kind.DARK, np.nan, np.zeros((N_ROWS, N_COLUMNS), np.uint16))
REFERENCES = [Announced(Kind.FLAT, 0, 1), FLAT, Announced(Kind.DARK, 0, 1), DARK]
END = Closed("success", "", N_ANGLES, 0)


def projections(raw, indices):
    images, theta = raw
    for k in indices:
        yield Announced(Kind.PROJECTION, k, k + 1)
        yield Frame(k, Kind.PROJECTION, theta[k], images[k])


class Runner:
    """Run items through a fresh session and read the volume back."""

    def __init__(self, folder):
        self.folder = folder
        self.count = 0

    def __call__(self, items, center=CENTER, progress=None, **overrides):
        settings = PLAIN | {"geometry.rotation_center": center} | overrides
        profile = profiles.load("demo", settings)
        self.count += 1
        output = RunOutput(self.folder, f"run-{self.count}")
        session = Session(
            Scan("raw", {}, N_ANGLES),
            profile,
            Rooms.furnish(profile),
            output,
            on_progress=progress,
        )
        result = None
        for item in items:
            result = session.take(item) or result
        session.close()
        return result, zarr.open_array(result.volume, mode="r")[:]


@pytest.fixture
def run(tmp_path):
    return Runner(tmp_path)


def batch(raw, indices):
    """Our own kernels on the survivors, all at once."""
    images, theta = raw
    values = -np.log(np.clip(images[indices] / 5000.0, 1e-5, None))
    return Fourier()(values.astype(np.float32), theta[indices], CENTER)


def test_live_equals_batch(raw, run):
    result, volume = run([*REFERENCES, *projections(raw, range(N_ANGLES)), END])
    assert result.state == "complete"
    assert result.ledger["residue"] == 0
    assert result.shape == (N_ROWS, N_COLUMNS, N_COLUMNS)
    assert nrmse(volume, batch(raw, np.arange(N_ANGLES))) < 1e-5


def test_two_replays_are_bit_identical(raw, run):
    items = [*REFERENCES, *projections(raw, range(N_ANGLES)), END]
    np.testing.assert_array_equal(run(items)[1], run(items)[1])


def test_losses_gaps_disorder_and_duplicates(raw, run):
    rng = np.random.default_rng(5)
    lost = {*rng.choice(N_ANGLES, 6, replace=False).tolist(), *range(40, 50)}
    kept = np.array([k for k in range(N_ANGLES) if k not in lost])
    order = np.argsort(kept + rng.uniform(0, 8, len(kept)))
    items = list(projections(raw, kept[order].tolist()))
    items[10:10] = [Repeated(Kind.PROJECTION, 3, 5, "duplicate")]
    result, volume = run([*REFERENCES, *items, END])
    named = {k for a, b in result.ledger["missing_indices"] for k in range(a, b)}
    assert named == lost
    assert result.state == "partial"
    assert result.ledger["duplicate"] == 2
    assert result.ledger["residue"] == 0
    assert nrmse(volume, batch(raw, kept)) < 1e-3
    images, theta = raw
    values = -np.log(images[kept] / 5000.0)
    independent = nufft_fbp(values[:, 2], theta[kept], CENTER)
    assert nrmse(volume[2], independent) < 0.01
    uniform = np.full(len(kept), np.pi / len(kept))
    mutant = nufft_fbp(values[:, 2], theta[kept], CENTER, uniform)
    assert nrmse(mutant, independent) > 0.01


def test_a_rewound_frame_is_replaced(raw, run):
    images, theta = raw
    wrong = Frame(7, Kind.PROJECTION, theta[90], images[90])
    items = list(projections(raw, range(N_ANGLES)))
    items[2 * 7 + 1] = wrong
    again = [Repeated(Kind.PROJECTION, 7, 8, "superseded"), *projections(raw, [7])]
    items[2 * 60 : 2 * 60] = [again[0], again[2]]
    result, volume = run([*REFERENCES, *items, END])
    assert result.state == "complete"
    assert result.ledger["superseded"] == 1
    assert result.ledger["residue"] == 0
    assert nrmse(volume, batch(raw, np.arange(N_ANGLES))) < 1e-5


def test_flats_after_the_projections(raw, run):
    items = [*projections(raw, range(N_ANGLES)), *REFERENCES, END]
    result, volume = run(items)
    assert result.state == "complete"
    assert nrmse(volume, batch(raw, np.arange(N_ANGLES))) < 1e-5


def test_no_flats_at_all_is_said(raw, run):
    result, volume = run([*projections(raw, range(N_ANGLES)), END])
    metadata = json.loads((run.folder / "run-1" / "metadata.json").read_text())
    assert metadata["references"]["source"] == "assumed"
    assert result.state == "complete"
    assert nrmse(volume, batch(raw, np.arange(N_ANGLES)), fit=True) < 0.05


def test_without_flats_the_order_of_arrival_does_not_matter(raw, run):
    images, theta = raw
    drifting = np.linspace(1, 0.8, N_ANGLES)[:, None, None] * images
    drifting = drifting.astype(np.uint16), theta
    forward = run([*projections(drifting, range(N_ANGLES)), END])[1]
    back = run([*projections(drifting, reversed(range(N_ANGLES))), END])[1]
    assert nrmse(forward, back) < 1e-5


def test_a_flat_of_the_closed_shutter_does_not_count(raw, run):
    blank = Frame(9, Kind.FLAT, np.nan, np.zeros_like(REFERENCES[1].image))
    extra = [Announced(Kind.FLAT, 9, 10), blank]
    frames = [*projections(raw, range(N_ANGLES)), END]
    result, volume = run([*REFERENCES, *extra, *frames])
    expected = run([*REFERENCES, *frames])[1]
    np.testing.assert_array_equal(volume, expected)
    assert result.state == "partial"
    metadata = json.loads((run.folder / "run-1" / "metadata.json").read_text())
    assert metadata["references"]["flats"]["rejected_by"] == {"blank": 1}


def test_a_first_frame_unlike_the_flats_spoils_no_other(raw, run):
    images, theta = raw
    odd = Frame(0, Kind.PROJECTION, theta[0], images[0, :, :-2])
    items = [Announced(Kind.PROJECTION, 0, 1), odd, *projections(raw, range(1, 120))]
    result, volume = run([*REFERENCES, *items, END])
    assert result.ledger["rejected_by"] == {"wrong_shape": 1}
    assert result.ledger["used"] == N_ANGLES - 1
    assert nrmse(volume, batch(raw, np.arange(1, N_ANGLES))) < 1e-5


def test_flats_of_another_shape_than_all_frames_are_an_error(raw, run):
    images, theta = raw
    cut = images[:, :, :-2], theta
    with pytest.raises(InputError, match=r"flats have shape .* projections"):
        run([*REFERENCES, *projections(cut, range(N_ANGLES)), END])


def test_bad_frames_are_rejected_with_their_reasons(raw, run):
    images, theta = raw
    images = images.astype(np.float32)
    images[3] = np.nan
    images[4] = 0
    images[5, 2, 10] = np.nan
    items = list(projections((images, theta), range(N_ANGLES)))
    items[2 * 9 + 1] = Rejected(Kind.PROJECTION, 9, "unreadable")
    items[2 * 11 + 1] = Frame(11, Kind.PROJECTION, np.nan, images[11])
    result, volume = run([*REFERENCES, *items, END])
    assert result.ledger["rejected_by"] == {
        "non_finite": 1,
        "blank": 1,
        "unreadable": 1,
        "no_angle": 1,
    }
    assert result.state == "partial"
    assert np.isfinite(volume).all()


def test_nothing_usable_is_one_clear_error_and_writes_nothing(raw, run):
    images = np.full_like(raw[0], np.nan, dtype=np.float32)
    items = [*REFERENCES, *projections((images, raw[1]), range(N_ANGLES)), END]
    with pytest.raises(InputError, match="120 non_finite"):
        run(items)
    assert not any(run.folder.iterdir())


def test_center_is_measured_and_the_volume_rebuilt(raw, run):
    items = [*REFERENCES, *projections(raw, range(N_ANGLES)), END]
    result, volume = run(items, center=None)
    assert result.rotation_center_source == "measured"
    assert result.rotation_center == pytest.approx(CENTER, abs=0.3)
    given, expected = run(items, center=result.rotation_center)
    assert given.rotation_center_source == "given"
    assert nrmse(volume, expected) < 1e-5


def test_versions_are_counted_in_projections(raw, run):
    seen = []
    items = [*REFERENCES, *projections(raw, range(N_ANGLES)), END]
    run(items, progress=seen.append, **{"refresh.every": 0.25})
    first_told = {}
    for look in seen:
        first_told.setdefault(look.version, look)
    assert [first_told[k].n_used for k in (1, 2, 3, 4)] == [30, 60, 90, 120]
    assert first_told[4].state == "complete"


def test_the_last_volume_does_not_depend_on_the_looks_before(raw, run):
    items = [*REFERENCES, *projections(raw, range(N_ANGLES)), END]
    stages = [*PLAIN["preprocess"], "remove_rings"]
    often, rarely = (
        run(items, center=None, preprocess=stages, **{"refresh.every": every})[1]
        for every in (0.05, 1.0)
    )
    assert nrmse(often, rarely) < 5e-6


def test_an_aborted_run_leaves_what_it_has(raw, run):
    aborted = Closed("abort", "beam lost", None, 0)
    result, volume = run([*REFERENCES, *projections(raw, range(70)), aborted])
    assert result.state == "partial"
    assert result.ledger["missing_indices"] == [[70, N_ANGLES]]
    assert nrmse(volume, batch(raw, np.arange(70))) < 1e-5


def test_grids_that_do_not_fit_are_refused_before_they_are_made(raw, run):
    image = np.broadcast_to(np.uint16(1), (2_000, 10**5))
    huge = Frame(0, Kind.PROJECTION, 0.0, image)
    with pytest.raises(InputError, match="bin the detector"):
        run([Announced(Kind.PROJECTION, 0, 1), huge])
    assert not any(run.folder.iterdir())


def test_memory_budget_changes_nothing(raw, run):
    items = [*REFERENCES, *projections(raw, range(N_ANGLES)), END]
    _, spilled = run(items, **{"window.max_bytes": 10_000})
    np.testing.assert_array_equal(spilled, run(items)[1])


def test_too_few_columns_are_one_clear_error(raw, run):
    narrow = Frame(0, Kind.PROJECTION, 0.0, np.ones((4, 7), np.uint16))
    with pytest.raises(InputError, match=r"7 columns .* 8 or more"):
        run([Announced(Kind.PROJECTION, 0, 1), narrow], center=3.0)
    assert not any(run.folder.iterdir())
