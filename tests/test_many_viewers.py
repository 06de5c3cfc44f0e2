"""Fifty viewers of a run under way, some killed as they read: nothing is torn."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from campaign.house import PATIENCE_S, House, until, volume
from campaign.scan import SETTINGS, Doors, paced

from ebl_stream.engine.viewer import NAME, Wishes, read_wishes, write_wishes
from ebl_stream.publish.output import ArraySpec, RunOutput
from ebl_stream.publish.tiled_link import TiledLink
from ebl_stream.publish.tiled_server import TiledServer

LIVE = 1e-5
"""Relative L2: live, projections go into the grids in blocks of other sizes."""

N_EACH = 25
N_DEAF = 20
"""Subscribers that never read."""
PAUSE_S = 0.02
WATCHED_S = 4.0
RECON = ArraySpec("recon", (32, 64, 64), "float32", "1/px")


@pytest.fixture(scope="module")
def server() -> Iterator[TiledServer]:
    folder = Path(tempfile.mkdtemp(prefix="ebl-view-"))  # short: it holds a socket
    server = TiledServer(folder / "out")
    server.start()
    assert server.wait_ready(PATIENCE_S)
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


class Crowd:
    """Two processes of viewers; one of them is killed."""

    def __init__(self, server: TiledServer, folder: Path, mode: str) -> None:
        script = Path(__file__).parent / "viewers.py"
        command = [sys.executable, str(script), str(server.uri), str(server.api_key)]
        command += [str(folder), str(N_EACH), mode]
        pipe = subprocess.PIPE
        self._all = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            for _ in range(2)
        ]

    def wait(self) -> None:
        """Wait until all look."""
        for one in self._all:
            assert one.stdout is not None
            assert one.stdout.readline() == "looks\n"

    def kill_half(self) -> None:
        self._all[0].kill()

    def end(self) -> dict[str, Any]:
        """Return what the others saw."""
        out, _ = self._all[1].communicate(timeout=PATIENCE_S)
        return json.loads(out)

    def close(self) -> None:
        for one in self._all:
            one.kill()
            one.communicate()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def n_sockets(server: TiledServer) -> int:
    found = list[str]()
    for path in Path(f"/proc/{server.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(path.readlink().name)
    return sum(name.startswith("socket:") for name in found)


def rss_mb(server: TiledServer) -> float:
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def subscribe_and_never_read(server: TiledServer, uid: str, stack: ExitStack) -> None:
    port = httpx.URL(str(server.uri)).port
    assert port is not None
    one = stack.enter_context(socket.socket())
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    one.connect(("127.0.0.1", port))
    lines = [
        f"GET /api/v1/stream/single/processed/{uid}/recon?start=0 HTTP/1.1",
        "Host: h",
        f"Authorization: Apikey {server.api_key}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}",
    ]
    one.sendall("\r\n".join([*lines, "", ""]).encode())
    assert one.recv(12) == b"HTTP/1.1 101"


def is_known(server: TiledServer, uid: str) -> bool:
    url = f"{server.uri}/api/v1/metadata/processed/{uid}/recon"
    headers = {"Authorization": f"Apikey {server.api_key}"}
    return httpx.get(url, headers=headers, trust_env=False).status_code == 200


def looked_at(house: House, server: TiledServer, uid: str) -> str:
    """Wait until a run can be looked at in Tiled; return its processed uid."""
    assert until(lambda: "version" in (house.door.status(uid) or {}))
    processed_uid = str((house.door.status(uid) or {})["processed_uid"])
    assert until(lambda: is_known(server, processed_uid))
    return processed_uid


def look(out: RunOutput, version: int) -> None:
    """Publish a version: one number, everywhere."""
    values = np.full((16, 64, 64), version, np.float32)
    for z in (0, 16):
        out.write("recon", z, values, version=version, n_used=version, coverage=0.5)
    out.quality([{"version": version, "noise": 0.5}])


def test_fifty_viewers_see_no_torn_version_and_are_not_missed(
    server: TiledServer, stack: ExitStack
) -> None:
    link = TiledLink(str(server.uri), api_key=server.api_key)
    out = RunOutput(server.folder, "watched", link)
    out.create([RECON], {"start": {"uid": "watched"}}, 16)
    look(out, 1)
    assert link.wait_until_caught_up(PATIENCE_S)
    before = n_sockets(server)
    crowd = Crowd(server, out.folder, "flat")
    stack.callback(crowd.close)
    for _ in range(N_DEAF):
        subscribe_and_never_read(server, "watched", stack)
    crowd.wait()
    memory, took = rss_mb(server), list[float]()
    begun, version = time.monotonic(), 1
    while (elapsed := time.monotonic() - begun) < WATCHED_S:
        version += 1
        called = time.perf_counter()
        look(out, version)
        took.append(1e3 * (time.perf_counter() - called))
        if elapsed > WATCHED_S / 2:
            crowd.kill_half()
        time.sleep(PAUSE_S)
    out.finish("complete", {})
    assert link.wait_until_caught_up(PATIENCE_S)
    told_s = time.monotonic() - begun - WATCHED_S
    grown = rss_mb(server) - memory
    saw = crowd.end()
    stack.close()
    print(
        f"{version} versions, {saw['versions']} of them seen by the 25 that lived "
        f"({saw['seen']}); a version took {np.median(took):.1f} ms, at most "
        f"{max(took):.1f}; Tiled had all {told_s:.1f} s after; memory +{grown:.0f} MiB"
    )
    assert saw["torn"] == []
    assert saw["failed"] == []
    assert set(saw["seen"]) == {"block", "slice", "chunk", "record", "wish"}
    assert saw["versions"] > 3
    assert grown < 60
    assert until(lambda: n_sockets(server) <= before)
    link.close(0)


def test_a_scan_that_fifty_watch_becomes_the_volume_that_nobody_watched(
    server: TiledServer, stack: ExitStack
) -> None:
    house = House(
        server.folder.parent,
        tiled=str(server.uri),
        api_key=server.api_key,
        settings=SETTINGS | {"refresh.every": 0.05, "preview.every": 0.1},
    )
    stack.callback(house.close)
    house.start()
    n = 160
    uid, documents = house.detector.scan(n)
    for document in documents:
        house.door.send(*document)
    clean = volume(house.door.wait(PATIENCE_S, uid))
    uid, documents = house.detector.scan(n)
    send, doors = house.door.send, Doors()
    crowd = None
    for k, document in enumerate(paced(documents, PAUSE_S)):
        doors.timed(send)(*document)
        if k == n // 4:
            crowd = Crowd(server, house.out / looked_at(house, server, uid), "any")
            stack.callback(crowd.close)
            crowd.wait()
        if k == 3 * n // 4:
            assert crowd is not None
            crowd.kill_half()
    assert crowd is not None
    result = house.door.wait(PATIENCE_S, uid)
    saw = crowd.end()
    door_ms = 1e3 * np.array(doors.large)
    print(
        f"{saw['seen']}; door: median {np.median(door_ms):.2f}, "
        f"max {door_ms.max():.1f} ms"
    )
    assert (saw["torn"], saw["failed"]) == ([], [])
    assert saw["seen"]["block"] > 5
    assert np.linalg.norm(volume(result) - clean) <= LIVE * np.linalg.norm(clean)
    assert house.check(uid, n).is_good
    told = house.out / result["processed_uid"] / ".in_tiled"
    assert until(told.exists)


def test_fifty_who_ask_at_a_time_ask_for_something_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What one asks for may replace what another did, but never mixes with it."""
    asked = [Wishes(rows=(z, z + 1)) for z in range(50)]

    def ask(wishes: Wishes) -> None:
        for _ in range(10):
            write_wishes(tmp_path, wishes)

    with ThreadPoolExecutor(len(asked)) as pool:
        all_asked = [pool.submit(ask, wishes) for wishes in asked]
        while not all(one.done() for one in all_asked):
            assert read_wishes(tmp_path) in [Wishes(), *asked]
        for one in all_asked:
            one.result()
    assert not caplog.records  # nothing half-written was read
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
