"""The door to a folder of journals."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebl_stream.service.run_index import RunIndex, file_safe
from ebl_stream.transport.backlog import Backlog
from ebl_stream.transport.buffers import Buffers
from ebl_stream.transport.journal import JournalWriter
from ebl_stream.transport.new_journal import new_journal
from ebl_stream.transport.packable import as_bytes, pack_leniently

logger = logging.getLogger(__name__)

MEMORY_BYTES = 64 * 2**20
MAX_OPEN = 16
LINGER_S = 30.0
LOOK_EVERY_S = 0.02
"""The writer looks by itself: waking it would cost the RunEngine's thread."""


class DocumentRecorder:
    """Record every run in ``<folder>/<run_uid>.ebldocs``, for `ebl-stream replay`.

    A thread of its own writes: a slow disk does not hold up the scan.

    Parameters
    ----------
    folder : Path or str
        Made with the first document. A journal is never overwritten: a run that
        comes again gets ``<run_uid>-2.ebldocs``.

    Examples
    --------
    >>> RE.subscribe(DocumentRecorder("documents"))  # doctest: +SKIP
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).absolute()
        self.errors: Counter[str] = Counter()
        """What went wrong, by kind."""
        self.n_recorded = 0
        """Documents written so far."""
        self._index = RunIndex()
        self._backlog = Backlog(MEMORY_BYTES)
        self._buffers = Buffers()
        self._writers: dict[str, JournalWriter] = {}
        self._runs: dict[int, tuple[str, float, bool]] = {}
        self._news = threading.Condition()
        self._closing = False
        self._pid = os.getpid()
        self._thread = threading.Thread(
            target=self._write, name="ebl-stream-recorder", daemon=True
        )
        self._thread.start()
        atexit.register(self.close)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document."""
        try:
            packed = pack_leniently(name, doc, self._note, self._buffers)
            run_uid = self._index.run_uid(name, doc) or "unsorted"
            # The writer sees it once it is appended.
            number = self._backlog.end
            self._runs[number] = (run_uid, time.time(), name == "stop")
            self._backlog.append(packed)
        except Exception as error:  # nothing may reach the RunEngine
            self._note("lost", f"a {name} document could not be kept: {error}")

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything is written; False if it is not in time."""
        with self._news:
            return self._news.wait_for(lambda: not len(self._backlog), timeout_s)

    def close(self) -> None:
        """Write what is left, and stop."""
        if self._closing or os.getpid() != self._pid:
            return
        atexit.unregister(self.close)
        self._closing = True
        self._thread.join(LINGER_S)
        if len(self._backlog):
            logger.error(
                "%d documents could not be written to %s in time",
                len(self._backlog),
                self.folder,
            )

    def __repr__(self) -> str:
        errors = "".join(f", {n} {kind}" for kind, n in self.errors.items())
        return (
            f"<DocumentRecorder {self.folder}: {self.n_recorded} recorded, "
            f"{len(self._backlog)} waiting{errors}>"
        )

    def _write(self) -> None:
        while True:
            if not len(self._backlog):
                if self._closing:
                    break
                time.sleep(LOOK_EVERY_S)
                continue
            try:
                self._write_next()
            except Exception as error:  # the thread must outlive any surprise
                self._note("lost", f"a document could not be written: {error}")
            with self._news:
                self._runs.pop(self._backlog.first, None)
                self._backlog.release(self._backlog.first + 1)
                self._news.notify_all()
        for writer in self._writers.values():
            writer.close()
        self._backlog.close()

    def _write_next(self) -> None:
        self._backlog.refill()
        number = self._backlog.first
        run_uid, received_s, is_stop = self._runs[number]
        packed = self._backlog.get(number)
        if not packed:
            raise OSError("the temporary file cannot be read")
        writer = self._writer(run_uid)
        writer.append(as_bytes(packed), received_s)
        self.n_recorded += 1
        if is_stop:
            writer.flush(sync=True)

    def _writer(self, run_uid: str) -> JournalWriter:
        writer = self._writers.pop(run_uid, None)
        if writer is None:
            _, writer = new_journal(self.folder, file_safe(run_uid))
        self._writers[run_uid] = writer  # the latest used is last
        while len(self._writers) > MAX_OPEN:
            self._writers.pop(next(iter(self._writers))).close()
        return writer

    def _note(self, kind: str, message: str) -> None:
        self.errors[kind] += 1
        if self.errors[kind] == 1:
            logger.warning("%s (further ones are only counted)", message)
