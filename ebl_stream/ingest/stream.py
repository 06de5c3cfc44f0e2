"""One stream of a run: images, angles and kinds joined by event number.

Everything is keyed by ``seq_num``; the place of an image in its file is only where to
read it. After a rewind ``seq_num`` repeats while the places go on.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.frames import Announced, Item, Kind, Rejected, Repeated
from ebl_stream.ingest.angles import fill_rows
from ebl_stream.ingest.judge import Judge
from ebl_stream.ingest.places import Place, Places, blocks
from ebl_stream.ingest.ranges import Range, RangeSet
from ebl_stream.ingest.stored import StoredImages
from ebl_stream.ingest.told import Told, Values
from ebl_stream.ingest.waiting import WaitingImages

log = logging.getLogger(__name__)

_POLL_S = 0.01
_NONE = np.zeros((0, 0))
"""In the place of an image that has another shape than (row, column)."""


class FrameStream:
    """Join what documents say about the frames of one stream.

    Parameters
    ----------
    name : str
        Of the stream.
    kind : Kind
        Of its frames, where no image key says more.
    m : int
        Frames per event, as far as the descriptor knows.
    keyed : bool
        An image key gives the kind of each frame.
    rows : (int, int), optional
        Stored rows to read.
    first : int
        Index of its first frame; those before are of another place.
    planned : callable, optional
        The angle (rad) of a frame by its index, where no event tells it.
    interpolates : bool
        Missing angles are put between their neighbors at the end.
    max_waiting_bytes : int
        Images of events that may wait for their angle or kind; beyond it the oldest
        goes, and is named.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        m: int,
        *,
        keyed: bool = False,
        rows: tuple[int, int] | None = None,
        first: int = 0,
        planned: Callable[[int], float] | None = None,
        interpolates: bool = False,
        max_waiting_bytes: int = 2**30,
    ) -> None:
        self.name = name
        self.kind = kind
        self.m = m
        self.interpolated = RangeSet()
        """Frames whose angle was put between its neighbors."""
        self._keyed = keyed
        self._judge = Judge(rows)
        self._offset = first
        self._planned = planned
        self._waits_for_angles = interpolates
        self._announced: dict[Kind, RangeSet] = {k: RangeSet() for k in Kind}
        self._named = RangeSet()
        self._angles = Told("d")
        self._kinds = Told("b")
        self._undecided: dict[int, list[bool]] = {}
        self._places = Places()
        self._waiting = WaitingImages(max_waiting_bytes)
        self._drawn = RangeSet()
        """Events handed on from their file, with the angle that they have now."""
        self._unread: set[int] = set()

    # -------------------------------------------------------- what was announced

    def account(self, start: int, stop: int, *, duplicate: bool) -> Iterator[Item]:
        """Announce the frames of a range of events, or note that they came again."""
        if not self._keyed:
            first, last = self._frames(start, stop)
            yield from self._account(self.kind, first, last, duplicate)
            return
        self._named.add(start, stop)
        undecided = [seq for seq in range(start, stop) if seq not in self._kinds]
        for seq in undecided:
            self._undecided.setdefault(seq, []).append(duplicate)
        for kind, first, last in self._by_kind(range(start, stop)):
            yield from self._account(kind, first, last, duplicate)

    def _account(
        self, kind: Kind, start: int, stop: int, duplicate: bool
    ) -> Iterator[Item]:
        new, known = self._announced[kind].add(start, stop)
        for a, b in new:
            yield Announced(kind, a, b)
        how = "duplicate" if duplicate else "superseded"
        for a, b in known:
            yield Repeated(kind, a, b, how)

    def _frames(self, start: int, stop: int) -> Range:
        return self.first_index(start), self.first_index(stop)

    def first_index(self, seq: int) -> int:
        """Return the index of an event's first frame."""
        return self._offset + (seq - 1) * self.m

    def _by_kind(self, seqs: Iterable[int]) -> Iterator[tuple[Kind, int, int]]:
        """Yield ranges of frames of one kind, for the events whose kinds are known."""
        kind, first, last = Kind.PROJECTION, 0, 0
        for seq in seqs:
            for frame, k in enumerate(self._kinds_of(seq) or (), self.first_index(seq)):
                if k is kind and frame == last:
                    last += 1
                    continue
                if last > first:
                    yield kind, first, last
                kind, first, last = k, frame, frame + 1
        if last > first:
            yield kind, first, last

    def _kinds_of(self, seq: int) -> tuple[Kind, ...] | None:
        if not self._keyed:
            return (self.kind,) * self.m
        said = self._kinds.get(seq)
        if said is None:
            return None
        kinds = tuple(map(Kind, said))
        return kinds * self.m if len(kinds) == 1 else kinds

    # ------------------------------------------------------------- what comes in

    def adopt_angles(self, other: FrameStream) -> None:
        """Take the angles that a stream of their own has told so far."""
        self._angles.update(other._angles)

    def set_angles(self, start: int, values: NDArray[Any]) -> list[int]:
        """Note angles, rad ``(event, value)``; return the events now complete."""
        for seq, row in enumerate(values.tolist(), start):
            self._set_angle(seq, tuple(row))
        return [s for s in range(start, start + len(values)) if self._is_ready(s)]

    def _set_angle(self, seq: int, angle: Values) -> None:
        if seq in self._drawn and angle != self._angle(seq) and self._shows_sample(seq):
            self._drawn.discard(seq)
        self._angles[seq] = angle

    def _shows_sample(self, seq: int) -> bool:
        return Kind.PROJECTION in (self._kinds_of(seq) or ())

    def set_kinds(self, start: int, values: NDArray[Any]) -> Iterator[Item]:
        """Note the kinds of frames ``(event, value)``; announce what waited for it."""
        for seq, row in enumerate(values.tolist(), start):
            # The first word stands: frames have been announced with it.
            if seq not in self._kinds:
                self._kinds[seq] = tuple(_kind(value) for value in row)
        stop = start + len(values)
        waited = [seq for seq in range(start, stop) if seq in self._undecided]
        for kind, first, last in self._by_kind(waited):
            yield from self._account(kind, first, last, False)
        for seq in waited:
            for duplicate in self._undecided.pop(seq)[1:]:
                for kind, first, last in self._by_kind([seq]):
                    yield from self._account(kind, first, last, duplicate)
            if self._waiting.has_lost(seq):
                yield from self._reject(seq, "budget")
        yield from self.draw(seq for seq in range(start, stop) if self._is_ready(seq))

    def put(
        self, start: int, stop: int, images: StoredImages, index: int
    ) -> Iterator[Item]:
        """Take where images of consecutive events lie; hand on what is complete."""
        self._places.put(start, stop, images, index)
        for seq in range(start, stop):
            self._waiting.pop(seq)
            self._drawn.discard(seq)
            self._unread.discard(seq)
        yield from self.draw(s for s in range(start, stop) if self._is_ready(s))
        yield from self._draw_again()

    def put_images(self, seq: int, images: NDArray[Any]) -> Iterator[Item]:
        """Take the images ``(m, row, column)`` that an event brought."""
        self._places.remove(seq, seq + 1)
        self._drawn.discard(seq)
        self._unread.discard(seq)
        lost = self._waiting.put(seq, images)
        if self._is_ready(seq):
            yield from self.draw([seq])
        yield from self._draw_again()
        for other in lost:
            yield from self._reject(other, "budget")

    def _is_ready(self, seq: int) -> bool:
        if seq in self._drawn or not (seq in self._waiting or seq in self._places):
            return False
        kinds = self._kinds_of(seq)
        if kinds is None:
            return False
        if Kind.PROJECTION not in kinds:
            return True
        angle = self._angle(seq)
        if angle is None:
            return False
        return not self._waits_for_angles or all(map(math.isfinite, angle))

    def _angle(self, seq: int) -> Values | None:
        """Return what was told of an event's angle, or what was planned."""
        told = self._angles.get(seq)
        if told is not None or self._planned is None:
            return told
        first = (seq - 1) * self.m
        return tuple(map(self._planned, range(first, first + self.m)))

    # -------------------------------------------------------------- what goes on

    def draw(self, seqs: Iterable[int]) -> Iterator[Item]:
        """Read complete events and hand their frames on."""
        stored: list[tuple[int, Place]] = []
        for seq in seqs:
            images, place = self._waiting.pop(seq), self._places.get(seq)
            if images is not None:
                # It is gone: another angle cannot bring it back.
                yield from self._event(seq, images)
            elif place is not None:
                stored.append((seq, place))
        for block in blocks(stored):
            yield from self._draw_block(block)

    def _draw_block(self, block: list[tuple[int, Place]]) -> Iterator[Item]:
        stored, first = block[0][1]
        there = max(0, min(stored.wait(first + len(block)) - first, len(block)))
        images = stored.read(first, first + there) if there else iter(())
        for (seq, place), one in zip(block[:there], images, strict=True):
            self._drawn.add(seq, seq + 1)
            yield from self._event(seq, one, place)
        for seq, _ in block[there:]:
            # In flight until the end: its writer may be late.
            self._drawn.add(seq, seq + 1)
            self._unread.add(seq)

    def _event(
        self, seq: int, images: NDArray[Any] | None, place: Place | None = None
    ) -> Iterator[Item]:
        kinds = self._kinds_of(seq) or ()
        angles = self._angle(seq) or ()
        first = self.first_index(seq)
        fits = images is not None and images.ndim == 3 and len(images) == self.m
        shown = images if images is not None and fits else [_NONE] * len(kinds)
        for i, kind in enumerate(kinds):
            theta = _one(angles, i, self.m) if kind is Kind.PROJECTION else math.nan
            image = None if images is None else shown[i]
            yield self._judge.frame(first + i, kind, theta, image, place, i)

    # ------------------------------------------------------------------- the end

    def close(self, deadline: float = 0.0) -> Iterator[Item]:
        """Hand on what can still be read, and give a reason for all the rest.

        Parameters
        ----------
        deadline : float
            Until when (s, monotonic) a file is waited for that is being written.
        """
        yield from self._draw_again()
        if self._waits_for_angles:
            self._waits_for_angles = False
            self._fill_angles()
        held = sorted({*self._places, *self._waiting})
        yield from self.draw(seq for seq in held if self._is_ready(seq))
        while self._is_late() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            yield from self._draw_again()
        for seq in sorted(self._unread):
            yield from self._reject(seq, "unreadable")
        yield from self._close_undecided()
        for seq in sorted({*self._places, *self._waiting}):
            # An event without an angle is told so, unread; one without a kind was.
            if seq not in self._drawn:
                yield from self._reject(seq, "no_angle")
        yield from self._close_imageless()

    def _is_late(self) -> bool:
        """Return whether what was not there may still be on its way."""
        places = (self._places.get(seq) for seq in self._unread)
        return any(one.is_fresh() for one in {p.images for p in places if p})

    def _fill_angles(self) -> None:
        """Put missing angles of projections between their neighbors."""
        told = {*self._angles, *self._places, *self._waiting}
        rows = {seq: self._angle(seq) for seq in told}
        if self._keyed:
            shown = (Kind.PROJECTION,) * self.m
            rows = {
                seq: row for seq, row in rows.items() if self._kinds_of(seq) == shown
            }
        for seq, row in fill_rows(rows, self.m).items():
            self._set_angle(seq, row)
            self.interpolated.add(*self._frames(seq, seq + 1))

    def _draw_again(self) -> Iterator[Item]:
        """Hand on what was refused because a file was late, and is there now."""
        unread = ((seq, self._places.get(seq)) for seq in sorted(self._unread))
        late = [
            (seq, place)
            for seq, place in unread
            if place is not None and place.images.wait(0) > place.event
        ]
        self._unread.difference_update(seq for seq, _ in late)
        for block in blocks(late):
            yield from self._draw_block(block)

    def _close_undecided(self) -> Iterator[Item]:
        """Count images whose kind never came as projections that cannot be used."""
        for seq in sorted(self._undecided):
            first, last = self._frames(seq, seq + 1)
            for duplicate in self._undecided.pop(seq):
                yield from self._account(Kind.PROJECTION, first, last, duplicate)
            for index in range(first, last):
                yield Rejected(Kind.PROJECTION, index, "invalid_kind")

    def _close_imageless(self) -> Iterator[Item]:
        """Count angles whose image never came."""
        if self._keyed:
            without = [seq for seq in self._angles if seq not in self._named]
        else:
            announced = self._announced[self.kind]
            without = [s for s in self._angles if (s - 1) * self.m not in announced]
        for seq in sorted(without):
            for kind, first, last in self._by_kind([seq]):
                yield from self._account(kind, first, last, False)
            yield from self._reject(seq, "no_image")

    def _reject(self, seq: int, reason: Any) -> Iterator[Item]:
        for index, kind in enumerate(self._kinds_of(seq) or (), self.first_index(seq)):
            yield Rejected(kind, index, reason)

    def forget(self, seq: int) -> None:
        """Let go of an angle whose image got lost on its way: it is owed, no more."""
        self._angles.pop(seq)

    def refuse(self, start: int, stop: int) -> Iterator[Item]:
        """Reject announced events whose file could never be opened."""
        for seq in range(start, stop):
            yield from self._reject(seq, "unreadable")

    @property
    def has_announced(self) -> bool:
        """Whether frames have been counted: their number per event is settled."""
        return any(len(r) for r in self._announced.values()) or len(self._named) > 0

    @property
    def n_other_kinds(self) -> int:
        """Announced frames that are no projections."""
        return sum(
            len(ranges)
            for kind, ranges in self._announced.items()
            if kind is not Kind.PROJECTION
        )


def _kind(value: float) -> Kind:
    return Kind(int(value)) if value in (0, 1, 2) else Kind.INVALID


def _one(values: Values, i: int, m: int) -> float:
    if len(values) == m:
        return values[i]
    return values[0] if len(values) == 1 else math.nan
