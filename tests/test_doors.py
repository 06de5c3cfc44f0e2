"""The doors: light, and nothing that happens behind them reaches the scan."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.plans import count
from ophyd import Component, Device, Signal

from ebl_stream.callbacks import (
    DocumentPublisher,
    DocumentRecorder,
    LiveReconstruction,
)
from ebl_stream.callbacks.live import ServiceKeeper
from ebl_stream.errors import InputError
from ebl_stream.service.discovery import ServicePlace
from ebl_stream.service.priority import NICENESS
from ebl_stream.sources.zmq import DoorSource
from ebl_stream.transport.documents import unpack
from ebl_stream.transport.journal import read_journal
from ebl_stream.transport.link import Link

TIMEOUT_S = 120.0  # a service may have to compile first
HEAVY = ("torch", "numba", "h5py", "tiled", "zarr", "scipy", "bluesky", "pydantic")


class Camera(Device):
    """A classic ophyd camera: the image is in the event."""

    image = Component(Signal, value=np.zeros((32, 48), np.uint16))

    def trigger(self) -> Any:
        self.image.put(np.asarray(self.image.get()) + np.uint16(1))
        return super().trigger()


class Shelf:
    """A sink that keeps documents."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, dict[str, Any]]] = []

    def take(self, packed: bytes) -> bool:
        self.taken.append(unpack(packed))
        return True

    def heard(self, run_uids: Iterable[str]) -> None:
        pass

    def commit(self) -> None:
        pass


@pytest.fixture(scope="module")
def engine() -> RunEngine:
    return RunEngine({})


@pytest.fixture
def subscribe(engine: RunEngine) -> Iterator[Any]:
    tokens: list[int] = []
    yield lambda door: tokens.append(engine.subscribe(door))
    for token in tokens:
        engine.unsubscribe(token)


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    """A service at ``<tmp_path>/s``."""
    source, sink = DoorSource(f"ipc://{tmp_path}/s"), Shelf()
    thread = threading.Thread(target=source.listen, args=(sink,))
    thread.start()
    yield sink
    source.close()
    thread.join(TIMEOUT_S)


def until(condition: Any) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def same(one: Any, other: Any) -> bool:
    """Compare documents that hold arrays."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other)


def test_doors_are_light() -> None:
    program = (
        "import sys, time; began = time.perf_counter(); import ebl_stream.callbacks; "
        "print(time.perf_counter() - began); print(*sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    print(f"import ebl_stream.callbacks: {float(answer[0]):.3f} s")
    loaded = set(answer[1].split())
    assert "ebl_stream.callbacks.live" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_a_scan_with_images_arrives_whole(
    engine, subscribe, shelf: Shelf, tmp_path: Path
) -> None:
    sent: list[tuple[str, dict[str, Any]]] = []
    door = DocumentPublisher(f"ipc://{tmp_path}/s", folder=tmp_path)
    subscribe(door)
    subscribe(lambda name, doc: sent.append((name, doc)))
    engine(count([Camera(name="camera")], 20), sample="tooth")
    assert door.flush(TIMEOUT_S)
    door.close()
    assert [name for name, _ in shelf.taken] == [name for name, _ in sent]
    assert all(map(same, shelf.taken, sent))
    images = [d["data"]["camera_image"] for n, d in shelf.taken if n == "event"]
    assert {image.dtype for image in images} == {np.dtype(np.uint16)}
    assert len({int(image[0, 0]) for image in images}) == 20


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ipc:///nowhere/at/all"])
def test_without_a_service_the_scan_goes_on(
    engine, subscribe, address: str, tmp_path: Path, caplog
) -> None:
    door = DocumentPublisher(address, folder=tmp_path, max_bytes=20_000)
    subscribe(door)
    engine(count([Camera(name="camera")], 20))
    assert "no answer, 23 documents waiting" in repr(door)
    assert "on disk" in repr(door)
    assert not door.flush(0)
    with pytest.raises(TimeoutError):
        door.wait(0)
    door.close()
    assert door.unsent is not None
    assert str(door.unsent) in caplog.text
    names = [name for _, name, _ in read_journal(door.unsent)]
    assert names == ["start", "descriptor", *["event"] * 20, "stop"]


def n_pauses(thread_name: str) -> int:
    """Return how often a thread of ours has gone to sleep so far."""
    (tid,) = [t.native_id for t in threading.enumerate() if t.name == thread_name]
    status = Path(f"/proc/self/task/{tid}/status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])


@pytest.mark.parametrize("kind", ["sender", "recorder"])
def test_a_document_wakes_nobody(kind: str, tmp_path: Path) -> None:
    """Who is woken amid the scan's call may take the interpreter's lock from it."""
    absent = f"ipc://{tmp_path}/s"
    is_recorder = kind == "recorder"
    door = DocumentRecorder(tmp_path) if is_recorder else DocumentPublisher(absent)
    before, n = n_pauses(f"ebl-stream-{kind}"), 300
    for _ in range(n):
        door("event", {"descriptor": "d", "data": {"theta": 1.0}})
        time.sleep(0.001)
    pauses = n_pauses(f"ebl-stream-{kind}") - before
    door.close()
    assert pauses < n / 2


def test_nothing_is_raised_into_the_scan(shelf: Shelf, tmp_path: Path, caplog) -> None:
    door = DocumentPublisher(f"ipc://{tmp_path}/s", folder=tmp_path)
    door("start", {"uid": "r", "owner": object(), "n": 2**70, "when": {1: {2}}})
    door("no such name", {})
    door("event", None)  # type: ignore[arg-type]
    door("stop", {"run_start": "r"})
    assert door.flush(TIMEOUT_S)
    assert "2 lost" in repr(door)
    door.close()
    (_, start), stop = shelf.taken
    assert start["owner"].startswith("<object object")
    assert (start["n"], start["when"]) == (str(2**70), {"1": [2]})
    assert stop == ("stop", {"run_start": "r"})
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 2


def test_a_folder_that_cannot_be_written_costs_documents_not_the_scan(
    tmp_path: Path,
) -> None:
    door = DocumentPublisher("127.0.0.1:9", folder=tmp_path / "absent", max_bytes=500)
    for number in range(10):
        door("event", {"seq_num": number, "data": np.zeros(50)})
    door.close()
    assert "lost" in repr(door)
    assert door.unsent is not None  # the folder is made for what was kept
    assert len(list(read_journal(door.unsent))) >= 1


EXITING = """
import sys
from pathlib import Path
from ebl_stream.callbacks import DocumentPublisher, DocumentRecorder

folder = Path(sys.argv[1])
doors = [DocumentPublisher("127.0.0.1:9", folder=folder), DocumentRecorder(folder)]
for door in doors:
    for name, doc in [("start", {"uid": "r"}), ("stop", {"run_start": "r"})]:
        door(name, doc)
"""


def test_at_the_end_of_the_interpreter_nothing_is_lost(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", EXITING, str(tmp_path)], check=True, timeout=TIMEOUT_S
    )
    paths = sorted(tmp_path.glob("*.ebldocs"))
    assert [path.name.split("-")[0] for path in paths] == ["r.ebldocs", "unsent"]
    for path in paths:
        assert [record[1] for record in read_journal(path)] == ["start", "stop"]


def test_the_recorder_keeps_interleaved_runs_apart(
    engine, subscribe, tmp_path: Path
) -> None:
    recorder = DocumentRecorder(tmp_path / "new" / "folder")
    sent: list[tuple[str, dict[str, Any]]] = []
    subscribe(recorder)
    subscribe(lambda name, doc: sent.append((name, doc)))
    camera = Camera(name="camera")

    def one(key: str) -> Any:
        @bpp.set_run_key_decorator(key)
        @bpp.run_decorator(md={"key": key})
        def plan() -> Any:
            for _ in range(3):
                yield from bps.trigger_and_read([camera])
                if key == "outer":
                    yield from one("inner") if _ == 1 else bps.null()

        return plan()

    engine(one("outer"))
    assert recorder.flush(TIMEOUT_S)
    starts = {doc["key"]: doc["uid"] for name, doc in sent if name == "start"}
    for uid in starts.values():
        path = tmp_path / "new" / "folder" / f"{uid}.ebldocs"
        recorded = [(name, doc) for _, name, doc in read_journal(path)]
        descriptors = [d["uid"] for n, d in sent if d.get("run_start") == uid]
        mine = [
            (n, d)
            for n, d in sent
            if uid in (d.get("run_start"), d["uid"])
            or d.get("descriptor") in descriptors
        ]
        assert len(recorded) == 6
        assert all(map(same, recorded, mine))
    assert "12 recorded, 0 waiting" in repr(recorder)
    recorder.close()


def test_a_recorder_without_a_disk_does_not_raise(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").touch()
    recorder = DocumentRecorder(tmp_path / "file")
    recorder("start", {"uid": "r"})
    recorder("stop", {"run_start": "r"})
    assert recorder.flush(TIMEOUT_S)
    assert recorder.errors == {"lost": 2}
    assert len(caplog.records) == 1
    recorder.close()


def test_a_run_recorded_again_overwrites_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        recorder = DocumentRecorder(tmp_path)
        recorder("start", {"uid": "../r"})
        recorder.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["___r-2.ebldocs", "___r.ebldocs"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "dmeo"}, "did you mean 'demo'"),
        ({"set": {"window.max_byte": 1}}, "did you mean"),
        ({"address": "nonsense"}, "expected zmq://host:port"),
    ],
)
def test_a_wrong_setting_is_refused_before_the_scan(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        LiveReconstruction(out=tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def own_runtime_folder(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))


def test_a_place_too_deep_for_a_socket_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(InputError, match="XDG_RUNTIME_DIR to a folder with a shorter"):
        LiveReconstruction("demo", out=tmp_path / "out", tiled="none")


@pytest.fixture
def live(tmp_path: Path, own_runtime_folder: None) -> Iterator[LiveReconstruction]:
    door = LiveReconstruction("demo", out=tmp_path / "out", tiled="none")
    yield door
    door.close()
    if door.service_pid is not None:
        os.kill(door.service_pid, signal.SIGKILL)


def test_a_service_is_started_found_and_started_again(
    engine, subscribe, live: LiveReconstruction, tmp_path: Path
) -> None:
    until(lambda: live.service_pid is not None)
    first = live.service_pid
    assert first is not None
    threads = [int(path.name) for path in Path(f"/proc/{first}/task").iterdir()]
    assert len(threads) > 2
    level = min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    assert {os.getpriority(os.PRIO_PROCESS, t) for t in threads} == {level}
    other = LiveReconstruction("demo", out=tmp_path / "out", tiled="none")
    assert other.service_pid == first
    other.close()
    subscribe(live)

    def plan() -> Any:
        yield from bps.open_run()
        for number in range(10):
            if number == 5:
                os.kill(first, signal.SIGKILL)
            yield from bps.trigger_and_read([camera])
        yield from bps.close_run()

    camera = Camera(name="camera")
    (uid,) = engine(plan())
    assert live.flush(TIMEOUT_S), live
    # It takes documents a moment before it is found by its name.
    until(lambda: live.service_pid not in (None, first))
    journals = sorted((tmp_path / "out" / "journal").glob(f"*-{uid[:8]}*.ebldocs"))
    seen = {
        doc["seq_num"]
        for path in journals
        for _, name, doc in read_journal(path)
        if name == "event"
    }
    assert seen == set(range(1, 11))
    assert f"service {live.service_pid}" in repr(live)
    assert not live.status or live.status["run_uid"] == uid


def test_a_service_that_cannot_start_does_not_hurt(
    own_runtime_folder: None, tmp_path: Path
) -> None:
    place = ServicePlace("broken")
    keeper = ServiceKeeper(place, [sys.executable, "-c", "raise SystemExit('no')"])
    link = Link(keeper.ensure(), folder=tmp_path)
    keeper.keep(link)
    until(lambda: "the service ended (code 1: no)" in repr(keeper))
    keeper.stop()
    link.close(linger_s=0)
    assert place.log.read_text().startswith("no")


def test_a_place_is_private_and_a_dead_service_forgotten(
    own_runtime_folder: None, short_path: Path
) -> None:
    place = ServicePlace("key")
    assert place.take()
    assert not ServicePlace("key").take()
    place.announce("ipc:///somewhere")
    found = ServicePlace("key").find()
    assert found is not None
    assert (found.address, found.pid) == ("ipc:///somewhere", os.getpid())
    place.leave()
    assert ServicePlace("key").find() is None
    (short_path / "ebl-stream" / "key.json").write_text('{"address": "old", "pid": 1}')
    assert ServicePlace("key").find() is None
    (short_path / "ebl-stream").chmod(0o755)
    with pytest.raises(InputError, match="yours alone"):
        ServicePlace("key")
