"""The service's journals: one file per run, and which of them are under way.

Beside the journal of a run that is under way lies a mark, ``<journal>.open``. When
the run has ended, ``<journal>.ended`` says what came of it, and the mark goes. Marks
found at the start are of runs that a crash cut short: `recover` takes them over, and
further documents are appended to the same journals.

A journal that is under way is locked for as long as its service lives, so that nobody
takes over what is not dead, on whatever machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebl_stream import failpoints, strict_json
from ebl_stream.errors import InputError
from ebl_stream.service.run_index import file_safe
from ebl_stream.transport.documents import unpack
from ebl_stream.transport.journal import (
    FIRST_RECORD,
    SUFFIX,
    JournalWriter,
    is_journal,
    read_records,
    sync_folder,
)
from ebl_stream.transport.new_journal import new_journal

logger = logging.getLogger(__name__)

MAX_WRITERS = 16
MAX_ATTEMPTS = 5
"""A run whose documents bring the service down is not tried for ever."""
RECOVER_WITHIN_S = 86_400.0
MAX_RESULTS = 32
JUST_S = 300.0
"""A door that was not told within so long sends nothing of a run again."""
MAX_AGAIN = 4096
"""Documents at the end of a journal that a door may send again: it does not know
that they are there. No door has more of them on the way."""
MAX_PATHS = 1000
UNSORTED = "unsorted"
_STOP = b"\x92\xa4stop"
"""What a packed stop document begins with."""


@dataclass(frozen=True)
class Kept:
    """Where a packed document lies in a journal."""

    path: Path
    offset: int
    size: int

    def read(self) -> tuple[str, dict[str, Any]]:
        """Read the document again."""
        return unpack(self.read_packed())

    def read_packed(self) -> bytes:
        """Read the packed document again."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass
class OpenRun:
    """A run that has not ended, and its journal."""

    run_uid: str
    journal: Path
    begun: float
    """s since the epoch."""
    lock: int
    has_stopped: bool = False
    """Whether its stop document is there."""

    @property
    def mark(self) -> Path:
        """Says that the run has not ended."""
        return self.journal.with_name(f"{self.journal.name}.open")

    @property
    def result(self) -> Path:
        """Says what came of the run."""
        return self.journal.with_name(f"{self.journal.name}.ended")


class ServiceJournal:
    """Writes the documents of every run to a journal of its own.

    Parameters
    ----------
    folder : Path
        Made with the first document.
    owner : str
        Whose runs these are, a profile's name: nobody else goes on with them.
    """

    def __init__(self, folder: Path, owner: str = "") -> None:
        self._folder = folder
        self._owner = owner
        self._lock = threading.Lock()
        self._open: dict[str, OpenRun] = {}
        self._paths: OrderedDict[str, Path] = OrderedDict()
        self._writers: OrderedDict[str, JournalWriter] = OrderedDict()
        self._dirty: set[str] = set()
        self._again: dict[str, OrderedDict[bytes, None]] = {}
        # Digests of what may come a second time, by run.

    @property
    def open_runs(self) -> list[OpenRun]:
        """Runs that have not ended, what belongs to no known run before them."""
        with self._lock:
            runs = list(self._open.values())
        return sorted(runs, key=lambda run: run.run_uid != UNSORTED)

    def append(self, run_uid: str | None, packed: bytes) -> Kept | None:
        """Append a document to its run's journal; None: it is there already.

        Raises
        ------
        OSError
            The disk is full, or cannot be written to.
        """
        key = run_uid or UNSORTED
        if key in self._again and _digest(packed) in self._again[key]:
            return None
        writer = self._writer(key)
        offset = writer.append(packed, time.time())
        failpoints.hit("journal.appended")
        self._dirty.add(key)
        run = self._open.get(key)
        if run is not None and packed.startswith(_STOP):
            run.has_stopped = True
        return Kept(self._paths[key], offset, len(packed))

    def commit(self) -> None:
        """Wait until everything lies on the disk; OSError where it does not."""
        for key in list(self._dirty):
            if key in self._writers:
                self._writers[key].flush(sync=True)
            self._dirty.discard(key)
        failpoints.hit("journal.synced")

    def has_stopped(self, run_uid: str) -> bool:
        """Whether the stop document of an open run is there."""
        run = self._open.get(run_uid)
        return run is not None and run.has_stopped

    def ended(self, run_uid: str, status: dict[str, Any]) -> None:
        """Keep what came of a run, then take its mark off; the journal stays.

        Where the disk refuses, the mark stays, and the run is gone on with later.
        """
        with self._lock:
            run = self._open.pop(run_uid, None)
        if run is None:
            return
        try:
            what = {"owner": self._owner, "run_uid": run_uid, "status": status}
            _replace(run.result, what)
            failpoints.hit("run.ended")
            run.mark.unlink(missing_ok=True)
            failpoints.hit("run.unmarked")
        except OSError as error:
            logger.error("run %s: that it ended is not on disk: %s", run_uid, error)
        finally:
            os.close(run.lock)

    def results(self) -> dict[str, dict[str, Any]]:
        """Return what came of the latest runs, by uid, the oldest first."""
        found: dict[str, dict[str, Any]] = {}
        for path in self._latest_results():
            fields = _read_fields(path)
            if fields.get("owner") == self._owner:
                found[str(fields.get("run_uid"))] = dict(fields.get("status") or {})
        return found

    def just_ended(self) -> Iterator[bytes]:
        """Yield the packed documents of runs whose doors may not know they are kept.

        The journal of a run that ended before its documents did, since it failed, is
        gone on with: it can be replayed whole.
        """
        since = time.time() - JUST_S
        for path in self._latest_results():
            if _modified(path) < since:
                continue
            journal, fields = path.with_suffix(""), _read_fields(path)
            for _, _, packed in read_records(journal):
                yield packed
            if fields.get("owner") == self._owner:
                run = OpenRun(str(fields.get("run_uid")), journal, 0.0, -1)
                self._reread(run)
                self._paths[run.run_uid] = journal
                if run.has_stopped:
                    self._writers.pop(run.run_uid).close()
                    del self._paths[run.run_uid]

    def is_written(self, run_uid: str) -> bool:
        """Whether documents of a run that ended still go to its journal."""
        return run_uid in self._paths

    def _latest_results(self) -> list[Path]:
        return sorted(self._folder.glob(f"*{SUFFIX}.ended"), key=_modified)[
            -MAX_RESULTS:
        ]

    def close(self) -> None:
        """Close all files; runs that have not ended keep their marks."""
        for writer in self._writers.values():
            writer.flush(sync=True)
            writer.close()
        self._writers.clear()
        if self._open.keys() == {UNSORTED}:
            self._open[UNSORTED].mark.unlink(missing_ok=True)
        for run in self._open.values():
            os.close(run.lock)
        self._open.clear()

    def recover(self) -> dict[str, str]:
        """Take over the runs that a crash cut short; return those given up, and why.

        They are among `open_runs` from now on.
        """
        given_up: dict[str, str] = {}
        for path in sorted(self._folder.glob(f"*{SUFFIX}.open")):
            fields = _read_fields(path)
            if fields.get("owner") != self._owner:
                continue
            try:
                why = self._take_over(path.with_suffix(""), fields)
            except (OSError, InputError) as error:
                logger.error("%s: cannot be gone on with: %s", path, error)
                continue
            if why:
                given_up[str(fields.get("run_uid"))] = why
        return given_up

    def documents(self, run: OpenRun) -> Iterator[tuple[bytes, Kept]]:
        """Yield the packed documents of a run, in order."""
        for _, offset, packed in read_records(run.journal):
            yield packed, Kept(run.journal, offset, len(packed))

    def _take_over(self, journal: Path, fields: dict[str, Any]) -> str | None:
        lock = _lock(journal)
        if lock is None:
            return None  # its service lives
        run_uid = str(fields["run_uid"])
        run = OpenRun(run_uid, journal, float(fields["begun"]), lock)
        # Without a whole header no document was ever acknowledged.
        if run.result.exists() or not is_journal(journal):
            run.mark.unlink(missing_ok=True)
            os.close(lock)
            return None
        with self._lock:
            self._open[run_uid] = run
        self._paths[run_uid] = journal
        size, age_s = journal.stat().st_size, time.time() - journal.stat().st_mtime
        # While documents come in, a run is worth another attempt.
        attempts = int(fields["attempts"]) + 1 if size == fields["size"] else 1
        if run_uid != UNSORTED and (
            attempts > MAX_ATTEMPTS or age_s > RECOVER_WITHIN_S
        ):
            logger.error("the run in %s did not end and is given up", journal)
            return f"given up; ebl-stream replay {journal} reconstructs it"
        self._mark(run, attempts, size)
        failpoints.hit("resume.counted")
        self._reread(run)
        logger.warning("going on with the run in %s (attempt %d)", journal, attempts)
        return None

    def _reread(self, run: OpenRun) -> None:
        """Find a journal's end, and what its door may not know to be there."""
        last = self._again[run.run_uid] = OrderedDict()
        end = FIRST_RECORD
        for _, offset, packed in read_records(run.journal):
            end = offset + len(packed)
            run.has_stopped = run.has_stopped or packed.startswith(_STOP)
            last[_digest(packed)] = None
            if len(last) > MAX_AGAIN:
                last.popitem(last=False)
        self._writers[run.run_uid] = JournalWriter(run.journal, end)

    def _writer(self, key: str) -> JournalWriter:
        writer = self._writers.get(key) or self._open_writer(key)
        self._writers[key] = writer
        self._writers.move_to_end(key)
        while len(self._writers) > MAX_WRITERS:
            _, oldest = next(iter(self._writers.items()))
            oldest.flush(sync=True)
            oldest.close()
            self._writers.popitem(last=False)
        return writer

    def _open_writer(self, key: str) -> JournalWriter:
        known = self._paths.get(key)
        if known is not None:
            return JournalWriter(known, known.stat().st_size)
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{file_safe(key)[:8]}"
        path, writer = new_journal(self._folder, stem)
        failpoints.hit("journal.made")
        try:
            run = self._begin(key, path)
        except OSError:
            writer.close()
            path.unlink(missing_ok=True)
            raise
        failpoints.hit("journal.marked")
        with self._lock:
            self._open[key] = run
        self._paths[key] = path
        if len(self._paths) > MAX_PATHS:
            oldest = next(old for old in self._paths if old not in self._open)
            del self._paths[oldest]
        return writer

    def _begin(self, key: str, path: Path) -> OpenRun:
        lock = _lock(path)
        if lock is None:
            raise OSError(f"{path} is locked by another service")
        run = OpenRun(key, path, time.time(), lock)
        try:
            self._mark(run, attempts=0, size=0)
        except OSError:
            os.close(lock)
            raise
        return run

    def _mark(self, run: OpenRun, attempts: int, size: int) -> None:
        fields = {"owner": self._owner, "run_uid": run.run_uid, "begun": run.begun}
        _replace(run.mark, fields | {"attempts": attempts, "size": size})


def _digest(packed: bytes) -> bytes:
    return hashlib.blake2b(packed, digest_size=16).digest()


def _lock(path: Path) -> int | None:
    """Lock a file until this process ends or closes it; None: another one has it."""
    number = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        return None
    except OSError as error:  # a file system without locks
        logger.warning("%s cannot be locked: %s", path, error)
    return number


def _replace(path: Path, fields: dict[str, Any]) -> None:
    """Write a small file whole, and wait until it lies on the disk."""
    draft = path.with_name(f"{path.name}.part")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(fields, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    sync_folder(path.parent)


def _read_fields(path: Path) -> dict[str, Any]:
    try:
        fields = strict_json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        fields = None
    if not isinstance(fields, dict):
        logger.warning("%s cannot be read and is left alone", path)
        return {}
    return fields


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
