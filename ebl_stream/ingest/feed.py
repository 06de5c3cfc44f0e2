"""Frames that travel beside the documents, kept until a document names them.

A detector counts its frames; documents name a frame by that count, its unique id.
Nothing here knows the transport: it hands in every frame that it hears.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ebl_stream.frames import Image, Kind

Key: TypeAlias = tuple[int, int]
"""Turn of the counter, unique id."""

LATE_IDS = 1024
"""A frame older than the newest may be so far behind it; further back, the counter
and the clock began again."""
_MAX_STAMPS = 400_000
_MAX_DROPPED = 400_000
_MAX_TURNS = 256


class FeedError(Exception):
    """A frame came that cannot be decoded; the message says why."""


@dataclass(frozen=True, slots=True)
class FedFrame:
    """One frame as the transport heard it."""

    unique_id: int
    """The detector's count."""
    stamp: float
    """s, the detector's clock: only compared with other stamps; 0 if it has none."""
    received: float
    """s since 1970, this machine's clock."""
    kind: Kind | None
    """What the frame itself says it is; None: it says nothing."""
    n_bytes: int
    """Memory that it holds while it waits."""
    decode: Callable[[], Image]
    """Returns the image; raises `FeedError`."""


@dataclass
class _Turn:
    """What came between two restarts of the counter."""

    number: int
    highest: int
    stamps: dict[int, float] = field(default_factory=dict)
    received: dict[int, float] = field(default_factory=dict)

    def judge(self, frame: FedFrame) -> Literal["new", "duplicate", "restart"]:
        """Say what a frame is to this turn.

        The id alone cannot tell a frame that comes twice, or late, from one of a
        counter that began again. Time can: a restart is newer than all before it.
        Where the stamps are all the same it is taken for a restart, which may lose
        frames, but gives none to the angle of another.
        """
        newest = self.stamps[self.highest]
        behind = self.highest - frame.unique_id
        known = self.stamps.get(frame.unique_id)
        if behind < 0:
            return "new"
        if known is not None:
            is_same = known == frame.stamp and (behind == 0 or known < newest)
            return "duplicate" if is_same else "restart"
        is_late = frame.stamp < newest and behind <= LATE_IDS
        return "new" if is_late else "restart"

    def add(self, frame: FedFrame) -> None:
        self.highest = max(self.highest, frame.unique_id)
        self.stamps[frame.unique_id] = frame.stamp
        self.received[frame.unique_id] = frame.received
        if len(self.stamps) > _MAX_STAMPS:
            for old in list(self.stamps)[: _MAX_STAMPS // 2]:
                if old != self.highest:
                    del self.stamps[old], self.received[old]


class FrameBuffer:
    """Frames that wait for their documents; the transport's thread fills it.

    Receiving never blocks. Beyond the budget the frame that has waited longest goes,
    and is remembered, so that the run that wanted it can say why it lacks it.

    Parameters
    ----------
    max_bytes : int
        Memory of the frames that wait.
    """

    def __init__(self, max_bytes: int) -> None:
        self.counts: Counter[str] = Counter()
        """Frames ``received``, ``duplicate``; ``restarts`` of the counter;
        ``interruptions`` of the connection; ``empty`` and ``malformed`` updates."""
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._turns: OrderedDict[int, _Turn] = OrderedDict()
        self._waiting: OrderedDict[Key, tuple[int, FedFrame]] = OrderedDict()
        self._dropped: OrderedDict[Key, None] = OrderedDict()
        self._n_bytes = 0
        self._n_arrived = 0
        self._disturbed_at = float("inf")

    # ------------------------------------------------------- the transport's thread

    def receive(self, frame: FedFrame) -> None:
        """Take a frame."""
        with self._changed:
            self.counts["received"] += 1
            turn = self._turn_of(frame)
            if turn is None:
                self.counts["duplicate"] += 1
                return
            turn.add(frame)
            self._n_arrived += 1
            self._waiting[(turn.number, frame.unique_id)] = (self._n_arrived, frame)
            self._n_bytes += frame.n_bytes
            self._make_room()
            self._changed.notify_all()

    def disturbed(self, when: float) -> None:
        """Note that frames may have been missed until now, s since 1970."""
        with self._changed:
            self._disturbed_at = when

    def note(self, what: str) -> None:
        """Count something that is no frame."""
        with self._changed:
            self.counts[what] += 1

    def _turn_of(self, frame: FedFrame) -> _Turn | None:
        """Return the turn that a frame belongs to; None: it was here before."""
        newest = next(reversed(self._turns.values()), None)
        verdict = "restart" if newest is None else newest.judge(frame)
        if verdict == "duplicate":
            return None
        if newest is not None and verdict == "new":
            return newest
        if newest is not None:
            self.counts["restarts"] += 1
        number = newest.number + 1 if newest is not None else 0
        turn = self._turns[number] = _Turn(number, frame.unique_id)
        if len(self._turns) > _MAX_TURNS:
            self._turns.popitem(last=False)
        return turn

    def _make_room(self) -> None:
        while self._n_bytes > self._max_bytes and len(self._waiting) > 1:
            key, (_, frame) = self._waiting.popitem(last=False)
            self._n_bytes -= frame.n_bytes
            self._dropped[key] = None
            if len(self._dropped) > _MAX_DROPPED:
                self._dropped.popitem(last=False)

    # ------------------------------------------------------------ the run's thread

    def find(self, unique_id: int) -> list[tuple[int, FedFrame]]:
        """Return the waiting frames of this id and their turns, the oldest first."""
        with self._changed:
            keys = [(number, unique_id) for number in self._turns]
            return [(k[0], self._waiting[k][1]) for k in keys if k in self._waiting]

    def fresh(self, after: int) -> tuple[list[tuple[int, FedFrame]], int]:
        """Return waiting frames that came after a mark, in order, and the new mark."""
        found: list[tuple[int, FedFrame]] = []
        with self._changed:
            for (turn, _), (arrived, frame) in reversed(self._waiting.items()):
                if arrived <= after:
                    break
                found.append((turn, frame))
            return found[::-1], self._n_arrived

    def take(self, turn: int, unique_id: int) -> FedFrame | None:
        """Remove and return a waiting frame; None: it is gone."""
        with self._changed:
            found = self._waiting.pop((turn, unique_id), None)
            if found is None:
                return None
            self._n_bytes -= found[1].n_bytes
            return found[1]

    def was_dropped(self, turn: int | None, unique_id: int) -> bool:
        """Return whether a frame went for want of room; None: of any turn."""
        with self._changed:
            turns = list(self._turns) if turn is None else [turn]
            return any((number, unique_id) in self._dropped for number in turns)

    def is_past(self, turn: int, unique_id: int) -> bool:
        """Return whether the counter has gone beyond an id of a turn."""
        with self._changed:
            newest = next(reversed(self._turns.values()), None)
            if newest is None:
                return False
            return newest.number > turn or newest.highest >= unique_id

    def is_disturbed_since(self, when: float) -> bool:
        """Return whether frames received after a time may be incomplete."""
        with self._changed:
            return self._disturbed_at > when

    def skipped_since(self, when: float) -> list[list[int]]:
        """Return ids that the counter jumped over: ``[[first, last + 1], ...]``."""
        with self._changed:
            turns = [
                np.array([i for i, at in turn.received.items() if at >= when], int)
                for turn in self._turns.values()
            ]
        return [hole for ids in turns for hole in _holes(np.sort(ids))]

    def wait(self, timeout_s: float) -> None:
        """Wait for the next frame, at most so long."""
        with self._changed:
            self._changed.wait(timeout_s)

    @property
    def n_bytes(self) -> int:
        """Memory of the frames that wait."""
        return self._n_bytes


def _holes(ids: NDArray[np.int64]) -> list[list[int]]:
    at = np.flatnonzero(np.diff(ids) > 1)
    return [[int(ids[i]) + 1, int(ids[i + 1])] for i in at]
