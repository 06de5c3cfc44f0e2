"""Disks, signals, threads and power that fail: the scan goes on, the run comes out."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign.house import PATIENCE_S, House, until, volume
from campaign.kills import SAME
from campaign.scan import SETTINGS, Detector, Doors, paced

from ebl_stream import profile_file, reconstruction
from ebl_stream.gpu import choice
from ebl_stream.numerics.accumulate import Accumulator
from ebl_stream.publish import chunks
from ebl_stream.publish.attempts import Attempts
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.service import service as service_module
from ebl_stream.service.service import Service
from ebl_stream.sources.zmq import DoorSource
from ebl_stream.transport.journal import read_records
from ebl_stream.transport.link import Link

PAUSE_S = 0.005


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ebl-fault-"))  # short: it holds a socket
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def house(folder: Path) -> Iterator[House]:
    one = House(folder)
    yield one
    one.close()


def scan_with(
    house: House, at_half: Callable[[], object], doors: Doors | None = None
) -> str:
    """Scan, and let something happen in the midst; return the run's uid."""
    uid, documents = house.detector.scan()
    send = (doors or Doors()).timed(house.door.send)
    for k, document in enumerate(paced(documents, PAUSE_S)):
        if k == len(documents) // 2:
            at_half()
        send(*document)
    return uid


def assert_good(house: House, uid: str) -> dict[str, Any]:
    result = house.door.wait(PATIENCE_S, uid)
    report = house.check(uid)
    assert result["state"] == "complete", result
    assert report.is_good, report.as_dict()
    return result


def test_a_term_signal_in_a_scan_loses_nothing(house: House) -> None:
    house.start()
    clean = volume(assert_good(house, scan_with(house, lambda: None)))
    codes: list[int | None] = []

    def upgrade() -> None:
        assert house.door.flush(PATIENCE_S)
        begun = time.monotonic()
        codes.append(house.end())
        print(f"SIGTERM to the end: {time.monotonic() - begun:.2f} s")
        house.start()

    uid = scan_with(house, upgrade)
    found = volume(assert_good(house, uid))
    assert codes == [0]
    assert np.linalg.norm(found - clean) <= SAME * np.linalg.norm(clean)
    states = sorted(house.check(uid).states.values())
    assert states == ["complete", "superseded"]


def test_a_second_ctrl_c_does_not_wait_and_loses_nothing(house: House) -> None:
    house.start()
    codes: list[int | None] = []

    def interrupt() -> None:
        assert house.process is not None
        assert house.process.pid is not None
        until(lambda: len(list(house.out.glob("journal/*.open"))) > 0)
        os.kill(house.process.pid, signal.SIGINT)
        time.sleep(0.02)
        os.kill(house.process.pid, signal.SIGINT)
        house.process.join(PATIENCE_S)
        codes.append(house.process.exitcode)
        house.start()

    assert_good(house, scan_with(house, interrupt))
    assert codes in ([130], [1])  # 1: interrupted outside of `answer_errors`


def test_power_that_fails_takes_only_what_no_door_was_told_of(house: House) -> None:
    house.start("journal.appended:30")

    def power_fails() -> None:
        pass

    uid = scan_with(house, power_fails)
    assert house.died(PATIENCE_S)
    (journal,) = house.out.glob("journal/*.ebldocs")
    ends = [offset + len(packed) for _, offset, packed in read_records(journal)]
    n_told = house.door._backlog.first
    assert n_told < len(ends) == 30
    # Nothing that was not waited for is left of the page cache.
    os.truncate(journal, ends[n_told - 1] if n_told else ends[0] - 1)
    print(f"{len(ends) - n_told} of 30 documents were not on the disk")
    house.start()
    assert_good(house, uid)


def test_a_journal_that_cannot_grow_leaves_documents_with_the_door(
    house: House,
) -> None:
    process = house.start()
    assert until(lambda: house.door.is_connected)
    assert process.pid is not None
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, -1))
    doors = Doors()
    uid = scan_with(house, lambda: None, doors)
    assert until(lambda: "the journal cannot be written" in house.log(), 5.0)
    assert len(house.door._backlog) > 0
    print(f"door while the journal's disk is full: {doors.figures()}")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (-1, -1))
    assert_good(house, uid)
    assert house.process is process  # the same service went on


class Indoors:
    """A service within this process, looked after as `serve` does."""

    def __init__(self, folder: Path) -> None:
        self.out, self.folder = folder / "out", folder
        self.out.mkdir()
        self.profile = profile_file.load("demo", SETTINGS)
        self.detector = Detector(folder / "detector.jsonl")
        self.trouble: Callable[[str, dict[str, Any]], None] | None = None
        self.service = Service(
            DoorSource(f"ipc://{folder}/s"),
            self._make,
            self.out / "journal",
            attempts=Attempts(self.out, None),
        )
        self.door = Link(f"ipc://{folder}/s", folder=folder)
        self.supervised = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._supervise)
        self._thread.start()

    def _make(self, on_progress: Any, is_behind: Any) -> Any:
        inner = Reconstruction(
            self.profile,
            out=self.out,
            live=True,
            is_behind=is_behind,
            on_progress=on_progress,
        )
        outer = self

        class Troubled:
            def __call__(self, name: str, doc: dict[str, Any]) -> None:
                if outer.trouble is not None:
                    outer.trouble(name, doc)
                inner(name, doc)

            def __getattr__(self, name: str) -> Any:
                return getattr(inner, name)

        return Troubled()

    def _supervise(self) -> None:
        while not self._ending.wait(0.1):
            self.service.supervise()

    def check(self, uid: str) -> Any:
        return House.check(self, uid)  # type: ignore[arg-type]

    def end(self) -> None:
        self._ending.set()
        self._thread.join(PATIENCE_S)
        self.door.close(linger_s=0)
        self.service.stop()


@pytest.fixture
def indoors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Indoors]:
    monkeypatch.setenv("EBL_STREAM_AUDIT", str(folder))
    monkeypatch.setattr(service_module, "RETRY_S", 0.2)
    one = Indoors(folder)
    yield one
    one.end()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_in_a_run_is_replaced_and_the_run_is_whole(
    indoors: Indoors, caplog: pytest.LogCaptureFixture
) -> None:
    died: list[float] = []

    def die_once(name: str, doc: dict[str, Any]) -> None:
        if name == "event" and doc["seq_num"] == 25 and not died:
            died.append(time.monotonic())
            raise SystemExit

    indoors.trouble = die_once
    threading.Thread(
        target=lambda: (
            until(lambda: "the worker died" in caplog.text),
            died.append(time.monotonic()),
        )
    ).start()
    uid = scan_with(indoors, lambda: None)  # type: ignore[arg-type]
    assert_good(indoors, uid)  # type: ignore[arg-type]
    print(f"alarm after {died[1] - died[0]:.2f} s")
    assert died[1] - died[0] < 5.0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_results_that_cannot_be_written_are_made_when_they_can(
    indoors: Indoors, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refused: list[float] = []
    write, is_full = chunks._write_file, threading.Event()

    def refuse(path: str, *pieces: bytes) -> None:
        if is_full.is_set():
            refused.append(time.monotonic())
            raise OSError(number, os.strerror(number))
        write(path, *pieces)

    monkeypatch.setattr(chunks, "_write_file", refuse)
    doors = Doors()
    is_full.set()
    uid = scan_with(indoors, lambda: None, doors)  # type: ignore[arg-type]
    assert indoors.door.flush(PATIENCE_S)  # the scan is safe in the journal
    assert until(lambda: bool(refused))
    said = lambda: str((indoors.door.status(uid) or {}).get("message"))  # noqa: E731
    assert until(lambda: os.strerror(number) in said())
    status = indoors.door.status(uid)
    assert status is not None
    assert not status["final"]
    print(f"door while results cannot be written: {doors.figures()}")
    is_full.clear()
    assert_good(indoors, uid)  # type: ignore[arg-type]


class FailingGpu(Accumulator):
    """Stands for a device that runs out of memory within the scan."""

    n_added = 0

    def add(self, *arguments: Any, **options: Any) -> None:
        FailingGpu.n_added += 1
        if FailingGpu.n_added == 4:
            raise MemoryError("out of memory allocating 1 GiB on the device")
        super().add(*arguments, **options)


def test_a_gpu_that_fails_leaves_the_run_to_the_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def device(_: Any) -> Any:
        return None if choice.best_device()[1].startswith("no GPU any") else FailingGpu

    monkeypatch.setattr(choice, "_failed", [])
    monkeypatch.setattr(reconstruction, "_accumulators", device)
    monkeypatch.setenv("EBL_STREAM_AUDIT", str(folder))
    house = Indoors(folder)
    try:
        uid = scan_with(house, lambda: None)  # type: ignore[arg-type]
        assert_good(house, uid)  # type: ignore[arg-type]
    finally:
        house.end()
    assert FailingGpu.n_added == 4
    assert "out of memory" in caplog.text
    assert choice.best_device()[1].startswith("no GPU any more, it failed: MemoryError")


def test_a_listener_that_dies_is_noticed(
    indoors: Indoors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service ends then (crash only): who starts it again loses nothing."""
    service = indoors.service
    indoors._ending.set()
    indoors._thread.join(PATIENCE_S)
    assert service._thread.is_alive()
    service.supervise()

    def die(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(DoorSource, "_tell_all", die)
    service._thread.join(PATIENCE_S)
    with pytest.raises(RuntimeError, match="listener's thread died"):
        service.supervise()
