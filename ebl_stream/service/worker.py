"""The one thread that reconstructs, and the queue before it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from ebl_stream import failpoints
from ebl_stream.service.journal import Kept

logger = logging.getLogger(__name__)

TICK_S = 1.0
BEHIND_S = 2.0
"""A document that waited so long says that documents come faster than they go."""
IGNORED_AFTER_S = 10.0
"""After a stop document without which nothing came of a run."""


class SaysOfItself(Protocol):
    """A `Progress` or `Result`."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        ...


class Callback(Protocol):
    """What a `Reconstruction` is to its worker."""

    @property
    def results(self) -> Mapping[str, SaysOfItself]:
        """By raw run uid."""
        ...

    @property
    def put_off(self) -> Collection[str]:
        """Uids of the runs that this machine could not go on with."""
        ...

    @property
    def tick_s(self) -> float:
        """How often `tick` wants to be called, at least."""
        ...

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        """Take one document."""
        ...

    def heard(self, run_uid: str) -> None:
        """Note that a run lives, though it sent no document."""
        ...

    def tick(self) -> None:
        """Let time pass."""
        ...

    def abandon(self) -> None:
        """End without finishing anything."""
        ...

    def close(self) -> None:
        """End the source."""
        ...


MakeCallback = Callable[[Callable[[SaysOfItself], None], Callable[[], bool]], Callback]
"""Makes the callback; its arguments are to be called with every progress, and to ask
whether documents have to wait."""


@dataclass(frozen=True)
class _Item:
    run_uid: str | None
    name: str
    doc: dict[str, Any] | None
    """None: it is read from where it is kept."""
    kept: Kept | None
    size: int
    """Bytes in memory."""
    since: float = 0.0
    """When it was queued, s on the monotonic clock."""


class Worker:
    """Calls the callback, in a thread that outlives whatever the callback does.

    Parameters
    ----------
    make_callback : callable
    tell : callable
        Called with ``(run_uid, status)``; ``status["final"]`` says that the run is
        over.
    max_queue_bytes : int
        Documents kept in memory; beyond that they are read from the journal again.
    ignored_after_s : float
        A run that stopped so long ago, and of which nothing came, is given up.
    ended : iterable of str
        Runs that ended before: what comes of them is late.

    Raises
    ------
    Exception
        What `make_callback` raises.
    """

    def __init__(
        self,
        make_callback: MakeCallback,
        tell: Callable[[str, dict[str, Any]], None],
        *,
        max_queue_bytes: int,
        ignored_after_s: float = IGNORED_AFTER_S,
        ended: Iterable[str] = (),
    ) -> None:
        self._make_callback = make_callback
        self._tell = tell
        self._max_queue_bytes = max_queue_bytes
        self._ignored_after_s = ignored_after_s
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._queued_bytes = 0
        self._n_queued = 0
        self._open: set[str] = set()  # begun, not ended
        self._ended: set[str] = set(ended)
        self._stopped_at: dict[str, float] = {}
        self._recognized: set[str] = set()  # something comes of them
        self._heard: set[str] = set()
        self._stopping = False
        self._leaving = False
        self._waited_s = 0.0
        self.at_work: str | None = None
        """Run of the document that was worked on last."""
        self._thread = self._start()

    @property
    def is_idle(self) -> bool:
        """Whether every document was worked on."""
        return self._n_queued == 0

    @property
    def is_alive(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    @property
    def queued_bytes(self) -> int:
        """Documents in memory that wait."""
        return self._queued_bytes

    def put(
        self,
        run_uid: str | None,
        name: str,
        doc: dict[str, Any],
        size: int,
        kept: Kept | None,
    ) -> None:
        """Queue a document of ``size`` bytes (any thread)."""
        with self._lock:
            # What lies in no journal has to stay in memory.
            fits = self._queued_bytes + size <= self._max_queue_bytes
            now = time.monotonic()
            item = _Item(run_uid, name, doc, kept, size, now)
            if kept is not None and not fits:
                item = _Item(run_uid, name, None, kept, 0, now)
            self._queued_bytes += item.size
            self._n_queued += 1
        self._queue.put(item)
        failpoints.hit("queued")

    def heard(self, run_uids: Iterable[str]) -> None:
        """Note runs that live, though they sent no document (any thread)."""
        with self._lock:
            self._heard.update(run_uids)

    @property
    def put_off(self) -> Collection[str]:
        """Uids of the runs that this machine could not go on with."""
        return self._callback.put_off

    def begin_anew(self) -> None:
        """Go on with a new callback, which knows nothing; nobody puts meanwhile.

        Waiting documents that lie in a journal are dropped: who calls puts those of
        all open runs again.
        """
        self._leaving = True
        self._queue.put(_NOTHING)
        self._thread.join()
        self._leaving = False
        kept_nowhere = [item for item in self._drain() if item.kept is None]
        self._open.clear()
        self._stopped_at.clear()
        self._recognized.clear()
        self._thread = self._start()
        for item in kept_nowhere:
            self.put(item.run_uid, item.name, item.doc or {}, item.size, None)

    def fail(self, run_uid: str, message: str) -> None:
        """Give a run up."""
        self._fail(run_uid, message)

    def has_ended(self, run_uid: str) -> None:
        """Note that a run ended before: what comes of it is late."""
        self._ended.add(run_uid)

    def stop(self) -> None:
        """Work off the queue, finish what is open, and end; may be interrupted."""
        self._stopping = True
        self._queue.put(None)
        while self.is_alive:
            self._thread.join(0.2)

    def _start(self) -> threading.Thread:
        # Made here: a profile that cannot be furnished is the caller's to hear of.
        callback = self._callback = self._make_callback(
            self._progressed, lambda: self._waited_s > BEHIND_S
        )
        # A daemon: a second Ctrl-C has to end the process.
        thread = threading.Thread(
            target=self._run, args=(callback,), name="ebl-stream-worker", daemon=True
        )
        thread.start()
        return thread

    def _drain(self) -> list[_Item]:
        items: list[_Item] = []
        with contextlib.suppress(Empty):
            while True:
                item = self._queue.get_nowait()
                if item is not None and item is not _NOTHING:
                    items.append(item)
        with self._lock:
            self._queued_bytes -= sum(item.size for item in items)
            self._n_queued -= len(items)
        return items

    def _run(self, callback: Callback) -> None:
        ticked_at = time.monotonic()
        while True:
            try:
                item = self._queue.get(timeout=min(TICK_S, callback.tick_s))
            except Empty:
                item = _NOTHING
            if self._leaving:
                self._queue.put(item)
                self._guard(None, callback.abandon)
                return
            if item is None:
                break
            if item is not _NOTHING:
                self._work(callback, item)
            if time.monotonic() - ticked_at >= min(TICK_S, callback.tick_s):
                ticked_at = time.monotonic()
                self._guard(None, lambda: self._tick(callback))
                self._end_ignored()
            self._report(callback)
        self._guard(None, callback.close)
        self._report(callback)

    def _tick(self, callback: Callback) -> None:
        with self._lock:
            heard, self._heard = self._heard, set()
        for run_uid in heard:
            callback.heard(run_uid)
        callback.tick()

    def _work(self, callback: Callback, item: _Item) -> None:
        run_uid = item.run_uid
        self._waited_s = time.monotonic() - item.since
        self.at_work = run_uid
        try:
            if run_uid is not None:
                if item.name == "start" and run_uid not in self._ended:
                    self._open.add(run_uid)
                if item.name == "stop" and run_uid not in self._recognized:
                    self._stopped_at[run_uid] = time.monotonic()
            if run_uid not in self._ended:
                self._guard(run_uid, lambda: callback(item.name, _document(item)))
        finally:
            with self._lock:
                self._queued_bytes -= item.size
                self._n_queued -= 1
            failpoints.hit("worked")

    def _guard(self, run_uid: str | None, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # other runs go on
            logger.exception("fault while working on run %s", run_uid)
            if run_uid is not None:
                self._fail(run_uid, f"{type(error).__name__}: {error}")

    def _progressed(self, progress: SaysOfItself) -> None:
        status = progress.as_dict()
        run_uid = str(status.get("run_uid"))
        self._stopped_at.pop(run_uid, None)
        self._recognized.add(run_uid)
        if status.get("state") == "failed":
            self._end(run_uid, status)
        else:
            self._tell(run_uid, {**status, "final": False})

    def _report(self, callback: Callback) -> None:
        for run_uid in list(self._open | self._stopped_at.keys()):
            result = callback.results.get(run_uid)
            if result is not None:
                self._end(run_uid, result.as_dict())

    def _end_ignored(self) -> None:
        """Answer who waits for a run that is no tomography."""
        before = time.monotonic() - self._ignored_after_s
        for run_uid in [u for u, at in self._stopped_at.items() if at < before]:
            message = "no projections were recognized in this run"
            status = {"run_uid": run_uid, "state": "ignored", "message": message}
            self._end(run_uid, status)

    def _fail(self, run_uid: str, message: str) -> None:
        status = {"run_uid": run_uid, "state": "failed", "message": message}
        self._end(run_uid, status)

    def _end(self, run_uid: str, status: dict[str, Any]) -> None:
        self._open.discard(run_uid)
        self._recognized.discard(run_uid)
        self._stopped_at.pop(run_uid, None)
        self._ended.add(run_uid)
        self._tell(run_uid, {**status, "final": True})


_NOTHING = _Item(None, "", None, None, 0)


def _document(item: _Item) -> dict[str, Any]:
    if item.doc is not None:
        return item.doc
    if item.kept is None:
        raise AssertionError("an item has its document or where it lies")
    return item.kept.read()[1]
