"""Documents made of an archived run's metadata, tables and arrays."""

from __future__ import annotations

import math
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


def order_streams(run: Any, streams: Streams) -> list[str]:
    """Name the run's streams: darks, flats, others, then the projections."""
    ranks = {
        **dict.fromkeys(streams.projections, 3),
        **dict.fromkeys(streams.flats, 1),
        **dict.fromkeys(streams.darks, 0),
    }
    return sorted(run, key=lambda name: (ranks.get(name, 2), name))


def synthesize(
    run: Any, streams: Sequence[str], profile: Profile, roots: Sequence[Path]
) -> Iterator[Document]:
    """Yield the documents of a run, one stream after the other.

    Parameters
    ----------
    run : tiled client
        A BlueskyRun 3.x: one container per stream, in it an ``internal`` table and
        one array per data key ``(N, H, W)``, ``(N, 1, H, W)``, ``(N*m, H, W)`` or
        ``(N, m, H, W)``, m frames per event.
    streams : sequence of str
        In the order in which they are told.
    profile : Profile
    roots : sequence of Path
        Files outside of these are not named, their arrays are read through Tiled.
    """
    yield "start", _plain(run.metadata["start"])
    descriptors = {doc["name"]: doc for doc in reversed(run.descriptors)}
    for name in streams:
        if name in descriptors:
            stream = _Stream(run[name].base, _plain(descriptors[name]), profile, roots)
            yield from stream.documents()
    stop = run.metadata.get("stop")
    if stop:
        yield "stop", _plain(stop)


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
    """The documents of one stream."""

    def __init__(
        self,
        node: Any,
        descriptor: dict[str, Any],
        profile: Profile,
        roots: Sequence[Path],
    ) -> None:
        self._descriptor = descriptor
        self._files: dict[str, tuple[_Column, dict[str, Any]]] = {}
        self._inline: dict[str, _Column] = {}
        parts = list(node)
        self._rows = _read_rows(node[_TABLE]) if _TABLE in parts else []
        for key, described in descriptor["data_keys"].items():
            if key in parts and key != _TABLE:
                self._place(key, described, node[key], profile, roots)
        columns = [
            *self._inline.values(),
            *(column for column, _ in self._files.values()),
        ]
        self._n_events = max(
            [len(self._rows), *(c.n_events for c in columns)], default=0
        )

    def _place(
        self,
        key: str,
        described: dict[str, Any],
        node: Any,
        profile: Profile,
        roots: Sequence[Path],
    ) -> None:
        """Decide where a key's values come from: a file here, or Tiled."""
        column = _Column.of(node, described.get("shape") or ())
        resource = _resource(node, profile, roots)
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

    def documents(self) -> Iterator[Document]:
        yield "descriptor", self._descriptor
        for key, (_, resource) in self._files.items():
            yield (
                "stream_resource",
                {
                    "uid": self._resource_uid(key),
                    "run_start": self._descriptor["run_start"],
                    "data_key": key,
                    **resource,
                },
            )
        n_bytes = sum(column.event_bytes for column in self._inline.values())
        step = max(1, min(BLOCK_FRAMES, _BLOCK_BYTES // max(n_bytes, 1)))
        for start in range(0, self._n_events, step):
            stop = min(start + step, self._n_events)
            yield from self._datums(start, stop)
            yield from self._events(start, stop)

    def _resource_uid(self, key: str) -> str:
        return f"{self._descriptor['uid']}/{key}"

    def _datums(self, start: int, stop: int) -> Iterator[Document]:
        for key, (column, _) in self._files.items():
            end = min(stop, column.n_events)
            if end <= start:
                continue
            resource = self._resource_uid(key)
            yield (
                "stream_datum",
                {
                    "uid": f"{resource}/{start}",
                    "stream_resource": resource,
                    "descriptor": self._descriptor["uid"],
                    "indices": {"start": start, "stop": end},
                    "seq_nums": {"start": start + 1, "stop": end + 1},
                },
            )

    def _events(self, start: int, stop: int) -> Iterator[Document]:
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


def _read_rows(table: Any) -> list[dict[str, Any]]:
    """Read a stream's scalars, one dictionary of plain values per event."""
    columns = {str(key): values.tolist() for key, values in table.read().items()}
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
