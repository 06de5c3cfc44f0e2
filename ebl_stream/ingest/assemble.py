"""Documents of one run in, frames out.

Dialects: images inside events; StreamResource and StreamDatum of HDF5 datasets;
legacy Resource and Datum; events that name the unique ids of frames which come over
a feed. Angles and kinds come in events or from datasets of the
same stream. The key of a frame is ``(seq_num - 1) * frames_per_event + frame``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.frames import Closed, Item, Kind, Scan
from ebl_stream.ingest.data_keys import (
    find_image_key,
    find_theta_key,
    frames_per_event,
    radians_per_unit,
    values_per_event,
)
from ebl_stream.ingest.datums import DatumRanges, as_images, as_values, check_datum
from ebl_stream.ingest.fed import FedRun, FedStream
from ebl_stream.ingest.feed import FrameBuffer
from ebl_stream.ingest.legacy import Modernizer, external_keys, singles
from ebl_stream.ingest.stored import (
    Resource,
    Resources,
    Stored,
    StoredImages,
    read_values,
)
from ebl_stream.ingest.stream import FrameStream, Place, check_rows
from ebl_stream.profile import Profile

log = logging.getLogger(__name__)


@dataclass
class _Stream:
    """A stream that has images, and what its descriptors say of its keys."""

    frames: FrameStream
    image: str | None
    """None: over a feed."""
    theta: str | None
    image_key: str | None
    data_keys: Mapping[str, Mapping[str, Any]]
    radians: float
    external: set[str]
    """Keys whose events hold the id of a Datum."""
    deferred: dict[Resource, list[DatumRanges]] = field(default_factory=dict)
    """Datums of files that cannot be opened yet, in their order."""
    fed: FedStream | None = None

    @property
    def per_event(self) -> int:
        """Frames per event."""
        return self.fed.per_event if self.fed is not None else self.frames.m

    def is_wanted(self, data_key: str) -> bool:
        return data_key in (self.image, self.theta, self.image_key)


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
    """

    def __init__(
        self,
        profile: Profile,
        *,
        rows: tuple[int, int] | None = None,
        roots: Sequence[Path] = (),
        feed: FrameBuffer | None = None,
    ) -> None:
        self._profile = profile
        self._feed = feed
        self._fed: FedRun | None = None
        self._rows = rows
        own = (Path(root).expanduser() for root in profile.files.roots)
        self._roots = tuple(root.resolve() for root in (*own, *roots))
        self._modernize = Modernizer()
        self._start: dict[str, Any] = {}
        self._streams: dict[str, _Stream | None] = {}
        self._by_descriptor: dict[str, _Stream] = {}
        self._resources = Resources(profile.files, self._roots)
        self._images: dict[tuple[str, str], StoredImages] = {}
        self._seen: set[str] = set()
        self._is_announced = False
        self._is_closed = False

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
                self._start = doc
                if self._feed is not None:
                    self._fed = FedRun(self._feed, self._profile, doc, self._rows)
            case "descriptor":
                yield from self._descriptor(doc)
            case "event":
                yield from self._event(doc)
            case "stream_resource":
                self._resources.add(doc)
            case "stream_datum":
                yield from self._stream_datum(doc)
            case "stop":
                yield from self._close(doc)

    # ------------------------------------------------------------- what it scans

    def _descriptor(self, doc: dict[str, Any]) -> Iterator[Scan]:
        if doc["uid"] in self._by_descriptor:
            return
        name = doc["name"]
        if self._streams.get(name) is None:
            self._streams[name] = self._new_stream(doc)
        stream = self._streams[name]
        if stream is None:
            return
        self._by_descriptor[doc["uid"]] = stream
        if not self._is_announced:
            self._is_announced = True
            yield self._scan()

    def _new_stream(self, doc: dict[str, Any]) -> _Stream | None:
        """Return a stream to listen to; None for one without images of ours."""
        kind = self._kind_of_stream(doc["name"])
        if kind is None:
            return None
        keys, data_keys = self._profile.keys, doc["data_keys"]
        others = [stream.image for stream in self._streams.values() if stream]
        image = find_image_key(
            data_keys, keys.image, doc["name"], others[0] if others else None
        )
        is_fed = self._fed is not None and self._fed.carries(data_keys, image)
        if image is None and not is_fed:
            return None
        theta = image_key = None
        radians = 1.0
        if kind is Kind.PROJECTION:
            theta = find_theta_key(self._start, doc, keys.theta)
            radians = radians_per_unit(data_keys[theta], keys.theta_unit)
            image_key = self._image_key(doc)
        external = external_keys(doc)
        if self._fed is not None and is_fed:
            fed = self._fed.follow(doc["name"], kind, theta, image_key, data_keys)
            of_feed = (fed.frames, None, theta, image_key, data_keys, radians, external)
            return _Stream(*of_feed, fed=fed)
        assert image is not None  # noqa: S101
        m = frames_per_event(data_keys[image])
        frames = FrameStream(
            doc["name"], kind, m, keyed=image_key is not None, rows=self._rows
        )
        return _Stream(frames, image, theta, image_key, data_keys, radians, external)

    def _kind_of_stream(self, name: str) -> Kind | None:
        streams = self._profile.streams
        names = {
            Kind.PROJECTION: streams.projections,
            Kind.FLAT: streams.flats,
            Kind.DARK: streams.darks,
        }
        kind = next((kind for kind, known in names.items() if name in known), None)
        if kind is None:
            return None
        for other in self._streams.values():
            if other is not None and other.frames.name in names[kind]:
                log.warning("stream %s ignored beside %s", name, other.frames.name)
                return None
        return kind

    def _image_key(self, doc: dict[str, Any]) -> str | None:
        key = self._profile.keys.image_key
        if key is not None and key not in doc["data_keys"]:
            raise InputError(
                f"stream {doc['name']!r} has no data key {key!r} (keys.image_key)\n"
                f"its keys: {', '.join(sorted(doc['data_keys']))}"
            )
        return key

    def _scan(self) -> Scan:
        keys = self._profile.start
        n = self._stated(keys.n_projections)
        return Scan(
            run_uid=self._start.get("uid", ""),
            start=self._start,
            n_projections=int(n) if n and 0 < n <= self._max_frames else None,
            rotation_center=self._stated(keys.rotation_center),
            voxel_size_um=self._stated(keys.voxel_size_um),
            rows=self._rows,
        )

    def _stated(self, keys: Iterable[str]) -> float | None:
        """Return the first of these keys of the start document, if it is a number."""
        value = next((self._start[key] for key in keys if key in self._start), None)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]

    @property
    def _max_frames(self) -> int:
        return self._profile.files.max_projections

    # ------------------------------------------------------------------- events

    def _event(self, doc: dict[str, Any]) -> Iterator[Item]:
        stream = self._by_descriptor.get(doc["descriptor"])
        if stream is None:
            return
        if stream.fed is not None:
            yield from self._fed_event(stream, doc)
            return
        seq, frames = doc["seq_num"], stream.frames
        if not isinstance(seq, int) or not 1 <= seq <= self._max_frames // frames.m:
            log.warning("event of %s ignored: seq_num %r", frames.name, seq)
            return
        image = self._inside(stream, stream.image or "", doc)
        if self._is_repeated(doc["uid"]):
            if image is not None:
                yield from frames.account(seq, seq + 1, duplicate=True)
            return
        yield from self._scalars(stream, seq, doc, carries=image is not None)
        if image is not None:
            images = as_images(image, stream.data_keys[stream.image or ""])
            yield from frames.account(seq, seq + 1, duplicate=False)
            yield from frames.put(seq, [Place(None, images=images)])

    def _fed_event(self, stream: _Stream, doc: dict[str, Any]) -> Iterator[Item]:
        if stream.fed is None or self._fed is None or self._is_repeated(doc["uid"]):
            return
        seq, data = doc["seq_num"], doc["data"]
        theta = kinds = None
        if stream.theta is not None and stream.theta in data:
            theta = self._radians(stream, as_values(data[stream.theta]))
        if stream.image_key is not None and stream.image_key in data:
            kinds = as_values(data[stream.image_key])
        yield from self._fed.event(stream.fed, seq, data, theta, kinds)

    def _scalars(
        self, stream: _Stream, seq: int, doc: dict[str, Any], *, carries: bool
    ) -> Iterator[Item]:
        if stream.image_key is not None:
            kinds = self._inside(stream, stream.image_key, doc)
            if kinds is not None:
                yield from stream.frames.set_kinds(seq, as_values(kinds))
        if stream.theta is None:
            return
        theta = self._inside(stream, stream.theta, doc)
        if theta is None:
            return
        complete = stream.frames.set_angles(
            seq, self._radians(stream, as_values(theta))
        )
        # An image of the same event, here or in its Datum, follows at once.
        if not carries and stream.image not in doc["data"]:
            yield from stream.frames.draw(complete)

    def _inside(self, stream: _Stream, key: str, doc: dict[str, Any]) -> Any:
        """Return what the event itself holds under a key; None: not there."""
        is_datum = key in stream.external and not doc.get("filled", {}).get(key)
        return None if is_datum else doc["data"].get(key)

    def _radians(self, stream: _Stream, values: NDArray[Any]) -> NDArray[Any]:
        geometry = self._profile.geometry
        theta = values * stream.radians
        if geometry.reverse_theta:
            theta = -theta
        return theta + math.pi if geometry.flip_columns else theta

    def _is_repeated(self, uid: str) -> bool:
        if uid in self._seen:
            return True
        self._seen.add(uid)
        return False

    # ------------------------------------------------------------- stream datums

    def _stream_datum(self, doc: dict[str, Any]) -> Iterator[Item]:
        stream = self._by_descriptor.get(doc["descriptor"])
        if stream is None:
            return
        resource = self._resources.get(doc["stream_resource"])
        if resource is None:
            log.warning("datum %s ignored: its resource never came", doc["uid"])
            return
        if not stream.is_wanted(resource.data_key):
            return
        if resource.data_key == stream.image:
            # The dataset may know better than the descriptor how many an event has.
            self._open_images(stream, resource)
        datum = check_datum(doc, stream.frames.m, self._max_frames)
        if datum is None:
            log.warning("datum ignored: malformed %r", doc)
            return
        is_repeated = self._is_repeated(doc["uid"])
        if resource.data_key == stream.image:
            yield from stream.frames.account(*datum.seq, duplicate=is_repeated)
        if not is_repeated:
            stream.deferred.setdefault(resource, []).append(datum)
            yield from self._read_deferred(stream, resource)

    def _read_deferred(
        self, stream: _Stream, resource: Resource, *, last_chance: bool = False
    ) -> Iterator[Item]:
        """Read what datums of a file name, as soon as it can be opened."""
        stored = resource.open(last_chance=last_chance)
        datums = stream.deferred.pop(resource)
        for i, datum in enumerate(datums):
            rest: DatumRanges | None = datum
            if stored is not None:
                rest = yield from self._read_datum(stream, resource, stored, datum)
            elif last_chance and resource.data_key == stream.image:
                yield from stream.frames.refuse(*datum.seq)
            if rest is not None and not last_chance:
                # Those behind it wait too: each try may cost time.
                stream.deferred[resource] = [rest, *datums[i + 1 :]]
                return

    def _read_datum(
        self, stream: _Stream, resource: Resource, stored: Stored, datum: DatumRanges
    ) -> Generator[Item, None, DatumRanges | None]:
        """Read what a datum names; return what of it the file does not have yet."""
        key = resource.data_key
        if key == stream.image:
            images = self._open_images(stream, resource)
            if images is not None:
                images.named.add(*datum.index)
                places = (Place(images, index) for index in range(*datum.index))
                yield from stream.frames.put(datum.seq[0], places)
            return None
        per_event = values_per_event(stream.data_keys[key])
        values = read_values(stored, *datum.index, per_event)
        if key == stream.image_key:
            yield from stream.frames.set_kinds(datum.seq[0], values)
        else:
            radians = self._radians(stream, values)
            yield from stream.frames.draw(
                stream.frames.set_angles(datum.seq[0], radians)
            )
        return datum.after(len(values))

    def _open_images(self, stream: _Stream, resource: Resource) -> StoredImages | None:
        """Return the images of a resource, one object per dataset."""
        stored = resource.open()
        if stored is None:
            return None
        where = (stored.path, str(stored.dataset.name))
        images = self._images.get(where)
        if images is None:
            m = resource.multiplier or stream.frames.m
            images = StoredImages(stored, m, self._rows)
            if self._rows is not None:
                check_rows(self._rows, images.shape[0])
            if not stream.frames.has_announced:
                stream.frames.m = images.m
            self._images[where] = images
        return images

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
            self._resources.close()

    def _close_streams(self) -> Iterator[Item]:
        streams = [stream for stream in self._streams.values() if stream]
        for stream in streams:
            for resource in list(stream.deferred):
                yield from self._read_deferred(stream, resource, last_chance=True)
        if self._fed is not None:
            yield from self._fed.close()
        for stream in streams:
            yield from stream.frames.close()

    def _closed(self, stop: dict[str, Any]) -> Closed:
        status = stop.get("exit_status")
        num_events = stop.get("num_events") or {}
        return Closed(
            exit_status=status if status in ("success", "abort", "fail") else "unknown",
            reason=str(stop.get("reason") or ""),
            n_announced_by_stop=self._n_owed(num_events),
            n_orphan=sum(images.n_orphan() for images in self._images.values()),
            n_references=self._n_references(num_events),
            feed=self._fed.report() if self._fed is not None else None,
        )

    def _n_references(self, num_events: Mapping[str, Any]) -> dict[Kind, int]:
        """Return the flats and darks that the stop document counts.

        Their descriptor may be lost: then the stream is known by its name alone.
        """
        names = self._profile.streams
        per_event = {s.frames.name: s.per_event for s in self._streams.values() if s}
        owed: dict[Kind, int] = {}
        for kind, known in ((Kind.FLAT, names.flats), (Kind.DARK, names.darks)):
            for name in known:
                n, m = num_events.get(name), per_event.get(name, 1)
                if isinstance(n, int) and 0 < n * m <= self._max_frames:
                    owed.setdefault(kind, n * m)
                named = self._fed.n_named(name) if self._fed is not None else 0
                if named:
                    owed[kind] = max(named, owed.get(kind, 0))
        return owed

    def _n_owed(self, num_events: Mapping[str, Any]) -> int | None:
        """Return the projections that the stop document counts."""
        for stream in self._streams.values():
            if stream is None or stream.frames.kind is not Kind.PROJECTION:
                continue
            name = stream.frames.name
            said = num_events.get(name)
            n = said * stream.per_event if isinstance(said, int) else -1
            if n > self._max_frames:
                n = -1
            if self._fed is not None:
                n = max(n, self._fed.n_named(name) or -1)
            if n >= 0:
                return max(0, n - stream.frames.n_other_kinds)
        return None
