"""Runs that are denoised while they are scanned: when, of what, and what stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from learners import tiny_start
from noisy import error
from sessions import Outcome, counts, run

from ebl_stream import profile_file as profiles
from ebl_stream.engine import viewer
from ebl_stream.engine.interpret import MONITORS
from ebl_stream.engine.rooms import Rooms
from ebl_stream.errors import InputError
from ebl_stream.nets import in_scan
from ebl_stream.nets.guard import Candidate, raw
from ebl_stream.nets.trainer import Trainer, weights_hash
from ebl_stream.publish.output import RunOutput
from ebl_stream.simulation.phantom import Foam, golden_angles
from ebl_stream.stages import denoise_nets
from ebl_stream.stages.segment import MultiOtsu

N, ROWS, VIEWS, STEPS = 32, 32, 60, 20
CONTRAST = 0.08
SLABS = {"slab_rows": 4}
ROOM = {"noise2inverse": {"model": None, "steps": STEPS, "rate": 1e-2}}
Write = tuple[str, int, int]


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    """Nets as small as they can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_scan, "random_start", tiny_start)
        yield


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray]:
    """Images and angles: noise lies above the contrast."""
    theta = golden_angles(VIEWS)
    return counts(CONTRAST * Foam(N, ROWS).project(theta)), theta


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, scan: Any) -> Outcome:
    """The run without a denoiser."""
    return run(tmp_path_factory.mktemp("plain"), *scan, refresh=SLABS)


@pytest.fixture(scope="module")
def denoised(tmp_path_factory: pytest.TempPathFactory, scan: Any) -> Outcome:
    """The run with one."""
    folder = tmp_path_factory.mktemp("denoised")
    return run(folder, *scan, refresh=SLABS, denoise=ROOM)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[Write]:
    """What is written, in order: array, first slice, version."""
    made: list[Write] = []
    write = RunOutput.write

    def noted(self: RunOutput, name: str, z0: int, slab: Any, **stamp: Any) -> None:
        made.append((name, z0, stamp["version"]))
        write(self, name, z0, slab, **stamp)

    monkeypatch.setattr(RunOutput, "write", noted)
    return made


def rows_of(outcome: Outcome) -> list[dict[str, Any]]:
    lines = (outcome.output.folder / "quality.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same_volume(one: Outcome, other: Outcome) -> None:
    """Up to rounding: a live run adds its projections in blocks of other sizes."""
    volume = other.array()
    np.testing.assert_allclose(one.array(), volume, atol=1e-4 * volume.std())


LEARNED = (
    "denoised_by",
    "denoised_weights",
    "denoised_steps",
    "uncertainty_split",
    "uncertainty_ensemble",
    "data_residual",
    "data_residual_raw",
    "data_noise",
)


def test_the_raw_volume_is_as_without(plain: Outcome, denoised: Outcome) -> None:
    """Learning changes nothing, and no figure is made of what a net has seen."""
    np.testing.assert_array_equal(denoised.array(), plain.array())
    assert (denoised.array("denoised") != plain.array()).any()
    assert denoised.result.quality == plain.result.quality
    figures = [
        {k: v for k, v in row.items() if k not in LEARNED} for row in rows_of(denoised)
    ]
    assert figures == rows_of(plain)
    assert {"frc_mean", "resolution_px"} <= set(figures[0])


def test_two_replays_are_the_same(tmp_path: Path, scan: Any, denoised: Outcome) -> None:
    other = run(tmp_path, *scan, refresh=SLABS, denoise=ROOM)
    np.testing.assert_array_equal(denoised.array("denoised"), other.array("denoised"))
    assert rows_of(denoised) == rows_of(other)
    assert denoised.metadata["denoise"] == other.metadata["denoise"]
    assert denoised.metadata["denoise"]["steps_taken"] == STEPS


def test_it_is_better_than_what_was_measured(denoised: Outcome) -> None:
    truth = CONTRAST * Foam(N, ROWS).volume()
    measured, clean = (
        error(denoised.array(name), truth) for name in ("recon", "denoised")
    )
    assert clean < 0.8 * measured


def test_a_slab_before_the_end_names_weights_of_the_scan(
    tmp_path: Path, scan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 60 % of the angles, where no filter is better by then."""
    monkeypatch.setattr(in_scan, "linear", lambda _: Candidate("noise2filter", raw))
    monkeypatch.setattr(in_scan, "MOST_PASSES", 10**6)
    monkeypatch.setattr(in_scan, "IN_SCAN", 1.0)  # so few steps are soon too few
    room = {"noise2inverse": {"model": None, "steps": 240, "rate": 1e-2}}
    refresh = SLABS | {"every": 0.5, "interpret_every": 1}
    outcome = run(tmp_path, *scan, refresh=refresh, denoise=room)
    told = outcome.metadata["denoise"]
    early = [row for row in rows_of(outcome) if row["coverage"] < 0.6]
    named = [row for row in early if row["denoised_by"]]
    assert len(named) >= 4
    start = weights_hash(tiny_start().net)
    assert told["start"]["weights"] == start
    for row in named:
        assert row["denoised_by"] == "adapted"
        assert 0 < row["denoised_steps"] <= 240 * row["coverage"]
        assert len(row["denoised_weights"]) == 16
        assert not start.startswith(row["denoised_weights"])


@pytest.mark.parametrize("asked", ["profile", "viewer"])
def test_before_the_end_what_is_watched_and_some_more(
    tmp_path: Path, scan: Any, writes: list[Write], asked: str
) -> None:
    """At the end all, what is watched first; each as the version it is of."""
    refresh: dict[str, Any] = dict(SLABS, interpret_every=4)
    hooks = []
    if asked == "profile":
        refresh["first_rows"] = (21, 23)
    else:

        def wish(session: Any, _: Any) -> None:
            folder = session._views.output.folder
            if folder.exists() and not (folder / viewer.NAME).exists():
                viewer.write_wishes(folder, viewer.Wishes(rows=(21, 23)))

        hooks = [wish]
    outcome = run(tmp_path, *scan, hooks=hooks, refresh=refresh, denoise=ROOM)
    coverage = {row["version"]: row["coverage"] for row in rows_of(outcome)}
    before = [w for w in writes if w[0] == "denoised" and coverage.get(w[2], 1) < 1]
    assert {version % 4 for *_, version in before} == {0}
    slabs = [z for _, z, version in before if version == 4]
    assert 20 in slabs
    assert 2 <= len(slabs) <= 1 + MONITORS
    last = max(version for name, _, version in writes if name == "recon")
    after = [w for w in writes if w[0] == "denoised" and w[2] == last]
    assert {z for _, z, _ in after} == set(range(0, ROWS, 4))
    assert after[0][1] == 20
    # Who watches need not wait until the whole volume is written.
    written = [k for k, w in enumerate(writes) if w[0] == "recon" and w[2] == last]
    assert writes.index(after[0]) < written[-1]


def test_each_slab_carries_the_version_it_was_made_from(denoised: Outcome) -> None:
    arrays = denoised.metadata["slabs"]
    assert arrays["denoised"] == arrays["recon"]


def test_labels_lie_where_their_slabs_do(
    tmp_path: Path, scan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is looked at first, and before the end where but some slabs are."""
    shapes: set[tuple[Any, Any]] = set()
    segment = MultiOtsu.__call__

    def noted(self: MultiOtsu, volume: Any, denoised: Any) -> Any:
        shapes.add((volume.shape, denoised.shape))
        return segment(self, volume, denoised)

    monkeypatch.setattr(MultiOtsu, "__call__", noted)
    refresh = SLABS | {"interpret_every": 2}
    for room in (None, "wiener"):
        labels = [
            run(tmp_path, *scan, refresh=each, denoise=room, segment="multi_otsu")
            for each in (refresh, refresh | {"first_rows": [21, 23]})
        ]
        one, other = (each.array("labels") for each in labels)
        assert len(np.unique(one)) > 1
        np.testing.assert_array_equal(one, other)
    assert len(shapes) > 1  # of all slabs, and of some
    assert all(volume == denoised for volume, denoised in shapes)


# --- live ---------------------------------------------------------------------------


def test_a_live_run_learns_to_its_budget(
    tmp_path: Path, scan: Any, plain: Outcome
) -> None:
    live = run(tmp_path, *scan, refresh=SLABS, denoise=ROOM, is_behind=lambda: False)
    assert live.metadata["denoise"]["steps_taken"] == STEPS
    assert live.metadata["denoise"]["by"] != "fbp"
    assert_same_volume(live, plain)


def test_a_run_that_others_wait_for_is_not_held_up(tmp_path: Path, scan: Any) -> None:
    live = run(tmp_path, *scan, refresh=SLABS, denoise=ROOM, is_behind=lambda: True)
    assert live.result.state == "complete"
    assert live.metadata["denoise"]["steps_taken"] == 0
    assert np.isfinite(live.array("denoised")).all()


# --- what goes wrong ----------------------------------------------------------------


@pytest.mark.parametrize("is_behind", [None, lambda: False], ids=["replay", "live"])
@pytest.mark.parametrize("fault", [RuntimeError("no"), MemoryError()], ids=str)
def test_a_trainer_that_dies_harms_no_scan(
    tmp_path: Path,
    scan: Any,
    plain: Outcome,
    fault: Exception,
    is_behind: Callable[[], bool] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(*_: Any) -> float:
        raise fault

    monkeypatch.setattr(Trainer, "step", die)
    outcome = run(tmp_path, *scan, refresh=SLABS, denoise=ROOM, is_behind=is_behind)
    assert outcome.result.state == "complete"
    assert_same_volume(outcome, plain)
    told = outcome.metadata["denoise"]
    assert told["failed"].startswith(type(fault).__name__)
    assert told["by"] == "noise2filter"
    assert {row["denoised_by"] for row in rows_of(outcome)[-ROWS // 4 :]} == {
        "noise2filter"
    }
    assert (outcome.array("denoised") != plain.array()).any()


@pytest.mark.parametrize(("n", "rows"), [(8, 3), (33, 1), (8, 1)])
def test_tiny_runs(tmp_path: Path, n: int, rows: int) -> None:
    theta = golden_angles(40)
    images = counts(np.full((40, rows, n), 0.5))
    outcome = run(tmp_path, images, theta, refresh=SLABS, denoise=ROOM)
    assert outcome.result.state == "complete"
    assert "failed" not in outcome.metadata["denoise"]
    assert outcome.array("denoised").shape == (rows, n, n)
    assert np.isfinite(outcome.array("denoised")).all()


def test_without_torch_a_filter_stands_in(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(denoise_nets, "find_spec", lambda name: None)
    rooms = Rooms.furnish(profiles.load("demo", {"denoise": ROOM}))
    assert type(rooms.denoise).__name__ == "Wiener"
    (line,) = [r.getMessage() for r in caplog.records if "PyTorch" in r.getMessage()]
    assert "noise2inverse" in line
    assert "pip install 'ebl-stream[learn]'" in line
    assert "\n" not in line


def test_a_model_that_is_not_there_is_said_before_the_scan() -> None:
    asked = {"noise2inverse": {"model": "no-such-model"}}
    with pytest.raises(InputError, match="no-such-model") as told:
        Rooms.furnish(profiles.load("demo", {"denoise": asked}))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": -1}, "steps must be"),
        ({"steps": 0, "model": None}, "without a model"),
        ({"rate": 0}, "rate must be"),
        ({"rate": float("nan")}, "rate must be"),
        ({"stepps": 3}, "stepps"),
    ],
)
def test_settings_that_make_no_sense(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Rooms.furnish(profiles.load("demo", {"denoise": {"noise2inverse": setting}}))


def test_where_memory_is_short_nobody_learns(tmp_path: Path, scan: Any) -> None:
    short = run(tmp_path, *scan, refresh=SLABS, denoise=ROOM, memory=1.7e6)
    told = short.metadata
    assert told["memory"]["rung"] >= 3
    assert not told["memory"]["interpreted"]
    assert (told["denoise"]["by"], told["denoise"]["steps_taken"]) == ("fbp", 0)
    assert not short.output.path("denoised").exists()
