"""A scan in an HDF5 file, told as the Bluesky run that might have written it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.frames import Kind
from ebl_stream.ingest.hdf5 import open_hdf5
from ebl_stream.ingest.links import DAMAGE
from ebl_stream.ingest.truncated import shortage
from ebl_stream.profile import Keys, Profile
from ebl_stream.profile_file import load, shipped
from ebl_stream.sources.checks import ScanFile, Stack, check_scan
from ebl_stream.sources.layouts import Container, find_layout
from ebl_stream.sources.pace import Pace

logger = logging.getLogger(__name__)

Document: TypeAlias = tuple[str, dict[str, Any]]

_BLOCK_BYTES = 4 * 2**20
_BLOCK_FRAMES = 64
_RUNS = uuid.UUID("0a6f3f0e-6d0c-5f0e-9a57-6c1f4c8e2b11")
"""Namespace of the uids of replayed files."""


class FileSource:
    """Documents of one scan in an HDF5 file: Data Exchange, NXtomo, or as named.

    The run's uid is made of the file's resolved path, size and time, and every
    other uid of that one: two replays of a file tell the very same documents.

    Parameters
    ----------
    path : pathlib.Path
    profile : Profile, optional
        Names datasets, streams and data keys; None takes the shipped one of the
        layout. :attr:`profile` is that with the data keys of the documents.
    overrides : mapping, optional
        ``{"dotted.path": value}`` on top of the shipped profile.
    speed : float, optional
        1 keeps the recorded cadence, where the file has the time of every frame.

    Raises
    ------
    InputError
        The file cannot be read, has no known layout, or is no sound scan.
    """

    def __init__(
        self,
        path: Path,
        profile: Profile | None,
        *,
        overrides: dict[str, Any] | None = None,
        speed: float | None = None,
    ) -> None:
        self.path = path.resolve()
        base = profile or load("default", overrides)
        self.roots = (
            self.path.parent,
            *(Path(root).expanduser().resolve() for root in base.files.roots),
        )
        self._scan = _look(self.path, self.roots, base)
        layout = self._scan.layout.name
        is_shipped = profile is None and layout in shipped()
        fitting = load(layout, overrides) if is_shipped else base
        self.profile = _with_keys(fitting, self._scan)
        self._speed = speed

    def documents(self) -> Iterator[Document]:
        """Yield the run: start, darks, flats, projections with angles, stop."""
        if self._speed and self._scan.times is None:
            logger.warning(
                "%s: no recorded cadence, as fast as possible", self.path.name
            )
        return _Run(self.path, self._scan, self.profile).documents(Pace(self._speed))

    def close(self) -> None:
        """Do nothing: no file is held open."""


def _look(path: Path, roots: Sequence[Path], profile: Profile) -> ScanFile:
    try:
        with open_hdf5(path) as file:
            limit = profile.files.max_frame_bytes
            scan = Container(file, path, roots, max_frame_bytes=limit)
            return check_scan(scan, find_layout(scan, profile), profile)
    except InputError as error:
        raise InputError("\n".join(filter(None, (str(error), _cut(path))))) from None
    except DAMAGE as error:
        text = " ".join(str(error).split())[:200]
        why = "\n".join(filter(None, (text, _cut(path))))
        raise InputError(f"{path} cannot be read as HDF5: {why}") from None


def _cut(path: Path) -> str:
    short = shortage(path)
    return short and f"{short}; copy it again from where it was written"


def _with_keys(profile: Profile, scan: ScanFile) -> Profile:
    keys = Keys(
        image=profile.keys.image or "image",
        theta=profile.keys.theta or "theta",
        image_key=(profile.keys.image_key or "image_key")
        if scan.kinds is not None
        else None,
    )
    return profile.model_copy(update={"keys": keys})


class _Run:
    """The documents of one scan, made in order."""

    def __init__(self, path: Path, scan: ScanFile, profile: Profile) -> None:
        status = path.stat()
        identity = f"{path}:{status.st_size}:{status.st_mtime_ns}"
        self.uid = str(uuid.uuid5(_RUNS, identity))
        self.path, self.scan, self.profile = path, scan, profile
        self.time = status.st_mtime
        self.keys = profile.keys
        self.num_events: dict[str, int] = {}

    def documents(self, pace: Pace) -> Iterator[Document]:
        streams = self.profile.streams
        yield "start", self._start()
        yield from self._references(_first(streams.darks, "darks"), self.scan.darks)
        yield from self._references(_first(streams.flats, "flats"), self.scan.flats)
        name = _first(streams.projections, "primary")
        yield from self._projections(name, pace)
        yield "stop", self._stop()

    def _uid(self, *parts: object) -> str:
        return str(uuid.uuid5(uuid.UUID(self.uid), "/".join(map(str, parts))))

    def _start(self) -> dict[str, Any]:
        scan, names = self.scan, self.profile.start
        use_center = self.profile.geometry.use_file_center
        found = {
            names.n_projections: scan.n_projections,
            names.rotation_center: scan.rotation_center if use_center else None,
            names.voxel_size_um: scan.voxel_size_um,
            ("sample",): scan.sample,
        }
        return {
            "uid": self.uid,
            "time": self.time,
            "plan_name": "replay",
            "motors": [self.keys.theta],
            "source_file": self.path.name,
            "source_layout": scan.layout.name,
            **{
                key[0]: value
                for key, value in found.items()
                if key and value is not None
            },
        }

    def _stop(self) -> dict[str, Any]:
        return {
            "uid": self._uid("stop"),
            "run_start": self.uid,
            "time": self.time,
            # Whoever wrote a truncated file, or copied it, did not come to the end.
            "exit_status": "fail" if self.scan.shortage else "success",
            "reason": self.scan.shortage,
            "num_events": dict(self.num_events),
        }

    def _references(self, stream: str, stack: Stack | None) -> Iterator[Document]:
        if stack is None:
            return
        image = str(self.keys.image)
        self.num_events[stream] = stack.shape[0]
        if stack.image is not None:
            yield (
                "descriptor",
                self._descriptor(stream, {image: self._inline_key(stack)}),
            )
            yield "event", self._event(stream, image, stack.image)
            return
        yield "descriptor", self._descriptor(stream, {image: self._data_key(stack)})
        yield "stream_resource", self._resource(stream, image, stack)
        for start, stop in _blocks(np.arange(stack.shape[0]), _block_frames(stack)):
            yield "stream_datum", self._datum(stream, image, start, stop)

    def _projections(self, stream: str, pace: Pace) -> Iterator[Document]:
        """Tell of the frames; darks and flats among them (image key) go first."""
        stacks = self._joined()
        units = {self.keys.theta: self.scan.theta_unit}
        data_keys = {
            key: self._data_key(stack, units.get(key)) for key, stack in stacks.items()
        }
        self.num_events[stream] = self.scan.projections.shape[0]
        yield "descriptor", self._descriptor(stream, data_keys)
        for key, stack in stacks.items():
            yield "stream_resource", self._resource(stream, key, stack)
        n_block = _block_frames(self.scan.projections)
        for indices in _dealt(self.scan):
            for start, stop in _blocks(indices, n_block):
                if self.scan.times is not None:
                    pace.wait(self.scan.times[stop - 1])
                for key in stacks:
                    yield "stream_datum", self._datum(stream, key, start, stop)

    def _joined(self) -> dict[str, Stack]:
        """Return what is told frame by frame, the image last: its angle is known."""
        scan, keys = self.scan, self.keys
        stacks = {str(keys.theta): scan.theta}
        if scan.kinds is not None and scan.layout.image_key:
            kinds = scan.kinds
            stacks[str(keys.image_key)] = Stack(
                scan.layout.image_key, kinds.shape, kinds.dtype.str, kinds.shape
            )
        return {**stacks, str(keys.image): scan.projections}

    def _descriptor(self, stream: str, data_keys: dict[str, Any]) -> dict[str, Any]:
        return {
            "uid": self._uid(stream),
            "run_start": self.uid,
            "time": self.time,
            "name": stream,
            "data_keys": data_keys,
            "object_keys": {"file": list(data_keys)},
            "configuration": {},
            "hints": {},
        }

    def _data_key(self, stack: Stack, units: str | None = None) -> dict[str, Any]:
        """Describe a file-backed data key: one entry of the dataset per event."""
        return {
            "source": f"file:{self.path.name}:{stack.dataset}",
            "dtype": "array" if len(stack.shape) > 1 else "number",
            "dtype_numpy": stack.dtype,
            "shape": [1, *stack.shape[1:]],
            "external": "STREAM:",
            **({"units": units} if units else {}),
        }

    def _inline_key(self, stack: Stack) -> dict[str, Any]:
        described = self._data_key(stack) | {"shape": list(stack.shape[1:])}
        del described["external"]
        return described

    def _event(self, stream: str, key: str, value: NDArray[Any]) -> dict[str, Any]:
        return {
            "uid": self._uid(stream, key, "event"),
            "descriptor": self._uid(stream),
            "time": self.time,
            "seq_num": 1,
            "data": {key: value},
            "timestamps": {key: self.time},
            "filled": {},
        }

    def _resource(self, stream: str, key: str, stack: Stack) -> dict[str, Any]:
        return {
            "uid": self._uid(stream, key),
            "run_start": self.uid,
            "data_key": key,
            "mimetype": "application/x-hdf5",
            "uri": f"file://localhost{quote(str(self.path))}",
            "parameters": {
                "dataset": stack.dataset,
                "chunk_shape": list(stack.chunks),
            },
        }

    def _datum(self, stream: str, key: str, start: int, stop: int) -> dict[str, Any]:
        resource = self._uid(stream, key)
        return {
            "uid": f"{resource}/{start}",
            "stream_resource": resource,
            "descriptor": self._uid(stream),
            "indices": {"start": start, "stop": stop},
            "seq_nums": {"start": start + 1, "stop": stop + 1},
        }


def _first(names: tuple[str, ...], otherwise: str) -> str:
    return names[0] if names else otherwise


def _block_frames(stack: Stack) -> int:
    n_bytes = int(np.prod(stack.shape[1:])) * np.dtype(stack.dtype).itemsize
    return max(1, min(_BLOCK_FRAMES, _BLOCK_BYTES // n_bytes))


def _dealt(scan: ScanFile) -> list[NDArray[np.integer[Any]]]:
    """Deal the stored frames out: darks, flats, then the rest in their order."""
    if scan.kinds is None:
        return [np.arange(scan.projections.shape[0])]
    is_dark, is_flat = scan.kinds == Kind.DARK, scan.kinds == Kind.FLAT
    rest = ~(is_dark | is_flat)
    return [np.flatnonzero(which) for which in (is_dark, is_flat, rest)]


def _blocks(
    indices: NDArray[np.integer[Any]], n_block: int
) -> Iterator[tuple[int, int]]:
    """Cut ascending indices into half-open ranges of at most ``n_block`` frames."""
    if not len(indices):
        return
    gaps = np.flatnonzero(np.diff(indices) > 1) + 1
    for first, last in pairwise((0, *gaps.tolist(), len(indices))):
        start, end = int(indices[first]), int(indices[last - 1]) + 1
        for block in range(start, end, n_block):
            yield block, min(block + n_block, end)
