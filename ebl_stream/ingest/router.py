"""Sort documents into runs, and into an order in which each makes sense.

A transport may reorder, repeat and lose documents. Whoever listens to a run gets
every document after those it refers to; what came too early is held, within bounds.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ebl_stream.ingest.legacy import external_keys, singles
from ebl_stream.ingest.ranges import RangeSet

log = logging.getLogger(__name__)

Consumer: TypeAlias = Callable[[str, dict[str, Any]], None]
Token: TypeAlias = tuple[str, str]
"""What a document refers to: (``run`` | ``descriptor`` | ..., its id)."""

_NAMES = {
    *("start", "stop", "descriptor", "resource", "stream_resource"),
    *("event", "event_page", "bulk_events", "stream_datum"),
    *("datum", "datum_page", "bulk_datum"),
}
_MAX_GONE = 10_000
_MAX_SEQ_NUM = 2**40


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
    stopped_s: float = 0.0


@dataclass(slots=True)
class _Held:
    name: str
    doc: dict[str, Any]
    needs: Token
    run: _Run | None
    """Known where only a part of what it refers to is missing."""
    n_bytes: int


@dataclass(frozen=True, slots=True)
class _Referent:
    """What is known of a document that others refer to."""

    run: _Run
    stream: str = ""
    tellers: frozenset[str] = frozenset()
    """Who counts events: data keys of StreamDatums, and ``""`` for events."""
    external: frozenset[str] = frozenset()
    """Data keys whose events hold the id of a Datum."""
    data_key: str = ""


class RunSorter:
    """Hand the documents of each run to its own consumer, referents first.

    Duplicates are passed on. Runs that carry ``original_run_uid`` are results of
    somebody's analysis and are skipped with all that belongs to them.

    Parameters
    ----------
    factory : callable
        ``factory(start_document)`` returns what is called with the documents of that
        run, the start document first; its ``close()``, where it has one, is called
        for a run that ends without a stop document.
    stop_grace_s : float
        How long a stop document that came before all that it counts is held.
    silence_s : float
        A run without documents for so long is closed.
    max_held, max_held_bytes : int
        Bounds of what is held; beyond them the oldest goes, and is logged.
    clock : callable
        Seconds, monotonic.
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
        self._max_held = max_held
        self._max_held_bytes = max_held_bytes
        self._clock = clock
        self._runs: dict[str, _Run] = {}
        self._known: dict[Token, _Referent] = {}
        self._gone: OrderedDict[Token, None] = OrderedDict()
        self._held: OrderedDict[int, _Held] = OrderedDict()
        self._waiting: dict[Token, list[int]] = {}
        self._held_bytes = 0
        self._n_held_ever = 0
        self._queue: deque[tuple[str, dict[str, Any]]] = deque()

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        """Take one document; raises only what a consumer raises."""
        name = str(getattr(name, "name", name))
        if name not in _NAMES:
            log.warning("document of unknown kind %r ignored", name)
            return
        try:
            self._queue.extend(singles(name, doc))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            log.warning("malformed %s ignored: %r", name, error)
        self._work()

    def tick(self) -> None:
        """Let time pass: release early stops, close runs that fell silent."""
        now = self._clock()
        for run in list(self._runs.values()):
            if run.stop is not None and now - run.stopped_s >= self._stop_grace_s:
                log.warning("run %s: stopped, but not all of it came", run.uid)
                self._finish(run)
            elif now - run.heard_s >= self._silence_s:
                log.warning("run %s: silent, closed", run.uid)
                self._finish(run)

    def heard(self, run_uid: str) -> None:
        """Note that a run lives, though it sent no document."""
        if run_uid in self._runs:
            self._runs[run_uid].heard_s = self._clock()

    def close(self) -> None:
        """End of the source: release all that is held and close every run."""
        first: Exception | None = None
        for run in list(self._runs.values()):
            try:
                self._finish(run)
            except Exception as error:
                log.debug("run %s: %r", run.uid, error)
                first = first or error
        if self._held:
            log.warning("%d documents never found what they refer to", len(self._held))
        self._held.clear()
        self._waiting.clear()
        self._held_bytes = 0
        if first is not None:
            raise first

    # ---------------------------------------------------------------- one by one

    def _work(self) -> None:
        while self._queue:
            name, doc = self._queue.popleft()
            try:
                target = self._place(name, doc)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                log.warning("malformed %s ignored: %r", name, error)
                continue
            if name == "start" and target is None and self._is_new(doc):
                target = self._open(doc)
            if target is not None:
                self._deliver(target, name, doc)
        self._finish_complete()

    def _place(self, name: str, doc: dict[str, Any]) -> _Run | None:
        """Return the run that a document goes to now; else hold or ignore it."""
        run: _Run | None = None
        for token in self._needs(name, doc):
            known = self._known.get(token)
            if known is None:
                if token in self._gone:
                    log.debug("%s of a run that is over or skipped, ignored", name)
                    child = _token(name, doc)
                    if child is not None and child not in self._known:
                        self._bury(child)
                else:
                    self._hold(name, doc, token, run)
                return None
            run = run or known.run
        return run

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
        if uid in self._runs or ("run", uid) in self._gone:
            if uid in self._runs and not _same(self._runs[uid].start, doc):
                log.warning("run %s: a second, different start is refused", uid)
            return False
        if "original_run_uid" in doc:
            log.info("run %s is a result of %s, skipped", uid, doc["original_run_uid"])
            self._bury(("run", uid))
            return False
        return True

    def _open(self, doc: dict[str, Any]) -> _Run:
        run = _Run(doc["uid"], doc, self._factory(doc), self._clock())
        self._runs[run.uid] = run
        return run

    def _deliver(self, run: _Run, name: str, doc: dict[str, Any]) -> None:
        run.heard_s = self._clock()
        if name == "stop":
            if run.stop is None:
                run.stop, run.stopped_s = doc, run.heard_s
            return
        try:
            self._note(run, name, doc)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("malformed %s ignored: %r", name, error)
            return
        run.consumer(name, doc)
        self._release(_token(name, doc))

    def _note(self, run: _Run, name: str, doc: dict[str, Any]) -> None:
        """Remember what later documents may refer to, and what has been counted."""
        token = _token(name, doc)
        if token is not None and token not in self._known:
            self._known[token] = _referent(run, name, doc)
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

    def _hold(self, name: str, doc: dict[str, Any], needs: Token, run: Any) -> None:
        number = self._n_held_ever = self._n_held_ever + 1
        held = _Held(name, doc, needs, run, _n_bytes(doc))
        self._held[number] = held
        self._held_bytes += held.n_bytes
        self._waiting.setdefault(needs, []).append(number)
        while len(self._held) > self._max_held or (
            self._held_bytes > self._max_held_bytes and len(self._held) > 1
        ):
            self._give_up(*self._held.popitem(last=False))

    def _give_up(self, number: int, held: _Held) -> None:
        self._held_bytes -= held.n_bytes
        waiting = self._waiting[held.needs]
        waiting.remove(number)
        if not waiting:
            del self._waiting[held.needs]
        log.warning("%s given up: %s %s never came", held.name, *held.needs)
        if held.run is not None and held.run.uid in self._runs:
            # Half of it is better than nothing: its frame gets a reason.
            held.run.consumer(held.name, held.doc)

    def _release(self, token: Token | None) -> None:
        """Put what waited for this to the front of the queue, in its old order."""
        numbers = self._waiting.pop(token, []) if token is not None else []
        found = [self._held.pop(number) for number in numbers]
        self._held_bytes -= sum(held.n_bytes for held in found)
        self._queue.extendleft((held.name, held.doc) for held in reversed(found))

    def _bury(self, token: Token) -> None:
        """Remember that documents that refer to this are to be ignored."""
        self._gone[token] = None
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

    def _finish(self, run: _Run) -> None:
        """Hand on what still waits for a part of itself, then the stop; forget."""
        del self._runs[run.uid]
        rest = [number for number, held in self._held.items() if held.run is run]
        found = [self._held.pop(number) for number in rest]
        for number, held in zip(rest, found, strict=True):
            self._held_bytes -= held.n_bytes
            self._waiting[held.needs].remove(number)
        for token in run.tokens:
            self._known.pop(token, None)
            if token[0] != "datum":
                self._bury(token)
        for held in found:
            run.consumer(held.name, held.doc)
        if run.stop is not None:
            run.consumer("stop", run.stop)
        elif (close := getattr(run.consumer, "close", None)) is not None:
            close()


def _token(name: str, doc: dict[str, Any]) -> Token | None:
    """Return by what other documents refer to this one."""
    if name == "start":
        return ("run", doc["uid"])
    if name == "descriptor":
        return ("descriptor", doc["uid"])
    if name in ("resource", "stream_resource"):
        return ("resource", doc["uid"])
    return ("datum", doc["datum_id"]) if name == "datum" else None


def _referent(run: _Run, name: str, doc: dict[str, Any]) -> _Referent:
    if name != "descriptor":
        return _Referent(run, data_key=str(doc.get("data_key", "")))
    keys = doc["data_keys"]
    streamed = {
        key
        for key, data_key in keys.items()
        if str(data_key.get("external") or "").startswith("STREAM")
    }
    tellers = streamed | ({""} if len(streamed) < len(keys) or not keys else set())
    return _Referent(
        run,
        stream=doc["name"],
        tellers=frozenset(tellers),
        external=frozenset(external_keys(doc)),
    )


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    try:
        return bool(one == other)
    except ValueError:  # arrays in a start document
        return False


def _n_bytes(doc: dict[str, Any]) -> int:
    """Estimate the memory of a document: what counts are images inside events."""
    data = doc.get("data")
    values = data.values() if isinstance(data, dict) else ()
    return 1000 + sum(_value_bytes(value) for value in values)


def _value_bytes(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    n = 32
    while isinstance(value, list | tuple) and value:
        n *= len(value)
        value = value[0]
    return n
