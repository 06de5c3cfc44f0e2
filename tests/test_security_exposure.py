"""What shows: routes, keys, and what metadata may do to a terminal or a log."""

from __future__ import annotations

import io
import json
import logging
import signal
import socket
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import h5py
import httpx
import numpy as np
import pytest
from rich.console import Console

from ebl_stream.cli.check import Size, run_checks
from ebl_stream.cli.messages import complain
from ebl_stream.cli.plain_text import PlainFormatter, printable, without_keys
from ebl_stream.cli.progress import ProgressView, summary
from ebl_stream.errors import InputError
from ebl_stream.profile_file import load
from ebl_stream.publish.tiled_server import TiledServer

PATIENCE_S = 60
OPEN_ROUTES = {
    # What is there, and which version: neither names nor data.
    ("get", "/"),
    ("get", "/healthz"),
    ("get", "/tiled-ui-settings"),
    ("get", "/ui/{path}"),
    ("get", "/api/v1/"),
}
EVIL = "\x1b[2J\x1b]0;owned\x07 [red]a[/red]\nERROR: forged\r\x08\u202e\u009b31m"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    server = TiledServer(tmp_path_factory.mktemp("served"))
    server.start()
    assert server.wait_ready(PATIENCE_S)
    headers = {"Authorization": f"Apikey {server.api_key}"}
    body = {"structure_family": "container", "metadata": {"secret": "s3cr3t"}}
    body |= {"id": "hidden-run", "specs": [], "data_sources": []}
    url = f"{server.uri}/api/v1/metadata/"
    assert httpx.post(url, json=body, headers=headers).is_success
    yield server
    server.stop()


def test_every_route_asks_for_the_key(server):
    document = httpx.get(f"{server.uri}/openapi.json").json()
    answered = set()
    for path, methods in document["paths"].items():
        url = path.replace("{path}", "hidden-run")
        for method in methods:
            reply = httpx.request(method, server.uri + url, json={})
            assert "s3cr3t" not in reply.text
            assert path == "/" or "hidden-run" not in reply.text
            if reply.status_code not in (401, 403):
                answered.add((method, path))
    assert answered <= OPEN_ROUTES
    assert not [path for path in document["paths"] if path.startswith("/zarr")]


@pytest.mark.parametrize(
    "path",
    [
        *("zarr/v2/", "zarr/v3/", "zarr/v3/zarr.json", "zarr/v2/.zattrs"),
        *("zarr/v3/hidden-run/zarr.json", "zarr/v2/hidden-run/.zattrs"),
        "api/graphql?query={entities{id}}",
    ],
)
def test_the_routes_without_a_key_are_left_out(server, path):
    reply = httpx.get(f"{server.uri}/{path}")
    assert reply.status_code == 404
    assert "s3cr3t" not in reply.text


def test_a_wrong_key_is_refused(server):
    for headers in ({"Authorization": "Apikey 00ff"}, {"Authorization": "Bearer x"}):
        url = f"{server.uri}/api/v1/metadata/hidden-run"
        assert httpx.get(url, headers=headers).status_code == 401


def test_only_this_machine_and_this_user_can_reach_it(server):
    port = httpx.URL(server.uri).port
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    for address in addresses - {"127.0.0.1", "::1"}:
        with pytest.raises(httpx.ConnectError):
            httpx.get(
                f"http://[{address}]:{port}"
                if ":" in address
                else f"http://{address}:{port}/healthz",
                timeout=5,
            )
    home = server.folder / ".tiled"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for name in ("key", "config.yml", "log"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    config = json.loads((home / "config.yml").read_text())
    storage = config["trees"][0]["args"]["readable_storage"]
    assert storage == [str(server.folder)]
    assert server.api_key not in " ".join(
        Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")
    )


class Elsewhere(BaseHTTPRequestHandler):
    """A Tiled server of which the API asks for a key, and /zarr does not."""

    opens: tuple[str, ...] = ("/zarr/v3/zarr.json", "/api/v1/")

    def do_GET(self) -> None:
        has_key = self.headers.get("Authorization") == "Apikey k3y"
        known = self.path in self.opens or has_key
        self.send_response(200 if known else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("opens", "said"),
    [
        (("/zarr/v3/zarr.json", "/api/v1/"), "/zarr routes answer without a key"),
        (("/api/v1/", "/api/v1/metadata/"), "without a key"),
        (("/api/v1/",), None),
    ],
)
def test_check_warns_of_a_server_that_answers_without_a_key(
    tmp_path, opens, said, monkeypatch
):
    monkeypatch.setenv("TILED_API_KEY", "k3y")
    handler = type("Handler", (Elsewhere,), {"opens": opens})
    with HTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{http.server_port}"
        size = Size(10, 16, 32, "given")
        findings = run_checks(load("default"), size, tmp_path, address)
        http.shutdown()
    warned = [finding for finding in findings if finding.what == "Tiled's key"]
    assert [finding.verdict for finding in warned] == (["note"] if said else [])
    assert all(said in finding.words for finding in warned)
    assert "k3y" not in str(findings)


def harmless(text: str) -> bool:
    lines = text.splitlines()
    return all(line.isprintable() for line in lines) and not any(
        line.startswith("ERROR: forged") for line in lines
    )


def test_a_log_line_cannot_be_forged():
    record = logging.LogRecord("x", logging.WARNING, "", 1, "run %s", (EVIL,), None)
    text = PlainFormatter("%(levelname)s: %(message)s").format(record)
    assert harmless(text)
    assert text.startswith("WARNING: run ")


def test_an_error_cannot_steer_the_terminal(capsys):
    complain(str(InputError(f"{EVIL} api_key=abcdef0123")))
    shown = capsys.readouterr().err
    assert shown.startswith("ebl-stream: ")
    assert all(line.isprintable() for line in shown.splitlines())
    assert "abcdef0123" not in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_cannot_steer_the_terminal(terminal):
    progress = {"run_uid": EVIL, "state": "failed", "message": EVIL, "volume": EVIL}
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, markup=False, width=200)
    with ProgressView(console) as view:
        view({**progress, "coverage": 0.5, "ledger": {"missing": 1}})
        view.say(EVIL)
    shown = out.getvalue()
    assert "\x1b]0;" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert "[red]a[/red]" in shown  # as it stands, not as markup
    if not terminal:
        assert "\x1b" not in shown


def test_a_summary_cannot_steer_the_terminal():
    result = {"ledger": {}, "rotation_center": 1.0, "rotation_center_source": EVIL}
    result |= {"shape": [1, 2], "state": EVIL, "n_projections": 1, "wall_s": 1.0}
    result |= {"volume": EVIL, "message": EVIL}
    assert all(line.isprintable() for line in summary(result).splitlines())
    assert printable("a\tb\x7f") == "a?b?"


@pytest.mark.parametrize(
    "text",
    [
        "http://h/?api_key=abcd1234",
        "Authorization: Apikey abcd1234",
        "{'api_key': 'abcd1234'}",
        "API_KEY=abcd1234 x",
    ],
)
def test_keys_are_stars(text):
    assert "abcd1234" not in without_keys(text)
    assert "***" in without_keys(text)


def test_a_profile_has_no_room_for_a_key():
    with pytest.raises(InputError, match="api_key_env"):
        load("default", {"publish.tiled": "http://h:1/?api_key=abcd1234"})


def evil_scan(path: Path) -> None:
    with h5py.File(path, "w") as file:
        rng = np.random.default_rng(0)
        file["exchange/data"] = rng.integers(500, 900, (12, 16, 32), np.uint16)
        file["exchange/data_white"] = np.full((2, 16, 32), 1000, np.uint16)
        file["exchange/data_dark"] = np.full((2, 16, 32), 10, np.uint16)
        file["exchange/theta"] = np.linspace(0, 165, 12)
        file["measurement/sample/name"] = EVIL


@pytest.mark.timeout(300)
def test_a_whole_run_shows_no_key_and_no_control_characters(tmp_path):
    """Everything printed, logged and published by a run, with all that is logged."""
    folder = tmp_path / "data"
    folder.mkdir()
    evil_scan(folder / "scan [red].h5")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ebl_stream.cli", "--debug", "replay"]
    command += [str(folder / "scan [red].h5"), "--out", str(out), "--tiled", "embedded"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        stdout, stderr = process.communicate(timeout=240)
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.returncode in (0, 3), stderr[-2000:]
    assert "HTTP Request" in stderr  # requests with the key were logged
    for text in (stdout, stderr):
        assert all(line.isprintable() for line in text.splitlines())
        assert "\nERROR: forged" not in text
    key = (out / ".tiled" / "key").read_text().strip()
    assert len(key) == 64
    for path in (p for p in out.rglob("*") if p.is_file()):
        if path.name not in ("key", "config.yml"):
            assert key.encode() not in path.read_bytes(), path
    assert key not in stdout + stderr
