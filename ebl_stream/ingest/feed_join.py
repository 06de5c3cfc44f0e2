"""Join the frames of a feed to the events that name their unique ids."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from ebl_stream.errors import InputError
from ebl_stream.frames import Kind
from ebl_stream.ingest.feed import FedFrame, FrameBuffer

log = logging.getLogger(__name__)

Place: TypeAlias = tuple[str, int]
"""Stream, event number."""


@dataclass(eq=False)
class _Leg:
    """Ids that a stream named without naming one twice: one turn of the counter."""

    stream: str
    kind: Kind | None
    previous: _Leg | None
    """Of the same stream: its turn came before."""
    turn: int | None = None
    """Known from its first frame on."""
    named: set[int] = field(default_factory=set)
    last: int | None = None


class FeedJoin:
    """Which frame belongs to which event of one run; either may come first.

    A detector's counter may begin again within a run. Ids that a stream names a
    second time are those of a later turn, and no turn serves one id to two streams.
    What does not fit stays missing: a hole in the volume is better than a frame at
    a wrong angle.

    Parameters
    ----------
    buffer : FrameBuffer
    since : float
        s since 1970; frames received before are not of this run.
    kinds_told : bool
        Frames say what they are, and are joined to streams of that kind only.
    """

    def __init__(self, buffer: FrameBuffer, since: float, *, kinds_told: bool) -> None:
        self._buffer = buffer
        self._since = since
        self._kinds_told = kinds_told
        self._legs: list[_Leg] = []
        self._newest: dict[str, _Leg] = {}
        self._wants: dict[Place, tuple[_Leg, int]] = {}
        self._by_id: dict[int, list[Place]] = {}
        self._unseen: deque[Place] = deque()
        self._mark = 0
        self.n_joined = 0

    def name(self, stream: str, kind: Kind | None, seq: int, unique_id: int) -> None:
        """Note that an event has the frame of this id.

        Parameters
        ----------
        kind : Kind, optional
            Of the stream's frames; None where each frame has its own.

        Raises
        ------
        InputError
            Frames were missed, the counter began again, and nothing tells which of
            two streams the frames that came belong to.
        """
        leg = self._leg(stream, kind, unique_id)
        self._check_clear(
            leg, unique_id, (o for o in self._legs if o.stream != leg.stream)
        )
        leg.named.add(unique_id)
        leg.last = unique_id
        self._drop_want((stream, seq))  # the last word on an event counts
        self._wants[(stream, seq)] = (leg, unique_id)
        self._by_id.setdefault(unique_id, []).append((stream, seq))
        self._unseen.append((stream, seq))

    def matches(self) -> Iterator[tuple[Place, FedFrame]]:
        """Yield what can be joined now, each frame once."""
        # What is new in the order of its coming, to who named it first: so the turns
        # of the counter find the streams in their order.
        fresh, self._mark = self._buffer.fresh(self._mark)
        for turn, frame in fresh:
            for place in list(self._by_id.get(frame.unique_id, ())):
                if self._fits(place, turn, frame):
                    yield from self._join(place, turn, frame)
                    break
        while self._unseen:
            place = self._unseen.popleft()
            want = self._wants.get(place)
            for turn, frame in self._buffer.find(want[1]) if want else ():
                if self._fits(place, turn, frame):
                    yield from self._join(place, turn, frame)
                    break

    @property
    def n_wanted(self) -> int:
        """Events whose frame has not come."""
        return len(self._wants)

    def is_passed(self) -> bool:
        """Return whether the counter has gone beyond every frame that is wanted."""
        return all(
            leg.turn is not None and self._buffer.is_past(leg.turn, unique_id)
            for leg, unique_id in self._wants.values()
        )

    def lost(self) -> Iterator[tuple[Place, int, bool]]:
        """Yield what is still wanted: event, id, and whether it went for room."""
        for place, (leg, unique_id) in sorted(self._wants.items()):
            yield place, unique_id, self._buffer.was_dropped(leg.turn, unique_id)

    # --------------------------------------------------------------------- inside

    def _leg(self, stream: str, kind: Kind | None, unique_id: int) -> _Leg:
        leg = self._newest.get(stream)
        # The same id again at once: the plan read a counter that had not moved.
        if leg is not None and (unique_id not in leg.named or unique_id == leg.last):
            return leg
        if leg is not None:
            log.warning("stream %s: the frame counter began again", stream)
        leg = self._newest[stream] = _Leg(stream, kind, leg)
        self._legs.append(leg)
        return leg

    def _check_clear(self, leg: _Leg, unique_id: int, others: Iterable[_Leg]) -> None:
        """Refuse to guess whose a frame is where an acquisition may be missed."""
        if not self._buffer.is_disturbed_since(self._since):
            return
        for other in others:
            is_rival = not self._kinds_told or other.kind is leg.kind
            if is_rival and unique_id in other.named:
                raise InputError(
                    f"frame {unique_id} is named twice (streams {other.stream!r} and "
                    f"{leg.stream!r}), and the feed was interrupted: nothing tells "
                    "which of the two came\nset feed.kind_attribute in the profile, "
                    "or let the detector's counter run on through the run"
                )

    def _fits(self, place: Place, turn: int, frame: FedFrame) -> bool:
        leg, unique_id = self._wants[place]
        if frame.received < self._since:
            return False
        if None not in (leg.kind, frame.kind) and leg.kind is not frame.kind:
            return False
        if leg.turn is not None:
            return turn == leg.turn
        before = leg.previous
        if before is not None and (before.turn is None or turn <= before.turn):
            return False
        return not any(
            other.turn == turn and unique_id in other.named
            for other in self._legs
            if other is not leg
        )

    def _join(
        self, place: Place, turn: int, frame: FedFrame
    ) -> Iterator[tuple[Place, FedFrame]]:
        leg, unique_id = self._wants[place]
        if leg.turn is None:
            rivals = (o for o in self._legs if o is not leg and o.turn is None)
            self._check_clear(leg, unique_id, rivals)
            self._bind(leg, turn)
            if leg.turn != turn:
                return
        taken = self._buffer.take(turn, unique_id)
        if taken is None:
            return
        self._drop_want(place)
        self.n_joined += 1
        yield place, taken

    def _bind(self, leg: _Leg, turn: int) -> None:
        """Settle which turn a leg is: the oldest that has a frame which it wants."""
        own = [place for place, (of, _) in self._wants.items() if of is leg]
        for place in own:
            for other, frame in self._buffer.find(self._wants[place][1]):
                if other < turn and self._fits(place, other, frame):
                    turn = other
        leg.turn = turn
        # What waited for this can be told now: its own, and those of the turn after.
        later = [place for place, (of, _) in self._wants.items() if of.previous is leg]
        self._unseen.extend(own + later)

    def _drop_want(self, place: Place) -> None:
        want = self._wants.pop(place, None)
        if want is not None:
            self._by_id[want[1]].remove(place)
            if not self._by_id[want[1]]:
                del self._by_id[want[1]]
