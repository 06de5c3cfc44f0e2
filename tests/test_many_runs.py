"""Many runs, and long ones, through one process: nothing is left behind."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import numpy as np
from consumer import PROFILE, SILENCE_S
from telling import Teller

from ebl_stream.reconstruction import Reconstruction
from ebl_stream.service.run_index import RunIndex

CAMPAIGN = os.environ.get("EBL_STREAM_CAMPAIGN") == "1"
RUNS, WARM_UP = (1000, 200) if CAMPAIGN else (150, 50)
MIB_PER_100_RUNS = 1.0 if CAMPAIGN else 3.0
"""Few runs say little: what the allocator keeps back is some MiB, once."""
MIB_PER_1000_PROJECTIONS = 0.8 if CAMPAIGN else 1.0
"""0.36 of it are Python's objects and arrays, most of that the rows that the center is
found from; the rest is the allocator's, and less the longer one looks."""
PROJECTIONS = 20_000 if CAMPAIGN else 3_000
EACH = 10
"""Runs between two moments of silence, half of them without a stop document."""


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def slope(memory: list[float]) -> float:
    """MiB per entry, a straight line through all."""
    return float(np.polyfit(np.arange(len(memory)), memory, 1)[0])


def test_many_runs_leave_nothing_behind(tmp_path: Path) -> None:
    now = [0.0]
    house = Reconstruction(PROFILE, out=tmp_path / "out", roots=[tmp_path])
    house._sorter._clock = lambda: now[0]
    house._sorter._busy_s = 0.0
    memory, threads, files = [], [], []
    for k in range(RUNS):
        teller = Teller(k, tmp_path if k % 4 < 2 else None)
        for name, doc in teller.start():
            house(name, doc)
        for name, doc in (*teller.reference("flats", 1), *teller.expose(8)):
            house(name, doc)
        if k % 2:
            for name, doc in teller.stop():
                house(name, doc)
        teller.close()
        if k % EACH == EACH - 1:
            now[0] += SILENCE_S
            house.tick()
            sorter = house._sorter
            assert (sorter._runs, sorter._known, len(sorter._held)) == ({}, {}, 0)
            gc.collect()
            memory.append(resident_mib())
            threads.append(threading.active_count())
            files.append(open_files())
    house.close()
    assert len(house.results) == RUNS
    assert {r.state for r in house.results.values()} == {"complete", "partial"}
    warm = WARM_UP // EACH
    growth = slope(memory[warm:]) * 100 / EACH
    print(f"{growth:.2f} MiB per 100 runs, {memory[-1]:.0f} MiB in all")
    assert growth < MIB_PER_100_RUNS
    assert threads[-1] <= threads[warm]
    assert files[-1] <= files[warm]


def test_a_long_scan_needs_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    """Frames beyond the window's budget go to a file; what is kept of each is small."""
    budget = 200 * 128  # bytes: 200 of these frames
    window = PROFILE.window.model_copy(update={"max_bytes": budget})
    refresh = PROFILE.refresh.model_copy(update={"every": 1.0})
    update = {"window": window, "refresh": refresh}
    house = Reconstruction(PROFILE.model_copy(update=update), out=tmp_path)
    teller, memory = Teller(1, promised=PROJECTIONS), []
    for name, doc in (*teller.start(), *teller.reference("flats", 1)):
        house(name, doc)
    for _ in range(PROJECTIONS // 100):
        for name, doc in teller.expose(100):
            house(name, doc)
        teller.told.clear()
        memory.append(resident_mib())
    growth = slope(memory[10:]) * 10
    (run,) = house._sorter._runs.values()
    assert run.consumer._session._window.frames.n_bytes <= budget
    for name, doc in teller.stop():
        house(name, doc)
    (result,) = house.results.values()
    assert (result.state, result.ledger["used"]) == ("complete", PROJECTIONS)
    print(f"{growth:.2f} MiB per 1000 projections")
    assert growth < MIB_PER_1000_PROJECTIONS


def test_a_long_scan_keeps_its_place_in_the_index() -> None:
    """A frame's document is nobody's referent: it pushes nothing out."""
    index = RunIndex()
    index.run_uid("start", {"uid": "r"})
    index.run_uid("descriptor", {"uid": "d", "run_start": "r"})
    index.run_uid("stream_resource", {"uid": "s", "run_start": "r"})
    datum = {"descriptor": "d", "stream_resource": "s"}
    n = sum(
        index.run_uid("stream_datum", datum | {"uid": f"s/{k}"}) == "r"
        for k in range(150_000)
    )
    assert n == 150_000
    assert index._run_of.keys() == {"d", "s"}
