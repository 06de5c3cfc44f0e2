"""Places where a test ends this process at once, to see what a restart makes of it.

``EBL_STREAM_FAILPOINT=name:n`` makes the process kill itself (SIGKILL: nothing is
flushed, closed or said) when it comes to the point ``name`` for the n-th time.
Without the variable a point costs one comparison.
"""

from __future__ import annotations

import os
import signal
import threading

from ebl_stream.errors import InputError

VARIABLE = "EBL_STREAM_FAILPOINT"

POINTS = {
    "journal.made": "the journal of a run is there, its mark is not",
    "journal.marked": "journal and mark are there, no document is",
    "journal.appended": "a document is in the journal, not on the disk",
    "journal.synced": "documents are on the disk, their door does not know",
    "acknowledged": "a door was told that its documents are on the disk",
    "queued": "a document is before the worker",
    "worked": "the worker is done with a document",
    "window.kept": "a projection is in the window",
    "settled": "projections are in the grids",
    "looked": "a preview or version is out",
    "chunk.staged": "a chunk is written beside its place",
    "chunk.placed": "a chunk is in its place, the others of its slab may not be",
    "metadata.drafted": "metadata.json is written beside its place",
    "metadata.replaced": "metadata.json is new",
    "output.finished": "the folder says that the run is over, the service does not",
    "center.drafted": "the center for the next scan is written beside its place",
    "run.ended": "what came of a run is kept, its mark is still there",
    "run.unmarked": "the mark of a run is gone, its door was not told",
    "run.told": "a door may know what came of its run",
    "resume.counted": "an attempt to go on with a run is counted, nothing is read",
    "resume.superseded": "the folder of the attempt before is marked",
    "resume.queued": "a document of a resumed run is before the worker again",
    "tiled.created": "Tiled has the run's container",
    "tiled.registered": "Tiled has an array",
    "tiled.versioned": "Tiled has a slab's version, its subscribers do not",
    "tiled.notified": "subscribers were told of a slab",
    "tiled.appended": "Tiled has rows of the quality table",
    "tiled.finished": "Tiled has the final state, its streams are open",
    "tiled.noted": "Tiled has all, and the folder says so",
}
"""Every point, and what is true there."""

_LOCK = threading.Lock()
_armed: tuple[str, int] | None = None


def arm(text: str) -> None:
    """Kill this process at a point; ``text`` is ``name`` or ``name:n``, or nothing.

    Raises
    ------
    InputError
        There is no such point, or ``n`` is no number from 1 on.
    """
    global _armed
    name, _, number = text.partition(":")
    if not text:
        _armed = None
    elif name not in POINTS or not (number or "1").isdigit() or number == "0":
        known = ", ".join(POINTS)
        raise InputError(f"{VARIABLE}={text!r}: expected NAME:N with one of {known}")
    else:
        _armed = name, int(number or 1)


def hit(name: str) -> None:
    """Come to a point; does not return where it is the one that is armed."""
    if _armed is not None:
        _count(name)


def _count(name: str) -> None:
    global _armed
    with _LOCK:
        if _armed is None or _armed[0] != name:
            return
        if _armed[1] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        _armed = name, _armed[1] - 1


arm(os.environ.get(VARIABLE, ""))
