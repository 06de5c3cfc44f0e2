"""Does a live reconstruction slow the scan? Five alternating pairs, with and without.

The same simulated fly scan runs with the in-process door (the service in its own
process, warm) and without it. Prints a table; predicted: no difference beyond noise.

Run: ``python benchmarks/bench_scan.py [--pairs 5] [--angles 200] [--rate 50]``
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from bluesky import RunEngine
from ophyd_async.core import init_devices

from ebl_stream.callbacks import LiveReconstruction
from ebl_stream.simulation.devices import RotationStage, TomoDetector
from ebl_stream.simulation.phantom import Foam
from ebl_stream.simulation.plan import tomo_scan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--angles", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50.0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench_scan-"))
    engine = RunEngine()
    phantom = Foam(256, 64)
    with init_devices():
        stage = RotationStage(name="stage")
        camera = TomoDetector(folder, stage, phantom, name="camera")
    door = LiveReconstruction("demo", out=folder / "out", tiled="none")

    def scan() -> float:
        begun = time.perf_counter()
        engine(tomo_scan(camera, stage, options.angles, rate_hz=options.rate))
        return time.perf_counter() - begun

    def with_door() -> float:
        token = engine.subscribe(door)
        took = scan()
        engine.unsubscribe(token)
        door.wait(120)
        return took

    with_door()  # starts the service and compiles its kernels
    scan()
    pairs = []
    print("| pair | without (s) | with (s) | ratio |\n|---|---|---|---|")
    for k in range(options.pairs):
        first, second = (scan, with_door) if k % 2 == 0 else (with_door, scan)
        took = {first: first(), second: second()}
        pairs.append((took[scan], took[with_door]))
        print(
            f"| {k + 1} | {took[scan]:.3f} | {took[with_door]:.3f} | "
            f"{took[with_door] / took[scan]:.4f} |",
            flush=True,
        )
    print(f"| median | | | {median(b / a for a, b in pairs):.4f} |")
    door.close()


if __name__ == "__main__":
    main()
