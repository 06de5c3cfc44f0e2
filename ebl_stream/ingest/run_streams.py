"""The streams of a run: which hold images, which angles, and how they are told."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.frames import Kind, Scan
from ebl_stream.ingest.angles import AngleScale, radians_per_unit
from ebl_stream.ingest.data_keys import (
    find_image_key,
    find_theta_key,
    frames_per_event,
)
from ebl_stream.ingest.fed import FedRun, FedStream
from ebl_stream.ingest.legacy import external_keys
from ebl_stream.ingest.start_document import StartAngles, find_number
from ebl_stream.ingest.stream import FrameStream
from ebl_stream.profile import Profile

log = logging.getLogger(__name__)


@dataclass
class RunStream:
    """A stream that is listened to, and what its descriptors say of its keys."""

    frames: FrameStream
    """Of its images, or (``image`` None, no feed) those that its angles belong to."""
    image: str | None
    """None: over a feed, or a stream of angles alone."""
    theta: str | None
    """None: no stream tells the angles, or another one does."""
    image_key: str | None
    data_keys: Mapping[str, Mapping[str, Any]]
    scale: AngleScale | None
    external: set[str] = field(default_factory=set)
    """Keys whose events hold the id of a Datum."""
    fed: FedStream | None = None

    @property
    def per_event(self) -> int:
        """Frames per event."""
        return self.fed.per_event if self.fed is not None else self.frames.m

    def is_wanted(self, data_key: str) -> bool:
        """Return whether a data key of this stream is of use."""
        return data_key in (self.image, self.theta, self.image_key)

    def change(self, data_keys: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Say in what another descriptor would change how values are read."""
        for key in (self.image, self.theta, self.image_key):
            if key is None or key not in self.data_keys:
                continue
            if key not in data_keys:
                return f"it has no data key {key!r} any more"
            for what in ("units", "external"):
                before, now = (
                    keys[key].get(what) for keys in (self.data_keys, data_keys)
                )
                if (before or "") != (now or ""):
                    return f"{what} of {key!r} were {before!r} and are {now!r}"
        return None

    def radians(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return angles as the geometry of the house wants them (rad)."""
        return self.scale(values) if self.scale is not None else values


class RunStreams:
    """Choose the streams of one run, as their descriptors come.

    Parameters
    ----------
    profile : Profile
    start : mapping
        The start document.
    rows : (int, int), optional
        Half-open range of stored rows to read.
    fed : FedRun, optional
        Frames that come beside the documents.
    references_only : bool
        Only flats and darks are wanted, for another run.
    """

    def __init__(
        self,
        profile: Profile,
        start: Mapping[str, Any],
        rows: tuple[int, int] | None,
        fed: FedRun | None,
        *,
        references_only: bool = False,
    ) -> None:
        self._profile = profile
        self._start = start
        self._rows = rows
        self._fed = fed
        self._references_only = references_only
        self._by_name: dict[str, RunStream | None] = {}
        self._by_descriptor: dict[str, RunStream] = {}
        self._angles: RunStream | None = None
        self._projections: RunStream | None = None
        self.n_elsewhere: dict[Kind, int] = {}
        """Flats and darks from elsewhere: the run's own are numbered on from them."""

    def __iter__(self) -> Iterator[RunStream]:
        """Yield the streams with images."""
        return (stream for stream in self._by_name.values() if stream is not None)

    def of(self, descriptor: str) -> RunStream | None:
        """Return the stream of a descriptor; None for one that is of no use."""
        return self._by_descriptor.get(descriptor)

    @property
    def projections(self) -> RunStream | None:
        """The stream that holds the projections, as soon as it is declared."""
        return self._projections

    def owner_of_angles(self, stream: RunStream) -> FrameStream:
        """Return who is to be told the angles that a stream says."""
        if stream is self._angles and self._projections is not None:
            return self._projections.frames
        return stream.frames

    def describe(self, doc: Mapping[str, Any]) -> RunStream | None:
        """Take a descriptor; return its stream where this is news of one with images.

        Raises
        ------
        InputError
            It cannot be told which of its keys is which, or there is no angle.
        """
        if doc["uid"] in self._by_descriptor:
            return None
        name = doc["name"]
        if name in self._profile.streams.angles:
            self._describe_angles(doc)
            return None
        if self._by_name.get(name) is None:
            self._by_name[name] = self._new(doc)
        stream = self._by_name[name]
        if stream is not None and (change := stream.change(doc["data_keys"])):
            # Its frames are owed, and missing: read like the others they were wrong.
            log.warning("stream %s is described anew and refused: %s", name, change)
            return None
        if stream is not None:
            self._by_descriptor[doc["uid"]] = stream
            if stream.frames.kind is Kind.PROJECTION and self._projections is None:
                self._projections = stream
                if self._angles is not None:
                    stream.frames.adopt_angles(self._angles.frames)
        return stream

    def scan(self) -> Scan:
        """Return what is known of the run before its first frame."""
        keys = self._profile.start
        n = find_number(self._start, keys.n_projections)
        limit = self._profile.files.max_projections
        return Scan(
            run_uid=self._start.get("uid", ""),
            start=dict(self._start),
            n_projections=int(n) if n and 0 < n <= limit else None,
            rotation_center=find_number(self._start, keys.rotation_center),
            voxel_size_um=find_number(self._start, keys.voxel_size_um),
            rows=self._rows,
        )

    # ------------------------------------------------------------------- inside

    def _new(self, doc: Mapping[str, Any]) -> RunStream | None:
        """Return a stream to listen to; None for one without images of ours."""
        kind = self._kind_of(doc["name"])
        if kind is None:
            return None
        data_keys = doc["data_keys"]
        other = next((stream.image for stream in self), None)
        image = find_image_key(data_keys, self._profile.keys.image, doc["name"], other)
        is_fed = self._fed is not None and self._fed.carries(data_keys, image)
        if image is None and not is_fed:
            return None
        theta = scale = image_key = planned = None
        if kind is Kind.PROJECTION:
            image_key = self._image_key(doc)
            theta, scale, planned = self._theta(doc, image_key)
        first = self.n_elsewhere.get(kind, 0)
        rest = (theta, image_key, data_keys, scale, external_keys(doc))
        if self._fed is not None and is_fed:
            fed = self._fed.follow(
                *(doc["name"], kind, theta, image_key, data_keys),
                first=first,
                planned=planned,
            )
            return RunStream(fed.frames, None, *rest, fed=fed)
        assert image is not None  # noqa: S101
        frames = FrameStream(
            doc["name"],
            kind,
            frames_per_event(data_keys[image]),
            keyed=image_key is not None,
            rows=self._rows,
            first=first,
            planned=planned,
            interpolates=self._profile.keys.missing_theta == "interpolate",
            max_waiting_bytes=self._profile.window.max_bytes,
        )
        return RunStream(frames, image, *rest)

    def _kind_of(self, name: str) -> Kind | None:
        streams = self._profile.streams
        names = {
            Kind.PROJECTION: streams.projections,
            Kind.FLAT: streams.flats,
            Kind.DARK: streams.darks,
        }
        kind = next((kind for kind, known in names.items() if name in known), None)
        if kind is None or (kind is Kind.PROJECTION and self._references_only):
            return None
        for other in self:
            if other.frames.name in names[kind]:
                log.warning("stream %s ignored beside %s", name, other.frames.name)
                return None
        return kind

    def _image_key(self, doc: Mapping[str, Any]) -> str | None:
        key = self._profile.keys.image_key
        if key is not None and key not in doc["data_keys"]:
            raise InputError(
                f"stream {doc['name']!r} has no data key {key!r} (keys.image_key)\n"
                f"its keys: {', '.join(sorted(doc['data_keys']))}"
            )
        return key

    def _theta(self, doc: Mapping[str, Any], image_key: str | None) -> tuple[Any, ...]:
        """Find the angles: in the stream, in one of their own, in the start document.

        Returns
        -------
        theta : str or None
        scale : AngleScale
        planned : callable or None
        """
        keys, names = self._profile.keys, self._profile.streams.angles
        listed = StartAngles.find(self._start, self._profile.start)
        try:
            theta = find_theta_key(self._start, doc, keys.theta)
        except InputError as error:
            if names:
                # Their descriptor may still come; without it there are no angles.
                return None, AngleScale(1.0, self._profile.geometry), None
            if listed is None:
                why = str(error)
                raise InputError(f"{why}\nnor does the start document say") from None
            theta = None
        scale = self._scale(doc["data_keys"][theta] if theta else {})
        if theta is not None:
            return theta, scale, None
        assert listed is not None  # noqa: S101
        if image_key is not None and not listed.is_list:
            raise InputError(
                "the start document says where the turn begins and its step; with an "
                "image key nobody knows which frame is the first projection\n"
                "list the angles of all frames in it (start.theta)"
            )
        return None, scale, _planned(listed, scale)

    def _scale(self, data_key: Mapping[str, Any]) -> AngleScale:
        factor = radians_per_unit(data_key, self._profile.keys)
        return AngleScale(factor, self._profile.geometry)

    def _describe_angles(self, doc: Mapping[str, Any]) -> None:
        """Note a stream that holds the angles of the projections."""
        if self._angles is None:
            data_keys = doc["data_keys"]
            theta = find_theta_key(self._start, doc, self._profile.keys.theta)
            # Its angles wait here until the stream of the images is declared.
            waiting = FrameStream(doc["name"], Kind.PROJECTION, 1)
            scale = self._scale(data_keys[theta])
            self._angles = RunStream(
                waiting, None, theta, None, data_keys, scale, external_keys(doc)
            )
        self._by_descriptor[doc["uid"]] = self._angles


def _planned(listed: StartAngles, scale: AngleScale) -> Any:
    return lambda index: float(scale(np.float64(listed(index))))  # type: ignore[arg-type]
