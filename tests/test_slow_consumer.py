"""A reconstruction that is ten times too slow: bounded memory, and nobody waits."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from campaign.house import PATIENCE_S, volume
from campaign.scan import I0, SETTINGS, Documents, Doors
from numpy.typing import NDArray
from scans import image_key, scalar, stepped
from slow_service import SlowHouse

from ebl_stream.simulation.phantom import Foam, angles_of
from ebl_stream.transport import sender

MB = 2**20
ROWS, COLUMNS, N, CENTER = 64, 256, 600, 127.7
SCAN_MB = 8 * N * ROWS * COLUMNS / MB
QUEUE_MB = WINDOW_MB = ON_THE_WAY_MB = 4
SLACK_MB = 16
"""What the allocator keeps; the scan is several times as large as all of this."""
SAME = 1e-5
"""Sums in another order, relative L2: who is late skips looks."""
PAUSE_S = 0.01
"""Of the worker at each document; the detector pauses a tenth of it."""


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowHouse]:
    monkeypatch.setattr(sender, "WINDOW_BYTES", ON_THE_WAY_MB * MB)
    folder = Path(tempfile.mkdtemp(prefix="ebl-slow-"))  # short: it holds a socket
    settings = SETTINGS | {
        "geometry.rotation_center": CENTER,
        "window.max_bytes": WINDOW_MB * MB,
    }
    one = SlowHouse(folder, PAUSE_S, QUEUE_MB * MB, settings=settings)
    yield one
    one.close()
    shutil.rmtree(folder, ignore_errors=True)


@cache
def exposures() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    theta = np.asarray(angles_of("golden", N))
    shadows = Foam(COLUMNS, ROWS).project(theta, CENTER)
    counts = np.random.default_rng(1).poisson(I0 * np.exp(-shadows))
    return counts.astype("<f8"), theta


def scan(record: Path) -> tuple[str, Documents]:
    """A step scan with pixels of 64 bits in its events."""
    images, theta = exposures()
    keys = {"image": image_key((ROWS, COLUMNS)), "theta": scalar(units="rad")}
    documents: Documents = stepped(images, theta, {"n_projections": N}, keys)
    uid = documents[0][1]["uid"]
    flats = np.full((2, ROWS, COLUMNS), I0)
    run = {"uid": f"{uid}-flats", "run_start": uid, "name": "flats", "time": 0.0}
    still: Documents = [("descriptor", {**documents[1][1], **run})]
    for k, image in enumerate(flats):
        event = {**documents[2][1], "uid": f"{uid}-flat{k}", "seq_num": k + 1}
        event |= {"descriptor": run["uid"], "data": {"image": image, "theta": 0.0}}
        still.append(("event", event))
    with record.open("a") as file:
        for k in range(N):
            crc = zlib.crc32(images[k].tobytes())
            line = {"run": uid, "id": k, "crc": crc, "theta": float(theta[k])}
            file.write(json.dumps(line) + "\n")
    stop = documents[-1][1]
    stop["num_events"] = {**stop["num_events"], "flats": len(flats)}
    return uid, [documents[0], *still, *documents[1:]]


def peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def test_what_a_slow_service_holds_is_bounded_and_nobody_waits(
    house: SlowHouse,
) -> None:
    pid = house.begin()
    # The same scan, as slowly as it takes: what a service needs that keeps up.
    uid, documents = scan(house.detector.record)
    for k, (name, doc) in enumerate(documents):
        house.door.send(name, doc)
        if k % 50 == 0:
            assert house.door.flush(PATIENCE_S)
            time.sleep(0.05)
    clean = volume(house.door.wait(PATIENCE_S, uid))
    kept_up = peak_mb(pid)
    forget_peak(pid)
    house.slow_down()
    uid, documents = scan(house.detector.record)
    doors, begun = Doors(), time.monotonic()
    send = doors.timed(house.door.send)
    for document in documents:
        send(*document)
        time.sleep(PAUSE_S / 10)
    scan_s = time.monotonic() - begun
    assert house.door.flush(PATIENCE_S)
    status = house.door.status(uid)
    assert status is not None
    in_hand = status["ledger"]["used"]
    result = house.door.wait(PATIENCE_S, uid)
    drain_s = time.monotonic() - begun - scan_s
    behind = peak_mb(pid) - kept_up
    door_ms = 1e3 * np.array(doors.large)
    print(
        f"{SCAN_MB:.0f} MiB in {scan_s:.1f} s, worked off {drain_s:.1f} s "
        f"later ({in_hand} of {N} used at the end of the scan); peak {kept_up:.0f} MiB "
        f"when it keeps up, {behind:+.1f} MiB when not; door median "
        f"{np.median(door_ms):.2f}, p99 {np.percentile(door_ms, 99):.2f}, "
        f"max {door_ms.max():.1f} ms"
    )
    assert in_hand < N / 2, "it was not behind"
    assert behind <= 1.1 * (QUEUE_MB + ON_THE_WAY_MB) + SLACK_MB < SCAN_MB / 2
    assert np.median(door_ms) < 2
    assert door_ms.max() < 1e3 * scan_s / 4
    ledger = result["ledger"]
    assert (result["state"], ledger["used"], ledger["residue"]) == ("complete", N, 0)
    assert np.linalg.norm(volume(result) - clean) <= SAME * np.linalg.norm(clean)
    report = house.check(uid, N)
    assert report.is_good, report.as_dict()
