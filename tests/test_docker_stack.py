"""docker/: the compose file's own commands and healthchecks, run for real.

Without an engine: the paths and ports of this machine stand in place of the
containers'.
"""

from __future__ import annotations

import copy
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bluesky import RunEngine
from compose_files import DOCKER, GIVEN, services
from ophyd.sim import SynAxis
from tiled.client import from_uri
from tiled.config import parse_configs

from ebl_stream.callbacks import DocumentPublisher
from ebl_stream.publish.output import ArraySpec, RunOutput
from ebl_stream.publish.tiled_link import TiledLink
from ebl_stream.publish.tiled_server import TiledServer
from ebl_stream.simulation.classic import SimulatedCamera, classic_scan
from ebl_stream.simulation.phantom import Foam

BIN = Path(sys.executable).parent
PATIENCE_S = 150


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition: Callable[[], Any], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, f"{process.args} has ended"
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.1)


@contextmanager
def running(
    command: list[str], log: Path, **options: Any
) -> Iterator[subprocess.Popen[Any]]:
    with log.open("wb") as file:
        child = subprocess.Popen(command, stdout=file, stderr=file, **options)
    try:
        yield child
    except BaseException:
        print(log.read_text(errors="replace")[-3000:])
        raise
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def is_healthy(service: dict[str, Any], moved: Mapping[str, str]) -> bool:
    """Run a healthcheck as compose would, with the paths and ports of this machine."""
    words = [here(word, moved) for word in service["healthcheck"]["test"][1:]]
    return subprocess.run(words, capture_output=True).returncode == 0


def here(word: str, moved: Mapping[str, str]) -> str:
    for container, machine in moved.items():
        word = word.replace(container, machine)
    return word


@contextmanager
def tiled_of_compose(
    folder: Path, backends: Mapping[str, str]
) -> Iterator[tuple[int, Callable[[], None]]]:
    """Serve docker/tiled.yml with the command of compose.yaml.

    Yields its port, and what waits until it is healthy.
    """
    service, port = services()["tiled"], free_port()
    for name in ("processed", "uploads"):
        (folder / name).mkdir(exist_ok=True)
    moved = {
        "/data/processed": str(folder / "processed"),
        "/var/lib/tiled": str(folder / "uploads"),
        "/etc/tiled/config.yml": str(DOCKER / "tiled.yml"),
        "0.0.0.0": "127.0.0.1",
        "8000": str(port),
        "python": sys.executable,
    }
    environment = {
        name: here(value, moved) for name, value in service["environment"].items()
    }
    words = [here(word, moved) for word in service["command"]]
    command = [str(BIN / service["entrypoint"][0]), *words]
    environment = {**os.environ, **environment, **backends}
    with running(command, folder / "tiled.log", env=environment) as child:
        yield port, lambda: until(lambda: is_healthy(service, moved), child)


def stand_ins(folder: Path) -> dict[str, str]:
    """Return SQLite and memory in place of Postgres and Redis."""
    return {
        "TILED_CATALOG_URI": f"sqlite:///{folder}/catalog.db",
        "TILED_TABLES_URI": f"duckdb:///{folder}/tables.duckdb",
        "TILED_STREAM_URI": "memory",
    }


def postgres_bin() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    """Run Postgres and Redis as compose.yaml sets them up; yield their addresses."""
    home = Path(tempfile.mkdtemp())
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        postgres = stack.enter_context(postgres_of_compose(home, folder))
        redis = stack.enter_context(redis_of_compose(folder))
        moved = {
            "postgres:5432": f"127.0.0.1:{postgres}",
            "redis:6379": f"127.0.0.1:{redis}",
        }
        environment = services()["tiled"]["environment"]
        wanted = ("TILED_CATALOG_URI", "TILED_TABLES_URI", "TILED_STREAM_URI")
        yield {name: here(environment[name], moved) for name in wanted}


@contextmanager
def postgres_of_compose(home: Path, folder: Path) -> Iterator[int]:
    binaries, service, port = postgres_bin(), services()["postgres"], free_port()
    assert binaries
    settings = service["environment"]
    user, password = settings["POSTGRES_USER"], home / "password"
    password.write_text(settings["POSTGRES_PASSWORD"])
    # It refuses to run as root.
    who = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
    if who:
        for path in (home, password):
            shutil.chown(path, **who)
    initdb = [
        binaries / "initdb",
        "-D",
        home / "data",
        "-U",
        user,
        "-A",
        "scram-sha-256",
        f"--pwfile={password}",
    ]
    subprocess.run(initdb, check=True, capture_output=True, **who)
    command = [
        str(binaries / "postgres"),
        "-D",
        f"{home}/data",
        "-p",
        str(port),
        "-k",
        str(home),
        "-c",
        "listen_addresses=127.0.0.1",
    ]
    moved = {"pg_isready": str(binaries / "pg_isready")}
    check = copy.deepcopy(service)
    check["healthcheck"]["test"].append(f"--port={port}")
    with running(command, folder / "postgres.log", **who) as child:
        until(lambda: is_healthy(check, moved), child)
        psql = [binaries / "psql", "--host=127.0.0.1", f"--port={port}", "-U", user]
        psql += ["-v", "ON_ERROR_STOP=1", "-d", "postgres"]
        secret = {**os.environ, "PGPASSWORD": settings["POSTGRES_PASSWORD"]}
        for sql in (
            ["-c", f"CREATE DATABASE {settings['POSTGRES_DB']}"],
            ["-f", DOCKER / "postgres" / "tables.sql"],
        ):
            subprocess.run([*psql, *sql], check=True, capture_output=True, env=secret)
        yield port


@contextmanager
def redis_of_compose(folder: Path) -> Iterator[int]:
    service, port = services()["redis"], free_port()
    command = [*service["command"], "--bind", "127.0.0.1", "--port", str(port)]
    command += ["--dir", str(folder)]
    check = copy.deepcopy(service)
    check["healthcheck"]["test"][2:2] = ["-p", str(port)]
    with running(command, folder / "redis.log") as child:
        until(lambda: is_healthy(check, {}), child)
        yield port


def test_tiled_reads_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in services()["tiled"]["environment"].items():
        monkeypatch.setenv(name, value)
    config = parse_configs(DOCKER / "tiled.yml")
    (tree,) = config.trees
    assert config.authentication.single_user_api_key == GIVEN["TILED_API_KEY"]
    assert tree.args["readable_storage"] == ["/data/processed"]
    assert "$" not in f"{tree.args} {config.streaming_cache} {config.authentication}"
    # What our own server is given, this one is given too.
    ours = TiledServer(tmp_path)._config
    (tmp_path / ".tiled").mkdir()
    theirs = yaml.safe_load((DOCKER / "tiled.yml").read_text())
    assert ours()["media_types"] == theirs["media_types"]
    assert ours()["trees"][0]["args"].keys() == theirs["trees"][0]["args"].keys()


@contextmanager
def service_of_compose(folder: Path, tiled: int) -> Iterator[int]:
    """Run the service with the command of compose.yaml; yield the documents' port."""
    service, port = services()["ebl-stream"], free_port()
    moved = {
        "/profiles": str(DOCKER / "profiles"),
        "/data/processed": str(folder / "processed"),
        "0.0.0.0": "127.0.0.1",
        "5578": str(port),
        "tiled:8000": f"127.0.0.1:{tiled}",
        "python": sys.executable,
    }
    words = [here(word, moved) for word in service["command"]]
    environment = {**os.environ, **service["environment"]}
    environment["XDG_RUNTIME_DIR"] = str(folder)
    command = [str(BIN / "ebl-stream"), *words]
    with running(command, folder / "service.log", env=environment) as child:
        until(lambda: is_healthy(service, moved), child)
        yield port
    assert child.returncode == 0, "SIGTERM, as from docker stop, ends it in order"


@pytest.mark.timeout(300)
def test_a_scan_through_the_stack_of_compose(tmp_path: Path) -> None:
    axis = SynAxis(name="theta")
    camera = SimulatedCamera(axis, Foam(48, 8), rotation_center=24.2)
    with ExitStack() as stack:
        serving = tiled_of_compose(tmp_path, stand_ins(tmp_path))
        tiled, wait_for_tiled = stack.enter_context(serving)
        port = stack.enter_context(service_of_compose(tmp_path, tiled))
        door = DocumentPublisher(f"zmq://127.0.0.1:{port}", folder=tmp_path)
        engine = RunEngine()
        engine.subscribe(door)
        engine(classic_scan(camera, axis, 30, "golden"))
        result = door.wait(PATIENCE_S)
        door.close()
        assert result["state"] == "complete"
        wait_for_tiled()
        client = from_uri(
            f"http://127.0.0.1:{tiled}",
            api_key=GIVEN["TILED_API_KEY"],
            include_data_sources=True,
        )

        def node() -> Any:
            return client["processed"][result["processed_uid"]]

        deadline = time.monotonic() + PATIENCE_S
        while "processed" not in client or node().metadata["state"] != "complete":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        volume = node()["recon"].read()
        assert volume.shape == tuple(result["shape"])
        assert np.abs(volume).max() > 0
        # Read from the shared folder, not sent over HTTP.
        (source,) = node()["recon"].data_sources()
        assert source.management == "external"
        assert len(node()["quality"].read()) > 0


@pytest.mark.skipif(
    postgres_bin() is None or shutil.which("redis-server") is None,
    reason="needs the Debian packages postgresql and redis-server",
)
@pytest.mark.timeout(300)
def test_tiled_with_postgres_and_redis(tmp_path: Path) -> None:
    spec = ArraySpec("recon", (8, 16, 16), "<f4", "1/px")
    got = []
    with ExitStack() as stack:
        backends = stack.enter_context(databases(tmp_path))
        port, wait_for_tiled = stack.enter_context(tiled_of_compose(tmp_path, backends))
        wait_for_tiled()
        address, key = f"http://127.0.0.1:{port}", GIVEN["TILED_API_KEY"]
        link = TiledLink(address, api_key=key)
        stack.callback(link.close, 0)
        out = RunOutput(tmp_path / "processed", "run", link)
        out.create([spec], {"start": {"uid": "run"}}, 8)
        assert link.wait_until_caught_up(PATIENCE_S)
        client = from_uri(address, api_key=key, include_data_sources=True)
        node = client["processed"]["run"]

        def heard(update: Any) -> None:
            got.append(update.data())

        subscription = node["recon"].subscribe()
        subscription.new_data.add_callback(heard)
        subscription.start_in_thread(start=0)
        values = np.arange(8 * 16 * 16, dtype=np.float32).reshape(spec.shape)
        out.write("recon", 0, values, version=1, n_used=1, coverage=1.0)
        out.quality([{"version": 1, "noise": 0.5}])
        out.finish("complete", {})
        assert link.wait_until_caught_up(PATIENCE_S)
        node = client["processed"]["run"]
        assert node.metadata["state"] == "complete"
        assert np.array_equal(node["recon"].read(), values)
        assert node["quality"].read()["noise"].tolist() == [0.5]
        deadline = time.monotonic() + PATIENCE_S
        while not got:
            assert time.monotonic() < deadline, "no message through Redis"
            time.sleep(0.1)
        assert np.array_equal(got[0], values)
        (source,) = node["recon"].data_sources()
        assert source.management == "external"
