"""The service killed at every commit boundary, and at random: nothing changes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from campaign.house import PATIENCE_S, House, until
from campaign.kills import Killer, Outcome, plain_points, tiled_points
from campaign.scan import SETTINGS, Detector, N

from ebl_stream import failpoints
from ebl_stream.callbacks import LiveReconstruction
from ebl_stream.errors import InputError
from ebl_stream.publish.tiled_server import TiledServer
from ebl_stream.reconstruction import CenterMemory

N_RANDOM = 30


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    # Short: it holds a socket.
    folder = Path(tempfile.mkdtemp(prefix="ebl-crash-"))
    house = House(folder)
    try:
        yield Killer(house)
    finally:
        house.close()
        shutil.rmtree(folder, ignore_errors=True)


def show(outcome: Outcome) -> None:
    print(
        f"{outcome.name}: L2 {outcome.l2:.1e}, first update {outcome.restart_s} s, "
        f"door {outcome.door}"
    )
    assert outcome.good, outcome.problem


def test_every_point_is_tested_somewhere() -> None:
    tested = {*plain_points(), *tiled_points(), "center.drafted"}
    assert tested == set(failpoints.POINTS)


@pytest.mark.parametrize("point", plain_points())
def test_killed_at_a_point_the_run_comes_out_the_same(
    killer: Killer, point: str
) -> None:
    outcome = killer.at_point(point)
    show(outcome)
    assert outcome.restart_s < 20.0  # 0.5 s where nobody else computes


@pytest.mark.parametrize("seed", range(N_RANDOM))
def test_killed_at_random_the_run_comes_out_the_same(killer: Killer, seed: int) -> None:
    show(killer.at_random(seed))


@pytest.fixture(scope="module")
def tiled_killer() -> Iterator[tuple[Killer, TiledServer]]:
    folder = Path(tempfile.mkdtemp(prefix="ebl-crash-"))
    server = TiledServer(folder / "out")
    server.start()
    assert server.wait_ready(PATIENCE_S)
    house = House(folder, tiled=server.uri, api_key=server.api_key)
    try:
        yield Killer(house), server
    finally:
        house.close()
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("point", tiled_points())
def test_killed_while_tiled_is_told_tiled_has_it_all_the_same(
    tiled_killer: tuple[Killer, TiledServer], point: str
) -> None:
    killer, server = tiled_killer
    outcome = killer.at_point(point)
    show(outcome)
    headers = {"Authorization": f"Apikey {server.api_key}"}

    def state(processed_uid: str) -> str:
        uri = f"{server.uri}/api/v1/metadata/processed/{processed_uid}"
        reply = httpx.get(uri, headers=headers, trust_env=False).json()
        return reply.get("data", {}).get("attributes", {}).get("metadata", {})["state"]

    def same() -> bool:
        states = killer.house.check(str(outcome.checker["run"])).states
        try:
            return all(state(uid) == here for uid, here in states.items())
        except KeyError:
            return False

    assert until(same)


def test_a_door_of_its_own_starts_the_service_again_within_a_scan(
    tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    door = LiveReconstruction("demo", out=tmp_path / "out", set=SETTINGS, tiled="none")
    detector = Detector(tmp_path / "detector.jsonl")
    try:
        _, documents = detector.scan()
        for name, doc in documents[:-4]:
            door(name, doc)
        assert door.flush(PATIENCE_S)
        assert until(lambda: door.service_pid is not None)
        first = door.service_pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        killed = time.monotonic()
        assert until(lambda: door.service_pid not in (None, first))
        restarted = time.monotonic()
        for name, doc in documents[-4:]:
            door(name, doc)
        result = door.wait(PATIENCE_S)
        now = time.monotonic()
        print(
            f"killed to ready {restarted - killed:.1f} s, to the end {now - killed:.1f}"
        )
        assert result["state"] == "complete"
        assert result["ledger"]["used"] == N
        states = [
            json.loads(path.read_text())["state"]
            for path in (tmp_path / "out").glob("*/metadata.json")
        ]
        assert [state for state in states if state != "superseded"] == ["complete"]
    finally:
        pid = door.service_pid
        door.close()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)


def test_a_center_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    memory = CenterMemory(tmp_path, "demo")
    memory.remember(12.25)
    program = (
        "from pathlib import Path; import sys; "
        "from ebl_stream.reconstruction import CenterMemory; "
        "CenterMemory(Path(sys.argv[1]), 'demo').remember(99.5)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={failpoints.VARIABLE: "center.drafted:1"},
    )
    assert killed.returncode == -signal.SIGKILL
    assert memory.recall() == 12.25


@pytest.mark.parametrize("text", ["nowhere:1", "queued:0", "queued:x", "queued:-1"])
def test_a_point_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected NAME:N"):
        failpoints.arm(text)
