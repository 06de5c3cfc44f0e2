"""Results in a real Tiled server, seen by real subscribers over the websocket."""

import contextlib
import http.server
import os
import signal
import socket
import stat
import threading

import httpx
import numpy as np
import pytest
import zarr
from tiled.client import from_uri
from tiled.queries import Key

from ebl_stream.publish.output import ArraySpec, RunOutput
from ebl_stream.publish.record import read_record
from ebl_stream.publish.tiled_link import TiledLink
from ebl_stream.publish.tiled_server import TiledServer

SHAPE = (40, 32, 32)
RECON = ArraySpec("recon", SHAPE, "float32", "1/px")
LABELS = ArraySpec("labels", SHAPE, "uint8", "")
SLABS = {0: 16, 16: 16, 32: 8}
"""z0: height."""
PATIENCE_S = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = TiledServer(tmp_path_factory.mktemp("results"))
    server.start()
    assert server.wait_ready(PATIENCE_S), (server.folder / ".tiled/log").read_text()
    yield server
    server.stop()


@pytest.fixture
def link(server):
    with linked(server) as link:
        yield link


@pytest.fixture
def client(server):
    return from_uri(server.uri, api_key=server.api_key, include_data_sources=True)


@contextlib.contextmanager
def linked(address, **kwargs):
    link = TiledLink(address, **kwargs)
    try:
        yield link
    finally:
        link.close(0)


def create(folder, uid, link, arrays=(RECON, LABELS)):
    out = RunOutput(folder, uid, link)
    start = {"uid": uid, "original_run_uid": f"raw-of-{uid}", "plan_name": "tomo"}
    out.create(arrays, {"start": start, "analysis": {"software": "ebl_stream"}}, 16)
    return out


def look(out, version, name="recon", dtype="float32"):
    """Write all slabs of one version; the value of a voxel tells which."""
    for z0, height in SLABS.items():
        values = np.full((height, 32, 32), 10 * version + z0 / 16, dtype)
        stamp = {"version": version, "n_used": 10 * version, "coverage": version / 10}
        out.write(name, z0, values, **stamp)
    out.quality([{"version": version, "slab": k, "noise": 0.5} for k in range(3)])


def assert_same_as_folder(node, out):
    record = read_record(out.folder)
    assert dict(node.metadata) == record.metadata()
    for spec in record.arrays:
        array = node[spec.name]
        assert np.array_equal(array.read(), out_array(out, spec.name))
        versions = [dict(slab) for slab in array.metadata["slabs"]]
        assert versions == record.as_json()["slabs"][spec.name]
    rows = record.rows()
    if rows:
        table = node["quality"].read()
        assert list(table["row_id"]) == list(range(len(rows)))
        assert table.drop(columns="row_id").to_dict("records") == rows


def out_array(out, name):
    return np.asarray(zarr.open_array(out.path(name), mode="r"))


class Listener:
    """A subscriber; it holds its callback, to which Tiled only refers weakly."""

    def __init__(self, node):
        self.got = []
        self.node = node
        self.closed = threading.Event()
        self.subscription = node.subscribe()
        self.subscription.new_data.add_callback(self.on_data)
        self.subscription.stream_closed.add_callback(self.on_closed)
        self.subscription.start_in_thread(start=0)

    def on_data(self, update):
        stamp = dict(update.data_source.properties)
        versions = {s["z0"]: s for s in self.node.refresh().metadata["slabs"]}
        self.got.append((stamp, versions[stamp["z0"]], update.data()))

    def on_closed(self, _):
        self.closed.set()


def test_layout_metadata_and_pixels(server, link, client):
    out = create(server.folder, "layout", link)
    look(out, 1)
    look(out, 1, "labels", "uint8")
    out.update({"progress": {"n_used": 10}})
    out.finish("complete", {"ledger": {"used": 10}})
    assert link.wait_until_caught_up(PATIENCE_S)
    assert link.caught_up
    node = client["processed"]["layout"]
    assert [(spec.name, spec.version) for spec in node.specs] == [("TomoRecon", "1.0")]
    assert sorted(node) == ["labels", "quality", "recon"]
    assert node["recon"].dims == ("z", "y", "x")
    assert node["recon"].metadata["unit"] == "1/px"
    assert node.metadata["state"] == "complete"
    assert_same_as_folder(node, out)
    assert np.array_equal(node["recon"][17, 4:9], out_array(out, "recon")[17, 4:9])
    assert dict(from_uri(link.node_uri("layout"), api_key=server.api_key).metadata)
    found = client["processed"].search(Key("start.original_run_uid") == "raw-of-layout")
    assert list(found) == ["layout"]


def test_subscriber_gets_every_version_of_every_slab(server, link, client):
    out = create(server.folder, "live", link)
    assert link.wait_until_caught_up(PATIENCE_S)
    states = []
    listener = Listener(client["processed"]["live"]["recon"])
    for version in (1, 2, 3, 4):
        look(out, version)
        assert link.wait_until_caught_up(PATIENCE_S)
        states.append(client["processed"]["live"].metadata["state"])
    out.finish("partial", {})
    assert listener.closed.wait(PATIENCE_S)
    assert client["processed"]["live"].metadata["state"] == "partial"
    assert states == ["running"] * 4
    for z0, height in SLABS.items():
        mine = [entry for entry in listener.got if entry[0]["z0"] == z0]
        assert [stamp["n_used"] for stamp, _, _ in mine] == [10, 20, 30, 40]
        for stamp, in_metadata, pixels in mine:
            assert in_metadata["version"] >= stamp["version"]
            assert pixels.shape == (height, 32, 32)
            assert pixels.min() >= 10 * stamp["version"] + z0 / 16


def test_latest_version_wins_when_tiled_is_slow(server, client):
    out = create(server.folder, "late-link", None)
    for version in range(1, 6):
        look(out, version)
    with linked(server) as late:
        late.follow(out.record)
        assert late.wait_until_caught_up(PATIENCE_S)
        listener = Listener(client["processed"]["late-link"]["recon"])
        out.finish("complete", {})
        late.changed()
        assert listener.closed.wait(PATIENCE_S)
    assert [stamp["version"] for stamp, _, _ in listener.got] == [5, 5, 5]


def test_two_runs_at_a_time(server, link, client):
    outs = [create(server.folder, f"twin-{k}", link) for k in range(2)]
    for version in (1, 2):
        for out in outs:
            look(out, version)
    for out in outs:
        out.finish("complete", {})
    assert link.wait_until_caught_up(PATIENCE_S)
    for out in outs:
        assert_same_as_folder(client["processed"][out.processed_uid], out)


def test_raw_run_stays_as_it_was(server, link, client):
    from bluesky import RunEngine
    from bluesky.plans import scan
    from bluesky_tiled_plugins import TiledWriter
    from ophyd.sim import det, motor

    engine = RunEngine()
    engine.subscribe(TiledWriter(client.create_container("raw")))
    (uid,) = engine(scan([det], motor, -1, 1, 3))
    run = client["raw"][uid]
    before = [name for name, _ in run.documents()]
    out = RunOutput(server.folder, "derived", link)
    out.create([RECON], {"start": {"uid": "derived", "original_run_uid": uid}}, 16)
    look(out, 1)
    out.finish("complete", {})
    assert link.wait_until_caught_up(PATIENCE_S)
    assert [name for name, _ in client["raw"][uid].documents()] == before
    assert before[0] == "start"
    assert before[-1] == "stop"
    assert list(client["raw"][uid]) == ["primary"]


def test_node_that_vanishes_is_made_again(server, link, client):
    out = create(server.folder, "vanishing", link)
    look(out, 1)
    assert link.wait_until_caught_up(PATIENCE_S)
    client["processed"].delete_contents(
        "vanishing", recursive=True, external_only=False
    )
    look(out, 2)
    out.finish("complete", {})
    assert link.wait_until_caught_up(PATIENCE_S)
    assert_same_as_folder(client["processed"]["vanishing"], out)


def test_folder_can_be_published_again_by_another_process(server, link, client):
    out = create(server.folder, "again", None)
    look(out, 1)
    out.finish("partial", {"ledger": {"missing": 3}})
    for _ in range(2):
        link.follow(read_record(out.folder))
        assert link.wait_until_caught_up(PATIENCE_S)
        assert_same_as_folder(client["processed"]["again"], out)


def test_name_taken_by_a_stranger_is_left_alone(server, link, client, caplog):
    create(server.folder, "first", link)
    assert link.wait_until_caught_up(PATIENCE_S)
    client["processed"].create_container("taken", metadata={"mine": 1})
    out = create(server.folder, "taken", link)
    look(out, 1)
    assert not link.wait_until_caught_up(1.0)
    assert dict(client["processed"]["taken"].metadata) == {"mine": 1}
    assert list(client["processed"]["taken"]) == []
    assert "is another's" in caplog.text


def test_wrong_key_is_said_once_with_what_to_do(server, caplog):
    with linked(server.uri, api_key="wrong") as other:
        out = create(server.folder, "denied", other)
        for version in (1, 2, 3):
            look(out, version)
            assert not other.wait_until_caught_up(0.4)
    warnings = [r for r in caplog.records if r.name == "ebl_stream.publish.tiled_link"]
    assert len(warnings) == 1
    assert "TILED_API_KEY" in warnings[0].getMessage()
    assert "wrong" not in warnings[0].getMessage()
    assert str(out.folder) in warnings[0].getMessage()


class LosesReply(http.server.BaseHTTPRequestHandler):
    """Pass requests on to Tiled; one reply to an append is lost on the way."""

    protocol_version = "HTTP/1.1"

    def _pass_on(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
        headers["Accept-Encoding"] = "identity"
        url = server.behind + self.path
        reply = httpx.request(self.command, url, content=body, headers=headers)
        if "/table/partition/" in self.path and server.to_lose > 0:
            server.to_lose -= 1
            self.close_connection = True
            return
        self.send_response(reply.status_code)
        self.send_header("Content-Type", reply.headers.get("Content-Type", ""))
        self.send_header("Content-Length", str(len(reply.content)))
        self.end_headers()
        self.wfile.write(reply.content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, *args):
        pass


def test_rows_whose_reply_was_lost_are_not_sent_twice(server, client):
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), LosesReply)
    proxy.behind, proxy.to_lose = server.uri, 1
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{proxy.server_port}?api_key={server.api_key}"
    try:
        with linked(address) as other:
            out = create(server.folder, "lossy", other)
            look(out, 1)
            look(out, 2)
            out.finish("complete", {})
            assert other.wait_until_caught_up(PATIENCE_S)
            assert server.api_key not in other.uri
    finally:
        proxy.shutdown()
        proxy.server_close()
    assert proxy.to_lose == 0
    assert_same_as_folder(client["processed"]["lossy"], out)


def test_server_killed_in_the_middle_of_a_run(server, link, client, caplog):
    out = create(server.folder, "killed", link)
    look(out, 1)
    assert link.wait_until_caught_up(PATIENCE_S)
    address, key, pid = server.uri, server.api_key, server.pid
    os.kill(pid, signal.SIGKILL)
    for version in (2, 3):
        look(out, version)
    assert not link.wait_until_caught_up(0.5)
    assert link.wait_until_caught_up(PATIENCE_S)
    assert server.pid not in (None, pid)
    assert (server.uri, server.api_key) == (address, key)
    # A subscriber who comes after the restart gets the latest of every slab.
    listener = Listener(client["processed"]["killed"]["recon"])
    look(out, 4)
    out.finish("complete", {})
    assert listener.closed.wait(PATIENCE_S)
    assert {stamp["version"] for stamp, _, _ in listener.got} == {3, 4}
    assert_same_as_folder(client["processed"]["killed"], out)


def test_tiled_comes_late_and_cannot_see_one_of_the_folders(tmp_path, caplog):
    """Down at the start; a folder it may not read is sent over HTTP instead."""
    late = TiledServer(tmp_path / "seen")
    with linked(late) as link:
        seen = create(tmp_path / "seen", "seen", link)
        hidden = create(tmp_path / "hidden", "hidden", link)
        for version in (1, 2):
            look(seen, version)
            look(hidden, version)
        assert not link.wait_until_caught_up(0.2)
        assert link.uri is None
        late.start()
        try:
            assert link.wait_until_caught_up(PATIENCE_S)
            look(hidden, 3)
            seen.finish("complete", {})
            hidden.finish("complete", {})
            assert link.wait_until_caught_up(PATIENCE_S)
            tree = from_uri(late.uri, api_key=late.api_key)["processed"]
            assert_same_as_folder(tree["seen"], seen)
            assert_same_as_folder(tree["hidden"], hidden)
        finally:
            late.stop()
    assert "readable_storage" in caplog.text


def test_link_calls_return_at_once_while_tiled_is_away(tmp_path):
    # A listener that accepts and never answers is worse than one that is not there.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        link = TiledLink(address, api_key="k")
        out = create(tmp_path, "away", link)
        for version in range(1, 20):
            look(out, version)
        out.finish("complete", {})
        assert not link.caught_up
        link.close(0)
    assert read_record(out.folder).state == "complete"


def test_second_process_on_a_folder_uses_the_first_server(server):
    second = TiledServer(server.folder)
    second.start()
    try:
        assert second.wait_ready(PATIENCE_S)
        assert (second.uri, second.api_key) == (server.uri, server.api_key)
        assert second.pid is None
    finally:
        second.stop()
    assert httpx.get(f"{server.uri}/healthz").status_code == 200


def test_server_keeps_strangers_out(server):
    home = server.folder / ".tiled"
    for name in ("key", "config.yml", "log"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert (home / "key").read_text() == server.api_key
    url = f"{server.uri}/api/v1/metadata/"
    assert httpx.get(url).status_code == 401
    key = {"Authorization": f"Apikey {server.api_key}"}
    assert httpx.get(url, headers=key).status_code == 200
