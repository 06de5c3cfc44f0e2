"""Open a journal under a name that nobody has yet; light, the doors use it too."""

from __future__ import annotations

import itertools
from pathlib import Path

from ebl_stream.transport.journal import SUFFIX, JournalWriter


def new_journal(folder: Path, stem: str) -> tuple[Path, JournalWriter]:
    """Open ``<folder>/<stem>.ebldocs``, or ``<stem>-2`` and so on where there is one.

    Raises
    ------
    OSError
        The folder cannot be made, or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for n in itertools.count(1):
        path = folder / f"{stem}{f'-{n}' if n > 1 else ''}{SUFFIX}"
        try:
            return path, JournalWriter(path)
        except FileExistsError:
            continue
    raise AssertionError("unreachable")
