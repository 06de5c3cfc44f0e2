"""How long a document keeps the RunEngine's thread: p50, p99, max of a door's call.

``python benchmarks/bench_door.py [--busy PROCESSES]``. The goal: p99 at most 2 ms for a
document without pixels, and 1 ms more per MB of an image in the event. In turns with
the door the same document is packed and not sent: what that takes on a busy machine is
not the door's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ebl_stream.callbacks import DocumentPublisher
from ebl_stream.transport.buffers import Buffers
from ebl_stream.transport.packable import pack_leniently

SERVICE = """
import sys
from pathlib import Path
from ebl_stream.service.service import Service
from ebl_stream.sources.zmq import DoorSource

class Idle:
    results, put_off, tick_s = {}, (), 1.0
    def __init__(self, *told): pass
    def __call__(self, name, doc): pass
    def tick(self): pass
    def close(self): pass

folder = Path(sys.argv[1])
service = Service(DoorSource(f"ipc://{folder}/s"), Idle, folder / "journal")
print("ready", flush=True)
sys.stdin.read()
service.stop()
"""

CASES = {"no pixels": (0, 1000), "1 MB": (1, 200), "4 MB": (4, 150), "16 MB": (16, 50)}
"""Megabytes in the event, and how many events."""
N_FIRST = 10
"""Events before the measured ones: they find no memory to use again."""


def main() -> None:
    """Print one row per size and state of the service."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--period-ms", type=float, default=5.0, help="between events")
    parser.add_argument("--busy", type=int, default=0, help="processes that compute")
    chosen = parser.parse_args()
    period_s = chosen.period_ms / 1e3
    head = f"{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'goal':>9}   packing alone"
    print(f"{'event':<12}{'service':<10}{head}")
    for case, (megabytes, n) in CASES.items():
        for is_live in (True, False):
            with tempfile.TemporaryDirectory() as folder, busy(chosen.busy):
                door, alone = measure(Path(folder), megabytes, n, period_s, is_live)
            service = "live" if is_live else "absent"
            row = f"{_figures(door)}{2 + megabytes:9.1f}{_figures(alone)}"
            print(f"{case:<12}{service:<10}{row}", flush=True)


def _figures(times_ms: np.ndarray) -> str:
    p50, p99 = np.percentile(times_ms, [50, 99])
    return f"{p50:9.2f}{p99:9.2f}{times_ms.max():9.2f}"


def measure(
    folder: Path, megabytes: int, n: int, period_s: float, is_live: bool
) -> np.ndarray:
    """Return how long each call, and packing alone, took: ``(2, n)``, ms."""
    doc, buffers = event(megabytes), Buffers()
    times_ms = np.empty((2, n))
    with service(folder) if is_live else absent():
        door = DocumentPublisher(f"ipc://{folder}/s", folder=folder)
        door("event", doc)
        door.flush(10 if is_live else 0)
        for i in range(-N_FIRST, n):
            for k, work in enumerate((door, lambda *_: pack(doc, buffers))):
                time.sleep(period_s * max(1, megabytes) / 2)
                began = time.perf_counter()
                work("event", doc)
                times_ms[k, max(0, i)] = 1e3 * (time.perf_counter() - began)
        door.close()
    return times_ms


def pack(doc: dict[str, Any], buffers: Buffers) -> None:
    """Do what a door does before it takes a document in."""
    pack_leniently("event", doc, lambda *_: None, buffers)


def event(megabytes: int) -> dict[str, Any]:
    """Return an event document with an image of so many MB, or none."""
    image = np.random.default_rng(0).integers(0, 4096, (megabytes * 512, 1024), "u2")
    data = {"theta": 12.5, "image": image} if megabytes else {"theta": 12.5, "ring": 7}
    times = dict.fromkeys(data, 1.7e9)
    uids = {"uid": "0b9f8f5e-3c58-4b5c-9a57-6a7d7d0f3f7d", "descriptor": "d" * 36}
    return {**uids, "seq_num": 1, "time": 1.7e9, "data": data, "timestamps": times}


@contextmanager
def service(folder: Path) -> Iterator[None]:
    """Run a service that journals and does nothing else."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.communicate()


@contextmanager
def busy(n: int) -> Iterator[None]:
    """Let processes compute beside, at normal priority."""
    program = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(program) for _ in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def absent() -> Iterator[None]:
    """Run no service."""
    yield


if __name__ == "__main__":
    main()
