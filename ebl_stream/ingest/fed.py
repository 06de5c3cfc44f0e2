"""The streams of one run whose frames come over a feed: events name them by id."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.frames import Item, Kind, Rejected
from ebl_stream.ingest.data_keys import values_per_event
from ebl_stream.ingest.feed import FedFrame, FeedError, FrameBuffer
from ebl_stream.ingest.feed_join import FeedJoin
from ebl_stream.ingest.ranges import RangeSet
from ebl_stream.ingest.stream import FrameStream
from ebl_stream.profile import Profile

log = logging.getLogger(__name__)

SKEW_S = 1.0
"""How far the clocks of the RunEngine's machine and of this one may differ."""
SETTLE_S = 0.3
"""At the end: how long frames may come late that the counter has gone past."""


@dataclass
class FedStream:
    """A stream of which events say ids, and one event may say many."""

    frames: FrameStream
    """One frame per event; an event of many counts as many."""
    id_key: str | None
    """Data key of the ids; None: they follow from the event's number."""
    per_event: int
    keyed: bool
    n_named: int = 0
    """Frames that the run owes as far as its events say."""


class FedRun:
    """Frames of a feed, joined to the events of one run.

    Parameters
    ----------
    buffer : FrameBuffer
        Of the feed; it outlives the run.
    profile : Profile
    start : mapping
        The start document.
    rows : (int, int), optional
        Rows to use.
    """

    def __init__(
        self,
        buffer: FrameBuffer,
        profile: Profile,
        start: Mapping[str, Any],
        rows: tuple[int, int] | None,
    ) -> None:
        self._buffer = buffer
        self._settings = profile.feed
        self._id_key = profile.keys.unique_id
        self._max_frames = profile.files.max_projections
        self._rows = rows
        self._since = float(start.get("time") or 0.0) - SKEW_S
        self._join = FeedJoin(
            buffer, self._since, kinds_told=profile.feed.kind_attribute is not None
        )
        self._streams: dict[str, FedStream] = {}
        self._before = Counter(buffer.counts)
        self._unreadable: Counter[str] = Counter()
        self._lost: dict[str, RangeSet] = {}

    def carries(self, data_keys: Mapping[str, Any], image: str | None) -> bool:
        """Return whether frames of a stream with these data keys come over the feed."""
        if self._id_key is not None and self._id_key in data_keys:
            return not data_keys[self._id_key].get("external")
        return image is None and self._settings.first_unique_id is not None

    def follow(
        self,
        name: str,
        kind: Kind,
        theta: str | None,
        image_key: str | None,
        data_keys: Mapping[str, Any],
        *,
        first: int = 0,
        planned: Callable[[int], float] | None = None,
    ) -> FedStream:
        """Begin to follow a stream; see `FrameStream` for the last two."""
        keyed = image_key is not None
        id_key = self._id_key if self._id_key in data_keys else None
        counting = id_key or theta
        per_event = values_per_event(data_keys[counting]) if counting else 1
        frames = FrameStream(
            *(name, kind, 1),
            keyed=keyed,
            rows=self._rows,
            first=first,
            planned=planned,
            max_waiting_bytes=self._settings.max_bytes,
        )
        stream = FedStream(frames, id_key, per_event, keyed)
        self._streams[name] = stream
        return stream

    # ------------------------------------------------------------------- events

    def event(
        self,
        stream: FedStream,
        seq: int,
        data: Mapping[str, Any],
        theta: NDArray[Any] | None,
        kinds: NDArray[Any] | None,
    ) -> Iterator[Item]:
        """Take an event: note its ids, angles (rad) and kinds; yield what is there.

        Raises
        ------
        InputError
            It cannot be told which frames belong to which stream.
        """
        last = self._max_frames // stream.per_event
        if not isinstance(seq, int) or not 1 <= seq <= last:
            log.warning("event of %s ignored: seq_num %r", stream.frames.name, seq)
            return
        ids = self._ids(stream, seq, data)
        first = (seq - 1) * stream.per_event + 1
        if kinds is not None:
            values = _spread(kinds, len(ids))
            yield from stream.frames.set_kinds(first, values)
        if theta is not None:
            stream.frames.set_angles(first, _spread(theta, len(ids)))
        stream.n_named = max(stream.n_named, first - 1 + len(ids))
        kind = None if stream.keyed else stream.frames.kind
        for i, unique_id in enumerate(ids):
            if unique_id is not None:
                self._join.name(stream.frames.name, kind, first + i, unique_id)
        yield from self.poll()

    def _ids(
        self, stream: FedStream, seq: int, data: Mapping[str, Any]
    ) -> list[int | None]:
        """Return the ids that an event names; None for one that is no number."""
        if stream.id_key is None:
            first = self._settings.first_unique_id or 0
            first += (seq - 1) * stream.per_event
            return list(range(first, first + stream.per_event))
        try:
            said = np.asarray(data.get(stream.id_key), np.float64).ravel()
        except (TypeError, ValueError):
            said = np.zeros(0)
        if len(said) != stream.per_event:
            log.warning(
                "stream %s, event %d: %d unique ids where its descriptor says %d",
                *(stream.frames.name, seq, len(said), stream.per_event),
            )
        usable = np.isfinite(said) & (said == np.round(said)) & (np.abs(said) < 2**53)
        ids = [int(one) if ok else None for one, ok in zip(said, usable, strict=True)]
        return ids[: stream.per_event]

    # ------------------------------------------------------------------- frames

    def poll(self) -> Iterator[Item]:
        """Yield the frames that can be joined by now."""
        for (name, seq), frame in self._join.matches():
            yield from self._deliver(self._streams[name].frames, seq, frame)

    def _deliver(
        self, frames: FrameStream, seq: int, frame: FedFrame
    ) -> Iterator[Item]:
        yield from frames.account(seq, seq + 1, duplicate=False)
        try:
            image = frame.decode()
        except FeedError as error:
            self._unreadable[str(error)] += 1
            if self._unreadable[str(error)] == 1:
                log.warning("frame %d of the feed: %s", frame.unique_id, error)
            yield from frames.refuse(seq, seq + 1)
            return
        yield from frames.put_images(seq, image[np.newaxis])

    # ------------------------------------------------------------------ the end

    def close(self) -> Iterator[Item]:
        """Wait, within bounds, for the frames that are owed; name those that are not.

        ``feed.timeout_s`` without a frame is the bound; once the counter has gone
        past all that is wanted, a moment is enough.
        """
        progress = time.monotonic()
        while self._join.n_wanted:
            n_before = self._join.n_joined
            yield from self.poll()
            now = time.monotonic()
            if self._join.n_joined > n_before:
                progress = now
            bound = self._settings.timeout_s
            if self._join.is_passed():
                bound = min(bound, SETTLE_S)
            if now - progress >= bound:
                break
            self._buffer.wait(min(0.02, bound))
        yield from self._give_up()

    def _give_up(self) -> Iterator[Item]:
        for (name, seq), unique_id, for_room in self._join.lost():
            frames = self._streams[name].frames
            frames.forget(seq)
            self._lost.setdefault(name, RangeSet()).add(unique_id, unique_id + 1)
            if for_room and not self._streams[name].keyed:
                yield from frames.account(seq, seq + 1, duplicate=False)
                yield Rejected(frames.kind, frames.first_index(seq), "budget")
        for name, ids in self._lost.items():
            log.warning(
                "stream %s: %d frames never came, %s", name, len(ids), list(ids)
            )

    def n_named(self, name: str) -> int:
        """Return how many frames the events of a stream named."""
        stream = self._streams.get(name)
        return stream.n_named if stream is not None else 0

    def report(self) -> dict[str, Any] | None:
        """Return what the feed says of this run; None where it had no part in it."""
        if not self._streams:
            return None
        counts = self._buffer.counts - self._before
        return {
            "joined": self._join.n_joined,
            "lost_unique_ids": {
                name: [list(ids) for ids in lost] for name, lost in self._lost.items()
            },
            "skipped_unique_ids": self._buffer.skipped_since(self._since),
            "unreadable": dict(self._unreadable),
            **{
                name: counts[name]
                for name in ("received", "duplicate", "restarts", "interruptions")
            },
        }


def _spread(values: NDArray[Any], n: int) -> NDArray[Any]:
    """Return ``(event, 1)``: one value for all of an event's frames, or one each."""
    values = values.ravel()
    if len(values) == n:
        return values[:, np.newaxis]
    return np.full((n, 1), values[0] if len(values) == 1 else np.nan)
