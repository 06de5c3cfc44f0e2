"""The demonstration, whole: RunEngine, devices, service process, Tiled."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from bluesky import RunEngine
from ophyd_async.core import init_devices
from tiled.client import from_uri

from ebl_stream.callbacks import LiveReconstruction
from ebl_stream.cli.demo import compare
from ebl_stream.numerics.quality import inside_circle
from ebl_stream.publish.tiled_server import TiledServer
from ebl_stream.simulation.detector import DetectorModel
from ebl_stream.simulation.devices import RotationStage, TomoDetector
from ebl_stream.simulation.phantom import Foam
from ebl_stream.simulation.plan import tomo_scan

COLUMNS, ROWS, SLAB_ROWS, N = 64, 16, 8, 64
PATIENCE_S = 60


def demo(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    size = ("--columns", COLUMNS, "--rows", ROWS, "--angles", N, "--rate", 60)
    command = [sys.executable, "-m", "ebl_stream.cli", "demo", *size, *words]
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=150,
    )


def test_demo_ends_by_itself_with_a_good_volume(tmp_path: Path) -> None:
    done = demo(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result["state"] == "complete"
    assert result["n_projections"] == result["ledger"]["used"] == N
    assert result["ledger"]["residue"] == 0
    assert result["processed_uid"] in result["tiled_uri"]
    assert result["shape"] == [ROWS, COLUMNS, COLUMNS]
    assert zarr.open_array(result["volume"], mode="r").shape == (ROWS, COLUMNS, COLUMNS)
    assert result["rotation_center_source"] == "measured"
    assert abs(result["rotation_center"] - (COLUMNS - 1) / 2 - 0.01 * COLUMNS) < 0.25
    assert result["nrmse_truth"] < 0.35
    assert result["psnr_db"] > 15


def test_demo_with_losses_names_each_one(tmp_path: Path) -> None:
    done = demo(tmp_path, "--lose", 0.1, "--order", "interlaced", "--tiled", "none")
    assert done.returncode == 3, done.stderr
    assert "9 missing" in done.stdout
    assert "PSNR" in done.stdout
    assert "-m ebl_stream.cli browse ebl_stream_out" in done.stdout
    (path,) = (tmp_path / "ebl_stream_out").glob("recon-*/metadata.json")
    ledger = json.loads(path.read_text())["ledger"]
    assert ledger["missing"] == N - ledger["used"] == 9
    named = [range(*pair) for pair in ledger["missing_indices"]]
    dice = np.random.default_rng(0).random(N)
    assert [k for each in named for k in each] == np.flatnonzero(dice < 0.1).tolist()


class Subscriber:
    """Hears of every slab through Tiled, and keeps what came when."""

    def __init__(self, server: TiledServer, announced: list[int]) -> None:
        self.got: list[dict[str, Any]] = []
        self._announced = announced
        client = from_uri(
            server.uri or "", api_key=server.api_key, include_data_sources=True
        )
        self._thread = threading.Thread(
            target=self._subscribe, args=(client,), daemon=True
        )
        self._thread.start()

    def _subscribe(self, client: Any) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for uid in client.get("processed", {}):
                run = client["processed"][uid]
                if "recon" in run:
                    # Tiled refers to callbacks and subscriptions only weakly.
                    self._subscription = run["recon"].subscribe()
                    self._subscription.new_data.add_callback(self._hear)
                    self._subscription.start_in_thread(start=0)
                    return
            time.sleep(0.05)

    def _hear(self, update: Any) -> None:
        stamp = dict(update.data_source.properties)
        self.got.append(
            {**stamp, "announced": self._announced[-1], "pixels": update.data()}
        )


def test_half_way_a_subscriber_has_seen_every_slab_sharpen(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    server = TiledServer(tmp_path / "out")
    server.start()
    assert server.wait_ready(PATIENCE_S)
    announced = [0]

    def count(name: str, doc: dict[str, Any]) -> None:
        if name == "start":
            assert door.flush(PATIENCE_S)  # the service listens before frames come
        if name == "stream_datum" and doc["indices"]["stop"] > announced[-1]:
            announced.append(doc["indices"]["stop"])

    settings = {
        "files.roots": [str(raw)],
        "refresh.slab_rows": SLAB_ROWS,
        "publish.tiled": "embedded",
    }
    door = LiveReconstruction("demo", out=tmp_path / "out", set=settings)
    phantom = Foam(COLUMNS, ROWS)
    try:
        subscriber = Subscriber(server, announced)
        engine = RunEngine({})
        engine.subscribe(door)
        engine.subscribe(count)
        with init_devices():
            stage = RotationStage()
            model = DetectorModel(ROWS, COLUMNS)
            camera = TomoDetector(raw, stage, phantom, model, name="camera")
        engine(tomo_scan(camera, stage, N, "golden", 3.0, 4, 4))
        final = door.wait(PATIENCE_S)
    finally:
        door.close()
        server.stop()
    assert final["state"] == "complete"
    truth = phantom.volume()
    inside = inside_circle(truth.shape, 0.9)
    early = [entry for entry in subscriber.got if entry["announced"] <= N // 2]
    for z0 in range(0, ROWS, SLAB_ROWS):
        mine = [entry for entry in early if entry["z0"] == z0]
        assert len({entry["version"] for entry in mine}) >= 3, subscriber.got
        assert all(entry["n_used"] < N for entry in mine)
        assert [e["n_used"] for e in mine] == sorted({e["n_used"] for e in mine})
        errors = [
            float(np.std((entry["pixels"] - truth[z0 : z0 + SLAB_ROWS])[:, inside]))
            for entry in mine
        ]
        assert errors == sorted(errors, reverse=True)


def test_compare_is_exact_for_known_errors(tmp_path: Path) -> None:
    truth = np.zeros((2, 16, 16), np.float32)
    truth[:, 4:12, 4:12] = 1
    path = tmp_path / "volume"
    array = zarr.create_array(path, shape=truth.shape, dtype="float32")
    array[:] = truth + 0.1
    found = compare(str(path), truth)
    assert found["psnr_db"] == pytest.approx(20, abs=1e-4)
    inside = truth[:, inside_circle(truth.shape, 0.9)]
    assert found["nrmse_truth"] == pytest.approx(0.1 / inside.std(), rel=1e-4)
