"""The service: journal first, one worker, nothing lost where something breaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebl_stream import profile_file
from ebl_stream.errors import InputError
from ebl_stream.service import worker as worker_module
from ebl_stream.service.discovery import ServicePlace, service_key
from ebl_stream.service.journal import MAX_ATTEMPTS, MAX_WRITERS, ServiceJournal
from ebl_stream.service.service import MAX_DEATHS, Service, Settings, serve
from ebl_stream.service.worker import Worker
from ebl_stream.sources.zmq import DoorSource
from ebl_stream.transport.documents import pack
from ebl_stream.transport.journal import read_journal
from ebl_stream.transport.link import Link

TIMEOUT_S = 30.0
UNSORTED_MARK = "unsorted.ebldocs.open"


class Said:
    """A `Result` or `Progress` of few words."""

    def __init__(self, **words: Any) -> None:
        self.words = words

    def as_dict(self) -> dict[str, Any]:
        return self.words


class Notebook:
    """A callback that writes down what it is given, and can be told to misbehave."""

    put_off = ()
    tick_s = 1.0

    def __init__(
        self, on_progress: Callable[[Said], None], is_behind: Callable[[], bool]
    ) -> None:
        self.is_behind = is_behind
        self.on_progress = on_progress
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.results: dict[str, Said] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.trouble: dict[str, BaseException] = {}
        self.poison: set[str] = set()
        self.closed = False
        self.heard_of: set[str] = set()
        self.finishes = True

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        assert self.gate.wait(TIMEOUT_S)
        if error := self.trouble.pop(str(doc.get("uid")), None):
            raise error
        if str(doc.get("uid")) in self.poison:
            raise SystemExit
        self.seen.append((name, doc))
        run_uid = doc.get("run_start") or doc.get("uid")
        if name == "start":
            self.on_progress(Said(run_uid=run_uid, state="running"))
        if name == "stop" and self.finishes:
            self.results[str(run_uid)] = Said(run_uid=run_uid, state="complete")

    def heard(self, run_uid: str) -> None:
        self.heard_of.add(run_uid)

    def tick(self) -> None:
        pass

    def abandon(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Bench:
    """A service with a door, and the notebooks of its worker."""

    def __init__(self, folder: Path, address: str = "zmq://:*", **options: Any) -> None:
        self.folder = folder
        self.notebooks: list[Notebook] = []
        self.poison: set[str] = set()
        self.service = Service(
            DoorSource(address), self._make, folder / "journal", **options
        )
        self.door = Link(self.service.listener.address, folder=folder)

    def _make(self, on_progress: Any, is_behind: Any) -> Notebook:
        self.notebooks.append(Notebook(on_progress, is_behind))
        self.notebooks[-1].poison = self.poison
        return self.notebooks[-1]

    @property
    def notebook(self) -> Notebook:
        until(lambda: bool(self.notebooks))
        return self.notebooks[-1]

    def journals(self) -> dict[str, list[tuple[str, dict[str, Any]]]]:
        paths = (self.folder / "journal").glob("*.ebldocs")
        return {p.name: [r[1:] for r in read_journal(p)] for p in paths}

    def end(self) -> None:
        self.door.close(linger_s=0)
        self.service.stop()


@pytest.fixture(autouse=True)
def _own_runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(**options: Any) -> Bench:
        benches.append(Bench(tmp_path, **options))
        return benches[-1]

    yield make
    for one in benches:
        one.end()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def run(uid: str, n: int = 5, values: Any = 1.0) -> list[tuple[str, dict[str, Any]]]:
    """A run's documents, not quite Bluesky's but enough."""
    descriptor = {"uid": f"{uid}-d", "run_start": uid}
    events = [
        (
            "event",
            {"uid": f"{uid}-{i}", "descriptor": f"{uid}-d", "data": {"x": values}},
        )
        for i in range(n)
    ]
    stop = {"uid": f"{uid}-stop", "run_start": uid}
    return [
        ("start", {"uid": uid}),
        ("descriptor", descriptor),
        *events,
        ("stop", stop),
    ]


def send(door: Callable[[str, Any], None], all_documents: Any) -> None:
    for name, doc in all_documents:
        door(name, doc)


def test_a_run_that_pauses_is_heard_of_as_long_as_its_door_lives(bench) -> None:
    desk = bench()
    send(desk.door.send, run("aaaaaaaa-1")[:4])
    for _ in range(2):
        desk.notebook.heard_of.clear()
        until(lambda: desk.notebook.heard_of == {"aaaaaaaa-1"})
    desk.door.close()
    time.sleep(1.5)  # a last ping may be on its way
    desk.notebook.heard_of.clear()
    time.sleep(2.5)
    assert not desk.notebook.heard_of


def test_the_journal_of_a_run_that_failed_is_whole_over_a_restart(bench) -> None:
    documents = run("aaaaaaaa-1", 6)
    desk = bench()
    desk.notebook.trouble["aaaaaaaa-1-1"] = ValueError("nothing comes of it")
    send(desk.door.send, documents[:5])
    assert desk.door.wait(TIMEOUT_S)["state"] == "failed"
    desk.service.stop()
    again = bench()
    # The end of the first part once more: its door may not know that it was taken.
    send(again.door.send, documents[3:])
    assert again.door.flush(TIMEOUT_S)
    again.service.stop()
    assert list(again.journals().values()) == [documents]
    assert again.notebook.seen == []


def test_every_run_has_its_journal_and_result(bench) -> None:
    desk = bench()
    one, other = run("aaaaaaaa-1"), run("bbbbbbbb-2")
    mixed = [d for pair in zip(one, other, strict=True) for d in pair]
    stranger = ("event", {"uid": "e", "descriptor": "unheard of", "data": {}})
    send(desk.door.send, [*mixed[:-2], stranger, *mixed[-2:]])
    assert desk.door.wait(TIMEOUT_S, "aaaaaaaa-1")["state"] == "complete"
    assert desk.door.wait(TIMEOUT_S)["run_uid"] == "bbbbbbbb-2"
    journals = {name.split("-", 2)[2]: docs for name, docs in desk.journals().items()}
    assert journals == {
        "aaaaaaaa.ebldocs": one,
        "bbbbbbbb.ebldocs": other,
        "unsorted.ebldocs": [stranger],
    }
    assert desk.notebook.seen == [*mixed[:-2], stranger, *mixed[-2:]]
    marks = (desk.folder / "journal").glob
    until(lambda: [p.name.split("-")[2] for p in marks("*.open")] == [UNSORTED_MARK])


def test_progress_reaches_the_door(bench) -> None:
    desk = bench()
    send(desk.door.send, run("r")[:-1])
    until(lambda: desk.door.status() is not None)
    assert desk.door.status() == {"run_uid": "r", "state": "running", "final": False}
    with pytest.raises(TimeoutError, match="run r has not ended"):
        desk.door.wait(0)
    send(desk.door.send, run("r")[-1:])
    assert desk.door.wait(TIMEOUT_S)["state"] == "complete"


def test_a_fault_of_the_worker_costs_one_run(bench) -> None:
    desk = bench()
    desk.notebook.trouble["bad-2"] = ValueError("broken frame")
    send(desk.door.send, [*run("bad"), *run("good")])
    bad = desk.door.wait(TIMEOUT_S, "bad")
    assert (bad["state"], bad["message"]) == ("failed", "ValueError: broken frame")
    assert desk.door.wait(TIMEOUT_S, "good")["state"] == "complete"
    assert [d for d in desk.notebook.seen if d in run("good")] == run("good")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_is_replaced(bench) -> None:
    desk = bench()
    desk.notebook.trouble["bad-2"] = SystemExit()
    send(desk.door.send, run("bad"))
    assert desk.door.flush(TIMEOUT_S)
    worker = desk.service.worker
    until(lambda: not worker.is_alive)
    desk.service.supervise()
    assert desk.door.wait(TIMEOUT_S, "bad")["state"] == "complete"
    assert desk.notebooks[1].seen == run("bad")
    send(desk.door.send, run("good"))
    assert desk.door.wait(TIMEOUT_S, "good")["state"] == "complete"
    assert len(desk.notebooks) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_that_kills_every_worker_is_given_up_and_others_are_not(bench) -> None:
    desk = bench()
    send(desk.door.send, run("good")[:4])
    desk.poison.add("bad-2")
    send(desk.door.send, run("bad"))
    for _ in range(MAX_DEATHS + 1):
        until(lambda: not desk.service.worker.is_alive)
        desk.service.supervise()
    bad = desk.door.wait(TIMEOUT_S, "bad")
    assert (bad["state"], bad["message"]) == (
        "failed",
        "the worker died again and again",
    )
    send(desk.door.send, run("good")[4:])
    assert desk.door.wait(TIMEOUT_S, "good")["state"] == "complete"
    assert desk.notebook.seen == run("good")


def test_what_the_queue_cannot_hold_is_read_from_the_journal(bench) -> None:
    desk = bench(max_queue_bytes=100_000)
    desk.notebook.gate.clear()
    sent = run("r", 50, np.arange(4096.0))  # 32 kB each
    send(desk.door.send, sent)
    assert desk.door.flush(TIMEOUT_S)
    assert desk.service.worker.queued_bytes <= 100_000
    desk.notebook.gate.set()
    assert desk.door.wait(TIMEOUT_S)["state"] == "complete"
    assert [doc["uid"] for _, doc in desk.notebook.seen] == [d["uid"] for _, d in sent]
    for _, doc in desk.notebook.seen[2:-1]:
        np.testing.assert_array_equal(doc["data"]["x"], np.arange(4096.0))


def test_ending_works_off_what_was_received(bench) -> None:
    desk = bench()
    notebook = desk.notebook
    notebook.gate.clear()
    send(desk.door.send, run("r", 20))
    assert desk.door.flush(TIMEOUT_S)
    threading.Timer(0.1, notebook.gate.set).start()
    desk.service.stop()
    assert notebook.seen == run("r", 20)
    assert notebook.closed
    assert desk.door.wait(TIMEOUT_S)["state"] == "complete"


def test_a_full_disk_leaves_documents_with_their_door(
    bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = bench()
    with monkeypatch.context() as disk:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        disk.setattr(ServiceJournal, "append", full)
        send(desk.door.send, run("r"))
        until(lambda: desk.service.problems["journal"] > 0)
        assert not desk.door.flush(0)
    assert desk.door.wait(TIMEOUT_S)["state"] == "complete"
    assert list(desk.journals().values()) == [run("r")]


def test_documents_that_had_to_wait_say_that_the_worker_is_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "BEHIND_S", 0.2)
    seen: list[bool] = []

    class Slow(Notebook):
        def __call__(self, name: str, doc: dict[str, Any]) -> None:
            seen.append(self.is_behind())
            super().__call__(name, doc)

    notebooks: list[Slow] = []

    def make(*arguments: Any) -> Slow:
        notebooks.append(Slow(*arguments))
        return notebooks[-1]

    worker = Worker(make, lambda *_: None, max_queue_bytes=10**6)
    (notebook,) = notebooks
    documents = [*run("r")]
    worker.put("r", *documents[0], 1, None)
    until(lambda: worker.is_idle)
    notebook.gate.clear()
    for name, doc in documents[1:]:
        worker.put("r", name, doc, 1, None)
    time.sleep(0.4)
    notebook.gate.set()
    worker.stop()
    assert not seen[0]
    assert seen[-1]


def test_a_run_of_which_nothing_comes_is_answered() -> None:
    told: dict[str, Mapping[str, Any]] = {}
    notebook = Notebook(print, lambda: False)
    worker = Worker(
        lambda *_: notebook, told.__setitem__, max_queue_bytes=1, ignored_after_s=0
    )
    notebook.results = {}
    for name, doc in run("count"):
        worker.put("count", name, {**doc, "run_start": "nobody"}, 1, None)
    until(lambda: "count" in told)
    worker.stop()
    assert told["count"]["state"] == "ignored"
    assert told["count"]["final"]


def test_a_run_that_takes_its_time_is_not_ignored() -> None:
    told: dict[str, dict[str, Any]] = {}
    notebook = Notebook(lambda progress: worker._progressed(progress), lambda: False)
    worker = Worker(
        lambda *_: notebook, told.__setitem__, max_queue_bytes=1, ignored_after_s=0
    )
    for name, doc in run("slow")[:-1]:
        worker.put("slow", name, doc, 1, None)
    # Its stop is taken, and then a large volume is made.
    notebook.finishes = False
    worker.put("slow", *run("slow")[-1], 1, None)
    until(lambda: worker.is_idle)
    time.sleep(2.5)  # more than two ticks
    assert told["slow"]["state"] == "running"
    notebook.results["slow"] = Said(run_uid="slow", state="complete")
    until(lambda: told["slow"]["state"] == "complete")
    worker.stop()


def test_runs_of_a_crash_are_gone_on_with_but_not_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    sent = [pack(*document) for document in run("crashed")[:4]]
    crashed = ServiceJournal(folder, "demo")
    for packed in sent:
        crashed.append("crashed", packed)
    crashed.close()  # no `ended`: that is what a crash leaves
    stranger = ServiceJournal(folder, "another profile")
    assert stranger.recover() == {}
    assert stranger.open_runs == []
    for _ in range(MAX_ATTEMPTS):
        again = ServiceJournal(folder, "demo")
        assert again.recover() == {}
        beside = ServiceJournal(folder, "demo")
        assert beside.recover() == {}
        assert beside.open_runs == []  # locked: its service lives
        (found,) = again.open_runs
        assert [packed for packed, _ in again.documents(found)] == sent
        assert again.append("crashed", sent[-1]) is None  # its door sends it again
        again.close()
    tired = ServiceJournal(folder, "demo")
    assert "ebl-stream replay" in tired.recover()["crashed"]
    tired.ended("crashed", {"state": "failed"})
    assert tired.results() == {"crashed": {"state": "failed"}}
    assert list(folder.glob("*.open")) == []
    tired.close()


def test_a_run_that_grows_is_gone_on_with_as_often_as_need_be(tmp_path: Path) -> None:
    folder, sent = tmp_path / "journal", [pack(*d) for d in run("long", 20)]
    for number, packed in enumerate(sent):
        journal = ServiceJournal(folder, "demo")
        assert journal.recover() == {}
        for run_again in journal.open_runs:
            found = [packed for packed, _ in journal.documents(run_again)]
            assert found == sent[:number]
        assert journal.append("long", packed) is not None
        journal.close()
    assert len(list(folder.glob("*.ebldocs"))) == 1


def test_a_run_that_others_pushed_out_of_memory_is_recovered_whole(
    tmp_path: Path,
) -> None:
    folder, sent = tmp_path / "journal", [pack(*d) for d in run("outer", 3)]
    first = ServiceJournal(folder, "demo")
    first.append("outer", sent[0])
    for number in range(MAX_WRITERS + 1):
        first.append(f"inner{number}", pack("start", {"uid": f"inner{number}"}))
        first.ended(f"inner{number}", {})
    for packed in sent[1:]:
        first.append("outer", packed)
    first.close()
    again = ServiceJournal(folder, "demo")
    again.recover()
    (outer,) = again.open_runs
    assert [packed for packed, _ in again.documents(outer)] == sent
    assert outer.has_stopped
    again.close()


def test_a_torn_end_is_cut_off_before_more_is_written(tmp_path: Path) -> None:
    folder, sent = tmp_path / "journal", [pack(*d) for d in run("torn", 5)]
    first = ServiceJournal(folder, "demo")
    for packed in sent[:4]:
        first.append("torn", packed)
    first.close()
    (path,) = folder.glob("*.ebldocs")
    os.truncate(path, path.stat().st_size - 7)
    again = ServiceJournal(folder, "demo")
    again.recover()
    for packed in sent[3:]:
        assert again.append("torn", packed) is not None
    again.close()
    assert [pack(*r[1:]) for r in read_journal(path)] == sent


SERVICE = """
import sys, time
from pathlib import Path
from ebl_stream.service.service import Service
from ebl_stream.sources.zmq import DoorSource

sys.path.insert(0, sys.argv[1])
from test_service import Notebook

folder = Path(sys.argv[2])
Service(DoorSource(f"ipc://{folder}/s"), Notebook, folder / "journal")
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def service_process(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SERVICE, str(Path(__file__).parent)]
        process = subprocess.Popen(
            [*command, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def test_a_service_killed_within_a_run_goes_on_with_it(
    service_process, tmp_path: Path
) -> None:
    sent = run("killed", 40)
    door = Link(f"ipc://{tmp_path}/s", folder=tmp_path)
    first = service_process()
    send(door.send, sent[:20])
    assert door.flush(TIMEOUT_S)
    first.kill()
    first.wait()
    send(door.send, sent[20:30])  # nobody there: it neither raises nor waits
    service_process()
    send(door.send, sent[30:])
    assert door.wait(TIMEOUT_S) == {"run_uid": "killed", "state": "complete"}
    door.close()
    (journal,) = (tmp_path / "journal").glob("*.ebldocs")
    assert [(name, doc) for _, name, doc in read_journal(journal)] == sent


SERVE = """
import sys
from pathlib import Path
from ebl_stream.profile_file import load
from ebl_stream.service.service import Settings, serve

ready = lambda address: print(address, flush=True)
out = Path(sys.argv[1])
code = serve(Settings(load("demo"), "zmq://:*", out, "none"), ready)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)]
)
def test_serve_ends_in_good_order(number: int, code: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    place = ServicePlace(service_key(profile_file.load("demo"), tmp_path))
    found = place.find()
    assert found is not None
    assert (found.address, found.pid) == (address, process.pid)
    with pytest.raises(InputError, match=f"there is a service for {tmp_path} already"):
        serve(Settings(profile_file.load("demo"), "zmq://:*", tmp_path, "none"))
    door = Link(address, folder=tmp_path)
    door.send("start", {"uid": "no-frames", "time": 0.0})
    assert door.flush(TIMEOUT_S)
    os.kill(process.pid, number)
    assert process.wait(TIMEOUT_S) == code
    door.close()
    assert place.find() is None
    assert len(list((tmp_path / "journal").glob("*-no-frame.ebldocs"))) == 1
    process.stdout.close()


def test_a_service_that_nobody_needs_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ebl_stream.cli", "serve", "--profile", "demo"]
    command += ["--source", "zmq://:*", "--out", str(tmp_path), "--tiled", "none"]
    ended = subprocess.run([*command, "--idle-exit", "0.5"], timeout=2 * TIMEOUT_S)
    assert ended.returncode == 0
