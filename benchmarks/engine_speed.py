"""How fast: float32 and raw counts in, volume and halves out; against the peers."""

from __future__ import annotations

import gc
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.cli.contest import Batch, Streaming, Timing
from ebl_stream.cli.peers import PEERS, Judge, Problem
from ebl_stream.engine.preprocessing import Preprocessor
from ebl_stream.numerics.accumulate import Accumulator
from ebl_stream.numerics.fourier_plan import FourierPlan
from ebl_stream.simulation.phantom import Foam
from ebl_stream.stages import References, build_preprocess

RAW_STAGES = ("flat_field", "remove_zingers", "minus_log")
FLAT, DARK = 20_000, 100

Turn = Callable[[], Timing]


def speed(quick: bool, threads: int) -> dict[str, Any]:
    """Measure totals, the last projection to the volume, and ratios of both.

    All methods take turns in one process. Ours on both halves is the yardstick: a
    ratio is the median over the rounds of the ratio within a round.
    """
    columns, angles, rows = (512, 512, 64) if quick else (1024, 1024, 64)
    foam = Foam(columns, 8, seed=0)
    theta = np.arange(angles) * np.pi / angles
    center = columns // 2
    few = foam.project(theta, center)
    values = np.tile(few, (1, rows // 8, 1))
    problem = Problem(values, theta, center, threads)
    times = take_turns(ours(problem) | peers(foam, problem), 3 if quick else 5)
    base = times["both halves"]
    ratio = {
        name: median(t.total_s / b.total_s for t, b in zip(taken, base, strict=True))
        for name, taken in times.items()
    }
    fastest = min(ratio[name] for name in ratio if name.startswith("algotom"))
    return {
        "total_vs_astra": ratio["ASTRA FBP"],
        "total_vs_algotom": fastest,
        "last_to_done_ms": 1e3 * median(t.last_to_done_s for t in base),
        "halves_ratio": 1 / ratio["one grid"],
        "both_delivered_ratio": ratio["both delivered"],
        "raw_ratio": ratio["raw u16"],
        "case": {
            "columns": columns,
            "angles": angles,
            "slices": rows,
            "ratio": ratio,
            "total_s": {name: [t.total_s for t in times[name]] for name in times},
            "last_to_done_s": [t.last_to_done_s for t in base],
        },
    }


def ours(problem: Problem) -> dict[str, Turn]:
    """Return our ways, warm."""
    plan = FourierPlan(problem.values.shape[2])

    def one_grid(n_rows: int, _: int, center: float) -> Accumulator:
        return Accumulator(plan, n_rows, center, halves=False)

    difference = np.zeros((32, plan.n_columns, plan.n_columns), np.float32)

    def both(grids: Accumulator, out: NDArray[np.float32]) -> None:
        grids.volume(out=out)
        grids.half_difference(out=scratch[id(grids)])

    ways = {
        "both halves": Streaming(problem),
        "one grid": Streaming(problem, one_grid),
        "both delivered": Streaming(problem, look=both),
        "raw u16": Raw(problem),
    }
    scratch = {id(grids): difference.copy() for grids in ways["both delivered"].grids}
    for way in ways.values():
        way.turn()
    return {name: way.turn for name, way in ways.items()}


class Raw(Streaming):
    """From what the detector counts: flat, dark, zingers, -log and column sums."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        _, n_rows, n_columns = problem.values.shape
        rng = np.random.default_rng(0)
        counts = DARK + FLAT * np.exp(-problem.values)
        counts += np.sqrt(counts) * rng.standard_normal(counts.shape, np.float32)
        self._images = counts.astype(np.uint16)
        shape = (n_rows, n_columns)
        flat = np.full(shape, FLAT + DARK, np.float32)
        self._references = References(flat, np.full(shape, DARK, np.float32))
        self._preprocess = Preprocessor(build_preprocess(RAW_STAGES))
        self._total = np.zeros(shape)

    def line_integrals(self, block: slice) -> Callable[..., NDArray[np.float32]]:
        images = list(self._images[block])
        prepared = self._preprocess.prepare(images, self._references)
        return lambda rows: prepared.rows(rows, total=self._total)


def peers(foam: Foam, problem: Problem) -> dict[str, Turn]:
    """Return the peers that are installed, warm."""
    judge = Judge(foam, 0)
    wanted = [
        peer
        for peer in PEERS
        if peer.name in ("ASTRA FBP", "algotom FBP", "algotom DFI") and not peer.absent
    ]
    turns = {peer.name: Batch(peer, problem, judge).turn for peer in wanted}
    for peer in wanted:
        peer.slices(problem.rows(0, 1))
    return turns


def take_turns(turns: dict[str, Turn], rounds: int) -> dict[str, list[Timing]]:
    """Let everybody go once, and again, so that a busy machine is so for all."""
    times: dict[str, list[Timing]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            gc.collect()
            times[name].append(turn())
    return times
