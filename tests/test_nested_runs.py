"""Runs within runs, told by a real RunEngine: each volume is that of the run alone."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
import pytest
import zarr
from bluesky import RunEngine
from bluesky.utils import Msg, RunEngineInterrupted
from campaign.house import PATIENCE_S, House
from campaign.kills import SAME
from numpy.typing import NDArray
from ophyd.sim import SynAxis
from sessions import PLAIN
from step_detector import StepDetector
from telling import CENTER, GOLDEN

from ebl_stream.profile_file import load
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.result import Result

SETTINGS = PLAIN | {
    "reconstruct": {"fourier": {"padding": "zero"}},
    "geometry.rotation_center": CENTER,
    "keys.theta_unit": "rad",
    "files.timeout_s": 0.2,
    "refresh.every": 0.25,
    "preview.every": 0.0,
}
N_FLATS = 3

Plan = Iterator[Msg]
Step = Callable[[], Plan]


@dataclass
class Tomography:
    """A run with a detector and a motor of its own; the same each time it is run."""

    key: str
    n: int
    folder: Path | None = None
    """Frames go to a file there; else they are in the events."""
    seed: int = 0
    uid: str = ""
    axis: SynAxis = field(init=False)
    detector: StepDetector = field(init=False)

    def __post_init__(self) -> None:
        self.axis = SynAxis(name="theta")
        self.detector = StepDetector(self.axis, self.folder)

    def steps(self) -> Iterator[Step]:
        """Return the run point by point; each is a plan."""
        self.detector._rng = np.random.default_rng([self.seed, self.n])
        yield lambda: self._open()
        for k in range(N_FLATS):
            yield lambda k=k: self._point("flats", k)
        for k in range(self.n):
            yield lambda k=k: self._point("primary", k)
        yield lambda: self._close()

    def _open(self) -> Plan:
        yield from bps.stage(self.detector)
        self.uid = yield from bps.open_run({"n_projections": self.n})

    def _point(self, stream: str, k: int) -> Plan:
        self.detector.sees = "beam" if stream == "flats" else "sample"
        yield from bps.mv(self.axis, (k + 1) * GOLDEN % math.pi)
        yield from bps.trigger_and_read([self.detector, self.axis], name=stream)

    def _close(self) -> Plan:
        yield from bps.close_run()
        yield from bps.unstage(self.detector)


def keyed(step: Step, key: str) -> Plan:
    return bpp.set_run_key_wrapper(step(), key)


def overlapping(runs: list[Tomography], seed: int) -> Plan:
    """Take the next point of any run, as chance has it."""
    dice = np.random.default_rng(seed)
    left = {run.key: list(run.steps()) for run in runs}
    while left:
        key = str(dice.choice(sorted(left)))
        yield from bps.checkpoint()
        yield from keyed(left[key].pop(0), key)
        if not left[key]:
            del left[key]


def in_a_scan(inner: list[Tomography], heights: int, seed: int) -> Plan:
    """Scan a height; at each one tomographies overlap, in runs of their own."""
    height = SynAxis(name="height")
    yield from bpp.set_run_key_wrapper(bps.open_run({"plan_name": "outer"}), "outer")
    for z in range(heights):
        here = [run for k, run in enumerate(inner) if k % heights == z]
        yield from overlapping(here, seed + z)
        yield from bps.mv(height, z)
        read = bps.trigger_and_read([height])
        yield from bpp.set_run_key_wrapper(read, "outer")
    yield from bpp.set_run_key_wrapper(bps.close_run(), "outer")


def alone(run: Tomography) -> Plan:
    for step in run.steps():
        yield from step()


class Beamline:
    """A RunEngine with the reconstruction beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = RunEngine({}, context_managers=[])

    def run(self, plan: Plan) -> dict[str, Result]:
        """Run a plan; return what came of its runs."""
        house = Reconstruction(
            load("demo", SETTINGS), out=self.folder / "out", roots=[self.folder]
        )
        token = self.engine.subscribe(house)
        try:
            self.engine(plan)
        finally:
            self.engine.unsubscribe(token)
            house.close()
        return dict(house.results)

    def volume_alone(self, run: Tomography) -> NDArray[np.float32]:
        (result,) = self.run(alone(run)).values()
        return read(result.volume)


def read(path: Path | str) -> NDArray[np.float32]:
    return np.asarray(zarr.open_array(path, mode="r"))


def assert_whole(result: Result, run: Tomography) -> None:
    ledger = result.ledger
    assert (result.state, ledger["used"]) == ("complete", run.n)
    for how in ("superseded", "duplicate", "missing", "rejected", "residue", "orphan"):
        assert ledger[how] == 0, how


@pytest.fixture
def beamline(tmp_path: Path) -> Beamline:
    return Beamline(tmp_path)


def tomographies(n: int, folder: Path | None) -> list[Tomography]:
    """Some with frames in events, the others in files, or all in events."""
    return [
        Tomography(f"inner{k}", 12 + 4 * k, folder if k % 2 else None, seed=k)
        for k in range(n)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_tomographies_that_overlap_within_a_scan(beamline: Beamline, seed: int) -> None:
    inner = tomographies(4, beamline.folder)
    results = beamline.run(in_a_scan(inner, heights=1 + seed % 2, seed=seed))
    assert set(results) == {run.uid for run in inner}  # of the outer scan comes nothing
    for run in inner:
        assert_whole(results[run.uid], run)
        nested = read(results[run.uid].volume)
        assert np.ptp(nested) > 0.05  # there is something to see
        np.testing.assert_array_equal(nested, beamline.volume_alone(run))


def test_a_tomography_within_each_step_of_a_tomography(beamline: Beamline) -> None:
    """The outer run exposes, too, and inner ones use one detector after each other."""
    outer = Tomography("outer", 6, seed=9)
    inner = Tomography("inner", 12, beamline.folder, seed=3)
    inner_uids = list[str]()

    def plan() -> Plan:
        for k, step in enumerate(outer.steps()):
            yield from keyed(step, "outer")
            if k in (1, 3, 6):  # among its flats and among its projections
                for inner_step in inner.steps():
                    yield from keyed(inner_step, "inner")
                inner_uids.append(inner.uid)

    results = beamline.run(plan())
    uid = outer.uid
    assert set(results) == {uid, *inner_uids}
    assert len(inner_uids) == 3
    assert_whole(results[uid], outer)
    nested = read(results[uid].volume)
    np.testing.assert_array_equal(nested, beamline.volume_alone(outer))
    clean = beamline.volume_alone(inner)
    for inner_uid in inner_uids:
        assert_whole(results[inner_uid], inner)
        np.testing.assert_array_equal(read(results[inner_uid].volume), clean)


def test_a_pause_rewinds_only_the_run_that_it_hits(beamline: Beamline) -> None:
    """The RunEngine repeats one point of one run; of the others nothing changes."""
    inner = tomographies(3, beamline.folder)
    n_saved = 0

    def pause_once(message: Msg) -> Any:
        nonlocal n_saved
        n_saved += message.command == "save"
        is_due = message.command == "save" and n_saved == 25
        return None, (bps.pause() if is_due else None)

    plan = bpp.plan_mutator(in_a_scan(inner, 1, seed=1), pause_once)
    house = Reconstruction(
        load("demo", SETTINGS), out=beamline.folder / "out", roots=[beamline.folder]
    )
    beamline.engine.subscribe(house)
    with pytest.raises(RunEngineInterrupted):
        beamline.engine(plan)
    beamline.engine.resume()
    house.close()
    superseded = [house.results[run.uid].ledger["superseded"] for run in inner]
    assert sorted(superseded) == [0, 0, 1]
    for run, n_again in zip(inner, superseded, strict=True):
        result = house.results[run.uid]
        assert (result.state, result.ledger["used"]) == ("complete", run.n)
        if not n_again:
            clean = beamline.volume_alone(run)
            np.testing.assert_array_equal(read(result.volume), clean)


def test_through_the_door_of_a_service() -> None:
    folder = Path(tempfile.mkdtemp(prefix="ebl-nest-"))  # short: it holds a socket
    house = House(folder, settings=SETTINGS)
    engine = RunEngine({}, context_managers=[])
    engine.subscribe(house.door.send)
    inner = tomographies(3, folder)
    try:
        house.start()
        engine(in_a_scan(inner, heights=1, seed=5))
        nested = [house.door.wait(PATIENCE_S, run.uid) for run in inner]
        for run, result in zip(inner, nested, strict=True):
            assert (result["state"], result["ledger"]["used"]) == ("complete", run.n)
            engine(alone(run))
            clean = read(house.door.wait(PATIENCE_S, run.uid)["volume"])
            found = read(result["volume"])
            assert np.linalg.norm(found - clean) <= SAME * np.linalg.norm(clean)
    finally:
        house.close()
        shutil.rmtree(folder, ignore_errors=True)
