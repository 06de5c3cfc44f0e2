"""A real RunEngine that is paused, suspended, stopped and aborted, and its volumes."""

from __future__ import annotations

import json
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
import pytest
import zarr
from bluesky import RunEngine
from bluesky.suspenders import SuspendBoolHigh
from bluesky.utils import Msg, RunEngineInterrupted
from numpy.typing import NDArray
from ophyd import Signal
from ophyd.sim import SynAxis
from ophyd_async.core import init_devices
from sessions import PLAIN
from step_detector import BrokenShutterError, StepDetector
from telling import CENTER, GOLDEN

from ebl_stream.profile_file import load
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.result import Result
from ebl_stream.simulation.devices import RotationStage, TomoDetector
from ebl_stream.simulation.phantom import Foam
from ebl_stream.simulation.plan import tomo_scan
from ebl_stream.stages.reconstruct import Fourier

CAMPAIGN = os.environ.get("EBL_STREAM_CAMPAIGN") == "1"
PATTERNS = 200 if CAMPAIGN else 20
ANGLES = 24
PROFILE = load(
    "demo",
    PLAIN
    | {
        "reconstruct": {"fourier": {"padding": "zero"}},
        "geometry.rotation_center": CENTER,
        "keys.theta_unit": "rad",
        "files.timeout_s": 0.2,
        "refresh.every": 0.25,
    },
)

SEES = {"flats": "beam", "darks": "nothing", "primary": "sample"}

Mutate = Callable[[Msg], Any]


class Heard:
    """What the documents said last of every event, and what they said again."""

    def __init__(self) -> None:
        self.streams: dict[str, str] = {}
        self.places: dict[str, dict[int, int]] = {}
        self.events: dict[str, dict[int, dict[str, Any]]] = {}
        self.n_again: Counter[str] = Counter()
        self.stop: dict[str, Any] = {}

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        if name == "descriptor":
            self.streams[doc["uid"]] = doc["name"]
        elif name == "stream_datum":
            places = self.places.setdefault(self.streams[doc["descriptor"]], {})
            places[doc["seq_nums"]["start"]] = doc["indices"]["start"]
        elif name == "event":
            stream = self.streams[doc["descriptor"]]
            events = self.events.setdefault(stream, {})
            self.n_again[stream] += doc["seq_num"] in events
            events[doc["seq_num"]] = doc["data"]
        elif name == "stop":
            self.stop = doc

    def images(self, stream: str, detector: StepDetector) -> NDArray[np.float64]:
        events = self.events[stream]
        places = self.places.get(stream)
        return np.stack(
            [
                detector.frames[places[k]] if places else events[k]["image"]
                for k in sorted(events)
            ]
        ).astype(float)


class Beamline:
    """A RunEngine, a motor, a detector, and the reconstruction beside them."""

    def __init__(
        self, folder: Path, *, in_file: bool, fails_at: int | None = None
    ) -> None:
        self.axis = SynAxis(name="theta")
        where = folder if in_file else None
        self.detector = StepDetector(self.axis, where, fails_at)
        self.engine = RunEngine({}, context_managers=[])
        self.out = folder / "out"
        self.roots = [folder]

    def scan(
        self,
        mutate: Mutate | None = None,
        after_pause: Callable[[], str] = lambda: "resume",
        *,
        every: int = 1,
        streams: tuple[str, ...] = ("flats", "primary"),
    ) -> tuple[Result, Heard]:
        """Scan to the end, whatever happens on the way."""
        heard = Heard()
        house = Reconstruction(PROFILE, out=self.out, roots=self.roots)
        tokens = [self.engine.subscribe(house), self.engine.subscribe(heard)]
        whole = self._plan(every, streams)
        if mutate is not None:
            whole = bpp.plan_mutator(whole, mutate)
        try:
            self._run(whole, after_pause)
        finally:
            for token in tokens:
                self.engine.unsubscribe(token)
            house.close()
            (result,) = house.results.values()
            self.last = result, heard
        return self.last

    def _run(self, plan: Iterator[Msg], after_pause: Callable[[], str]) -> None:
        go_on: Callable[[], Any] = lambda: self.engine(plan)  # noqa: E731
        while True:
            try:
                go_on()
                return
            except RunEngineInterrupted:
                if self.engine.state != "paused":
                    return  # what was asked for came true
                go_on = getattr(self.engine, after_pause())

    def _plan(self, every: int, streams: tuple[str, ...]) -> Iterator[Msg]:
        """Streams one after the other, with a checkpoint before every few events."""

        def expose() -> Iterator[Msg]:
            for stream in streams:
                self.detector.sees = SEES[stream]
                if not every:
                    yield from bps.clear_checkpoint()
                for k in range(ANGLES if stream == "primary" else 4):
                    if every and k % every == 0:
                        yield from bps.checkpoint()
                    yield from bps.mv(self.axis, (k + 1) * GOLDEN % math.pi)
                    devices: list[Any] = [self.detector, self.axis]
                    yield from bps.trigger_and_read(devices, name=stream)

        staged = bpp.stage_wrapper(expose(), [self.detector])
        return bpp.run_wrapper(staged, md={"n_projections": ANGLES})

    def batch(self, heard: Heard) -> NDArray[np.float32]:
        """Reconstruct the last frame of every event at once."""
        projections = heard.images("primary", self.detector)
        flat = heard.images("flats", self.detector).mean(0)
        dark = 0.0
        if "darks" in heard.events:
            dark = heard.images("darks", self.detector).mean(0)
        values = -np.log(np.clip((projections - dark) / (flat - dark), 1e-5, None))
        events = heard.events["primary"]
        theta = np.array([events[k]["theta"] for k in sorted(events)])
        return Fourier(padding="zero")(values.astype(np.float32), theta, CENTER)


def check(beamline: Beamline, result: Result, heard: Heard) -> dict[str, Any]:
    """Compare a volume with that of the last frames; return its metadata."""
    volume = np.asarray(zarr.open_array(result.volume, mode="r"))
    batch = beamline.batch(heard)
    assert np.abs(volume - batch).max() <= 1e-5 * np.abs(batch).max()
    folder = Path(result.volume).parent
    metadata = json.loads((folder / "metadata.json").read_text())
    flats = metadata["references"]["flats"]
    for ledger in (result.ledger, flats, metadata["references"]["darks"]):
        assert (ledger["residue"], ledger["alarm"], ledger["duplicate"]) == (0, None, 0)
    assert result.ledger["superseded"] == heard.n_again["primary"]
    assert flats["superseded"] == heard.n_again["flats"]
    return metadata


def pausing(after: dict[str, set[int]]) -> Mutate:
    """Pause after the n-th message of a kind."""
    seen = dict.fromkeys(after, 0)

    def mutate(message: Msg) -> Any:
        if message.command not in after:
            return None, None
        seen[message.command] += 1
        is_due = seen[message.command] in after[message.command]
        return None, (bps.pause() if is_due else None)

    return mutate


@pytest.mark.parametrize("in_file", [False, True], ids=["events", "file"])
def test_pauses_at_random_points_leave_the_volume_as_it_was(
    tmp_path: Path, in_file: bool
) -> None:
    """The RunEngine rewinds to its checkpoint and exposes again, with other noise."""
    beamline = Beamline(tmp_path, in_file=in_file)
    rng = np.random.default_rng(7)
    n_again = n_orphan = 0
    for _ in range(PATTERNS // 2):
        # Between exposure and event, too: then a frame is written and never told of.
        after = {
            command: set(rng.integers(5, 2 * ANGLES, rng.integers(0, 4)).tolist())
            for command in ("save", "trigger", "set")
        }
        every = int(rng.integers(1, 8))
        result, heard = beamline.scan(pausing(after), every=every)
        check(beamline, result, heard)
        assert (result.state, result.ledger["used"]) == ("complete", ANGLES)
        n_again += result.ledger["superseded"]
        n_orphan += result.ledger["orphan"]
    assert n_again > PATTERNS
    assert (n_orphan > 0) == in_file


def test_every_repeat_is_counted_as_superseded(tmp_path: Path) -> None:
    beamline = Beamline(tmp_path, in_file=True)
    result, heard = beamline.scan(pausing({"save": {4 + 7, 4 + 20}}), every=5)
    check(beamline, result, heard)
    # Checkpoints lie before events 6 and 16; pauses come after 7 and 20.
    assert result.ledger["superseded"] == 2 + 5
    assert result.ledger["orphan"] == 0


def test_flats_are_retaken_too(tmp_path: Path) -> None:
    """One that saw no beam, and was taken again for that, does not count."""
    for in_file in (False, True):
        beamline = Beamline(tmp_path, in_file=in_file)
        beamline.detector.without_beam = {2}
        result, heard = beamline.scan(pausing({"save": {3}}), every=2)
        flats = check(beamline, result, heard)["references"]["flats"]
        assert (flats["used"], flats["superseded"], flats["residue"]) == (4, 1, 0)
        assert result.state == "complete"


def test_flats_after_a_rewound_scan(tmp_path: Path) -> None:
    beamline = Beamline(tmp_path, in_file=True)
    streams = ("primary", "darks", "flats")
    pause = pausing({"save": {9, 20, 31}})
    result, heard = beamline.scan(pause, every=4, streams=streams)
    check(beamline, result, heard)
    assert result.state == "complete"
    assert result.ledger["superseded"] > 0 < heard.n_again["flats"]


def test_a_suspender_rewinds_as_a_pause_does(tmp_path: Path) -> None:
    beamline = Beamline(tmp_path, in_file=True)
    beam_lost = Signal(name="beam_lost", value=0)
    beamline.engine.install_suspender(SuspendBoolHigh(beam_lost, sleep=0))
    n_saved = 0

    def mutate(message: Msg) -> Any:
        nonlocal n_saved
        n_saved += message.command == "save"
        if message.command != "save" or n_saved != 15:
            return None, None

        def lose_beam() -> Iterator[Msg]:
            threading.Timer(0.2, beam_lost.put, args=[0]).start()
            beam_lost.put(1)
            yield from bps.sleep(0.05)

        return None, lose_beam()

    result, heard = beamline.scan(mutate, every=6)
    check(beamline, result, heard)
    assert result.state == "complete"
    assert result.ledger["superseded"] > 0


# ---------------------------------------------------- scans that do not get through


@pytest.mark.parametrize(
    ("after_pause", "status"),
    [("abort", "abort"), ("halt", "abort"), ("stop", "success")],
)
@pytest.mark.parametrize("in_file", [False, True], ids=["events", "file"])
def test_what_was_taken_of_a_scan_that_was_given_up(
    tmp_path: Path, in_file: bool, after_pause: str, status: str
) -> None:
    beamline = Beamline(tmp_path, in_file=in_file)
    # Once rewound, once given up: events 1 to 15, the 7th to 9th of them twice.
    first = pausing({"save": {4 + 9, 4 + 9 + 6}})
    answers = iter(["resume", after_pause])
    result, heard = beamline.scan(first, lambda: next(answers), every=6)
    metadata = check(beamline, result, heard)
    assert heard.stop["exit_status"] == metadata["exit_status"] == status
    assert (result.state, result.exit_code) == ("partial", 3)
    assert result.ledger["used"] == 15
    assert result.ledger["superseded"] == 3
    assert result.ledger["missing_indices"] == [[15, ANGLES]]


@pytest.mark.parametrize("in_file", [False, True], ids=["events", "file"])
def test_a_device_that_fails(tmp_path: Path, in_file: bool) -> None:
    beamline = Beamline(tmp_path, in_file=in_file, fails_at=4 + 10)
    with pytest.raises(BrokenShutterError):
        beamline.scan()
    result, heard = beamline.last
    metadata = check(beamline, result, heard)
    assert (result.state, metadata["exit_status"]) == ("partial", "fail")
    assert metadata["reason"] == "it is stuck"
    assert result.ledger["missing_indices"] == [[10, ANGLES]]


def test_a_plan_without_checkpoints_is_aborted_by_a_pause(tmp_path: Path) -> None:
    """The RunEngine cannot rewind it; what there is of it stays right."""
    beamline = Beamline(tmp_path, in_file=True)
    result, heard = beamline.scan(pausing({"save": {4 + 15}}), every=0)
    metadata = check(beamline, result, heard)
    assert (result.state, metadata["exit_status"]) == ("partial", "abort")
    assert (result.ledger["used"], result.ledger["superseded"]) == (15, 0)
    # The engine, the detector and the reconstruction are fit for the next scan.
    result, heard = beamline.scan(every=1)
    check(beamline, result, heard)
    assert result.state == "complete"


# --------------------------------------------------------------------- fly scans


@pytest.mark.parametrize("defer", [True, False], ids=["deferred", "at once"])
def test_a_fly_scan_that_is_paused(tmp_path: Path, defer: bool) -> None:
    """A deferred pause waits for the next stream; one at once ends the turn."""
    engine = RunEngine({}, context_managers=[])
    with init_devices():
        stage = RotationStage()
        camera = TomoDetector(tmp_path, stage, Foam(32, 4, seed=1))
    house = Reconstruction(PROFILE, out=tmp_path / "out", roots=[tmp_path])
    n_pauses, streams, paused_in = 0, dict[str, str](), list[str]()

    def pause_once(name: str, doc: dict[str, Any]) -> None:
        if name == "descriptor":
            streams[doc["uid"]] = doc["name"]
        if name != "stream_datum" or paused_in:
            return
        stream = streams[doc["descriptor"]]
        if defer or stream != "flats":
            paused_in.append(stream)
            threading.Thread(target=engine.request_pause, args=[defer]).start()

    engine.subscribe(house)
    engine.subscribe(pause_once)
    plan = tomo_scan(
        camera,
        stage,
        30,
        rate_hz=60 if defer else 20,
        n_flats=8,
        n_darks=0,
        rotation_center=15.5,
        flush_period_s=0.05,
    )
    go_on: Callable[[], Any] = lambda: engine(plan)  # noqa: E731
    while engine.state != "idle" or not n_pauses:
        try:
            go_on()
        except RunEngineInterrupted:
            n_pauses, go_on = n_pauses + 1, engine.resume
    house.close()
    (result,) = house.results.values()
    ledger = result.ledger
    assert (n_pauses, ledger["residue"], ledger["alarm"]) == (1, 0, None)
    if defer:
        assert (result.state, ledger["used"]) == ("complete", 30)
    else:
        assert result.state == "partial"
        assert ledger["missing_indices"] == [[ledger["used"], 30]]
