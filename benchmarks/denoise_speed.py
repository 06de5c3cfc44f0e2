"""How fast nets are on the CPU: the fast one against the published, and in slices/s.

All ways take turns within one run, so that a busy neighbor meets all of them alike.
Beside the time on the clock stands the processor's, which such a neighbor changes less.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ebl_stream.nets import frozen, zoo
from ebl_stream.nets.apply import Applied, has_bfloat16, one_thread
from ebl_stream.nets.architecture import Architecture

SIDE, SLICES, SEED = 512, 64, 51
THREADS = 2
FAST = Architecture(kind="fast")
PUBLISHED = Architecture(kind="tomogan")

Route = Callable[[NDArray[np.float32]], object]
Times = dict[str, list[tuple[float, float]]]


def fast_vs_published_speed(quick: bool) -> dict[str, Any]:
    """Measure one slice of 512 x 512 on one thread.

    ``fast_vs_published_speed`` is the published generator's time (float32, eager) over
    that of the fast net's best route; of the shortest times, and of the medians.
    """
    one_thread()
    published = build(PUBLISHED).net

    def eager(slab: NDArray[np.float32]) -> object:
        with torch.inference_mode():
            return published(torch.from_numpy(slab)[:, None])

    routes = {"published, float32 eager": eager, **fast_routes(build(FAST))}
    slab = volume(1)
    times = take_turns(
        {name: lambda route=route: route(slab) for name, route in routes.items()},
        5 if quick else 15,
    )
    (base, *others) = times
    best = min(others, key=lambda name: shortest(times, name))
    return {
        "fast_vs_published_speed": shortest(times, base) / shortest(times, best),
        "fast_vs_published_speed_median": middle(times, base) / middle(times, best),
        "case": summary(times, best),
    }


def slices_per_s_512(quick: bool) -> dict[str, Any]:
    """Measure a volume of 64 slices of 512 x 512 on two threads, one slab for each."""
    one_thread()
    slab = volume(SLICES)
    halves = np.array_split(slab, THREADS)
    with ThreadPoolExecutor(THREADS) as pool:

        def both(route: Route) -> None:
            list(pool.map(route, halves))

        times = take_turns(
            {
                name: lambda route=route: both(route)
                for name, route in fast_routes(build(FAST)).items()
            },
            3 if quick else 7,
        )
    best = min(times, key=lambda name: shortest(times, name))
    return {
        "slices_per_s_512": SLICES / shortest(times, best),
        "slices_per_s_512_median": SLICES / middle(times, best),
        "case": summary(times, best),
    }


def fast_routes(model: zoo.Model) -> dict[str, Route]:
    """Return the ways to apply a net to ``[z, y, x]``; the first needs no extra."""
    applied = Applied(model.net, model.card.architecture)
    found: dict[str, Route] = {"fast, torch": applied}
    if frozen.is_available():
        run = frozen.freeze(model)

        def slice_by_slice(slab: NDArray[np.float32]) -> object:
            return [run(one[None, None]) for one in slab]

        found["fast, OpenVINO"] = slice_by_slice
    return found


def build(architecture: Architecture) -> zoo.Model:
    """Return a net with random weights: its speed does not depend on them."""
    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as folder:
        path = zoo.save(
            Path(folder),
            architecture.build().state_dict(),
            name="random",
            kind="tomogan",
            architecture=architecture,
            data={"seed": SEED},
            steps=0,
            metrics={},
            licence="BSD-3-Clause",
            command="",
        )
        return zoo.load(path)


def volume(n: int) -> NDArray[np.float32]:
    """Return noise on the nets' scale."""
    rng = np.random.default_rng(SEED)
    return rng.standard_normal((n, SIDE, SIDE), np.float32)


def take_turns(ways: dict[str, Callable[[], object]], rounds: int) -> Times:
    """Return (clock, processor) times (s) of every way; the first round warms up."""
    times: Times = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start, busy = time.perf_counter(), time.process_time()
            way()
            taken = time.perf_counter() - start, time.process_time() - busy
            if turn:
                times[name].append(taken)
    return times


def shortest(times: Times, name: str) -> float:
    return min(clock for clock, _ in times[name])


def middle(times: Times, name: str) -> float:
    return median(clock for clock, _ in times[name])


def summary(times: Times, best: str) -> dict[str, Any]:
    """Return what a case is reported with."""
    return {
        "best": best,
        "bfloat16": has_bfloat16(),
        "side": SIDE,
        "min_ms": {name: 1e3 * shortest(times, name) for name in times},
        "median_ms": {name: 1e3 * middle(times, name) for name in times},
        "min_cpu_ms": {
            name: 1e3 * min(busy for _, busy in taken) for name, taken in times.items()
        },
    }


def show(results: Sequence[dict[str, Any]]) -> None:
    """Print a table."""
    print(f"{'way':28} {'min ms':>9} {'median ms':>10} {'CPU ms':>9}")
    for result in results:
        case = result["case"]
        for name in case["min_ms"]:
            mark = " *" if name == case["best"] else ""
            times = [case[k][name] for k in ("min_ms", "median_ms", "min_cpu_ms")]
            print("{:28} {:9.1f} {:10.1f} {:9.1f}".format(name, *times) + mark)
        print({key: round(value, 1) for key, value in result.items() if key != "case"})


def main() -> None:
    quick = "--quick" in sys.argv
    results = [fast_vs_published_speed(quick), slices_per_s_512(quick)]
    if "--json" in sys.argv:
        print(json.dumps(results))
    else:
        show(results)


if __name__ == "__main__":
    main()
