"""How fast is the accumulation on this GPU, and is it right?

Right first: small volumes against the CPU's to 1e-5, and the error against a phantom
beside the CPU's. Then each case on its own, so that one that fails does not lose the
others: what every kernel takes, projections per second from the host, the look after
the last one, what copies cost beside the work, memory, other ways to do it.

Predicted (a model of one H200: 80 % of 4.8 TB/s, 50 GB/s over PCIe) stands beside
each figure. Results go to FOLDER as gpu.json and gpu.md, after every case.

Run: ``make bench-gpu`` or ``python benchmarks/gpu.py [--out FOLDER] [--emulate]``.
Exits with 3 where there is no GPU, with 1 if something failed. ``--emulate`` runs the
same cases, tiny, with the kernels on the CPU; its times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEEDS = ("numpy", "scipy", "numba")
if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
    print(f"{', '.join(missing)} not installed: run `make setup` first")
    sys.exit(3)

import numpy as np  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]


def be_installed() -> None:
    """Let a checkout do on a machine where nothing can be installed."""
    try:
        importlib.metadata.version("ebl-stream")
    except importlib.metadata.PackageNotFoundError:
        folder = Path(tempfile.mkdtemp()) / "ebl_stream-0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Name: ebl-stream\nVersion: 0\n")
        sys.path.append(str(folder.parent))


be_installed()

import gpu_peers as peers  # noqa: E402
from gpu_stopwatch import Stopwatch  # noqa: E402

from ebl_stream.gpu import spread  # noqa: E402
from ebl_stream.gpu.accumulator import GpuAccumulator  # noqa: E402
from ebl_stream.gpu.choice import best_device  # noqa: E402
from ebl_stream.gpu.device import Device  # noqa: E402
from ebl_stream.gpu.raw import RawGpuAccumulator  # noqa: E402
from ebl_stream.numerics.accumulate import Accumulator  # noqa: E402
from ebl_stream.numerics.fourier_plan import FourierPlan  # noqa: E402

SMALL, LARGE = (1024, 1024, 1024), (2048, 2048, 1500)
"""Columns, rows, angles."""
TINY = (24, 5, 9)
GOLDEN = np.pi * (np.sqrt(5) - 1) / 2
DARK, FLAT = 100, 50_000


# ------------------------------------------------------------------ correctness


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def equal_to_the_cpu(device: Device, tiny: bool) -> dict[str, Any]:
    """Largest differences over the largest value; 1e-5 is promised."""
    rng, rows = np.random.default_rng(0), []
    sizes = [(24, 5, 9), (33, 3, 7)] if tiny else [(256, 70, 200), (333, 33, 181)]
    for n, n_rows, n_angles in sizes:
        for taps, padding in ((4, "zero"), (6, "edge")):
            plan = FourierPlan(n, taps=taps, padding=padding)  # type: ignore[arg-type]
            values = rng.normal(size=(n_angles, n_rows, n)).astype(np.float32)
            theta = np.arange(n_angles) * GOLDEN
            shares = rng.uniform(-0.1, 0.3, (n_angles, 2))
            ours = GpuAccumulator(plan, n_rows, n / 2, device=device)
            cpu = Accumulator(plan, n_rows, n / 2)
            for grids in (ours, cpu):
                grids.add(values, theta, shares)
            look = {"window": "hann", "shift": 0.2, "first_theta": 0.1}
            rows.append(
                {
                    "size": f"{n} x {n_rows} x {n_angles}, {taps} taps, {padding}",
                    "volume": relative(ours.volume(), cpu.volume()),
                    "hann": relative(ours.volume(**look), cpu.volume(**look)),
                    "a_minus_b": relative(
                        ours.half_difference(), cpu.half_difference()
                    ),
                }
            )
    worst = max(v for row in rows for v in row.values() if not isinstance(v, str))
    if not worst <= 1e-5:
        raise AssertionError(f"differs from the CPU by {worst:.2g}: {rows}")
    return {"largest_difference": worst, "predicted": "<= 1e-5", "sizes": rows}


def error_of_a_phantom(device: Device, tiny: bool) -> dict[str, Any]:
    """PSNR on discs known in closed form, from raw counts, beside the CPU's."""
    n, n_angles = (32, 40) if tiny else (512, 804)
    discs = peers.Discs(n)
    theta = np.arange(n_angles) * np.pi / n_angles
    values = discs.project(theta)[:, None].repeat(2, 1).astype(np.float32)
    shares = np.full((n_angles, 2), np.pi / n_angles / 2)
    plan, center = FourierPlan(n), (n - 1) / 2
    raw = (DARK + (FLAT - DARK) * np.exp(-values)).astype(np.float32)
    ours = RawGpuAccumulator(plan, 2, center, device=device, frames=np.float32)
    ours.set_references(np.full((2, n), DARK), np.full((2, n), FLAT))
    ours.add_raw(raw, theta, shares)
    cpu = Accumulator(plan, 2, center)
    cpu.add(values, theta, shares)
    gpu_db, cpu_db = (discs.psnr(grids.volume()[0]) for grids in (ours, cpu))
    if not abs(gpu_db - cpu_db) < 0.01:
        raise AssertionError(f"PSNR {gpu_db:.2f} dB, on the CPU {cpu_db:.2f} dB")
    return {"psnr_db": gpu_db, "cpu_psnr_db": cpu_db, "predicted": "equal to 0.01 dB"}


# ------------------------------------------------------------------------- speed


def accumulator(
    device: Device, size: tuple[int, int, int], **settings: Any
) -> RawGpuAccumulator:
    n, n_rows, _ = size
    settings = {"frames": np.uint16, "batch": 16} | settings
    grids = RawGpuAccumulator(FourierPlan(n), n_rows, n / 2, device=device, **settings)
    dark, flat = np.full((n_rows, n), DARK), np.full((n_rows, n), FLAT)
    grids.set_references(dark, flat)
    return grids


def some_frames(shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.integers(5_000, 45_000, shape).astype(np.uint16)


def stream_scan(
    grids: RawGpuAccumulator, size: tuple[int, int, int], order: str, pinned: bool
) -> float:
    """Return the seconds from the first projection to all being on the grids."""
    n, n_rows, n_angles = size
    step = GOLDEN if order == "golden" else np.pi / n_angles
    theta, batch = np.arange(n_angles) * step, grids.layout.batch
    shares = np.zeros((n_angles, 2))
    shares[np.arange(n_angles), np.arange(n_angles) % 2] = np.pi / n_angles
    frames = some_frames((batch, n_rows, n))
    # The slots are filled once: as if a detector wrote into them.
    for _ in range(grids.layout.n_slots + 1):
        grids.reserve(np.uint16)[:] = frames
        grids.add_reserved(theta[:1], shares[:1])
    grids.synchronize()
    begin = time.perf_counter()
    for k in range(0, n_angles, batch):
        some = slice(k, k + batch)
        if pinned:
            grids.reserve(np.uint16)
            grids.add_reserved(theta[some], shares[some])
        else:
            grids.add_raw(frames[: len(theta[some])], theta[some], shares[some])
    grids.synchronize()
    return time.perf_counter() - begin


def kernels(device: Device, size: tuple[int, int, int]) -> dict[str, Any]:
    """Milliseconds of each step alone, for one projection and for one look."""
    watch = Stopwatch(device)
    grids = accumulator(watch, size)  # type: ignore[arg-type]
    n_angles = 4 * grids.layout.batch
    stream_scan(grids, (*size[:2], n_angles), "sequential", pinned=True)
    watch.seconds.clear()
    stream_scan(grids, (*size[:2], n_angles), "golden", pinned=True)
    added = n_angles + grids.layout.n_slots + 1
    per_frame = {k: 1e3 * v / added for k, v in watch.seconds.items()}
    grids.compute_slices()
    watch.seconds.clear()
    grids.compute_slices()
    per_look = {k: 1e3 * v for k, v in watch.seconds.items()}
    return {"ms_per_projection": per_frame, "ms_per_look": per_look}


def ingest(device: Device, size: tuple[int, int, int]) -> dict[str, Any]:
    """Projections per second, and what the copies cost beside the work."""
    grids, result = accumulator(device, size), {}
    for order in ("sequential", "golden"):
        for pinned in (True, False):
            seconds = stream_scan(grids, size, order, pinned)
            where = "pinned" if pinned else "pageable"
            result[f"{order}_{where}_per_s"] = size[2] / seconds
    host = grids.reserve(np.uint16)
    target, stream = device.empty(host.shape, np.uint16), device.stream()
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        with stream:
            device.upload(target, host)
        stream.synchronize()
        times.append(time.perf_counter() - begin)
    copy = float(np.median(times))
    result["upload_gb_s"] = host.nbytes / copy / 1e9
    # 1: the copy alone sets the pace; what the work adds to it is above that.
    result["time_over_upload"] = len(host) / result["sequential_pinned_per_s"] / copy
    large = size == LARGE
    result["predicted"] = (
        "3700-6000 /s" if large else "15000-24000 /s (the copy's 50 GB/s is the limit)"
    )
    return result


def look(device: Device, size: tuple[int, int, int]) -> dict[str, Any]:
    """Milliseconds from the last projection to slices, on the device and the host."""
    before = device.free_bytes()
    grids = accumulator(device, size)
    stream_scan(grids, (*size[:2], 64), "sequential", pinned=True)
    result = {}

    def median_ms(work: Callable[[], Any]) -> float:
        work()
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        return 1e3 * float(np.median(times))

    result["slices_on_device_ms"] = median_ms(grids.compute_slices)
    result["preview_4_to_host_ms"] = median_ms(lambda: grids.preview(4))
    n, n_rows, _ = size
    if 4 * n_rows * n * n < 8e9:
        out = device.pinned((n_rows, n, n), np.float32)
        result["volume_to_pinned_ms"] = median_ms(lambda: grids.volume(out=out))
        result["difference_to_pinned_ms"] = median_ms(
            lambda: grids.half_difference(out=out)
        )
    result["memory_gib"] = (before - device.free_bytes()) / 2**30
    result["memory_said_gib"] = grids.layout.device_bytes(np.uint16) / 2**30
    result["predicted"] = (
        "70-130 ms on the device"
        if size == LARGE
        else "10-17 ms on the device; host 90"
    )
    return result


def settings(device: Device, size: tuple[int, int, int]) -> dict[str, Any]:
    """Projections per second for other batches and runs of samples."""
    result, usual = {}, spread.SAMPLES_PER_WARP
    try:
        for batch in (4, 8, 16, 32):
            grids = accumulator(device, size, batch=batch)
            seconds = stream_scan(grids, size, "sequential", pinned=True)
            result[f"batch_{batch}_per_s"] = size[2] / seconds
            del grids
        grids = accumulator(device, size)
        for samples in (32, 64, 128, 256):
            spread.SAMPLES_PER_WARP = samples
            watched = stream_scan(grids, size, "golden", pinned=True)
            result[f"golden_{samples}_samples_per_warp_per_s"] = size[2] / watched
    finally:
        spread.SAMPLES_PER_WARP = usual
    return result


# -------------------------------------------------------------------------- main


def plan_of_cases(
    device: Device, tiny: bool
) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    small, large = (TINY, TINY) if tiny else (SMALL, LARGE)
    return [
        ("equal to the CPU", lambda: equal_to_the_cpu(device, tiny)),
        ("error of a phantom", lambda: error_of_a_phantom(device, tiny)),
        (f"kernels {small}", lambda: kernels(device, small)),
        (f"ingest {small}", lambda: ingest(device, small)),
        (f"look {small}", lambda: look(device, small)),
        (f"ingest {large}", lambda: ingest(device, large)),
        (f"look {large}", lambda: look(device, large)),
        (f"kernels {large}", lambda: kernels(device, large)),
        (f"settings {small}", lambda: settings(device, small)),
        (f"naive back-projection {small}", lambda: peers.naive(small)),
        (f"tomocupy {small}", lambda: peers.tomocupy(small)),
    ]


def run(device: Device, reason: str, out: Path, tiny: bool, budget: float) -> bool:
    """Run all cases, keep what there is after each; return whether all went well."""
    report: dict[str, Any] = {
        "device": reason,
        "versions": peers.versions(),
        "python": platform.python_version(),
        "emulated": tiny,
        "cases": {},
    }
    begin, well = time.perf_counter(), True
    for name, case in plan_of_cases(device, tiny):
        spent = time.perf_counter() - begin
        if spent > budget:
            report["cases"][name] = {"skipped": f"{spent:.0f} s are over the budget"}
            well = False
            continue
        started = time.perf_counter()
        try:
            result = case()
        except peers.AbsentError as absent:
            result = {"skipped": str(absent)}
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"[:2000]}
            well = False
        result["took_s"] = round(time.perf_counter() - started, 2)
        report["cases"][name] = result
        print(name, json.dumps(result), flush=True)
        peers.free_memory()
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.json").write_text(json.dumps(report, indent=1))
        (out / "gpu.md").write_text(peers.markdown(report))
    return well


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench_gpu"))
    parser.add_argument("--budget", type=float, default=480.0, help="seconds")
    parser.add_argument("--emulate", action="store_true")
    given = parser.parse_args()
    if given.emulate:
        from cuda_on_cpu.emulator import EmulatedDevice

        device, reason = EmulatedDevice(), "emulated on the CPU"
    else:
        device, reason = best_device()
    print(reason, flush=True)
    if device is None:
        return 3
    return 0 if run(device, reason, given.out, given.emulate, given.budget) else 1


if __name__ == "__main__":
    sys.exit(main())
