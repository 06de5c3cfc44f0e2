"""Documents of one run in, frames out.

Dialects: images inside events; StreamResource and StreamDatum of HDF5 datasets;
legacy Resource and Datum; events that name the unique ids of frames which come over
a feed. Angles and kinds come in events, from datasets, or the start document lists
them. The key of a frame is ``(seq_num - 1) * frames_per_event + frame``.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ebl_stream.frames import Closed, Item, Kind, Scan
from ebl_stream.ingest.datum_reader import DatumReader
from ebl_stream.ingest.datums import as_images, as_values
from ebl_stream.ingest.elsewhere import Document, Elsewhere, FindRun
from ebl_stream.ingest.fed import FedRun
from ebl_stream.ingest.feed import FrameBuffer
from ebl_stream.ingest.legacy import Modernizer, singles
from ebl_stream.ingest.owed import closed
from ebl_stream.ingest.run_streams import RunStream, RunStreams
from ebl_stream.ingest.told import SeenUids
from ebl_stream.profile import Profile

log = logging.getLogger(__name__)

_REFERENCES = (Kind.FLAT, Kind.DARK)


class Assembler:
    """Make frames of the documents of one run; referents come first.

    Angles leave here as the geometry of the house wants them: ``reverse_theta``
    changes their sign; ``flip_columns`` adds pi to them and leaves the pixels alone.
    The two are the same thing, for p(theta, -s) = p(theta + pi, s): mirroring a
    parallel projection about the axis is looking at it from behind. So images, flats
    and every stated rotation center stay in columns of the stored frame.

    Parameters
    ----------
    profile : Profile
    rows : (int, int), optional
        Half-open range of stored rows to read; all by default.
    roots : sequence of Path
        Folders that frames may be read from, besides ``files.roots``.
    feed : FrameBuffer, optional
        Frames that come beside the documents.
    find_run : callable, optional
        Returns the documents of another run by its uid, None where it is not known:
        flats and darks may be there.
    references_only : bool
        Only the flats and darks are wanted, for another run.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        rows: tuple[int, int] | None = None,
        roots: Sequence[Path] = (),
        feed: FrameBuffer | None = None,
        find_run: FindRun | None = None,
        references_only: bool = False,
    ) -> None:
        self._profile = profile
        self._feed = feed
        self._fed: FedRun | None = None
        self._rows = rows
        own = (Path(root).expanduser() for root in profile.files.roots)
        self._roots = tuple(root.resolve() for root in (*own, *roots))
        self._find_run = find_run or (lambda uid: None)
        self._references_only = references_only
        self._modernize = Modernizer()
        self._seen = SeenUids()
        self._is_announced = False
        self._refused: Counter[str] = Counter()
        self._is_closed = False
        self._begin({})

    def _begin(self, start: dict[str, Any]) -> None:
        profile, rows, roots = self._profile, self._rows, self._roots
        self._start = start
        if self._feed is not None and start:
            self._fed = FedRun(self._feed, profile, start, rows)
        self._streams = RunStreams(
            profile, start, rows, self._fed, references_only=self._references_only
        )
        self._reader = DatumReader(profile, roots, rows, self._streams)
        self._elsewhere = Elsewhere(
            *(profile, {} if self._references_only else start, roots, rows),
            find_run=self._find_run,
            read_run=self._read_run,
        )

    def __call__(self, name: str, doc: dict[str, Any]) -> Iterator[Scan | Item]:
        """Take a document; yield what it makes complete.

        May wait, bounded by ``files.timeout_s``, for a file that is being written.

        Raises
        ------
        InputError
            The run says something that cannot be, or must not be, followed.
        """
        if self._is_closed:
            log.warning("%s after the end of its run ignored", name)
            return
        for one_name, one in singles(name, doc):
            for modern_name, modern in self._modernize(one_name, one):
                yield from self._take(modern_name, modern)

    def poll(self) -> Iterator[Item]:
        """Yield the frames of a feed that can be joined by now."""
        if self._fed is not None and not self._is_closed:
            yield from self._fed.poll()

    def close(self) -> Iterator[Item]:
        """End the run without a stop document."""
        yield from self._close({})

    def _take(self, name: str, doc: dict[str, Any]) -> Iterator[Scan | Item]:
        match name:
            case "start":
                self._begin(doc)
            case "descriptor":
                yield from self._descriptor(doc)
            case "event":
                yield from self._event(doc)
            case "stream_resource":
                self._reader.add(doc)
            case "stream_datum":
                yield from self._stream_datum(doc)
            case "stop":
                yield from self._close(doc)
            case "refused":
                self._refused[doc["what"]] += 1

    def _descriptor(self, doc: dict[str, Any]) -> Iterator[Scan | Item]:
        stream = self._streams.describe(doc)
        if stream is None:
            return
        if not self._is_announced:
            self._is_announced = True
            yield self._streams.scan()
        if stream is self._streams.projections:
            yield from self._look_elsewhere()

    # --------------------------------------------------- flats and darks elsewhere

    def _look_elsewhere(self, *, is_last: bool = False) -> Iterator[Item]:
        """Look for what the run has had nothing of so far, before it is needed."""
        had = {stream.frames.kind for stream in self._streams}
        lacking = [kind for kind in _REFERENCES if kind not in had]
        if is_last:
            # What HDF5 has open it does not look at again.
            self._reader.close_files()
        beside = self._reader.projections_file
        yield from self._elsewhere.find(lacking, beside, is_last=is_last)
        self._streams.n_elsewhere = self._elsewhere.n

    def _read_run(self, documents: Iterable[Document]) -> Iterator[Scan | Item]:
        """Make the flats and darks of another run."""
        other = Assembler(
            self._profile, rows=self._rows, roots=self._roots, references_only=True
        )
        for name, doc in documents:
            yield from other(name, doc)
        yield from other.close()

    # ------------------------------------------------------------------- events

    def _event(self, doc: dict[str, Any]) -> Iterator[Item]:
        stream = self._streams.of(doc["descriptor"])
        if stream is None:
            return
        if stream.fed is not None:
            yield from self._fed_event(stream, doc)
            return
        seq, frames = doc["seq_num"], stream.frames
        limit = self._profile.files.max_projections // frames.m
        if not isinstance(seq, int) or not 1 <= seq <= limit:
            log.warning("event of %s ignored: seq_num %r", frames.name, seq)
            return
        image = _inside(stream, stream.image or "", doc)
        if self._seen.add(doc["uid"]):
            if image is not None:
                yield from frames.account(seq, seq + 1, duplicate=True)
            return
        yield from self._scalars(stream, seq, doc, carries=image is not None)
        if image is not None:
            images = as_images(image, stream.data_keys[stream.image or ""])
            yield from frames.account(seq, seq + 1, duplicate=False)
            yield from frames.put_images(seq, images)

    def _fed_event(self, stream: RunStream, doc: dict[str, Any]) -> Iterator[Item]:
        if stream.fed is None or self._fed is None or self._seen.add(doc["uid"]):
            return
        seq, data = doc["seq_num"], doc["data"]
        theta = kinds = None
        if stream.theta is not None and stream.theta in data:
            theta = stream.radians(as_values(data[stream.theta]))
        if stream.image_key is not None and stream.image_key in data:
            kinds = as_values(data[stream.image_key])
        yield from self._fed.event(stream.fed, seq, data, theta, kinds)

    def _scalars(
        self, stream: RunStream, seq: int, doc: dict[str, Any], *, carries: bool
    ) -> Iterator[Item]:
        if stream.image_key is not None:
            kinds = _inside(stream, stream.image_key, doc)
            if kinds is not None:
                yield from stream.frames.set_kinds(seq, as_values(kinds))
        if stream.theta is None:
            return
        theta = _inside(stream, stream.theta, doc)
        if theta is None:
            return
        frames = self._streams.owner_of_angles(stream)
        complete = frames.set_angles(seq, stream.radians(as_values(theta)))
        # An image of the same event, here or in its Datum, follows at once.
        if not carries and stream.image not in doc["data"]:
            yield from frames.draw(complete)

    def _stream_datum(self, doc: dict[str, Any]) -> Iterator[Item]:
        stream = self._streams.of(doc["descriptor"])
        if stream is None:
            return
        is_repeated = self._seen.add(doc["uid"])
        yield from self._reader.take(stream, doc, is_repeated=is_repeated)
        if stream is self._streams.projections and self._elsewhere.is_wanted:
            yield from self._look_elsewhere()

    # ------------------------------------------------------------------- the end

    def _close(self, stop: dict[str, Any]) -> Iterator[Item]:
        """Hand on what is left, give everything else its reason, and close."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._is_announced:
                yield from self._close_streams()
                yield self._closed(stop)
        finally:
            self._reader.close_files()

    def _close_streams(self) -> Iterator[Item]:
        deadline = time.monotonic() + self._profile.files.timeout_s
        yield from self._reader.close(deadline)
        if self._fed is not None:
            yield from self._fed.close()
        if self._streams.projections is not None:
            yield from self._look_elsewhere(is_last=True)
        for stream in self._streams:
            yield from stream.frames.close(deadline)

    def _closed(self, stop: Mapping[str, Any]) -> Closed:
        elsewhere = self._elsewhere
        for place, why in elsewhere.failures.items():
            log.warning("run %s: no flats from %s: %s", self._uid, place, why)
        end = closed(
            stop, self._profile, self._streams, self._fed, elsewhere, self._reader
        )
        refused = {"refused_documents": dict(self._refused)} if self._refused else {}
        return replace(end, details=end.details | refused)

    @property
    def _uid(self) -> str:
        return str(self._start.get("uid", ""))


def _inside(stream: RunStream, key: str, doc: Mapping[str, Any]) -> Any:
    """Return what the event itself holds under a key; None: not there."""
    is_datum = key in stream.external and not doc.get("filled", {}).get(key)
    return None if is_datum else doc["data"].get(key)
