"""Live, whole: RunEngine, doors, sockets, the service's process, Tiled; all real."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
import pytest
import zarr
from bad_network import BadNetwork
from bluesky import RunEngine
from bluesky.plans import scan
from bluesky.utils import RunEngineInterrupted
from numpy.typing import NDArray
from ophyd.sim import SynAxis, det, motor
from ophyd_async.core import init_devices
from tiled.client import from_uri

from ebl_stream import profile_file as profiles
from ebl_stream.callbacks import DocumentPublisher, LiveReconstruction
from ebl_stream.profile import Profile
from ebl_stream.publish.record import read_record
from ebl_stream.publish.tiled_server import TiledServer
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.simulation.classic import SimulatedCamera, classic_scan
from ebl_stream.simulation.devices import RotationStage, TomoDetector
from ebl_stream.simulation.phantom import Foam
from ebl_stream.simulation.plan import tomo_scan
from ebl_stream.stages.reconstruct import Fourier
from ebl_stream.transport.journal import read_journal

COLUMNS, ROWS, N, CENTER = 64, 16, 60, 32.6
PATIENCE_S = 60
SAME = 1e-5
"""Largest difference, relative to the largest value."""
PLAIN = {
    "preprocess": ["flat_field", {"minus_log": {"clip": 1e-5}}],
    "geometry.rotation_center": CENTER,
    "denoise": None,
    "segment": None,
    "quantify": None,
}
WORDS = (
    "preprocess=[flat_field, {minus_log: {clip: 1e-5}}]",
    f"geometry.rotation_center={CENTER}",
    *("denoise=null", "segment=null", "quantify=null"),
)


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def volume(path: str | Path) -> NDArray[np.float32]:
    return np.asarray(zarr.open_array(Path(path), mode="r"))


def assert_same(one: NDArray[Any], other: NDArray[Any]) -> None:
    assert one.shape == other.shape
    assert np.abs(one).max() > 0
    assert np.abs(one - other).max() <= SAME * np.abs(other).max()


def replay(out: Path, run_uid: str, profile: Profile) -> NDArray[np.float32]:
    """Reconstruct a run from the service's journal, in this process."""
    (journal,) = (out / "journal").glob(f"*-{run_uid[:8]}.ebldocs")
    house = Reconstruction(profile, out=out / "replayed", roots=(Path("/"),))
    for _, name, doc in read_journal(journal):
        house(name, doc)
    house.close()
    return volume(house.results[run_uid].volume)


@dataclass
class Beamline:
    """A RunEngine and a classic camera whose frame k is the same in every scan."""

    engine: RunEngine = field(default_factory=RunEngine)
    axis: SynAxis = field(default_factory=lambda: SynAxis(name="theta"))

    def __post_init__(self) -> None:
        foam = Foam(COLUMNS, ROWS)
        self.camera = SimulatedCamera(self.axis, foam, rotation_center=CENTER)

    def scan(
        self, door: Any, each_event: Callable[[int], None] = lambda _: None
    ) -> Any:
        """Scan at a pace; return the events' frames [frame, row, column] by stream."""
        taken: dict[str, list[dict[str, Any]]] = {}
        streams: dict[str, str] = {}

        def listen(name: str, doc: dict[str, Any]) -> None:
            if name == "descriptor":
                streams[doc["uid"]] = doc["name"]
            if name == "event":
                taken.setdefault(streams[doc["descriptor"]], []).append(doc["data"])
                if streams[doc["descriptor"]] == "primary":
                    time.sleep(0.03)
                    each_event(doc["seq_num"])

        tokens = [self.engine.subscribe(door), self.engine.subscribe(listen)]
        self.engine(classic_scan(self.camera, self.axis, N, "golden"))
        for token in tokens:
            self.engine.unsubscribe(token)
        return taken


def batch(taken: Mapping[str, list[dict[str, Any]]]) -> NDArray[np.float32]:
    """All angles at once, from the frames that the RunEngine saw."""
    stacks = {
        stream: np.stack([data["camera_image"] for data in events]).astype(np.float64)
        for stream, events in taken.items()
    }
    dark, flat = stacks["darks"].mean(0), stacks["flats"].mean(0)
    values = -np.log(np.clip((stacks["primary"] - dark) / (flat - dark), 1e-5, None))
    theta = np.deg2rad([data["theta"] for data in taken["primary"]])
    return Fourier()(values.astype(np.float32), theta, CENTER)


@pytest.fixture(scope="module")
def beamline() -> Beamline:
    return Beamline()


@dataclass
class House:
    """``ebl-stream serve`` as its own process, and a Tiled server to start late."""

    address: str
    out: Path
    tiled: TiledServer

    def node(self, processed_uid: str) -> Any:
        client = from_uri(self.tiled.uri or "", api_key=self.tiled.api_key)
        return client["processed"][processed_uid]

    def tiled_has_all_of(self, processed_uid: str) -> None:
        """Assert that Tiled shows what lies on disk, to the last row."""

        def has_ended() -> bool:
            try:
                return self.node(processed_uid).metadata["state"] != "running"
            except Exception:  # the client raises what httpx and Tiled have to offer
                return False

        until(has_ended)
        record = read_record(self.out / processed_uid)
        node = self.node(processed_uid)
        assert dict(node.metadata) == record.metadata()
        array = node["recon"]
        on_disk = volume(self.out / processed_uid / "recon")
        assert np.array_equal(array.read(), on_disk)
        stamps = record.as_json()["slabs"]["recon"]
        assert [dict(slab) for slab in array.metadata["slabs"]] == stamps
        assert len(node["quality"].read()) == len(record.rows()) > 0


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    out, runtime = folder / "out", folder / "runtime"
    runtime.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        tiled = TiledServer(out, probe.getsockname()[1])
    # The key outlives the server: this is one that was there before.
    key = out / ".tiled" / "key"
    key.parent.mkdir(parents=True)
    key.write_text("5ecre7" * 8)
    command = [sys.executable, "-m", "ebl_stream.cli", "serve", "--profile", "demo"]
    command += ["--source", "zmq://127.0.0.1:*", "--out", str(out)]
    command += ["--tiled", f"http://127.0.0.1:{tiled._wanted_port}"]
    command += [word for setting in WORDS for word in ("--set", setting)]
    secrets = {"TILED_API_KEY": key.read_text(), "XDG_RUNTIME_DIR": str(runtime)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **secrets}
    ) as process:
        assert process.stdout is not None
        try:
            ready, _, address = process.stdout.readline().strip().rpartition(" ")
            assert ready == "ready: demo at"
            yield House(address, out, tiled)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
            assert list((runtime / "ebl-stream").iterdir()) == []
        finally:
            process.kill()
            tiled.stop()


@pytest.fixture(scope="module")
def first(house: House, beamline: Beamline) -> Any:
    """A scan through a good network while there is no Tiled: result and frames."""
    door = DocumentPublisher(house.address)
    taken = beamline.scan(door)
    result = door.wait(PATIENCE_S)
    door.close()
    return result, taken


def test_live_is_replay_is_batch(house: House, first: Any) -> None:
    result, taken = first
    assert result["state"] == "complete"
    assert result["ledger"]["used"] == N
    live = volume(result["volume"])
    profile = profiles.load("demo", PLAIN)
    assert_same(live, replay(house.out, result["run_uid"], profile))
    assert_same(live, batch(taken))


def test_a_tiled_that_starts_late_and_dies_in_a_run_misses_nothing(
    house: House, beamline: Beamline, first: Any
) -> None:
    house.tiled.start()
    assert house.tiled.wait_ready(PATIENCE_S)
    house.tiled_has_all_of(first[0]["processed_uid"])

    def kill_tiled(event: int) -> None:
        if event == N // 2:
            assert house.tiled.pid is not None
            os.kill(house.tiled.pid, signal.SIGKILL)

    # The documents of this scan are lost, doubled and reordered on their way, too.
    network = BadNetwork(house.address, seed=3)
    door = DocumentPublisher(network.address)
    try:
        beamline.scan(door, kill_tiled)
        result = door.wait(PATIENCE_S)
    finally:
        door.close()
        network.close()
    assert network.n_harmed > 10
    assert result["state"] == "complete"
    ledger = result["ledger"]
    assert (ledger["used"], ledger["duplicate"], ledger["residue"]) == (N, 0, 0)
    assert_same(volume(result["volume"]), volume(first[0]["volume"]))
    house.tiled_has_all_of(result["processed_uid"])


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveReconstruction]:
    """The door as a user opens it: a profile's name, and where results go."""
    folder = tmp_path_factory.mktemp("live")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        door = LiveReconstruction("demo", out=folder / "out", tiled="none")
        yield door
        pid = door.service_pid
        door.close()
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        until(lambda: door.service_pid is None)
        left = [path.suffix for path in (folder / "ebl-stream").iterdir()]
        assert left == [".log"]


def test_a_fly_scan_through_the_door_is_its_replay(
    live: LiveReconstruction, beamline: Beamline, tmp_path: Path
) -> None:
    foam = Foam(COLUMNS, ROWS)
    with init_devices():
        stage = RotationStage("stage")
        camera = TomoDetector(tmp_path, stage, foam, rotation_center=CENTER)
    token = beamline.engine.subscribe(live)
    beamline.engine(tomo_scan(camera, stage, N, rate_hz=30.0))
    beamline.engine.unsubscribe(token)
    result = live.wait(PATIENCE_S)
    assert result["state"] == "complete"
    assert abs(result["rotation_center"] - CENTER) < 0.25
    assert f"complete, {N}/{N} projections" in repr(live)
    again = replay(live.out, result["run_uid"], profiles.load("demo"))
    assert_same(volume(result["volume"]), again)


def test_what_users_do_harms_neither_scan_nor_door(
    live: LiveReconstruction, beamline: Beamline
) -> None:
    engine, camera, axis = beamline.engine, beamline.camera, beamline.axis
    token = engine.subscribe(live)

    @bpp.run_decorator(md={"n_projections": N, "motors": ["theta"]})
    def paused_half_way() -> Any:
        for k in range(N):
            yield from bps.checkpoint()
            yield from bps.mv(axis, 180 * k / N)
            if k == N // 2:
                yield from bps.pause()
            yield from bps.trigger_and_read([camera, axis])

    try:
        engine(scan([camera], axis, 0, 180, N + 1))  # no flats, no darks
        assert live.wait(PATIENCE_S)["state"] == "complete"
        with pytest.raises(RunEngineInterrupted):
            engine(paused_half_way())
        engine.resume()
        assert live.wait(PATIENCE_S)["ledger"]["used"] == N
        with pytest.raises(RunEngineInterrupted):
            engine(paused_half_way())
        engine.abort("enough")
        aborted = live.wait(PATIENCE_S)
        assert aborted["state"] == "partial"
        assert aborted["ledger"]["used"] == N // 2
        assert aborted["ledger"]["missing_indices"] == [[N // 2, N]]
        engine(scan([det], motor, 0, 1, 3))
        assert live.wait(PATIENCE_S)["state"] == "ignored"
        engine(scan([camera], axis, 0, 180, N + 1))
        assert live.wait(PATIENCE_S)["state"] == "complete"
    finally:
        engine.unsubscribe(token)
