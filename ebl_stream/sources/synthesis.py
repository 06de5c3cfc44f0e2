"""Documents made of an archived run's metadata, tables and arrays."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ebl_stream.profile import Profile, Streams
from ebl_stream.sources.recorded import find_hdf5

Document: TypeAlias = tuple[str, dict[str, Any]]

BLOCK_FRAMES = 64
_BLOCK_BYTES = 4 * 2**20
_TABLE = "internal"
_PLACED_WITHIN_S = 5.0
"""How long a stream waits for the arrays of all its data keys."""


def order_streams(run: Any, streams: Streams) -> list[str]:
    """Name the run's streams: darks, flats, others, then the projections."""
    ranks = {
        **dict.fromkeys(streams.projections, 3),
        **dict.fromkeys(streams.flats, 1),
        **dict.fromkeys(streams.darks, 0),
    }
    return sorted(run, key=lambda name: (ranks.get(name, 2), name))


class RunTeller:
    """Tells a run on a Tiled server as documents, as much of it as there is.

    Called again it tells what came since; what was told of is what the caller has
    taken from the iterator and gone on after.

    Parameters
    ----------
    profile : Profile
    roots : sequence of Path
        Files outside of these are not named, their arrays are read through Tiled.
    """

    def __init__(self, profile: Profile, roots: Sequence[Path]) -> None:
        self._profile = profile
        self._roots = roots
        self._streams: dict[str, _Stream] = {}
        self._has_begun = False
        self.is_over = False

    def documents(self, run: Any) -> Iterator[Document]:
        """Yield what was not told yet, one stream after the other.

        Parameters
        ----------
        run : tiled client
            A BlueskyRun 3.x, fetched anew: one container per stream, in it an
            ``internal`` table and one array per data key ``(N, H, W)``,
            ``(N, 1, H, W)``, ``(N*m, H, W)`` or ``(N, m, H, W)``, m frames per event.
        """
        if not self._has_begun:
            yield "start", _plain(run.metadata["start"])
            self._has_begun = True
        stop = run.metadata.get("stop")
        descriptors = {doc["name"]: doc for doc in reversed(run.descriptors)}
        for name in order_streams(run, self._profile.streams):
            if name in descriptors:
                if name not in self._streams:
                    descriptor = _plain(descriptors[name])
                    stream = _Stream(descriptor, self._profile, self._roots)
                    self._streams[name] = stream
                node = run[name].base
                yield from self._streams[name].documents(node, is_over=bool(stop))
        if stop:
            yield from self.end(run)

    def end(self, run: Any) -> Iterator[Document]:
        """Yield the stop document, whatever of the run was told."""
        yield "stop", _plain(run.metadata["stop"])
        self.is_over = True


@dataclass(frozen=True)
class _Column:
    """One array of a stream, by event."""

    node: Any
    n_events: int
    n_per_event: int
    """Rows of the array that make one event; 0 where each row is one."""

    @classmethod
    def of(cls, node: Any, datum_shape: Sequence[int]) -> _Column:
        shape = tuple(node.shape)
        if len(shape) > len(datum_shape):
            return cls(node, shape[0], 0)
        n_per_event = max(datum_shape[0], 1)
        return cls(node, shape[0] // n_per_event, n_per_event)

    def grown(self, node: Any) -> _Column:
        """Return the same column of an array that has grown."""
        return _Column(node, node.shape[0] // (self.n_per_event or 1), self.n_per_event)

    @property
    def event_bytes(self) -> int:
        total = math.prod(self.node.shape) * self.node.dtype.itemsize
        return total // max(self.n_events, 1)

    def read(self, start: int, stop: int) -> list[NDArray[Any]]:
        """Read the values of some events, a leading axis of one left out."""
        stop = min(stop, self.n_events)
        m = self.n_per_event or 1
        if stop <= start:
            return []
        rows = self.node[start * m : stop * m]
        if self.n_per_event:
            rows = [rows[i : i + m] for i in range(0, len(rows), m)]
        return [row[0] if row.ndim and row.shape[0] == 1 else row for row in rows]


class _Stream:
    """The documents of one stream, and how far they were told."""

    def __init__(
        self, descriptor: dict[str, Any], profile: Profile, roots: Sequence[Path]
    ) -> None:
        self._descriptor = descriptor
        self._profile, self._roots = profile, roots
        self._files: dict[str, tuple[_Column, dict[str, Any]]] = {}
        self._inline: dict[str, _Column] = {}
        self._rows: list[dict[str, Any]] = []
        self._told: dict[str, int] = {}
        """Events told, by data key in a file; of events themselves under ``""``."""
        self._has_begun = False
        self._seen_s = math.inf

    def documents(self, node: Any, *, is_over: bool) -> Iterator[Document]:
        """Yield what was not told yet; what is whole, unless the run is over."""
        self._update(node)
        if not (is_over or self._has_begun or self._can_begin()):
            return
        if not self._has_begun:
            yield "descriptor", self._descriptor
            self._has_begun = True
        for key, (_, resource) in self._files.items():
            if key not in self._told:
                yield "stream_resource", self._resource(key, resource)
                self._told[key] = 0
        n_events = self._n_inline(is_over)
        n_bytes = sum(column.event_bytes for column in self._inline.values())
        step = max(1, min(BLOCK_FRAMES, _BLOCK_BYTES // max(n_bytes, 1)))
        told = [self._told.setdefault("", 0), *self._told.values()]
        ends = [n_events, *(column.n_events for column, _ in self._files.values())]
        for start in range(min(told), max(ends), step):
            yield from self._datums(start, start + step)
            begin, end = max(start, self._told[""]), min(start + step, n_events)
            yield from self._events(begin, end)

    def _update(self, node: Any) -> None:
        """Look how far the stream has grown, and where new keys are."""
        parts = dict(node.items())
        if _TABLE in parts:
            self._rows += _read_rows(parts[_TABLE], len(self._rows))
        for key, described in self._descriptor["data_keys"].items():
            if key not in parts or key == _TABLE:
                continue
            if key in self._files:
                column, resource = self._files[key]
                self._files[key] = (column.grown(parts[key]), resource)
            elif key in self._inline:
                self._inline[key] = self._inline[key].grown(parts[key])
            else:
                self._place(key, described, parts[key])

    def _can_begin(self) -> bool:
        """Say whether it is known where every key is; a descriptor tells it once."""
        found = self._files.keys() | self._inline.keys() | self._columns()
        if not found:
            return False
        now = time.monotonic()
        self._seen_s = min(self._seen_s, now)
        is_whole = self._descriptor["data_keys"].keys() <= found
        return is_whole or now - self._seen_s > _PLACED_WITHIN_S

    def _columns(self) -> set[str]:
        return set(self._rows[0]) if self._rows else set()

    def _n_inline(self, is_over: bool) -> int:
        """Return how many events can be told: rows and arrays grow one by one."""
        sizes = [column.n_events for column in self._inline.values()]
        sizes += [len(self._rows)] if self._rows or not sizes else []
        return (max if is_over else min)(sizes)

    def _place(self, key: str, described: dict[str, Any], node: Any) -> None:
        """Decide where a key's values come from: a file here, or Tiled."""
        column = _Column.of(node, described.get("shape") or ())
        resource = _resource(node, self._profile, self._roots)
        if resource:
            self._files[key] = (column, resource)
            return
        self._inline[key] = column
        # Such a key no longer lies outside of the events.
        described.pop("external", None)
        rest = (
            node.shape[1:]
            if not column.n_per_event
            else (column.n_per_event, *node.shape[1:])
        )
        described["shape"] = list(rest[1:] if rest[:1] == (1,) else rest)

    def _resource(self, key: str, resource: dict[str, Any]) -> dict[str, Any]:
        uid, run = self._resource_uid(key), self._descriptor["run_start"]
        return {"uid": uid, "run_start": run, "data_key": key, **resource}

    def _resource_uid(self, key: str) -> str:
        return f"{self._descriptor['uid']}/{key}"

    def _datums(self, start: int, stop: int) -> Iterator[Document]:
        for key, (column, _) in self._files.items():
            begin, end = max(start, self._told[key]), min(stop, column.n_events)
            if end <= begin:
                continue
            resource = self._resource_uid(key)
            yield (
                "stream_datum",
                {
                    # With both ends: told anew, it may be cut in other places.
                    "uid": f"{resource}/{begin}:{end}",
                    "stream_resource": resource,
                    "descriptor": self._descriptor["uid"],
                    "indices": {"start": begin, "stop": end},
                    "seq_nums": {"start": begin + 1, "stop": end + 1},
                },
            )
            self._told[key] = end

    def _events(self, start: int, stop: int) -> Iterator[Document]:
        if stop <= start:
            return
        blocks = {key: column.read(start, stop) for key, column in self._inline.items()}
        for i in range(start, stop):
            row = dict(self._rows[i]) if i < len(self._rows) else {}
            number, time = row.pop("seq_num", i + 1), row.pop("time", 0.0)
            stamps = {
                k: row.pop(f"ts_{k}", time) for k in self._descriptor["data_keys"]
            }
            data = {k: v for k, v in row.items() if k in stamps}
            for key, block in blocks.items():
                if i - start < len(block):
                    value = block[i - start]
                    data[key] = value if value.ndim else value.item()
            if data:
                yield (
                    "event",
                    {
                        "uid": f"{self._descriptor['uid']}/event/{i}",
                        "descriptor": self._descriptor["uid"],
                        "seq_num": int(number),
                        "time": float(time),
                        "data": data,
                        "timestamps": {key: float(stamps[key]) for key in data},
                        "filled": {},
                    },
                )
            self._told[""] = i + 1


def _resource(
    node: Any, profile: Profile, roots: Sequence[Path]
) -> dict[str, Any] | None:
    """Describe the HDF5 file behind an array, if it is one file readable here."""
    sources = node.data_sources() or []
    if len(sources) != 1 or sources[0].mimetype != "application/x-hdf5":
        return None
    assets = sources[0].assets
    if len(assets) != 1 or not find_hdf5(assets[0].data_uri, roots, profile):
        return None
    return {
        "mimetype": sources[0].mimetype,
        "uri": assets[0].data_uri,
        "parameters": dict(sources[0].parameters),
    }


def _read_rows(table: Any, first: int) -> list[dict[str, Any]]:
    """Read a stream's scalars from an event on, a dictionary of plain values each.

    The server sends the whole table: it knows no ranges of rows. Rows are appended,
    never changed.
    """
    frame = table.read()[first:]
    columns = {str(key): values.tolist() for key, values in frame.items()}
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


def _plain(value: Any) -> Any:
    """Copy Tiled's read-only views into dictionaries and lists."""
    if hasattr(value, "items"):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return value
    return value if isinstance(value, np.ndarray) else [_plain(v) for v in value]
