"""What the preprocess room costs, and what it takes for a zinger.

Run: ``python benchmarks/preprocess.py``. Methods alternate: compare within one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ebl_stream.engine.prepared import run
from ebl_stream.engine.preprocessing import Preprocessor
from ebl_stream.stages import References
from ebl_stream.stages.preprocess import (
    FlatField,
    MinusLog,
    RemoveZingers,
    RetrievePhase,
)

N_FRAMES, N_ROWS, N_COLUMNS, SLAB, THREADS = 16, 512, 1024, 32, 2
USUAL = (FlatField(), RemoveZingers(), MinusLog())
PHASE = RetrievePhase(energy_kev=25, distance_mm=50, pixel_size_um=1, delta_beta=300)
CHAINS = {
    "flat_field, minus_log": (FlatField(), MinusLog()),
    "with remove_zingers": USUAL,
    "with retrieve_phase": (*USUAL[:2], PHASE, USUAL[2]),
}


def frames() -> tuple[list[Any], References]:
    rng = np.random.default_rng(0)
    sample = 0.2 + 0.7 * abs(np.sin(np.arange(N_COLUMNS) / 50))
    raw = rng.poisson(2e4 * sample + 100, (N_FRAMES, N_ROWS, N_COLUMNS))
    flat = np.full((N_ROWS, N_COLUMNS), 2e4 + 100, np.float32)
    return list(raw.astype(np.uint16)), References(flat, np.full_like(flat, 100))


def costs(rounds: int = 7) -> None:
    """Print milliseconds per megapixel: slab by slab on threads, and stage by stage."""
    images, references = frames()
    whole = np.stack(images).astype(np.float32)
    total = np.zeros(whole.shape[1:])
    pool = ThreadPoolExecutor(THREADS)
    slabs = [(z, z + SLAB) for z in range(0, N_ROWS, SLAB)]
    out = [np.empty((N_FRAMES, SLAB, N_COLUMNS), np.float32) for _ in slabs]

    def slab_by_slab(rooms: Preprocessor) -> None:
        prepared = rooms.prepare(images, references, each=pool.map)
        one = lambda k: prepared.rows(slabs[k], total=total, out=out[k])  # noqa: E731
        list(pool.map(one, range(len(slabs))))

    work: dict[str, Callable[[], Any]] = {}
    for name, chain in CHAINS.items():
        rooms = Preprocessor(chain)
        work[f"{name}: {THREADS} threads"] = lambda rooms=rooms: slab_by_slab(rooms)
        work[f"{name}: one by one"] = lambda chain=chain: run(chain, whole, references)
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, one in work.items():
            begun = time.perf_counter()
            one()
            taken[name].append(time.perf_counter() - begun)
    for name, seconds in taken.items():
        print(f"{np.median(seconds) / whole.size * 1e9:7.2f} ms/Mpx  {name}")


def rates() -> None:
    """Print how many zingers are found, and how many good pixels are replaced."""
    rng, stage = np.random.default_rng(1), RemoveZingers()
    level = np.linspace(0.1, 0.9, 1000)[:, None].repeat(1000, axis=1)
    for photons in (50, 1e3, 2e4):
        clean = (rng.poisson(level * photons) / photons).astype(np.float32)
        sigma = np.sqrt(level / photons)
        for size in (6, 8, 10, 15, 50):
            hit = rng.random(clean.shape) < 1e-3
            lit = (clean + hit * np.maximum(size * sigma, 0.02)).astype(np.float32)
            changed = stage(lit[None])[0] != lit
            print(
                f"{photons:7.0f} photons, {size:3d} sigma: found "
                f"{changed[hit].mean():.4f}, false {changed[~hit].mean():.1e}"
            )


if __name__ == "__main__":
    costs()
    rates()
