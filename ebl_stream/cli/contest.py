"""The measurement of `ebl-stream bench`: all methods in turn, in one process."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ebl_stream.cli.peers import PEERS, Accuracy, Judge, Peer, Problem, accuracy
from ebl_stream.numerics.accumulate import Accumulator
from ebl_stream.numerics.weights import alternate, angular_weights
from ebl_stream.simulation.phantom import Foam
from ebl_stream.stages.reconstruct import Fourier

OURS = "ebl-stream fourier"
BLOCK = 32
"""Projections that arrive together."""
SLAB_ROWS = 32
ROUNDS = 3
SLOW_S = 8.0
"""A method whose turn took longer has no further one."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Timing:
    """How long one method takes for the whole problem, s."""

    total_s: float
    last_to_done_s: float
    """From the last projection to the volume; batch methods wait for the last."""


@dataclass(frozen=True)
class Score:
    """What came of one method."""

    name: str
    version: str
    timing: Timing
    accuracy: Accuracy
    slices_timed: int
    """Slices that were really made; the time is scaled to all."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "name": self.name,
            "version": self.version,
            **asdict(self.timing),
            **asdict(self.accuracy),
            "slices_timed": self.slices_timed,
        }


@dataclass(frozen=True)
class Contest:
    """Everything that was measured."""

    machine: dict[str, Any]
    sizes: dict[str, int]
    scores: list[Score]
    """Ours first."""
    absent: list[dict[str, str]]
    """``name``, ``why``, ``get``: peers that could not run."""

    def ratio(self, score: Score) -> Timing:
        """Return how many times our time a method takes."""
        ours, theirs = self.scores[0].timing, score.timing
        return Timing(
            theirs.total_s / ours.total_s,
            theirs.last_to_done_s / ours.last_to_done_s,
        )


class Method(Protocol):
    """Takes its turn in the contest."""

    name: str
    version: str
    n_slices: int
    """Made in one turn."""

    def turn(self) -> Timing:
        """Reconstruct once; the time is that of the whole problem."""
        ...

    def accuracy(self, foam: Foam) -> Accuracy:
        """Judge the middle slice; warms up, too."""
        ...


class Batch:
    """A peer that is given all projections at once, some slices at a time."""

    def __init__(self, peer: Peer, problem: Problem, judge: Judge) -> None:
        self.name = peer.name
        self.version = peer.version
        self._n_rows = problem.values.shape[1]
        self.n_slices = min(problem.threads, self._n_rows)
        self._peer = peer
        self._problem = problem
        self._few = problem.rows(0, self.n_slices)
        self._judge = judge

    def turn(self) -> Timing:
        """Reconstruct as many slices as there are threads."""
        begun = time.perf_counter()
        self._peer.slices(self._few)
        took = (time.perf_counter() - begun) * self._n_rows / self.n_slices
        return Timing(took, took)

    def accuracy(self, foam: Foam) -> Accuracy:
        """Judge the middle slice."""
        row = self._n_rows // 2
        return self._judge(self._peer.slices(self._problem.rows(row, row + 1))[0])


def _volume(grids: Accumulator, out: NDArray[np.float32]) -> None:
    grids.volume(out=out)


class Streaming:
    """Our live path: projections go into the grids of the slabs as they arrive.

    Parameters
    ----------
    problem : Problem
    empty : callable, optional
        Makes the grids of a slab: rows, columns, rotation center.
    look : callable
        Writes the slab ``[row, y, x]`` that the grids hold.
    """

    name = OURS

    def __init__(
        self,
        problem: Problem,
        empty: Callable[[int, int, float], Accumulator] | None = None,
        look: Callable[[Accumulator, NDArray[np.float32]], object] = _volume,
    ) -> None:
        empty = empty or Fourier().accumulator
        self.version = version("ebl-stream")
        _, n_rows, n_columns = problem.values.shape
        self.n_slices = n_rows
        self.problem = problem
        self.volume = np.zeros((n_rows, n_columns, n_columns), np.float32)
        self._look = look
        self._slabs = [
            (z, min(z + SLAB_ROWS, n_rows)) for z in range(0, n_rows, SLAB_ROWS)
        ]
        self.grids = [
            empty(z1 - z0, n_columns, problem.rotation_center) for z0, z1 in self._slabs
        ]
        weights, halves = angular_weights(problem.theta), alternate(problem.theta)
        self._shares = np.zeros((len(weights), 2))
        self._shares[np.arange(len(weights)), halves] = weights
        self._pool = ThreadPoolExecutor(problem.threads, "slab")

    def line_integrals(
        self, block: slice
    ) -> Callable[[tuple[int, int]], NDArray[np.float32]]:
        """Return what gives some rows' ``[angle, row, column]`` of a block."""
        return lambda rows: self.problem.values[block, slice(*rows)]

    def turn(self) -> Timing:
        """Take all projections in, block by block, and finish the volume."""
        n_angles = len(self.problem.theta)
        begun = time.perf_counter()
        last = begun
        for start in range(0, n_angles, BLOCK):
            last = time.perf_counter()
            block = slice(start, min(start + BLOCK, n_angles))
            self._add(block)
        self._each(self._finish)
        done = time.perf_counter()
        self._each(lambda k: self.grids[k].reset())
        return Timing(done - begun, done - last)

    def accuracy(self, foam: Foam) -> Accuracy:
        """Judge the middle slice."""
        self.turn()
        row = self.n_slices // 2
        return accuracy(self.volume[row : row + 1], foam.volume((row, row + 1)))

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown()

    def _each(self, work: Callable[[int], object]) -> None:
        list(self._pool.map(work, range(len(self._slabs))))

    def _add(self, block: slice) -> None:
        theta, shares = self.problem.theta[block], self._shares[block]
        footprint = self.grids[0].plan.footprint(theta)

        rows = self.line_integrals(block)

        def one(k: int) -> None:
            values = rows(self._slabs[k])
            self.grids[k].add(values, theta, shares, footprint=footprint)

        self._each(one)

    def _finish(self, k: int) -> None:
        self._look(self.grids[k], self.volume[slice(*self._slabs[k])])


def hold(columns: int, angles: int, rows: int, threads: int, say: Say) -> Contest:
    """Let all methods that are installed reconstruct one foam, in turn.

    Parameters
    ----------
    columns, angles, rows : int
    threads : int
        For every method alike.
    say : callable
        Told what is under way.
    """
    say("making the phantom's projections")
    foam = Foam(columns, rows, seed=0)
    theta = np.arange(angles) * np.pi / angles
    # An axis on a pixel is what every peer can do.
    problem = Problem(foam.project(theta, columns // 2), theta, columns // 2, threads)
    judge = Judge(foam, rows // 2)
    reasons = [(peer, peer.absent) for peer in PEERS]
    ours = Streaming(problem)
    try:
        methods: list[Method] = [ours]
        methods += [Batch(p, problem, judge) for p, why in reasons if why is None]
        scores = _scores(methods, foam, say)
    finally:
        ours.close()
    return Contest(
        machine(threads),
        {"columns": columns, "angles": angles, "rows": rows},
        scores,
        [{"name": p.name, "why": why, "get": p.get} for p, why in reasons if why],
    )


def _scores(methods: list[Method], foam: Foam, say: Say) -> list[Score]:
    found = []
    for method in methods:
        say(f"warming up {method.name}")
        found.append(method.accuracy(foam))
    times: list[list[Timing]] = [[] for _ in methods]
    slow: set[int] = set()
    for turn in range(ROUNDS):
        for k, method in enumerate(methods):
            if k in slow:
                continue
            say(f"round {turn + 1} of {ROUNDS}: {method.name}")
            begun = time.perf_counter()
            times[k].append(method.turn())
            if time.perf_counter() - begun > SLOW_S:
                slow.add(k)
    return [
        Score(method.name, method.version, _median(taken), judged, method.n_slices)
        for method, taken, judged in zip(methods, times, found, strict=True)
    ]


def _median(times: list[Timing]) -> Timing:
    return Timing(
        median(t.total_s for t in times), median(t.last_to_done_s for t in times)
    )


def machine(threads: int) -> dict[str, Any]:
    """Return what the figures depend on: CPU, threads, versions."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "numba": version("numba"),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown").strip()
