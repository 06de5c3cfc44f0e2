"""Which results and journals may go, and their removal: only as the profile says.

Never removed: what is being written, what somebody marked with a file ``keep`` (in a
result's folder; ``<journal>.keep`` beside a journal), the journal of a run with such a
result, and anything that is not ours.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ebl_stream import strict_json
from ebl_stream.errors import InputError
from ebl_stream.profile import Retention
from ebl_stream.publish.attempts import SUPERSEDED
from ebl_stream.publish.record import FORMAT
from ebl_stream.transport.journal import SUFFIX, is_journal, read_journal

log = logging.getLogger(__name__)

KEEP = "keep"
"""Name of the file that marks a result; suffix of the one that marks a journal."""
GOING = ".going-"
"""Beginning of a result's name while it is removed: nobody takes it for whole."""
DAY_S = 86_400.0


@dataclass(frozen=True)
class Stored:
    """A result or a journal on the disk."""

    path: Path
    kind: Literal["result", "journal"]
    run_uid: str | None
    """Of the raw run."""
    changed: float
    """When it was written last, s since the epoch."""
    is_open: bool
    """Whether it is being written."""
    is_kept: bool
    """Whether somebody marked it."""
    is_superseded: bool = False
    """Whether another attempt at the same run took its place: no result to count."""

    def age_days(self, now: float) -> float:
        """Return its age."""
        return (now - self.changed) / DAY_S

    def n_bytes(self) -> int:
        """Return what its removal frees."""
        files = (
            [self.path, *self.path.rglob("*")] if self.path.is_dir() else [self.path]
        )
        total = 0
        for file in files:
            with suppress(OSError):
                total += file.lstat().st_blocks * 512
        return total


def mark_open(folder: Path) -> int | None:
    """Mark a run's folder as written to, for as long as this process holds the mark.

    Returns
    -------
    int or None
        A file descriptor: the mark goes when it is closed, or its process dies. None
        where the folder is not there, or another one holds the mark.
    """
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(number)
        return None
    return number


def survey(out: Path) -> list[Stored]:
    """Return all results and journals in a folder, the newest first."""
    results = list(_results(out))
    kept = {stored.run_uid for stored in results if stored.is_kept}
    found = [*results, *_journals(out / "journal", kept)]
    return sorted(found, key=lambda stored: stored.changed, reverse=True)


def due(stored: Sequence[Stored], policy: Retention, now: float) -> list[Stored]:
    """Return what may go; nothing where the profile names no limit.

    A result goes when it is older than ``keep_days`` and not among the newest
    ``keep_runs``; a limit that is null is not asked. What another attempt superseded
    is not counted among them.
    """
    newest = sorted(stored, key=lambda one: one.changed, reverse=True)
    going: list[Stored] = []
    n_results = 0
    for one in newest:
        if one.is_open:
            continue
        if one.kind == "result":
            beyond = one.is_superseded or n_results >= (policy.keep_runs or 0)
            n_results += not one.is_superseded
            goes = _result_goes(one.age_days(now), beyond, policy)
        else:
            limit = policy.journal_days
            goes = limit is not None and one.age_days(now) > limit
        if goes and not one.is_kept:
            going.append(one)
    return going


def _result_goes(age_days: float, beyond: bool, policy: Retention) -> bool:
    if policy.keep_days is None and policy.keep_runs is None:
        return False
    old = policy.keep_days is None or age_days > policy.keep_days
    return old and (policy.keep_runs is None or beyond)


def clean(out: Path, policy: Retention) -> list[Stored]:
    """Remove what is due; return what is gone. Never raises for a file that stays."""
    _sweep(out)
    return [one for one in due(survey(out), policy, time.time()) if remove(one)]


def remove(stored: Stored) -> bool:
    """Remove one thing; whether it is gone. A result goes at once for its readers."""
    try:
        if stored.kind == "journal":
            stored.path.unlink()
            return True
        # Held meanwhile: a run that begins in this folder just now would stay.
        mark = mark_open(stored.path)
        if mark is None:
            return False
        try:
            if os.path.lexists(stored.path / KEEP):
                return False
            going = stored.path.with_name(f"{GOING}{stored.path.name}")
            stored.path.rename(going)
            shutil.rmtree(going)
        finally:
            os.close(mark)
    except OSError as error:
        log.warning("%s cannot be removed: %s", stored.path, error)
        return False
    log.info("%s is removed: the profile keeps it no longer", stored.path)
    return True


def _sweep(out: Path) -> None:
    """Finish what a clean-up that was killed left half removed."""
    for folder in out.glob(f"{GOING}*"):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def _results(out: Path) -> Iterator[Stored]:
    for path in out.glob("*/metadata.json"):
        folder = path.parent
        if folder.is_symlink() or folder.name.startswith("."):
            continue
        try:
            content = strict_json.load(path)
            changed = path.stat().st_mtime
            ours = content["format"] == FORMAT
            run_uid = content.get("start", {}).get("original_run_uid")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # a stranger's, or one that nobody can judge
        if ours:
            yield Stored(
                folder,
                "result",
                run_uid if isinstance(run_uid, str) else None,
                changed,
                is_open(folder),
                os.path.lexists(folder / KEEP),
                content.get("state") == SUPERSEDED,
            )


def is_open(folder: Path) -> bool:
    """Whether a process writes to a run's folder now."""
    mark = mark_open(folder)
    if mark is None:
        return True
    os.close(mark)
    return False


def _journals(folder: Path, kept: Iterable[str | None]) -> Iterator[Stored]:
    kept = set(kept)
    for path in folder.glob(f"*{SUFFIX}"):
        if path.is_symlink() or not is_journal(path):
            continue
        run_uid = _run_of(path)
        with suppress(OSError):
            yield Stored(
                path,
                "journal",
                run_uid,
                path.stat().st_mtime,
                os.path.lexists(f"{path}.open"),
                os.path.lexists(f"{path}.{KEEP}")
                or (run_uid is not None and run_uid in kept),
            )


def _run_of(journal: Path) -> str | None:
    """Return the uid of the run that a journal begins with."""
    records: Any = None
    try:
        records = read_journal(journal)
        _, name, doc = next(records)
    except (InputError, OSError, StopIteration):
        return None
    finally:
        if records is not None:
            records.close()
    uid = doc.get("uid") if name == "start" else None
    return uid if isinstance(uid, str) else None
