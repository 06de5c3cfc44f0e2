"""What a bus that loses documents has lost, named while the scan still runs."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ebl_stream.ingest.ranges import Range, RangeSet

logger = logging.getLogger(__name__)

GRACE_S = 0.5
"""How much later than its successor an event may come."""
MAX_RUNS = 32
MAX_LINES = 5
"""Lines of log for one run; further gaps are only counted."""
_MAX_SEQ_NUM = 2**40


@dataclass
class _Told:
    """The numbers that one teller of a stream has told."""

    stream: str
    seen: RangeSet = field(default_factory=RangeSet)
    highest: int = 0
    """What the run owes as far as known: its last number, or the stop document's."""
    since: dict[Range, float] = field(default_factory=dict)
    """Gaps, and when they were noticed."""

    def gaps(self) -> Iterator[Range]:
        """Yield what was jumped over, half-open."""
        at = 1
        for start, stop in self.seen:
            if start > at:
                yield (at, start)
            at = stop
        if at <= self.highest:
            yield (at, self.highest + 1)


@dataclass
class _Run:
    told: dict[str, _Told] = field(default_factory=dict)
    """By descriptor and stream resource."""
    named: dict[str, RangeSet] = field(default_factory=dict)
    """By stream."""
    n_lines: int = 0
    stopped_at: float | None = None


class Gaps:
    """Watches the numbers of events as documents pass.

    A detector that misses a trigger leaves a gap too, and its file keeps the place
    free: the two cannot be told apart here, so nothing is made up. The frames are
    missing in the ledger.

    Parameters
    ----------
    problems : Counter
        ``problems["gap"]`` counts the events that did not come.
    clock : callable
        Seconds, monotonic.
    """

    def __init__(
        self, problems: Counter[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._problems = problems
        self._clock = clock
        self._runs: dict[str, _Run] = {}
        self._streams: dict[str, tuple[str, str]] = {}
        """Descriptor: uid of the run, name of the stream."""

    def note(self, name: str, doc: dict[str, Any]) -> None:
        """Note a document; one that makes no sense is somebody else's to refuse."""
        try:
            self._note(name, doc)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            logger.debug("%s not watched: %r", name, error)

    def look(self) -> None:
        """Name what should have come by now."""
        now = self._clock()
        for uid, run in list(self._runs.items()):
            for told in run.told.values():
                self._look_at(uid, run, told, now)
            if run.stopped_at is not None and now - run.stopped_at > 2 * GRACE_S:
                self._forget(uid)

    def _note(self, name: str, doc: dict[str, Any]) -> None:
        if name == "start":
            self._runs[str(doc["uid"])] = _Run()
            while len(self._runs) > MAX_RUNS:
                self._forget(next(iter(self._runs)))
        elif name == "descriptor" and doc["run_start"] in self._runs:
            self._streams[doc["uid"]] = (doc["run_start"], str(doc["name"]))
        elif name == "event":
            self._count(doc["descriptor"], "", doc["seq_num"], doc["seq_num"] + 1)
        elif name == "stream_datum":
            numbers = doc["seq_nums"]
            resource = doc["stream_resource"]
            self._count(doc["descriptor"], resource, numbers["start"], numbers["stop"])
        elif name == "stop" and doc["run_start"] in self._runs:
            run = self._runs[doc["run_start"]]
            run.stopped_at = self._clock()
            for told in run.told.values():
                owed = (doc.get("num_events") or {}).get(told.stream, 0)
                told.highest = max(told.highest, min(owed, _MAX_SEQ_NUM))

    def _count(self, descriptor: str, resource: str, start: int, stop: int) -> None:
        if descriptor not in self._streams or not 1 <= start < stop <= _MAX_SEQ_NUM:
            return
        uid, stream = self._streams[descriptor]
        told = self._runs[uid].told.setdefault(descriptor + resource, _Told(stream))
        told.seen.add(start, stop)
        told.highest = max(told.highest, stop - 1)

    def _look_at(self, uid: str, run: _Run, told: _Told, now: float) -> None:
        told.since = {gap: told.since.get(gap, now) for gap in told.gaps()}
        named = run.named.setdefault(told.stream, RangeSet())
        for gap, since in told.since.items():
            if now - since >= GRACE_S:
                for new in named.add(*gap)[0]:
                    self._name(uid, run, told.stream, new)

    def _name(self, uid: str, run: _Run, stream: str, gap: Range) -> None:
        self._problems["gap"] += gap[1] - gap[0]
        run.n_lines += 1
        if run.n_lines <= MAX_LINES:
            logger.warning(
                "run %s, stream %s: events %d to %d did not come%s",
                uid,
                stream,
                gap[0],
                gap[1] - 1,
                "; further gaps are only counted" if run.n_lines == MAX_LINES else "",
            )

    def _forget(self, uid: str) -> None:
        del self._runs[uid]
        gone = [key for key, (run, _) in self._streams.items() if run == uid]
        for key in gone:
            del self._streams[key]
