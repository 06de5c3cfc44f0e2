"""What Tiled was told of one run, and what it must still be told."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from typing import Any

import pyarrow as pa

from ebl_stream import failpoints
from ebl_stream.publish.own_zarr import OwnArray
from ebl_stream.publish.record import ArraySpec, RunRecord, Slab
from ebl_stream.publish.tiled_api import (
    ROW_ID,
    NodePath,
    TiledApi,
    TiledFault,
    external_source,
    stored_source,
)

logger = logging.getLogger(__name__)

SPEC = "TomoRecon"
QUALITY = "quality"
ATTEMPTS_TO_READ = 3
COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_ .]*")


class RunMirror:
    """Bring Tiled's copy of one run up to its record, difference by difference.

    A subscriber to an array gets one message per slab. Its
    ``data_source.properties`` say which version the slab has (at least: a newer
    one may have been written since, and then another message follows). The
    node's metadata list the version of every slab and are never behind the
    messages.
    """

    def __init__(self, record: RunRecord, container: NodePath) -> None:
        self.record = record
        self.path: NodePath = (*container, record.processed_uid)
        self._forget_all()

    @property
    def is_current(self) -> bool:
        """Whether Tiled has all that the record holds."""
        return self._told_revision == self.record.revision

    def send(self, api: TiledApi) -> None:
        """Send the difference; TiledFault where that stops."""
        revision = self.record.revision
        try:
            self._send_difference(api)
        except TiledFault as fault:
            if fault.kind in ("unreachable", "gone"):
                self._forget_all()
            self._n_rows = None
            raise
        self._told_revision = revision

    def _forget_all(self) -> None:
        """Assume nothing of a server that may not be the one it was."""
        self._told_revision = 0
        self._sources: dict[str, dict[str, Any]] = {}
        self._stored: set[str] = set()
        self._told_slabs: dict[str, dict[int, Slab]] = {}
        self._n_unreadable = 0
        self._told_metadata: dict[str, Any] | None = None
        self._columns: pa.Schema | None = None
        self._n_rows: int | None = None
        self._closed = False

    def _send_difference(self, api: TiledApi) -> None:
        # Read first: what comes later belongs to the next round.
        metadata = self.record.metadata()
        if self._told_metadata is None:
            self._create_run(api, metadata)
        for spec in self.record.arrays:
            if spec.name not in self._sources:
                self._create_array(api, spec)
            self._send_slabs(api, spec)
        self._send_rows(api)
        if metadata != self._told_metadata:
            api.replace_metadata(self.path, metadata)
            self._told_metadata = metadata
        # After the final state, so that it is there when subscriptions end.
        if metadata["state"] != "running" and not self._closed:
            failpoints.hit("tiled.finished")
            self._close_streams(api)

    def _create_run(self, api: TiledApi, metadata: dict[str, Any]) -> None:
        for depth in range(1, len(self.path)):
            api.create_container(self.path[:depth], {})
        # It runs on until Tiled has all of it: the final state is told last.
        begun = {**metadata, "state": "running"}
        created = api.create_container(self.path, begun, [SPEC])
        if not created and not self._is_ours(api.node(self.path)):
            name = "/".join(self.path)
            raise TiledFault("refused", f"{name} is there and is another's")
        self._told_metadata = begun if created else {}
        failpoints.hit("tiled.created")

    def _is_ours(self, node: dict[str, Any]) -> bool:
        specs = {spec["name"] for spec in node.get("specs") or ()}
        return SPEC in specs and node["structure_family"] == "container"

    def _create_array(self, api: TiledApi, spec: ArraySpec) -> None:
        path = (*self.path, spec.name)
        folder = str(self.record.folder / spec.name)
        source = external_source(spec, self.record.chunks[spec.name], folder)
        empty = {"unit": spec.unit, "slabs": []}
        created = api.create_external_array(path, source, empty)
        node = api.node(path)
        known = node["data_sources"][0]
        if known["management"] != "external":
            self._remember_upload(spec, node["metadata"])
        elif not created and not _same_place(known, source):
            api.delete(path)
            raise TiledFault("busy", f"{path[-1]} was registered at another place")
        elif not self._is_readable(api, path):
            self._store_in_tiled(api, spec)
        self._sources[spec.name] = {**source, "id": known["id"]}
        failpoints.hit("tiled.registered")

    def _is_readable(self, api: TiledApi, path: NodePath) -> bool:
        """Whether Tiled gets at our disk; asked again before a no is believed."""
        if api.can_read(path):
            self._n_unreadable = 0
            return True
        self._n_unreadable += 1
        if self._n_unreadable < ATTEMPTS_TO_READ:
            raise TiledFault("busy", f"Tiled cannot read {path[-1]} yet")
        return False

    def _store_in_tiled(self, api: TiledApi, spec: ArraySpec) -> None:
        """Keep a copy in Tiled, for a server that cannot see our disk."""
        logger.warning(
            "the Tiled server cannot read %s, so %s is sent over HTTP, which is "
            "slow; list the folder in the server's readable_storage to avoid it",
            self.record.folder,
            spec.name,
        )
        path = (*self.path, spec.name)
        api.delete(path)
        source = stored_source(spec, _box(self.record.chunks[spec.name]))
        api.create_stored_array(path, source, {"unit": spec.unit, "slabs": []})
        self._remember_upload(spec, {"slabs": []})

    def _remember_upload(self, spec: ArraySpec, metadata: dict[str, Any]) -> None:
        self._stored.add(spec.name)
        slabs = [Slab(**slab) for slab in metadata["slabs"]]
        self._told_slabs[spec.name] = {slab.z0: slab for slab in slabs}

    def _send_slabs(self, api: TiledApi, spec: ArraySpec) -> None:
        slabs = self.record.slabs(spec.name)
        told = self._told_slabs.setdefault(spec.name, {})
        news = [slab for slab in slabs if told.get(slab.z0) != slab]
        if not news:
            return
        path = (*self.path, spec.name)
        if spec.name in self._stored:
            self._upload(api, spec, news)
        # First the metadata: who gets a message finds its version there.
        versions = [asdict(slab) for slab in slabs]
        api.replace_metadata(path, {"unit": spec.unit, "slabs": versions})
        failpoints.hit("tiled.versioned")
        for slab in news:
            if spec.name not in self._stored:
                self._notify(api, spec, slab)
            failpoints.hit("tiled.notified")
            told[slab.z0] = slab

    def _notify(self, api: TiledApi, spec: ArraySpec, slab: Slab) -> None:
        source = {**self._sources[spec.name], "properties": asdict(slab)}
        shape = (slab.z1 - slab.z0, *spec.shape[1:])
        api.notify_patch((*self.path, spec.name), source, (slab.z0, 0, 0), shape)

    def _upload(self, api: TiledApi, spec: ArraySpec, slabs: list[Slab]) -> None:
        chunks = self.record.chunks[spec.name]
        own = OwnArray(self.record.folder / spec.name, spec, chunks)
        box = _box(chunks)
        for slab in slabs:
            own.check_slices(slab.z0, slab.z1)
            for corner in _corners(slab, spec, box):
                z, y, x = corner
                stop = min(z + box[0], slab.z1)
                values = own.array[z:stop, y : y + box[1], x : x + box[2]]
                api.write_region((*self.path, spec.name), values, corner)

    def _send_rows(self, api: TiledApi) -> None:
        path = (*self.path, QUALITY)
        if self._columns is None:
            first = self.record.rows()[:1]
            if not first:
                return
            self._columns = _schema(first[0])
            api.create_table(path, self._columns)
            self._n_rows = None
        if self._n_rows is None:
            # Rows of a request that seemed to fail may have arrived.
            self._n_rows = api.count_rows(path)
        rows = self.record.rows(self._n_rows)
        if rows:
            api.append_rows(path, _table(rows, self._n_rows, self._columns))
            self._n_rows += len(rows)
            failpoints.hit("tiled.appended")

    def _close_streams(self, api: TiledApi) -> None:
        names = [spec.name for spec in self.record.arrays]
        if self._columns is not None:
            names.append(QUALITY)
        for name in names:
            api.close_stream((*self.path, name))
        api.close_stream(self.path)
        self._closed = True


def _same_place(known: dict[str, Any], source: dict[str, Any]) -> bool:
    return known["assets"][0]["data_uri"] == source["assets"][0]["data_uri"]


def _box(chunk: tuple[int, int, int]) -> tuple[int, int, int]:
    """Choose the part that is sent at once: below 1 MB for any dtype of ours.

    Tiled repeats it whole to subscribers, who are cut off by a larger message.
    """
    return min(2, chunk[0]), chunk[1], chunk[2]


def _corners(
    slab: Slab, spec: ArraySpec, box: tuple[int, int, int]
) -> Iterator[tuple[int, int, int]]:
    return product(
        range(slab.z0, slab.z1, box[0]),
        range(0, spec.shape[1], box[1]),
        range(0, spec.shape[2], box[2]),
    )


def _schema(row: dict[str, Any]) -> pa.Schema:
    """Choose the columns of the quality table by its first row."""
    fields = [pa.field(ROW_ID, pa.int64())]
    for name, value in row.items():
        if COLUMN.fullmatch(name) and name != ROW_ID:
            fields.append(pa.field(name, _type_of(value)))
    return pa.schema(fields)


def _type_of(value: Any) -> pa.DataType:
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, int):
        return pa.int64()
    return pa.float64()


def _table(rows: list[dict[str, Any]], first: int, schema: pa.Schema) -> pa.Table:
    columns = [pa.array(range(first, first + len(rows)), pa.int64())]
    for field in list(schema)[1:]:
        values = [_fit(row.get(field.name), field.type) for row in rows]
        columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _fit(value: Any, kind: pa.DataType) -> Any:
    """Fit a value into its column; null where it is of another kind."""
    if value is None:
        return None
    if pa.types.is_string(kind):
        return str(value)
    if isinstance(value, str):
        return None
    if pa.types.is_integer(kind):
        return int(value) if int(value) == value else None
    return float(value)
