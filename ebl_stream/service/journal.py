"""The service's journals: one file per run, and what a crash left unfinished.

Next to the journal of a run that is under way lies a mark, ``<journal>.open``; it
goes when the run has ended. Marks found at the start are of runs that a crash cut
short: `recover` hands out their documents.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebl_stream.errors import InputError
from ebl_stream.service.run_index import file_safe
from ebl_stream.transport.documents import pack, unpack
from ebl_stream.transport.journal import SUFFIX, JournalWriter, read_journal
from ebl_stream.transport.new_journal import new_journal

logger = logging.getLogger(__name__)

MAX_OPEN = 16
MAX_ATTEMPTS = 2
"""A run whose documents bring the service down is not tried for ever."""
RECOVER_WITHIN_S = 86_400.0
UNSORTED = "unsorted"


@dataclass(frozen=True)
class Kept:
    """Where a packed document lies in a journal."""

    path: Path
    offset: int
    size: int

    def read(self) -> tuple[str, dict[str, Any]]:
        """Read the document again."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return unpack(file.read(self.size))


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
        self._marks: dict[str, Path] = {}
        self._writers: dict[str, tuple[Path, JournalWriter]] = {}
        self._dirty: set[str] = set()

    def append(self, run_uid: str | None, packed: bytes) -> Kept:
        """Append a document to its run's journal; OSError where the disk is full."""
        path, writer = self._writer(run_uid or UNSORTED)
        writer.append(packed, time.time())
        self._dirty.add(run_uid or UNSORTED)
        return Kept(path, path.stat().st_size - len(packed), len(packed))

    def commit(self) -> None:
        """Wait until everything lies on the disk."""
        for run_uid in list(self._dirty):
            if run_uid in self._writers:
                self._writers[run_uid][1].flush(sync=True)
            self._dirty.discard(run_uid)

    def ended(self, run_uid: str) -> None:
        """Take the mark off a run; its journal stays."""
        mark = self._marks.pop(run_uid, None)
        if mark is not None:
            mark.unlink(missing_ok=True)

    def close(self) -> None:
        """Close all files."""
        for _, writer in self._writers.values():
            writer.flush(sync=True)
            writer.close()
        self._writers.clear()

    def recover(self) -> Iterator[bytes]:
        """Yield the packed documents of runs that a crash cut short, in order.

        They are to be appended again: a journal is whole by itself.
        """
        for path in sorted(self._folder.glob(f"*{SUFFIX}.open")):
            mark = _Mark.read(path)
            if mark is None or mark.owner != self._owner or _is_alive(mark.pid):
                continue
            path.unlink(missing_ok=True)
            journal = path.with_suffix("")
            if mark.attempts >= MAX_ATTEMPTS or _age_s(journal) > RECOVER_WITHIN_S:
                advice = "the run in %s did not end; ebl-stream replay reads it"
                logger.error(advice, journal)
                continue
            logger.warning("going on with the run in %s", journal)
            yield from self._reread(journal, mark.attempts + 1)

    def _reread(self, journal: Path, attempts: int) -> Iterator[bytes]:
        try:
            records = read_journal(journal)
        except InputError as error:
            logger.error("%s", error)
            return
        for _, name, doc in records:
            yield pack(name, doc)
            if name == "start" and (mark := self._marks.get(str(doc.get("uid")))):
                _Mark(attempts, os.getpid(), self._owner).write(mark)

    def _writer(self, run_uid: str) -> tuple[Path, JournalWriter]:
        found = self._writers.pop(run_uid, None) or self._open(run_uid)
        self._writers[run_uid] = found  # the latest used is last
        while len(self._writers) > MAX_OPEN:
            oldest = next(iter(self._writers))
            _, writer = self._writers.pop(oldest)
            writer.flush(sync=True)
            writer.close()
        return found

    def _open(self, run_uid: str) -> tuple[Path, JournalWriter]:
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{file_safe(run_uid)[:8]}"
        path, writer = new_journal(self._folder, stem)
        if run_uid != UNSORTED and run_uid not in self._marks:
            self._marks[run_uid] = mark = path.with_name(f"{path.name}.open")
            _Mark(1, os.getpid(), self._owner).write(mark)
        return path, writer


@dataclass(frozen=True)
class _Mark:
    """Says of a journal that its run has not ended."""

    attempts: int
    pid: int
    owner: str

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.__dict__))

    @classmethod
    def read(cls, path: Path) -> _Mark | None:
        try:
            fields = json.loads(path.read_text())
            return cls(
                int(fields["attempts"]), int(fields["pid"]), str(fields["owner"])
            )
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning("%s cannot be read and is left alone", path)
            return None


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # a number that came round again
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _age_s(journal: Path) -> float:
    try:
        return time.time() - journal.stat().st_mtime
    except OSError:
        return float("inf")
