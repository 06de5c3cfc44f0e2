"""The acknowledged sender of documents: never waits, never raises, loses nothing.

The RunEngine's thread packs a document and appends it to a backlog; a thread of
our own sends it, sends it again until the service has it in its journal, and hears
how the runs get on. Light to import: it runs in the RunEngine's process.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ebl_stream.transport import wire
from ebl_stream.transport.backlog import Backlog
from ebl_stream.transport.buffers import Buffers
from ebl_stream.transport.journal import SUFFIX, JournalWriter
from ebl_stream.transport.packable import as_bytes, pack_leniently
from ebl_stream.transport.sender import Sender

logger = logging.getLogger(__name__)

LINGER_S = 5.0
CONNECTED_WITHIN_S = 5.0
RUNS_ASKED_ABOUT = 8
MAX_STATUSES = 64

Status = dict[str, Any]


class Link:
    """A connection to a service that outlives the service.

    Parameters
    ----------
    address : str
        ``zmq://host:port``, ``host:port`` or ``ipc://path``.
    max_bytes : int
        Documents kept in memory; beyond that they lie in a temporary file.
    on_status : callable, optional
        Called with every status message, in the link's thread.
    folder : Path, optional
        Of the temporary file, and of what could not be sent in the end.

    Raises
    ------
    InputError
        The address has another form.
    """

    def __init__(
        self,
        address: str,
        *,
        max_bytes: int = 64 * 2**20,
        on_status: Callable[[Status], None] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.address = address
        self.errors: Counter[str] = Counter()
        """What went wrong, by kind."""
        self.unsent: Path | None = None
        """After `close`: the journal with the documents that nobody took."""
        self._folder = folder or Path(tempfile.gettempdir())
        self._backlog = Backlog(max_bytes, self._folder)
        self._buffers = Buffers()
        self._on_status = on_status
        self._news = threading.Condition()
        self._statuses: dict[str, Status] = {}
        self._results: dict[str, Status] = {}
        self._runs: deque[str] = deque(maxlen=RUNS_ASKED_ABOUT)
        self._heard_at: float | None = None
        self._closing = False
        self._pid = os.getpid()
        self._sender = Sender(wire.endpoint(address), self._backlog, self)
        self._sender.start()
        atexit.register(self.close)

    def send(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document; returns at once, whatever the service does."""
        try:
            packed = pack_leniently(name, doc, self.note, self._buffers)
            if len(packed) > wire.MAX_DOCUMENT_BYTES:
                raise ValueError(f"{len(packed)} bytes, at most 1 GiB")
            if name == "start":
                self._runs.append(str(doc["uid"]))
            self._backlog.append(packed)
        except Exception as error:  # nothing may reach the RunEngine
            self.note("lost", f"a {name} document could not be kept: {error}")

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until the service has everything; False if it has not in time."""
        with self._news:
            return self._news.wait_for(lambda: not len(self._backlog), timeout_s)

    def status(self, run_uid: str | None = None) -> Status | None:
        """Return the newest status of a run, by default of the latest run."""
        uid = run_uid or (self._runs[-1] if self._runs else None)
        with self._news:
            status = self._statuses.get(uid) if uid else None
            return dict(status) if status else None

    def wait(
        self, timeout_s: float | None = None, run_uid: str | None = None
    ) -> Status:
        """Wait until a run has ended, by default the latest; return what came of it.

        Raises
        ------
        TimeoutError
            It has not in time, or there is no run to wait for.
        """
        uid = run_uid or (self._runs[-1] if self._runs else None)
        if uid is None:
            raise TimeoutError("no run was started through this door")
        with self._news:
            ended = self._news.wait_for(lambda: self._has_ended(uid), timeout_s)
            if not ended:
                raise TimeoutError(f"run {uid} has not ended in {timeout_s} s; {self}")
            return dict(self._results[uid])

    def connect(self, address: str) -> None:
        """Go on with another service; what is not acknowledged goes there."""
        self._sender.move(wire.endpoint(address))
        self.address = address

    def close(self, linger_s: float = LINGER_S) -> None:
        """Stop; what nobody took is kept in a journal, whose path is logged."""
        if self._closing or os.getpid() != self._pid:
            return
        # A service that was never heard of is not waited for.
        self.flush(linger_s if self.is_connected else min(linger_s, 1.0))
        self._closing = True
        atexit.unregister(self.close)
        if not self._sender.stop(timeout_s=5.0):
            logger.error("the sender hangs; %d documents are lost", len(self._backlog))
            return
        if len(self._backlog):
            self._save_unsent()
        self._backlog.close()

    @property
    def is_connected(self) -> bool:
        """Whether the service was heard of lately."""
        at = self._heard_at
        return at is not None and time.monotonic() - at < CONNECTED_WITHIN_S

    def __repr__(self) -> str:
        state = "closed" if self._closing else "connected"
        if state == "connected" and not self.is_connected:
            state = "no answer" if self._heard_at is None else "lost"
        waiting = f"{len(self._backlog)} documents waiting"
        if self._backlog.n_spilled:
            waiting += f" ({self._backlog.n_spilled} of them on disk)"
        errors = "".join(f", {n} {kind}" for kind, n in self.errors.items())
        saved = f", unsent in {self.unsent}" if self.unsent else ""
        return f"<Link {self.address}: {state}, {waiting}{errors}{saved}>"

    def note(self, kind: str, message: str) -> None:
        """Count what went wrong; log the first of its kind."""
        self.errors[kind] += 1
        if self.errors[kind] == 1:
            logger.warning("%s (further ones are only counted)", message)

    def _has_ended(self, run_uid: str) -> bool:
        return run_uid in self._results

    def _save_unsent(self) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = self._folder / f"unsent-{stamp}-{secrets.token_hex(4)}{SUFFIX}"
        n = len(self._backlog)
        try:
            journal = JournalWriter(path)
            for packed in self._backlog.drain():
                journal.append(as_bytes(packed), time.time())
            journal.close()
        except OSError as error:
            logger.error("%d documents are lost: %s: %s", n, path, error)
            return
        self.unsent = path
        logger.warning(
            "no service took the last %d documents; they are in %s "
            "(ebl-stream replay reads it)",
            n,
            path,
        )

    # What the sender's thread asks and reports.

    def runs_asked_about(self) -> list[str]:
        """Return the uids of the latest runs."""
        return list(self._runs)

    def acknowledged(self, end: int) -> None:
        """All documents before ``end`` are in the service's journal."""
        self._buffers.stock_up()
        if self._backlog.release(end):
            with self._news:
                self._news.notify_all()

    def heard(self) -> None:
        """The service spoke."""
        self._heard_at = time.monotonic()

    def told(self, status: Status) -> None:
        """The service said how a run gets on."""
        uid = status.get("run_uid")
        if not isinstance(uid, str):
            return
        with self._news:
            if self._has_ended(uid):
                return  # said again, or late
            before = self._statuses.get(uid, {})
            merged = self._statuses[uid] = {**before, **status}
            if status.get("final"):
                self._results[uid] = {k: v for k, v in status.items() if k != "final"}
            for kept in (self._statuses, self._results):
                while len(kept) > MAX_STATUSES:
                    kept.pop(next(iter(kept)))
            self._news.notify_all()
        if merged != before and self._on_status is not None:
            self._on_status(dict(merged))
