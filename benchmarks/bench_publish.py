"""How fast a volume gets to the disk as zarr, ours against the other ways there are.

``python benchmarks/bench_publish.py [--json]``: methods take turns in one process,
every round writes two versions of the volume; the first has no files to replace. The
first slab can be read after ``first``, all of it after ``all``. The volume is foam with
noise of 10 %: noise is what a codec cannot make smaller. ``raw`` is plain files of the
same size: what the file system takes. zarrs is measured where it is installed; it
writes onto the old chunk, so a reader may see half of it, and is no choice for us.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from ebl_stream.publish.output import ArraySpec, RunOutput

SLAB_ROWS = 32
CHUNK = (16, 256, 256)
Write = Callable[[int, NDArray[np.float32]], Any]
"""Write one slab: z0, values."""
Opened = Callable[[Path, tuple[int, int, int]], Write]


def ours(folder: Path, shape: tuple[int, int, int]) -> Write:
    output = RunOutput(folder, "run")
    output.create([ArraySpec("recon", shape, "<f4", "1/px")], {}, SLAB_ROWS)
    stamp = {"version": 1, "n_used": 1, "coverage": 1.0}
    return lambda z0, slab: output.write("recon", z0, slab, **stamp)


def zarr_python(**options: Any) -> Opened:
    def opened(folder: Path, shape: tuple[int, int, int]) -> Write:
        options.setdefault("chunks", CHUNK)
        array = zarr.create_array(
            folder / "recon", shape=shape, dtype="<f4", fill_value=0, **options
        )
        return lambda z0, slab: array.__setitem__(slice(z0, z0 + len(slab)), slab)

    return opened


def zarrs(**options: Any) -> Opened:
    def opened(folder: Path, shape: tuple[int, int, int]) -> Write:
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            return zarr_python(**options)(folder, shape)

    return opened


def raw(folder: Path, shape: tuple[int, int, int]) -> Write:
    folder.mkdir(exist_ok=True)
    return lambda z0, slab: (folder / str(z0)).write_bytes(memoryview(slab).cast("B"))


def candidates() -> dict[str, tuple[Opened, int]]:
    """Return every way to write, and on how many threads slabs are handed to it."""
    lz4 = BloscCodec(typesize=4, cname="lz4", shuffle="bitshuffle")
    n = os.cpu_count() or 1
    found: dict[str, tuple[Opened, int]] = {
        "raw files": (raw, n),
        "ours, slab by slab": (ours, 1),
        "ours, slabs at a time": (ours, n),
        "zarr-python lz4": (zarr_python(compressors=lz4), 1),
        "zarr-python lz4, slabs at a time": (zarr_python(compressors=lz4), n),
        "zarr-python, no codec": (zarr_python(compressors=None), 1),
        "zarr-python lz4, shards": (
            zarr_python(compressors=lz4, shards=(SLAB_ROWS, 1024, 1024)),
            1,
        ),
    }
    if importlib.util.find_spec("zarrs"):
        found["zarrs lz4 (not atomic)"] = (zarrs(compressors=lz4), 1)
        found["zarrs, no codec (not atomic)"] = (zarrs(compressors=None), 1)
    return found


def foam(n_slices: int, n: int) -> NDArray[np.float32]:
    """Return bubbles in a disc with noise, 1/px."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:n, :n].astype(np.float32) - (n - 1) / 2
    plane = np.where(np.hypot(y, x) < 0.4 * n, 0.02, 0).astype(np.float32)
    for _ in range(40):
        cy, cx = rng.uniform(-0.3 * n, 0.3 * n, 2)
        plane[np.hypot(y - cy, x - cx) < rng.uniform(0.01, 0.06) * n] = 0
    volume = np.empty((n_slices, n, n), np.float32)
    for z in range(n_slices):
        noise = rng.standard_normal((n, n), dtype=np.float32)
        volume[z] = plane + np.float32(0.002) * noise
    return volume


def slabs(volume: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for z0 in range(0, len(volume), SLAB_ROWS):
        yield z0, volume[z0 : z0 + SLAB_ROWS]


def measure(
    write: Write, n_threads: int, volume: NDArray[np.float32]
) -> tuple[float, float]:
    """Return after how many seconds the first slab was written, and all."""
    began = time.perf_counter()
    if n_threads == 1:
        done = [
            (write(*slab), time.perf_counter() - began)[1] for slab in slabs(volume)
        ]
        return done[0], done[-1]
    with ThreadPoolExecutor(n_threads) as pool:
        jobs = [pool.submit(write, *slab) for slab in slabs(volume)]
        jobs[0].result()
        first = time.perf_counter() - began
        for job in jobs:
            job.result()
    return first, time.perf_counter() - began


def run(volume: NDArray[np.float32], rounds: int, where: Path | None) -> dict[str, Any]:
    """Measure every candidate in turn; return the medians."""
    times: dict[str, list[list[float]]] = {}
    sizes: dict[str, float] = {}
    for _ in range(rounds):
        for name, (opened, n_threads) in candidates().items():
            folder = Path(tempfile.mkdtemp(dir=where))
            try:
                write = opened(folder / "zarr", volume.shape)
                first = measure(write, n_threads, volume)
                again = measure(write, n_threads, volume)
                files = [file for file in folder.rglob("*") if file.is_file()]
                sizes[name] = sum(file.stat().st_size for file in files) / volume.nbytes
            finally:
                shutil.rmtree(folder)
                # What one has left to be written must not slow the next one down.
                os.sync()
            times.setdefault(name, []).append([*first, *again])
    cases = {}
    for name, rows in times.items():
        new_first, new_all, first, whole = np.median(rows, axis=0)
        cases[name] = {
            "first_slab_s": round(first, 3),
            "volume_s": round(whole, 3),
            "gb_s": round(volume.nbytes / 1e9 / whole, 2),
            "new_first_slab_s": round(new_first, 3),
            "new_volume_s": round(new_all, 3),
            "size": round(sizes[name], 2),
        }
    return cases


def main() -> None:
    """Print one row per way to write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=512)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    args = parser.parse_args()
    volume = foam(args.slices, args.columns)
    cases = run(volume, args.rounds, args.folder)
    packages = ("zarr", "numcodecs", "numpy") + (
        ("zarrs",) if importlib.util.find_spec("zarrs") else ()
    )
    versions = {name: version(name) for name in packages}
    if args.json:
        facts = {"gb": volume.nbytes / 1e9, "cores": os.cpu_count()}
        facts |= {"kernel": platform.release(), "versions": versions}
        print(json.dumps(facts | {"cases": cases}))
        return
    print(f"{volume.nbytes / 1e9:.2f} GB, {os.cpu_count()} cores, {versions}")
    print(f"{'':34}{'replaces the one before':>24}{'new':>14}{'size':>7}")
    print(f"{'':34}{'first s':>8}{'all s':>8}{'GB/s':>8}{'first':>7}{'all':>7}")
    for name, case in cases.items():
        numbers = "".join(f"{case[key]:8.2f}" for key in ("first_slab_s", "volume_s"))
        new = "".join(
            f"{case[key]:7.2f}" for key in ("new_first_slab_s", "new_volume_s")
        )
        print(f"{name:34}{numbers}{case['gb_s']:8.2f}{new}{case['size']:7.2f}")


if __name__ == "__main__":
    main()
