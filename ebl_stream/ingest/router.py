"""Sort documents into runs, and into an order in which each makes sense.

A transport may reorder, repeat and lose documents. Whoever listens to a run gets
every document after those it refers to; what came too early is held, within bounds.
Every run ends with a stop document: where none comes, one is written here.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ebl_stream.ingest.admission import Admission, Refusal, refers_to
from ebl_stream.ingest.held import Arrived, Held, HeldDocuments
from ebl_stream.ingest.ranges import RangeSet
from ebl_stream.ingest.referents import Referent, Token, referent, same, token_of

log = logging.getLogger(__name__)

Consumer: TypeAlias = Callable[[str, dict[str, Any]], None]

MAX_OPEN = 64
"""Runs under way at a time; nobody nests so many, but many may never stop."""

_REFERENTS = ("descriptor", "resource", "stream_resource")
_MAX_GONE = 10_000
_MAX_SEQ_NUM = 2**40


@dataclass
class _Ended:
    """A run that is over, or skipped."""

    uid: str
    why: str = "is over"
    """Empty: not worth a word."""
    n_late: int = 0


@dataclass
class _Run:
    uid: str
    start: dict[str, Any]
    consumer: Consumer
    heard_s: float
    tokens: list[Token] = field(default_factory=list)
    counted: dict[str, dict[str, RangeSet]] = field(default_factory=dict)
    """Event numbers seen, by stream and by who told them."""
    stop: dict[str, Any] | None = None
    rival: _Ended | None = None
    """Another run of the same uid: what is new from then on may be the other's."""


class RunSorter:
    """Hand the documents of each run to its own consumer, referents first.

    Duplicates are passed on. Runs that carry ``original_run_uid`` are results of
    somebody's analysis and are skipped with all that belongs to them. A second,
    different run of the same uid is refused, and so is what comes after the end.

    Parameters
    ----------
    factory : callable
        ``factory(start_document)`` returns what is called with the documents of that
        run: the start document first, a stop document last. The stop of a run that
        never stopped has ``exit_status`` ``unknown`` and says why in ``reason``.
    stop_grace_s : float
        How long a run whose stop document came before all that it counts may be
        silent.
    silence_s : float
        A run without documents or frames for so long is closed; a document that
        waited so long for another is given up.
    max_held, max_held_bytes : int
        Bounds of what is held; beyond them the oldest goes, and is logged.
    clock : callable
        Seconds, monotonic. The time that consumers take does not count.
    """

    def __init__(
        self,
        factory: Callable[[dict[str, Any]], Consumer],
        *,
        stop_grace_s: float = 2.0,
        silence_s: float = 600.0,
        max_held: int = 10_000,
        max_held_bytes: int = 512 * 2**20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._factory = factory
        self._stop_grace_s = stop_grace_s
        self._silence_s = silence_s
        self._clock = clock
        self._busy_s = 0.0
        self._now_s = clock()
        self._runs: dict[str, _Run] = {}
        self._known: dict[Token, Referent] = {}
        self._gone: OrderedDict[Token, _Ended] = OrderedDict()
        self._held = HeldDocuments(max_held, max_held_bytes)
        self._admit = Admission()
        self._queue: list[Arrived] = []
        """A heap: what waited goes on in the order in which it came, whatever for."""
        self._n_arrived = 0

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        """Take one document; raises only what a consumer raises."""
        for admitted in self._admit(name, doc):
            if isinstance(admitted, Refusal):
                self._tell_refused(admitted, doc)
            else:
                self._n_arrived += 1
                heapq.heappush(self._queue, Arrived(self._n_arrived, *admitted))
        with self._working():
            self._work()

    def _tell_refused(self, refused: Refusal, doc: Any) -> None:
        """Tell a run that a document of it was refused, where the run is known."""
        for token in refers_to(doc):
            known = self._known.get(token)
            run = self._runs.get(known.run_uid) if known else None
            if run is not None:
                run.consumer("refused", {"what": refused.kind})
                return

    def tick(self) -> None:
        """Let time pass: end runs that stopped early or fell silent."""
        with self._working():
            for run in list(self._runs.values()):
                silent_s = self._now_s - run.heard_s
                if run.stop is not None and silent_s >= self._stop_grace_s:
                    log.warning("run %s: stopped, but not all of it came", run.uid)
                    self._finish(run)
                elif silent_s >= self._silence_s:
                    self._cut_short(run, f"silent for {silent_s:.0f} s")
            for held in self._held.release_older(self._now_s - self._silence_s):
                self._give_up(held)

    def heard(self, run_uid: str) -> None:
        """Note that a run lives, though it sent no document."""
        if run_uid in self._runs:
            self._runs[run_uid].heard_s = self._clock() - self._busy_s

    def is_alive(self, run_uid: str) -> None:
        """Note that a run's sender lives; once it stopped, that brings nothing more."""
        if run_uid in self._runs and self._runs[run_uid].stop is None:
            self.heard(run_uid)

    def close(self) -> None:
        """End of the source: release all that is held and end every run."""
        first: Exception | None = None
        for run in list(self._runs.values()):
            try:
                self._cut_short(run, "the documents ended")
            except Exception as error:
                log.debug("run %s: %r", run.uid, error)
                first = first or error
        if len(self._held):
            log.warning("%d documents never found what they refer to", len(self._held))
        self._held.clear()
        if first is not None:
            raise first

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Stop the time of every run while a consumer works for one of them."""
        begun = self._clock()
        self._now_s = begun - self._busy_s
        try:
            yield
        finally:
            self._busy_s += self._clock() - begun

    # ---------------------------------------------------------------- one by one

    def _work(self) -> None:
        while self._queue:
            arrived = heapq.heappop(self._queue)
            name, doc = arrived.name, arrived.doc
            try:
                target = self._place(arrived)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                log.warning("malformed %s ignored: %r", name, error)
                continue
            if name == "start" and target is None and self._is_new(doc):
                target = self._open(doc)
            if target is not None:
                self._deliver(target, name, doc)
        self._finish_complete()

    def _place(self, arrived: Arrived) -> _Run | None:
        """Return the run that a document goes to now; else hold or ignore it."""
        name, doc = arrived.name, arrived.doc
        run: _Run | None = None
        for token in self._needs(name, doc):
            known = self._known.get(token)
            if known is None:
                ended = self._gone.get(token)
                if ended is not None:
                    self._ignore(name, doc, ended)
                else:
                    self._hold(arrived, token, run)
                return None
            run = run or self._runs[known.run_uid]
        if run is None or run.rival is None or name not in _REFERENTS:
            return run
        if token_of(name, doc) in self._known:
            return run
        self._ignore(name, doc, run.rival)
        return None

    def _ignore(self, name: str, doc: dict[str, Any], ended: _Ended) -> None:
        """Ignore a document, and all that refers to it; say so once for a run."""
        if name != "stop":
            ended.n_late += 1
            if ended.n_late == 1 and ended.why:
                words = "run %s %s: a %s is ignored, and what follows it"
                log.warning(words, ended.uid, ended.why, name)
        child = token_of(name, doc)
        if child is not None and child not in self._known:
            self._bury(child, ended)

    def _needs(self, name: str, doc: dict[str, Any]) -> Iterator[Token]:
        """Yield what a document refers to; the first tells its run."""
        if name == "stream_datum":
            resource = ("resource", doc["stream_resource"])
            yield ("descriptor", doc["descriptor"])
            yield resource
        elif name == "event":
            token = ("descriptor", doc["descriptor"])
            yield token
            filled = doc.get("filled", {})
            for key in self._known[token].external:
                if key in doc["data"] and not filled.get(key):
                    yield ("datum", doc["data"][key])
        elif name == "datum":
            yield ("resource", doc["resource"])
        elif name == "start":
            return
        elif name == "resource" and "run_start" not in doc:
            # Before 2019 resources did not say whose they were.
            yield ("run", next(reversed(self._runs), ""))
        else:
            yield ("run", doc["run_start"])

    def _is_new(self, doc: dict[str, Any]) -> bool:
        """Return whether a start document begins a run that is to be followed."""
        uid = doc.get("uid")
        if not isinstance(uid, str):
            log.warning("start without a uid ignored")
            return False
        run, token = self._runs.get(uid), ("run", uid)
        if run is not None:
            if run.rival is None and not same(run.start, doc):
                log.warning("run %s: a second, different start is refused", uid)
                run.rival = _Ended(uid, "has a rival of the same uid")
            return False
        if token in self._gone:
            self._ignore("start", doc, self._gone[token])
            return False
        if "original_run_uid" in doc:
            log.info("run %s is a result of %s, skipped", uid, doc["original_run_uid"])
            self._bury(token, _Ended(uid, ""))
            return False
        return True

    def _open(self, doc: dict[str, Any]) -> _Run:
        while len(self._runs) >= MAX_OPEN:
            quietest = min(self._runs.values(), key=lambda run: run.heard_s)
            self._cut_short(quietest, f"more than {MAX_OPEN} runs are under way")
        run = _Run(doc["uid"], doc, self._factory(doc), self._now_s)
        self._runs[run.uid] = run
        return run

    def _deliver(self, run: _Run, name: str, doc: dict[str, Any]) -> None:
        run.heard_s = self._now_s
        if name == "stop":
            run.stop = run.stop or doc
            return
        try:
            self._note(run, name, doc)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("malformed %s ignored: %r", name, error)
            return
        run.consumer(name, doc)
        self._release(token_of(name, doc))

    def _note(self, run: _Run, name: str, doc: dict[str, Any]) -> None:
        """Remember what later documents may refer to, and what has been counted."""
        token = token_of(name, doc)
        if token is not None and token not in self._known:
            self._known[token] = referent(run.uid, name, doc)
            run.tokens.append(token)
        if name == "descriptor":
            counted = run.counted.setdefault(doc["name"], {})
            for teller in self._known[("descriptor", doc["uid"])].tellers:
                counted.setdefault(teller, RangeSet())
        elif name == "event":
            self._count(run, doc, "", doc["seq_num"], doc["seq_num"] + 1)
        elif name == "stream_datum":
            key = self._known[("resource", doc["stream_resource"])].data_key
            self._count(
                run, doc, key, doc["seq_nums"]["start"], doc["seq_nums"]["stop"]
            )

    def _count(
        self, run: _Run, doc: dict[str, Any], teller: str, start: int, stop: int
    ) -> None:
        stream = self._known[("descriptor", doc["descriptor"])].stream
        if 1 <= start < stop <= _MAX_SEQ_NUM:
            run.counted[stream].setdefault(teller, RangeSet()).add(start, stop)

    # --------------------------------------------------------------- what is held

    def _hold(self, arrived: Arrived, needs: Token, run: _Run | None) -> None:
        if run is not None:
            run.heard_s = self._now_s
        run_uid = run.uid if run is not None else None
        for held in self._held.hold(arrived, needs, run_uid, self._now_s):
            self._give_up(held)

    def _give_up(self, held: Held) -> None:
        log.warning("%s given up: %s %s never came", held.arrived.name, *held.needs)
        run = self._runs.get(held.run_uid or "")
        if run is not None:
            # Half of it is better than nothing: its frame gets a reason.
            run.consumer(held.arrived.name, held.arrived.doc)

    def _release(self, token: Token | None) -> None:
        """Put what waited for this back into the queue, each to its old place."""
        for held in self._held.release(token) if token is not None else ():
            heapq.heappush(self._queue, held.arrived)

    def _bury(self, token: Token, ended: _Ended) -> None:
        """Remember that documents that refer to this are to be ignored."""
        self._gone[token] = ended
        if len(self._gone) > _MAX_GONE:
            self._gone.popitem(last=False)
        self._release(token)

    # -------------------------------------------------------------- the end of a run

    def _finish_complete(self) -> None:
        stopped = [run for run in self._runs.values() if run.stop is not None]
        for run in stopped:
            if self._is_complete(run):
                self._finish(run)

    def _is_complete(self, run: _Run) -> bool:
        """Return whether everything that the stop document counts has come."""
        num_events = (run.stop or {}).get("num_events")
        for stream, n in num_events.items() if isinstance(num_events, dict) else ():
            counted = run.counted.get(stream, {"": RangeSet()})
            if isinstance(n, int) and any(len(seen) < n for seen in counted.values()):
                return False
        return True

    def _cut_short(self, run: _Run, reason: str) -> None:
        """End a run; one that did not stop gets the stop document that it owes."""
        if run.stop is None:
            log.warning("run %s: %s, and no stop document came", run.uid, reason)
            run.stop = {
                "uid": f"{run.uid}-cut-short",
                "run_start": run.uid,
                "time": time.time(),
                "exit_status": "unknown",
                "reason": f"no stop document: {reason}",
            }
        self._finish(run)

    def _finish(self, run: _Run) -> None:
        """Hand on what still waits for a part of itself, then the stop; forget."""
        del self._runs[run.uid]
        found = self._held.release_run(run.uid)
        ended = _Ended(run.uid)
        for token in run.tokens:
            self._known.pop(token, None)
            if token[0] != "datum":
                self._bury(token, ended)
        for held in found:
            run.consumer(held.arrived.name, held.arrived.doc)
        if run.stop is not None:
            run.consumer("stop", run.stop)
