"""Streams of documents as bad as they come, against a plain reading of them."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from consumer import GRACE_S, SILENCE_S, Alarms, Consumer, check
from expected import Expectations
from fuzz_sizes import scaled
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from telling import Document, Oddity, Teller

CAMPAIGN = "EBL_STREAM_CAMPAIGN" in os.environ
STREAMS = scaled(500, 20_000)

NONSENSE: tuple[Document, ...] = (
    ("event", {"descriptor": "nobody's"}),
    ("event", {"descriptor": ["a"], "data": 3}),
    ("stream_datum", {"descriptor": "d", "stream_resource": {}}),
    ("stop", {}),
    ("start", {"uid": 7}),
    ("descriptor", {"run_start": "nobody", "uid": "x", "data_keys": [], "name": None}),
    ("event_page", {"data": "none"}),
)


class MutatedStreams(RuleBasedStateMachine):
    """Runs are told on one side; on the way to the other anything may happen."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = tempfile.TemporaryDirectory()
        self.folder = Path(self.scratch.name)
        self.consumer = Consumer(self.folder)
        self.expected = Expectations()
        self.tellers: list[Teller] = []
        self.line: list[Document] = []
        self.alarms = Alarms()
        logging.getLogger("ebl_stream").addHandler(self.alarms)

    # ---------------------------------------------------------- at the beamline

    @initialize(seed=st.integers(0, 999), in_file=st.booleans())
    def first_run(self, seed: int, in_file: bool) -> None:
        self._begin(Teller(seed, self.folder if in_file else None, promised=24))
        self.line += self.tellers[0].reference("flats", 2)
        self.line += self.tellers[0].expose(12)

    @precondition(lambda self: len(self.tellers) < 3)
    @rule(
        seed=st.integers(0, 999),
        in_file=st.booleans(),
        is_float=st.booleans(),
        promised=st.sampled_from([None, 10, 40]),
        wild_times=st.booleans(),
    )
    def another_run(
        self,
        seed: int,
        in_file: bool,
        is_float: bool,
        promised: int | None,
        wild_times: bool,
    ) -> None:
        dtype = "<f4" if is_float and not in_file else "<u2"
        folder = self.folder if in_file else None
        self._begin(Teller(seed, folder, dtype, promised, wild_times))

    def _begin(self, teller: Teller) -> None:
        self.tellers.append(teller)
        self.expected.tellers[teller.uid] = teller
        self.line += teller.start()

    def _one(self, which: int) -> Teller | None:
        running = [teller for teller in self.tellers if not teller.has_stopped]
        return running[which % len(running)] if running else None

    @rule(
        which=st.integers(0, 2),
        n=st.integers(1, 12),
        oddity=st.sampled_from(("", "", *get_args(Oddity))),
    )
    def expose(self, which: int, n: int, oddity: Oddity) -> None:
        if (teller := self._one(which)) and teller.highest + n <= 60:
            self.line += teller.expose(n, oddity)

    @rule(which=st.integers(0, 2), back=st.integers(1, 8), again=st.integers(0, 8))
    def rewind(self, which: int, back: int, again: int) -> None:
        if (teller := self._one(which)) and teller.highest + again <= 60:
            teller.rewind(back)
            if again:
                self.line += teller.expose(again)

    @rule(which=st.integers(0, 2), n=st.integers(1, 3), dark=st.booleans())
    def reference(self, which: int, n: int, dark: bool) -> None:
        if teller := self._one(which):
            self.line += teller.reference("darks" if dark else "flats", n)

    @rule(which=st.integers(0, 2))
    def describe_again(self, which: int) -> None:
        if teller := self._one(which):
            self.line += teller.describe("primary")

    @rule(which=st.integers(0, 2), status=st.sampled_from(["success", "abort", "fail"]))
    def stop(self, which: int, status: str) -> None:
        if teller := self._one(which):
            self.line += teller.stop(status)

    # -------------------------------------------------------------- on the way

    @rule(where=st.floats(0, 1), n=st.integers(1, 3))
    def lose(self, where: float, n: int) -> None:
        at = round(where * len(self.line))
        del self.line[at : at + n]

    @rule(where=st.floats(0, 1), n=st.integers(1, 4), later=st.integers(0, 40))
    def repeat(self, where: float, n: int, later: int) -> None:
        at = round(where * len(self.line))
        self.line[at + later : at + later] = self.line[at : at + n]

    @rule(window=st.sampled_from([2, 16, 64]), seed=st.integers(0, 999))
    def shuffle(self, window: int, seed: int) -> None:
        places = np.random.default_rng(seed).uniform(0, window, len(self.line))
        order = np.argsort(places + np.arange(len(self.line)))
        self.line = [self.line[k] for k in order]

    @rule(document=st.sampled_from(NONSENSE))
    def nonsense(self, document: Document) -> None:
        self.consumer(*document)

    # ------------------------------------------------------- at the other side

    @rule(share=st.floats(0, 1))
    def deliver(self, share: float) -> None:
        n = round(share * len(self.line))
        for name, doc in self.line[:n]:
            self.consumer(name, doc)
            self.expected.take(name, doc)
        del self.line[:n]

    @rule()
    def wait(self) -> None:
        self.consumer.tick(GRACE_S + 0.5)
        self.expected.stop_waiting()

    @rule()
    def silence(self) -> None:
        self.consumer.tick(SILENCE_S + 1)
        self.expected.give_up()

    @rule()
    def crash(self) -> None:
        """What ended is acknowledged: nobody tells it again."""
        runs = self.expected.runs
        over = [t for t in self.tellers if t.uid in runs and runs[t.uid].is_over]
        done = {uid for teller in over for uid in teller.told}
        self.line = [pair for pair in self.line if pair[1]["uid"] not in done]
        self.consumer.crash()

    def teardown(self) -> None:
        try:
            self.deliver(share=1.0)
            self.consumer.close()
            self.expected.give_up()
            for uid, run in self.expected.runs.items():
                check(run, self.consumer.results.get(uid))
            sorter = self.consumer.house._sorter
            assert (sorter._runs, sorter._known, len(sorter._held)) == ({}, {}, 0)
            assert self.alarms.heard == []
        finally:
            logging.getLogger("ebl_stream").removeHandler(self.alarms)
            for teller in self.tellers:
                teller.close()
            self.scratch.cleanup()


TestMutatedStreams = MutatedStreams.TestCase
TestMutatedStreams.settings = settings(
    max_examples=STREAMS,
    stateful_step_count=14,
    deadline=None,
    derandomize=not CAMPAIGN,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
TestMutatedStreams = pytest.mark.timeout(36_000 if CAMPAIGN else 900)(
    TestMutatedStreams
)
