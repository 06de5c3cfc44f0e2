"""Runs of the past, by uid, among the journals of a folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ebl_stream.errors import InputError
from ebl_stream.transport.journal import SUFFIX, read_journal

logger = logging.getLogger(__name__)

_UID_LETTERS = 8
"""Of a uid: so many stand in the name of a service's journal."""


def journaled_run(
    folder: Path,
) -> Callable[[str], Iterable[tuple[str, dict[str, Any]]] | None]:
    """Return what finds the documents of a run among the journals of a folder.

    Journals of the service and of `DocumentRecorder` have the uid in their names;
    of several the latest counts (one that a crash cut short was written anew).
    """

    def find(run_uid: str) -> Iterable[tuple[str, dict[str, Any]]] | None:
        letters = run_uid[:_UID_LETTERS]
        if len(letters) < _UID_LETTERS or not letters.replace("-", "").isalnum():
            return None
        for path in sorted(_named(folder, letters), key=_age, reverse=True):
            if _first_run(path) == run_uid:
                return ((name, doc) for _, name, doc in read_journal(path))
        return None

    return find


def _named(folder: Path, letters: str) -> list[Path]:
    return [path for path in folder.glob(f"*{SUFFIX}") if letters in path.name]


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _first_run(path: Path) -> str | None:
    """Return the uid of the first run in a journal."""
    try:
        records = read_journal(path)
        uids = (doc.get("uid") for _, name, doc in records if name == "start")
        return next(uids, None)
    except (InputError, OSError) as error:
        logger.warning("%s", error)
        return None
