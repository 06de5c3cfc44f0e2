"""A Tiled that is slow, cut off, broken or gone: neither scan nor result minds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_tiled import BadTiled
from campaign.house import PATIENCE_S, House, until
from campaign.scan import Doors, paced
from tiled.client import from_uri

from ebl_stream.publish import tiled_api, tiled_link
from ebl_stream.publish.attempts import Attempts, note_told
from ebl_stream.publish.output import ArraySpec, RunOutput
from ebl_stream.publish.record import RunRecord, read_record
from ebl_stream.publish.tiled_link import TiledLink
from ebl_stream.publish.tiled_mirror import RunMirror
from ebl_stream.publish.tiled_server import TiledServer

PAUSE_S = 0.005
FAULT_S = 3.0
"""How long each fault lasts."""
AT_MOST_PER_S = 2.0
AT_FIRST = 8
"""Requests more, at once: the first tries follow quickly."""
RECON = ArraySpec("recon", (8, 16, 16), "float32", "1/px")


@pytest.fixture(scope="module")
def server() -> Iterator[TiledServer]:
    folder = Path(tempfile.mkdtemp(prefix="ebl-tiled-"))
    server = TiledServer(folder / "out")
    server.start()
    assert server.wait_ready(PATIENCE_S)
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def proxy(server: TiledServer) -> Iterator[BadTiled]:
    proxy = BadTiled(str(server.uri))
    yield proxy
    proxy.close()


def look(out: RunOutput, version: int) -> None:
    values = np.full((8, 16, 16), version, np.float32)
    out.write("recon", 0, values, version=version, n_used=version, coverage=0.5)
    out.quality([{"version": version, "noise": 0.5}])


def node_of(server: TiledServer, uid: str) -> Any:
    return from_uri(str(server.uri), api_key=server.api_key)["processed"][uid]


def assert_as_on_disk(server: TiledServer, folder: Path) -> None:
    record, node = read_record(folder), node_of(server, folder.name)
    assert dict(node.metadata) == record.metadata()
    assert [dict(s) for s in node["recon"].metadata["slabs"]] == (
        record.as_json()["slabs"]["recon"]
    )
    rows = node["quality"].read()
    assert list(rows["row_id"]) == list(range(len(record.rows())))


@pytest.mark.parametrize(
    "mode", ["slow", "reset", "truncate", "silent", "409", "413", "429", "500"]
)
def test_tiled_catches_up_after_a_fault_and_is_not_pestered_in_it(
    server: TiledServer, proxy: BadTiled, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled_link, "PAUSE_WHEN_REFUSED_S", 3.0)
    monkeypatch.setattr(tiled_api, "REPLY_S", 2.0)
    link = TiledLink(proxy.uri, api_key=server.api_key)
    try:
        out = RunOutput(server.folder, f"in-{mode}", link)
        out.create([RECON], {"start": {"uid": f"in-{mode}"}}, 8)
        look(out, 1)
        assert link.wait_until_caught_up(PATIENCE_S)
        proxy.mode = mode
        begun, worst = time.monotonic(), 0.0
        for version in range(2, 8):
            called = time.monotonic()
            look(out, version)
            worst = max(worst, time.monotonic() - called)
        out.finish("complete", {})
        time.sleep(FAULT_S)
        n_tried = sum(at >= begun for at, _ in proxy.requests)
        proxy.mode, back = "pass", time.monotonic()
        assert link.wait_until_caught_up(PATIENCE_S)
        print(
            f"{mode}: {n_tried} requests in {FAULT_S:.0f} s, caught up after "
            f"{time.monotonic() - back:.2f} s, a version took {1e3 * worst:.1f} ms"
        )
    finally:
        link.close(0)
    if mode != "slow":  # then it works, slowly
        assert n_tried <= AT_FIRST + AT_MOST_PER_S * FAULT_S
    assert_as_on_disk(server, out.folder)


def test_scans_while_tiled_comes_and_goes_do_not_notice(
    server: TiledServer, proxy: BadTiled
) -> None:
    home = server.folder.parent
    house, doors = House(home, tiled=proxy.uri, api_key=server.api_key), Doors()
    try:
        house.start()
        send = doors.timed(house.door.send)
        for mode in ("silent", "reset", "500"):
            proxy.mode = "pass"
            uid, documents = house.detector.scan()
            for k, document in enumerate(paced(documents, PAUSE_S)):
                if k == 20:
                    proxy.mode = mode
                send(*document)
            result = house.door.wait(PATIENCE_S, uid)  # with Tiled still broken
            assert result["state"] == "complete"
            assert house.check(uid).is_good
        back, proxy.mode = time.monotonic(), "pass"
        told = house.out / result["processed_uid"] / ".in_tiled"
        assert until(told.exists)
        print(f"door: {doors.figures()}; told {time.monotonic() - back:.1f} s after")
        assert_as_on_disk(server, told.parent)
    finally:
        house.close()


def test_what_tiled_missed_before_the_service_ended_is_told_by_the_next(
    server: TiledServer,
) -> None:
    out = RunOutput(server.folder, "missed", None)
    out.create([RECON], {"start": {"uid": "missed", "original_run_uid": "r"}}, 8)
    look(out, 1)
    out.finish("complete", {})
    link = TiledLink(str(server.uri), api_key=server.api_key, on_told=note_told)
    try:
        followed: list[str] = []
        attempts = Attempts(server.folder, link)
        attempts.tell_again()
        assert link.wait_until_caught_up(PATIENCE_S)
        assert_as_on_disk(server, out.folder)
        assert (out.folder / ".in_tiled").exists()
        link.follow = lambda record: followed.append(record.processed_uid)  # type: ignore[method-assign]
        attempts.tell_again()
        assert "missed" not in followed
    finally:
        link.close(0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_publishing_thread_that_dies_is_started_again(
    server: TiledServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, died = RunMirror.send, []

    def die_once(mirror: RunMirror, api: Any) -> None:
        if not died:
            died.append(True)
            raise SystemExit
        send(mirror, api)

    monkeypatch.setattr(RunMirror, "send", die_once)
    link = TiledLink(str(server.uri), api_key=server.api_key)
    try:
        out = RunOutput(server.folder, "orphaned", link)
        out.create([RECON], {"start": {"uid": "orphaned"}}, 8)
        look(out, 1)
        assert not link.wait_until_caught_up(1.0)
        link.supervise()
        out.finish("complete", {})
        assert link.wait_until_caught_up(PATIENCE_S)
        assert_as_on_disk(server, out.folder)
    finally:
        link.close(0)


VIEWER = """
import sys, time
from tiled.client import from_uri
node = from_uri(sys.argv[1], api_key=sys.argv[2])["processed"][sys.argv[3]]["recon"]
subscription = node.subscribe()
subscription.start_in_thread(start=0)
print("looks", flush=True)
time.sleep(600)
"""


def test_a_viewer_that_is_killed_is_missed_by_nobody(server: TiledServer) -> None:
    link = TiledLink(str(server.uri), api_key=server.api_key)
    out = RunOutput(server.folder, "viewed", link)
    try:
        out.create([RECON], {"start": {"uid": "viewed"}}, 8)
        look(out, 1)
        assert link.wait_until_caught_up(PATIENCE_S)
        command = [sys.executable, "-c", VIEWER, str(server.uri), server.api_key or ""]
        with subprocess.Popen([*command, "viewed"], stdout=subprocess.PIPE) as viewer:
            assert viewer.stdout is not None
            assert viewer.stdout.readline() == b"looks\n"
            for version in range(2, 6):
                look(out, version)
                if version == 3:
                    os.kill(viewer.pid, signal.SIGKILL)
        out.finish("complete", {})
        assert link.wait_until_caught_up(PATIENCE_S)
        assert_as_on_disk(server, out.folder)
    finally:
        link.close(0)


def test_a_record_survives_its_own_reading(tmp_path: Path) -> None:
    """Marking an attempt as superseded keeps all else, a torn last row aside."""
    out = RunOutput(tmp_path, "recon-old", None)
    start = {"uid": "recon-old", "original_run_uid": "r", "time": 0.0}
    out.create([RECON], {"start": start, "ledger": {"used": 3}}, 8)
    for version in (1, 2):
        look(out, version)
    with (out.folder / "quality.jsonl").open("a") as file:
        file.write('{"version": 3, "noi')
    before: RunRecord = read_record(out.folder)
    Attempts(tmp_path, None).supersede("r", 0.0, "because")
    after = read_record(out.folder)
    assert (before.state, after.state) == ("running", "superseded")
    assert after.metadata() == {
        **before.metadata(),
        "state": "superseded",
        "reason": "because",
    }
    assert after.as_json()["slabs"] == before.as_json()["slabs"]
    assert after.rows() == before.rows()
    assert len(after.rows()) == 2
