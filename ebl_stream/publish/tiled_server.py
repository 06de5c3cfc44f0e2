"""A Tiled server of our own: a child process on this machine's loopback."""

from __future__ import annotations

import atexit
import fcntl
import importlib.util
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import httpx

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
HTTP = "ebl_stream.publish.bounded_http:BoundedHttp"
LONGEST_PAUSE_S = 10.0

# Tiled's /zarr routes ask for no key: whoever reaches them reads every name, all
# metadata, and arrays; /api/graphql tells of every entity (tiled 0.2.20). Here they are
# left out.
#
# Linux ends the child with its parent, even after a SIGKILL. It is set in the
# child itself: code between fork and exec is not safe in a threaded parent.
_BOOT = """
import ctypes, os, runpy, signal, sys
parent = int(sys.argv.pop(1))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != parent:
    sys.exit("the parent process is gone")
import fastapi, tiled.server.app as app
def nothing(*args, **options):
    return fastapi.APIRouter()
app.get_zarr_router_v2 = app.get_zarr_router_v3 = app.get_links_router = nothing
runpy.run_module("tiled", run_name="__main__", alter_sys=True)
"""


class TiledServer:
    """Serve ``<folder>`` with Tiled: catalog, tables and key in ``<folder>/.tiled``.

    The key and the catalog are kept, so a server started again on the same
    folder is the same server. A child that dies is started again on the same
    port until ``stop``. Where another process serves the folder already, that
    server is used, and taken over when it ends.

    Parameters
    ----------
    folder : Path
        Holds the results; the only place that the server may read arrays from.
    port : int, optional
        Default: any free one.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = Path(folder).absolute()
        self._home = self.folder / ".tiled"
        self._wanted_port = port
        self._port: int | None = port
        self._key: str | None = None
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._was_ready = False  # since it was started last
        self._served = False  # ever, on this port
        # A proxy meant for the outside must not get loopback requests.
        self._http = httpx.Client(timeout=2, trust_env=False)

    @property
    def uri(self) -> str | None:
        """Address to open in a browser, final once ready; None before ``start``."""
        return None if self._port is None else f"http://{HOST}:{self._port}"

    @property
    def api_key(self) -> str | None:
        """Key that a client must show; None before ``start``."""
        return self._key

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    @property
    def is_ready(self) -> bool:
        """Whether the server answers."""
        return self._ready.is_set()

    def start(self) -> None:
        """Start the server and return at once; a failure is logged, not raised."""
        if importlib.util.find_spec("tiled") is None:
            logger.error("no Tiled server: the package tiled[server] is not installed")
            return
        try:
            self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._key = self._load_key()
        except OSError as error:
            logger.error("no Tiled server: cannot write to %s: %s", self._home, error)
            return
        self._port = self._port or _free_port()
        atexit.register(self.stop)
        self._thread = threading.Thread(
            target=self._supervise, name="tiled-server", daemon=True
        )
        self._thread.start()

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the server answers; False if it does not in time."""
        return self._ready.wait(timeout_s)

    def stop(self) -> None:
        """Stop the server; may be called more than once."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=15)
        self._http.close()
        atexit.unregister(self.stop)

    def _load_key(self) -> str:
        path = self._home / "key"
        if not path.exists():
            # Letters and digits only: Tiled takes nothing else.
            _write_private(path, secrets.token_hex(32))
        return path.read_text(encoding="ascii").strip()

    def _supervise(self) -> None:
        pause = 0.2
        while not self._stopping.is_set():
            self._was_ready = False
            try:
                with open(self._home / "lock", "w", opener=_private) as lock:
                    self._serve(lock)
            except OSError as error:
                logger.warning("the Tiled server cannot be started: %s", error)
            self._ready.clear()
            pause = 0.2 if self._was_ready else min(2 * pause, LONGEST_PAUSE_S)
            self._stopping.wait(pause)

    def _serve(self, lock: IO[str]) -> None:
        """Run one child until it ends, or follow the server of another process."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._follow_other()
            return
        self._spawn()
        self._watch()

    def _follow_other(self) -> None:
        port = self._home / "port"
        text = port.read_text(encoding="ascii").strip() if port.exists() else ""
        if text.isdigit():
            self._port = int(text)
            while self._answers():
                self._served = self._was_ready = True
                self._ready.set()
                if self._stopping.wait(1.0):
                    return

    def _spawn(self) -> None:
        config = self._home / "config.yml"
        _write_private(config, json.dumps(self._config(), indent=1))
        command = [sys.executable, "-c", _BOOT, str(os.getpid())]
        command += ["serve", "config", str(config)]
        command += ["--host", HOST, "--port", str(self._port)]
        with open(self._home / "log", "ab", opener=_private) as log:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                cwd=self._home,
            )

    def _watch(self) -> None:
        child = self._child
        if child is None:
            return
        while child.poll() is None and not self._stopping.wait(0.1):
            if not self._ready.is_set() and self._answers() and child.poll() is None:
                _write_private(self._home / "port", str(self._port))
                self._served = self._was_ready = True
                self._ready.set()
        self._ready.clear()
        if self._stopping.is_set():
            _end(child)
        else:
            self._log_end(child.returncode)
            # A port that has served is kept; one that never did may be taken.
            if self._wanted_port is None and not self._served:
                self._port = _free_port()

    def _log_end(self, code: int) -> None:
        again = "the Tiled server ended (code %s) and is started again; see %s"
        logger.warning(again, code, self._home / "log")

    def _answers(self) -> bool:
        try:
            reply = self._http.get(f"{self.uri}/healthz")
        except httpx.HTTPError:
            return False
        return reply.status_code == 200

    def _config(self) -> dict[str, Any]:
        """Return the server's settings; JSON is YAML."""
        (self._home / "data").mkdir(exist_ok=True)
        catalog = {
            "uri": f"sqlite:///{self._home / 'catalog.db'}",
            "writable_storage": [
                str(self._home / "data"),
                f"duckdb:///{self._home / 'tables.duckdb'}",
            ],
            "readable_storage": [str(self.folder)],
            "init_if_not_exists": True,
        }
        exporter = "bluesky_tiled_plugins.exporters:json_seq_exporter"
        return {
            "trees": [{"path": "/", "tree": "catalog", "args": catalog}],
            "authentication": {"single_user_api_key": self._key},
            "streaming_cache": {"uri": "memory"},
            "uvicorn": {"access_log": False, "log_level": "warning", "http": HTTP},
            "media_types": {"BlueskyRun": {"application/json-seq": exporter}},
        }


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        # An open subscription can hold up an orderly shutdown forever.
        child.wait(timeout=3)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(timeout=10)


def _environment() -> dict[str, str]:
    """Return our environment without Tiled's settings: the file has them all."""
    return {name: value for name, value in os.environ.items() if name[:6] != "TILED_"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write_private(path: Path, text: str) -> None:
    with open(path, "w", opener=_private, encoding="utf-8") as file:
        file.write(text)
