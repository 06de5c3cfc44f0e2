"""StreamDatum documents in, frames and angles out of the files that they name."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from ebl_stream.frames import Item
from ebl_stream.ingest.data_keys import values_per_event
from ebl_stream.ingest.datums import DatumRanges, check_datum
from ebl_stream.ingest.places import check_rows
from ebl_stream.ingest.resources import Resource, Resources
from ebl_stream.ingest.run_streams import RunStream, RunStreams
from ebl_stream.ingest.stored import Stored, StoredImages, read_values
from ebl_stream.profile import Profile

log = logging.getLogger(__name__)


class DatumReader:
    """Read what the datums of one run name, as soon as its file can be opened.

    What a file does not have yet, or that cannot be opened yet, is in flight until
    the end of the run.

    Parameters
    ----------
    profile : Profile
    roots : sequence of Path
        Folders that frames may be read from.
    rows : (int, int), optional
        Half-open range of stored rows to read.
    streams : RunStreams
        Of the run.
    """

    def __init__(
        self,
        profile: Profile,
        roots: Sequence[Path],
        rows: tuple[int, int] | None,
        streams: RunStreams,
    ) -> None:
        self._max_frames = profile.files.max_projections
        self._rows = rows
        self._streams = streams
        images = profile.datasets.projections
        self._resources = Resources(profile.files, roots, images)
        self._images: dict[tuple[str, str], StoredImages] = {}
        self._deferred: dict[Resource, tuple[RunStream, list[DatumRanges]]] = {}
        self._of_projections: Resource | None = None

    def add(self, doc: dict[str, Any]) -> None:
        """Take a StreamResource document."""
        self._resources.add(doc)

    def projections_file(self) -> Path | None:
        """Return the file that projections lie in; None while none is known.

        Raises
        ------
        InputError
            It is not there yet, or must not be read.
        """
        return self._of_projections.path() if self._of_projections else None

    def take(
        self, stream: RunStream, doc: dict[str, Any], *, is_repeated: bool
    ) -> Iterator[Item]:
        """Take a StreamDatum document.

        Raises
        ------
        InputError
            Its resource names something that cannot be, or must not be, read.
        """
        resource = self._resources.get(doc["stream_resource"])
        if resource is None:
            log.warning("datum %s ignored: its resource never came", doc["uid"])
            return
        key = resource.data_key
        if not stream.is_wanted(key):
            return
        is_image = key == stream.image
        if is_image:
            if stream is self._streams.projections:
                self._of_projections = self._of_projections or resource
            # The dataset may know better than the descriptor how many an event has.
            self._open_images(stream, resource)
        datum = check_datum(doc, stream.frames.m, self._max_frames)
        if datum is None:
            log.warning("datum ignored: malformed %r", doc)
            return
        if is_image:
            yield from stream.frames.account(*datum.seq, duplicate=is_repeated)
        if not is_repeated:
            self._deferred.setdefault(resource, (stream, []))[1].append(datum)
            yield from self._read(resource)

    def close(self, deadline: float) -> Iterator[Item]:
        """Read what was not there, for the last time; until then (s, monotonic)."""
        for resource in list(self._deferred):
            yield from self._read(resource, deadline)

    def close_files(self) -> None:
        """Close all files."""
        self._resources.close()

    def n_orphan(self) -> int:
        """Return how many frames the files have that no document named."""
        return sum(images.n_orphan() for images in self._images.values())

    # ------------------------------------------------------------------- inside

    def _read(
        self, resource: Resource, deadline: float | None = None
    ) -> Iterator[Item]:
        """Read what datums of a file name, as soon as it can be opened."""
        stored = resource.open(deadline)
        stream, datums = self._deferred.pop(resource)
        for i, datum in enumerate(datums):
            rest: DatumRanges | None = datum
            if stored is not None:
                rest = yield from self._read_datum(stream, resource, stored, datum)
            elif deadline is not None and resource.data_key == stream.image:
                yield from stream.frames.refuse(*datum.seq)
            if rest is not None and deadline is None:
                # Those behind it wait too: each try may cost time.
                self._deferred[resource] = (stream, [rest, *datums[i + 1 :]])
                return

    def _read_datum(
        self, stream: RunStream, resource: Resource, stored: Stored, datum: DatumRanges
    ) -> Generator[Item, None, DatumRanges | None]:
        """Read what a datum names; return what of it the file does not have yet."""
        key = resource.data_key
        if key == stream.image:
            images = self._open_images(stream, resource)
            if images is not None:
                images.named.add(*datum.index)
                yield from stream.frames.put(*datum.seq, images, datum.index[0])
            return None
        per_event = values_per_event(stream.data_keys[key])
        values = read_values(stored, *datum.index, per_event)
        if key == stream.image_key:
            yield from stream.frames.set_kinds(datum.seq[0], values)
        else:
            frames = self._streams.owner_of_angles(stream)
            complete = frames.set_angles(datum.seq[0], stream.radians(values))
            yield from frames.draw(complete)
        return datum.after(len(values))

    def _open_images(
        self, stream: RunStream, resource: Resource
    ) -> StoredImages | None:
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
