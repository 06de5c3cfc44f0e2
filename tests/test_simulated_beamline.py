"""The simulated beamline: devices, plans, faults; real RunEngine, real files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import event_model
import h5py
import numpy as np
import pytest
from bluesky import RunEngine
from event_model import DocumentNames, schema_validators
from ophyd.sim import SynAxis
from ophyd_async.core import init_devices

from ebl_stream.errors import InputError
from ebl_stream.simulation.classic import SimulatedCamera, classic_scan
from ebl_stream.simulation.detector import DetectorModel
from ebl_stream.simulation.devices import (
    DATA,
    THETA,
    FrameFile,
    RotationStage,
    TomoDetector,
)
from ebl_stream.simulation.faults import LostProjections
from ebl_stream.simulation.phantom import (
    Foam,
    golden_angles,
    interlaced_angles,
    sequential_angles,
)
from ebl_stream.simulation.plan import tomo_scan

Documents = list[tuple[str, dict[str, Any]]]

COLUMNS, ROWS, CENTER, N = 48, 16, 24.6, 40


class Beamline:
    """A RunEngine with the simulated devices, and the documents of its runs."""

    def __init__(self, directory: Path) -> None:
        self.RE = RunEngine()
        self.phantom = Foam(COLUMNS, ROWS)
        self.model = DetectorModel(ROWS, COLUMNS, seed=9)
        with init_devices():
            self.stage = RotationStage()
            self.detector = TomoDetector(
                directory,
                self.stage,
                self.phantom,
                self.model,
                rotation_center=CENTER,
                name="camera",
            )

    def scan(self, *callbacks: Any, **settings: Any) -> Documents:
        documents: Documents = []
        tokens = [self.RE.subscribe(each) for each in callbacks]
        tokens.append(self.RE.subscribe(lambda *pair: documents.append(pair)))
        settings = {"rate_hz": 2000, "n_flats": 5, "n_darks": 4} | settings
        try:
            self.RE(tomo_scan(self.detector, self.stage, N, **settings))
        finally:
            for token in tokens:
                self.RE.unsubscribe(token)
        return documents


@pytest.fixture(scope="module")
def beamline(tmp_path_factory: pytest.TempPathFactory) -> Beamline:
    return Beamline(tmp_path_factory.mktemp("frames"))


@pytest.fixture(scope="module")
def documents(beamline: Beamline) -> Documents:
    return beamline.scan(rotation_center=CENTER, md={"operator": "nobody"})


def of(documents: Documents, name: str) -> list[dict[str, Any]]:
    return [doc for each, doc in documents if each == name]


def stored(documents: Documents) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield stream name, frames and angles (deg) from the files of a run."""
    streams = {doc["uid"]: doc["name"] for doc in of(documents, "descriptor")}
    resources = {doc["uid"]: doc for doc in of(documents, "stream_resource")}
    held: dict[str, dict[str, np.ndarray]] = {}
    for datum in of(documents, "stream_datum"):
        resource = resources[datum["stream_resource"]]
        path = resource["uri"].removeprefix("file://localhost")
        with h5py.File(path, "r") as file:
            values = file[resource["parameters"]["dataset"]][()]
        held.setdefault(streams[datum["descriptor"]], {})[resource["data_key"]] = values
    for name, keys in held.items():
        yield name, keys["camera"], keys["camera-theta"]


def assert_valid(documents: Documents) -> None:
    for name, doc in documents:
        schema_validators[DocumentNames[name]].validate(doc)


def test_the_fly_scan_emits_valid_documents(documents: Documents) -> None:
    assert_valid(documents)
    (start,), (stop,) = of(documents, "start"), of(documents, "stop")
    assert start["plan_name"] == "tomo_scan"
    assert start["n_projections"] == N
    assert start["rotation_center"] == CENTER
    assert start["voxel_size_um"] == 1.0
    assert start["operator"] == "nobody"
    assert stop["exit_status"] == "success"
    assert stop["num_events"] == {"darks": 4, "flats": 5, "primary": N}


def test_the_angle_says_its_unit(documents: Documents) -> None:
    for descriptor in of(documents, "descriptor"):
        assert descriptor["data_keys"]["camera-theta"]["units"] == "deg"
        assert descriptor["data_keys"]["camera"]["shape"] == [1, ROWS, COLUMNS]


def test_the_files_hold_what_the_model_predicts(
    beamline: Beamline, documents: Documents
) -> None:
    streams = {name: (frames, theta) for name, frames, theta in stored(documents)}
    path = beamline.phantom.project(golden_angles(N), CENTER)
    predicted = beamline.model.projections(path)
    frames, theta_deg = streams["primary"]
    assert np.array_equal(frames, predicted)
    assert np.array_equal(theta_deg, np.rad2deg(golden_angles(N)))
    assert np.array_equal(streams["flats"][0], beamline.model.flats(5))
    assert np.array_equal(streams["darks"][0], beamline.model.darks(4))


def test_every_frame_is_announced_once_and_in_order(documents: Documents) -> None:
    resources = {
        doc["uid"]: doc["data_key"] for doc in of(documents, "stream_resource")
    }
    (primary,) = [d for d in of(documents, "descriptor") if d["name"] == "primary"]
    announced: dict[str, list[int]] = {"camera": [], "camera-theta": []}
    for datum in of(documents, "stream_datum"):
        if datum["descriptor"] == primary["uid"]:
            indices = range(datum["indices"]["start"], datum["indices"]["stop"])
            announced[resources[datum["stream_resource"]]] += indices
    assert announced == {"camera": [*range(N)], "camera-theta": [*range(N)]}


def test_streams_can_be_left_out_and_the_center_unsaid(beamline: Beamline) -> None:
    documents = beamline.scan(n_flats=0, n_darks=0, order="interlaced")
    assert [doc["name"] for doc in of(documents, "descriptor")] == ["primary"]
    assert "rotation_center" not in of(documents, "start")[0]
    ((_, _, theta_deg),) = stored(documents)
    assert np.array_equal(theta_deg, np.rad2deg(interlaced_angles(N, 8)))


def test_a_run_that_fails_stops_cleanly_and_the_next_one_works(
    beamline: Beamline,
) -> None:
    class ShutterBrokeError(Exception):
        pass

    documents: Documents = []
    stream: list[str] = []

    def fail(name: str, doc: dict[str, Any]) -> None:
        documents.append((name, doc))
        if name == "descriptor":
            stream.append(doc["name"])
        if name == "stream_datum" and stream[-1] == "primary":
            raise ShutterBrokeError

    with pytest.raises(ShutterBrokeError):
        beamline.scan(fail, rate_hz=50, flush_period_s=0.02)
    assert of(documents, "stop")[0]["exit_status"] == "fail"
    again = beamline.scan()
    assert of(again, "stop")[0]["exit_status"] == "success"


def test_a_scan_that_cannot_be_is_refused_before_it_starts(beamline: Beamline) -> None:
    with pytest.raises(InputError, match="rate must be positive"):
        beamline.scan(rate_hz=0)
    with pytest.raises(InputError, match="interlaced"):
        beamline.scan(order="interlacd")


READER = """
import sys, h5py
with h5py.File(sys.argv[1], "r", libver="latest", swmr=True) as file:
    data = file["/entry/data/data"]
    for _ in sys.stdin:
        data.refresh()
        print(data.shape[0], int(data[-1].sum()), flush=True)
"""


def test_another_process_reads_the_file_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "frames.h5"
    file = FrameFile(path, (4, 6))
    file.append(np.full((4, 6), 1, np.uint16), 0.0)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    for n in (2, 3, 4):
        file.append(np.full((4, 6), n, np.uint16), 10.0 * n)
        reader.stdin.write("look\n")
        reader.stdin.flush()
        assert reader.stdout.readline().split() == [str(n), str(24 * n)]
    reader.communicate(timeout=30)
    assert reader.returncode == 0
    file.close()
    with h5py.File(path, "r") as closed:
        assert closed[DATA].shape == (4, 4, 6)
        assert closed[THETA][()].tolist() == [0.0, 20.0, 30.0, 40.0]


def test_a_classic_scan_carries_its_images_in_its_events() -> None:
    phantom, model = Foam(COLUMNS, ROWS), DetectorModel(ROWS, COLUMNS, seed=2)
    axis = SynAxis(name="theta")
    camera = SimulatedCamera(axis, phantom, model, rotation_center=CENTER)
    documents: Documents = []
    RunEngine()(
        classic_scan(camera, axis, 6, n_flats=3, n_darks=2),
        lambda *pair: documents.append(pair),
    )
    assert_valid(documents)
    assert of(documents, "start")[0]["n_projections"] == 6
    streams = {doc["uid"]: doc["name"] for doc in of(documents, "descriptor")}
    images: dict[str, list[np.ndarray]] = {"darks": [], "flats": [], "primary": []}
    for event in of(documents, "event"):
        images[streams[event["descriptor"]]].append(event["data"]["camera_image"])
    theta = np.array(
        [e["data"]["theta"] for e in of(documents, "event") if "theta" in e["data"]]
    )
    np.testing.assert_allclose(np.deg2rad(theta), sequential_angles(6))
    predicted = model.projections(phantom.project(np.deg2rad(theta), CENTER))
    assert np.array_equal(images["primary"], predicted)
    assert np.array_equal(images["flats"], model.flats(3))
    assert np.array_equal(images["darks"], model.darks(2))


# ------------------------------------------------------------------ faults


def test_lost_projections_are_cut_out_of_the_documents(documents: Documents) -> None:
    lost = {0, 3, 4, N - 1}
    left: Documents = []
    lossy = LostProjections(lambda *pair: left.append(pair), lost)
    for name, doc in documents:
        lossy(name, doc)
    assert_valid(left)
    (primary,) = [d for d in of(left, "descriptor") if d["name"] == "primary"]
    resources = {doc["uid"]: doc["data_key"] for doc in of(left, "stream_resource")}
    seen: dict[str, list[int]] = {"camera": [], "camera-theta": []}
    for datum in of(left, "stream_datum"):
        if datum["descriptor"] == primary["uid"]:
            indices, seq_nums = datum["indices"], datum["seq_nums"]
            assert seq_nums["start"] == indices["start"] + 1
            assert seq_nums["stop"] == indices["stop"] + 1
            seen[resources[datum["stream_resource"]]] += range(*indices.values())
    kept = [k for k in range(N) if k not in lost]
    assert seen == {"camera": kept, "camera-theta": kept}
    others = [d for d in of(left, "stream_datum") if d["descriptor"] != primary["uid"]]
    assert all(d in of(documents, "stream_datum") for d in others)


def test_lost_projections_are_left_out_of_the_events() -> None:
    events = []
    lossy = LostProjections(lambda name, doc: events.append((name, doc)), {1})
    run = event_model.compose_run()
    stream = run.compose_descriptor(
        name="primary",
        data_keys={"x": {"source": "s", "dtype": "number", "shape": []}},
    )
    lossy("descriptor", dict(stream.descriptor_doc))
    for value in (0.0, 1.0, 2.0):
        event = stream.compose_event(data={"x": value}, timestamps={"x": 0.0})
        lossy("event", dict(event))
    assert [doc["data"]["x"] for name, doc in events if name == "event"] == [0.0, 2.0]
