"""A denoiser of one run, which learns from the run while it goes on.

What is due is counted in steps per coverage, so that two replays learn the same. A
replay waits for it. Live, a thread learns beside the scan when nobody waits for the
processor, from the newest look there is; after the last projection it goes on to its
budget.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ebl_stream.nets.apply import Applied, Frozen
from ebl_stream.nets.architecture import Architecture
from ebl_stream.nets.chosen import Chosen
from ebl_stream.nets.guard import RAW, Candidate, Denoise, Standing, linear, rounded
from ebl_stream.nets.learner import Denoised, Excerpt, IsBehind, Slab
from ebl_stream.nets.pairs import Pairs, excerpt_rows, excerpt_slabs
from ebl_stream.nets.trainer import IN_SCAN, Trainer, weights_hash
from ebl_stream.nets.uncertainty import scalar

log = logging.getLogger(__name__)

CHECK_EVERY = 50
"""Steps after which it is seen whether they were good for something."""

PATIENCE = 8
"""Checks of one look without an improvement, after which learning rests."""

MOST_PASSES = 30
"""Times that a scan is learned from in all, at most: a small one needs few steps."""

FULL_RATE_STEPS = 240
"""With fewer steps than these, smaller ones: there is no time to make up for them."""

MEMBERS = 3
"""States of the net that are kept for the ensemble."""

DEPTH = 5
"""Adjacent slices that a net of random weights sees."""

NICENESS = 15
"""Of the thread that learns: everything else goes first."""


@dataclass(frozen=True)
class Start:
    """Where learning starts."""

    net: nn.Module
    architecture: Architecture
    name: str = ""
    """Of the model in the zoo; empty: random weights."""
    frozen: Frozen | None = None
    """The same net where it runs faster, as long as its weights stay."""
    sees_whole: bool = False
    """Whether it was made for the whole volume; else for one half of it."""
    label: str = "warm"
    """What it is called where the guard names it."""
    origin: dict[str, Any] = field(default_factory=dict)
    """What it was trained on, for provenance."""


class InScan:
    """Learn from looks, and denoise by whoever is best at the time.

    Parameters
    ----------
    start : Start, optional
        None: no net takes part.
    steps : int
        Budget of a whole scan; 0: the net stays as it is.
    rate : float
        Learning rate of Adam.
    seed : int
    uncertainty_map : bool
        Whether `denoise` returns an error per voxel.
    linear : bool
        Whether Noise2Filter takes part.
    is_behind : callable, optional
        Live: whether the scan's documents wait. None: a replay, which waits for us.
    """

    def __init__(
        self,
        start: Start | None,
        *,
        steps: int = 0,
        rate: float = 1e-3,
        seed: int = 0,
        uncertainty_map: bool = False,
        linear: bool = True,
        is_behind: IsBehind = None,
    ) -> None:
        self._start = start
        self._steps = steps
        self._map = uncertainty_map
        self._with_filter = linear
        self._is_behind = is_behind
        self._rate = rate
        self._seed = seed
        self._trainer: Trainer | None = None
        self._warm: Candidate | None = None
        if start is not None:
            self._warm = self._as_candidate(start.label, start.net, 0)
        self._standing: Standing | None = None
        self._stale = 0
        self._members: deque[Denoise] = deque(maxlen=MEMBERS)
        self._chosen: Chosen | None = None
        self._failed = ""
        self._new: Sequence[Excerpt] | None = None  # a look that is to be judged
        self._budget = steps
        self._share = 0.0
        self._resting = False
        self._held = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    # -------------------------------------------------------------- what it is told

    def learn(self, excerpts: Sequence[Excerpt], coverage: float) -> None:
        """Take a new look to learn from; a replay learns what is due, and returns then.

        Parameters
        ----------
        excerpts : sequence of (ndarray, ndarray)
            A + B and A - B of adjacent slices, ``[z, y, x]``, 1/px.
        coverage : float
            Projections in the volume over those that the run owes, 0..1.
        """
        self._take(excerpts, IN_SCAN * min(max(coverage, 0.0), 1.0))

    def _take(self, excerpts: Sequence[Excerpt], share: float) -> None:
        """Take a look, and the share of the budget that is due from now on."""
        with self._changed:
            self._new, self._resting = excerpts, False
            self._share = share
            self._changed.notify_all()
        if self._is_behind is None:
            self._guarded(self._learn_all)
        elif self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="ebl-stream-learn", daemon=True
            )
            self._thread.start()

    def finish(self, excerpts: Sequence[Excerpt]) -> None:
        """Learn the rest of the budget from the last look; live, unless others wait."""
        self._take(excerpts, 1.0)
        while self._is_behind is not None and not self._is_behind():
            with self._changed:
                is_done = self._is_current() and not self._is_due()
                if is_done or self._closing:
                    return
                self._changed.wait(0.1)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Do not learn meanwhile: somebody needs the processor now."""
        with self._changed:
            self._held += 1
        try:
            yield
        finally:
            with self._changed:
                self._held -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Stop learning."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    # ------------------------------------------------------------- what it is asked

    def slabs(self, n_columns: int) -> int:
        """Return how many slabs are learned from."""
        return excerpt_slabs(n_columns)

    def rows(self, n_columns: int, n_rows: int, n_slabs: int) -> tuple[int, int]:
        """Return the half-open range of a slab's rows that are learned from."""
        return excerpt_rows(n_columns, n_rows, n_slabs)

    def denoise(self, volume: Slab, half_difference: Slab | None) -> Denoised:
        """Denoise a slab, ``[z, y, x]``, 1/px; as it is where nobody does it better."""
        chosen = self._chosen
        if chosen is not None and chosen.candidate.name != RAW:
            try:
                return chosen(volume, half_difference, with_map=self._map)
            except Exception as error:
                log.exception("denoising failed; the volume stays as it is")
                self._failed = f"{type(error).__name__}: {error}"
        known = Denoised(volume.copy(), by=RAW)
        if half_difference is None:
            return known
        map_ = np.abs(half_difference) if self._map else None
        return replace(known, split=scalar(half_difference), map=map_)

    def report(self) -> dict[str, Any]:
        """Return what is published of it."""
        chosen, start = self._chosen, self._start
        trained = self._trainer.steps if self._trainer else 0
        told: dict[str, Any] = {
            "by": chosen.candidate.name if chosen else RAW,
            "weights": chosen.candidate.weights if chosen else "",
            "steps": chosen.candidate.steps if chosen else 0,
            "steps_taken": trained,
            "steps_budget": self._budget,
            "guard": rounded(chosen.losses) if chosen else {},
        }
        if start is not None and self._warm is not None:
            told["start"] = {"model": start.name, "weights": self._warm.weights}
            told["start"] |= start.origin
            told["architecture"] = start.architecture.model_dump()
        if self._failed:
            told["failed"] = self._failed
        return told

    # --------------------------------------------------------------- how it is done

    def _begin_trainer(self, pairs: Pairs) -> None:
        """Make the trainer, now that it is known how much there is to learn from."""
        start = self._start
        if start is None or not self._steps or self._trainer is not None:
            return
        self._budget = min(self._steps, pairs.steps_of_pass() * MOST_PASSES)
        self._trainer = Trainer(
            start.net,
            start.architecture,
            budget=self._budget,
            rate=self._rate * min(1.0, self._budget / FULL_RATE_STEPS),
            seed=self._seed,
        )

    def _run(self) -> None:
        """Learn whenever something is due and nobody needs the processor."""
        with suppress(OSError, AttributeError):  # of this thread alone (Linux)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while True:
            with self._changed:
                while not (self._closing or self._has_work()):
                    self._changed.wait(0.5)
                if self._closing:
                    return
            self._guarded(self._learn_some)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do the work: whatever goes wrong, the raw volume is there."""
        try:
            work()
        except Exception as error:
            log.exception("learning from the scan failed; others denoise")
            self._failed = f"{type(error).__name__}: {error}"
        with self._changed:
            self._changed.notify_all()

    def _is_due(self) -> bool:
        trainer = self._trainer
        rests = self._resting or bool(self._failed)
        due = round(self._budget * self._share)
        return trainer is not None and not rests and trainer.steps < due

    def _has_work(self) -> bool:
        return not self._held and (not self._is_current() or self._is_due())

    def _is_current(self) -> bool:
        """Whether the newest look was judged."""
        return self._new is None

    def _learn_all(self) -> None:
        while not self._is_current() or self._is_due():
            self._learn_some()

    def _learn_some(self) -> None:
        """Judge who denoises; after some steps, where they are due."""
        new = self._new
        if new is not None:
            try:
                self._standing = self._begin(Pairs(new), self._standing)
            finally:
                with self._changed:
                    self._new = None if self._new is new else self._new
            return
        trainer, standing = self._trainer, self._standing
        if trainer is None or standing is None or not self._steps_of(trainer, standing):
            return
        net = copy.deepcopy(trainer.average)
        adapted = self._as_candidate("adapted", net, trainer.steps)
        self._members.append(adapted.denoise)
        self._stale = 0 if standing.enter(adapted) else self._stale + 1
        self._resting = self._stale >= PATIENCE
        self._choose(standing)

    def _steps_of(self, trainer: Trainer, standing: Standing) -> int:
        """Learn what is due, until it is time to look what it was good for."""
        n = 0
        while n < CHECK_EVERY and self._is_due() and self._is_current():
            if self._closing:
                return 0
            if self._must_wait():
                time.sleep(0.01)
                continue
            trainer.step(standing.pairs)
            n += 1
        return n

    def _must_wait(self) -> bool:
        is_behind = self._is_behind
        return is_behind is not None and (self._held > 0 or is_behind())

    def _begin(self, pairs: Pairs, before: Standing | None) -> Standing:
        """Judge everybody anew on a new look."""
        standing, self._stale = Standing(pairs), 0
        adapted = before.holder("adapted") if before is not None else None
        filtered = linear(pairs) if self._with_filter else None
        for candidate in (filtered, self._warm, adapted):
            if candidate is not None:
                standing.enter(candidate)
        self._choose(standing)
        self._begin_trainer(pairs)
        if adapted is not None:
            self._keep_or_forget(standing)
        return standing

    def _keep_or_forget(self, standing: Standing) -> None:
        """Go on from the start where what few projections taught is worse by now."""
        start, warm, trainer = self._start, self._warm, self._trainer
        assert start is not None and warm is not None and trainer is not None  # noqa: PT018, S101
        if standing.losses["adapted"] > standing.losses[warm.name]:
            self._members.clear()
            trainer.begin_from(start.net)

    def _choose(self, standing: Standing) -> None:
        losses, members = dict(standing.losses), tuple(self._members)
        by_half = self._start is not None and not self._start.sees_whole
        scale = standing.pairs.scale
        self._chosen = Chosen(standing.best, scale, losses, members, by_half=by_half)

    def _as_candidate(self, name: str, net: nn.Module, steps: int) -> Candidate:
        assert self._start is not None  # noqa: S101  (there is a net)
        frozen = self._start.frozen if net is self._start.net else None
        applied = Applied(net, self._start.architecture, frozen=frozen)
        return Candidate(name, applied, weights_hash(net), steps)


def random_start(seed: int) -> Start:
    """Return a fast net of random weights, the same for a seed."""
    architecture = Architecture(depth=DEPTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Start(architecture.build(), architecture)
