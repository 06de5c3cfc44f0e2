"""Slow clients of the embedded Tiled: others are answered, and memory is bounded."""

from __future__ import annotations

import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from campaign.house import PATIENCE_S, until

from ebl_stream.publish import bounded_http, tiled_server
from ebl_stream.publish.output import ArraySpec, RunOutput
from ebl_stream.publish.tiled_link import TiledLink
from ebl_stream.publish.tiled_server import TiledServer

MB = 2**20
BOUND_S = 2.0
"""Half a minute, for the tests."""
BODY_MB = 32
SETTINGS = (
    f"b.REQUEST_S = b.STALLED_S = {BOUND_S}; b.REPLY_S = {2 * BOUND_S}; "
    f"b.MAX_BODY_BYTES = {BODY_MB * MB}"
)
VOLUME = ArraySpec("recon", (32, 512, 512), "float32", "1/px")
N_BYTES = 4 * 32 * 512 * 512


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TiledServer]:
    """The embedded server, less patient, with one volume of 32 MiB."""
    patch = pytest.MonkeyPatch()
    boot = tiled_server._BOOT.replace(
        "runpy.run", f"import {bounded_http.__name__} as b; {SETTINGS}\nrunpy.run"
    )
    patch.setattr(tiled_server, "_BOOT", boot)
    server = TiledServer(tmp_path_factory.mktemp("served"))
    server.start()
    assert server.wait_ready(PATIENCE_S)
    link = TiledLink(str(server.uri), api_key=server.api_key)
    out = RunOutput(server.folder, "seen", link)
    out.create([VOLUME], {"start": {"uid": "seen"}}, 16)
    noise = np.random.default_rng(0).random((16, 512, 512), np.float32)
    for z in (0, 16):
        out.write("recon", z, noise, version=1, n_used=1, coverage=1.0)
    assert link.wait_until_caught_up(PATIENCE_S)
    link.close(0)
    whole(server)
    yield server
    server.stop()
    patch.undo()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def head(server: TiledServer, request: str, *lines: str) -> bytes:
    key = f"Authorization: Apikey {server.api_key}"
    return "\r\n".join([f"{request} HTTP/1.1", "Host: h", key, *lines]).encode()


READ = "GET /api/v1/array/full/processed/seen/recon?format=application/octet-stream"


def whole(server: TiledServer) -> None:
    """Read the volume as a viewer in good health does."""
    url = f"{server.uri}{READ.removeprefix('GET ')}"
    headers = {"Authorization": f"Apikey {server.api_key}"}
    reply = httpx.get(url, headers=headers, timeout=PATIENCE_S)
    assert len(reply.raise_for_status().content) == N_BYTES


def connect(
    server: TiledServer, stack: ExitStack, sent: bytes = b"", buffer: int = 0
) -> socket.socket:
    port = httpx.URL(str(server.uri)).port
    assert port is not None
    one = stack.enter_context(socket.socket())
    if buffer:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    one.connect(("127.0.0.1", port))
    one.sendall(sent)
    return one


def n_sockets(server: TiledServer) -> int:
    found = list[str]()
    for path in Path(f"/proc/{server.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(path.readlink().name)
    return sum(name.startswith("socket:") for name in found)


def rss_mb(server: TiledServer) -> float:
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def is_closed(one: socket.socket) -> bool:
    """Whether the server let go of a connection of which nothing was read."""
    poll = select.poll()
    poll.register(one, select.POLLERR | select.POLLHUP | select.POLLRDHUP)
    return bool(poll.poll(0))


def trickle(one: socket.socket, piece: bytes, every_s: float) -> Callable[[], None]:
    """Send a piece now and then; returns what ends it."""
    over = threading.Event()

    def run() -> None:
        try:
            while not over.wait(every_s):
                one.sendall(piece)
        except OSError:
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join(PATIENCE_S)

    return end


def answers_ms(server: TiledServer, n: int = 20) -> float:
    """Ask as somebody else, each time anew; return the median, ms."""
    took = []
    for _ in range(n):
        begun = time.perf_counter()
        reply = httpx.get(f"{server.uri}/api/v1/", timeout=10, trust_env=False)
        assert reply.status_code == 200
        took.append(1e3 * (time.perf_counter() - begun))
    return float(np.median(took))


def test_who_does_not_come_to_the_point_is_closed_and_holds_up_nobody(
    server: TiledServer, stack: ExitStack
) -> None:
    alone_ms, before, memory = answers_ms(server), n_sockets(server), rss_mb(server)
    half = b"GET / HTTP/1.1\r\nHost: h\r\nX-Slow: "
    body = head(server, "POST /api/v1/metadata/", "Content-Length: 9999", "", "{")
    idle = [connect(server, stack) for _ in range(150)]
    others = [connect(server, stack, sent) for sent in (half, body) for _ in range(40)]
    # A second request on a connection that was used: uvicorn stops its clock then.
    again = head(server, "GET /healthz", "", "")
    others += [connect(server, stack, again + b"GET") for _ in range(5)]
    begun = time.monotonic()
    for one in others[::8]:
        stack.callback(trickle(one, b"a", 0.2))
    assert until(lambda: n_sockets(server) - before > 100)
    in_midst_ms = answers_ms(server, 8)
    assert until(lambda: all(is_closed(one) for one in [*idle, *others]))
    closed_s = time.monotonic() - begun
    assert until(lambda: n_sockets(server) <= before)
    grown = rss_mb(server) - memory
    print(
        f"235 slow clients closed after {closed_s:.1f} s (bound {BOUND_S}); others "
        f"{alone_ms:.1f} -> {in_midst_ms:.1f} ms; memory +{grown:.1f} MiB"
    )
    assert grown < 20


def test_more_connections_than_there_may_be_keep_nobody_out(
    server: TiledServer, stack: ExitStack
) -> None:
    before = n_sockets(server)
    flood = [connect(server, stack) for _ in range(2 * bounded_http.MAX_CONNECTIONS)]
    assert answers_ms(server, 3) < 5000
    assert n_sockets(server) - before <= bounded_http.MAX_CONNECTIONS
    # The longest silent ones had to go.
    assert is_closed(flood[0])
    assert not is_closed(flood[-1])


def test_a_head_without_end_is_refused(server: TiledServer, stack: ExitStack) -> None:
    memory = rss_mb(server)
    one = connect(server, stack, b"GET / HTTP/1.1\r\nX-Long: ")
    with pytest.raises(OSError, match=r"reset|pipe|closed"):
        one.sendall(b"a" * 200 * MB)
    assert rss_mb(server) - memory < 20


def test_bodies_of_strangers_are_not_held_without_bound(
    server: TiledServer, stack: ExitStack
) -> None:
    """FastAPI reads a whole body before it asks for the key."""
    memory, peaks = rss_mb(server), list[float]()
    length = f"Content-Length: {64 * MB}\r\n\r\n"
    start = b"POST /api/v1/metadata/ HTTP/1.1\r\nHost: h\r\n" + length.encode()
    many = [connect(server, stack, start) for _ in range(16)]
    n_cut = 0
    for _ in range(24):
        for one in list(many):
            try:
                one.sendall(b" " * MB)
            except OSError:
                n_cut += 1
                many.remove(one)
        peaks.append(rss_mb(server) - memory)
    assert answers_ms(server, 3) < 5000
    print(f"{n_cut} of 16 bodies were cut off; memory +{max(peaks):.0f} MiB")
    assert n_cut >= 14
    assert max(peaks) < 3 * BODY_MB  # FastAPI copies


def test_readers_that_take_nothing_or_little_are_cut_off(
    server: TiledServer, stack: ExitStack
) -> None:
    asked = head(server, READ, "", "")
    before = n_sockets(server)
    for _ in range(3):
        connect(server, stack, asked)
    slow = connect(server, stack, asked, 2**16)
    assert until(lambda: n_sockets(server) > before)  # it has heard of them
    held = rss_mb(server)
    begun, taken = time.monotonic(), 0
    slow.settimeout(PATIENCE_S)
    try:
        while n_sockets(server) > before and (part := slow.recv(2**16)):
            taken += len(part)
            time.sleep(0.05)
    except OSError:
        pass
    closed_s = time.monotonic() - begun
    assert 0 < taken < N_BYTES
    assert until(lambda: n_sockets(server) <= before)
    print(f"cut off after {closed_s:.1f} s with {taken / MB:.1f} of 32 MiB read")
    whole(server)
    print(f"memory {held:.0f} MiB, afterwards {rss_mb(server):.0f} MiB")


def test_a_reader_that_takes_its_time_gets_everything(
    server: TiledServer, stack: ExitStack
) -> None:
    """Slower than stuck ones may be, but it goes on."""
    one = connect(server, stack, head(server, READ, "", ""), 2**16)
    begun, taken = time.monotonic(), 0
    while taken <= N_BYTES and (part := one.recv(2**20)):
        taken += len(part)
        pause = BOUND_S * 1.6 * taken / N_BYTES - (time.monotonic() - begun)
        time.sleep(max(0.0, pause))
    assert taken > N_BYTES
    assert time.monotonic() - begun > BOUND_S
