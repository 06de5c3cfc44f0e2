"""Read what the four places say: ``(id, checksum)``, each in the order it came."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

SAME_WEIGHT = 1e-4
"""Relative: changes too small to be worth adding are left out of the grids."""


@dataclass(frozen=True)
class Exposure:
    """One frame as the detector made it."""

    id: int
    crc: int
    theta: float
    """rad."""


@dataclass
class Place:
    """What one place holds: per id the checksums with effect, in order."""

    found: dict[int, list[Any]] = field(default_factory=dict)

    def add(self, frame_id: int, checksum: Any) -> None:
        self.found.setdefault(frame_id, []).append(checksum)


def read_detector(path: Path, run_uid: str) -> list[Exposure]:
    """Read the detector's own record of one run."""
    lines = map(json.loads, path.read_text().splitlines())
    return [
        Exposure(line["id"], line["crc"], line["theta"])
        for line in lines
        if line["run"] == run_uid
    ]


def read_journal(folder: Path, run_uid: str) -> Place:
    """Read the projections in a run's journals: events of the stream ``primary``."""
    place = Place()
    for path in sorted(folder.glob("*.ebldocs")):
        streams: dict[str, str] = {}
        for name, doc in _documents(path):
            if name == "descriptor" and doc["run_start"] == run_uid:
                streams[doc["uid"]] = doc["name"]
            if name == "event" and streams.get(doc["descriptor"]) == "primary":
                place.add(doc["seq_num"] - 1, _crc_of_image(doc["data"]))
    return place


def read_audit(folder: Path, processed_uid: str) -> Place:
    """Read what was added to the grids, net of what was taken out of them.

    An id is there once for every whole weight: what was added over the weight that
    the grids should hold.
    """
    sums: dict[int, float] = {}
    last: dict[int, tuple[int, float]] = {}
    for line in (folder / f"{processed_uid}.audit.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "reset" in entry:
            sums, last = {}, {}
        for frame_id, crc, change, after in entry.get("added", ()):
            sums[frame_id] = sums.get(frame_id, 0.0) + change
            last[frame_id] = crc, after
    place = Place()
    for frame_id, (crc, after) in last.items():
        times = sums[frame_id] / after if after else sums[frame_id]
        if abs(times - round(times)) > SAME_WEIGHT * max(1.0, abs(times)):
            place.add(frame_id, None)  # neither in nor out: no checksum fits that
        for _ in range(round(times)):
            place.add(frame_id, crc)
    return place


def read_back(folder: Path, processed_uid: str) -> tuple[Place, set[int]]:
    """Read the published angles by id, and the ids that the ledger names."""
    metadata = json.loads((folder / processed_uid / "metadata.json").read_text())
    place = Place()
    angles = metadata["angles"]
    for frame_id, theta in zip(angles["index"], angles["theta_rad"], strict=True):
        place.add(frame_id, theta)
    ledger = metadata["ledger"]
    keys = ("missing_indices", "rejected_indices", "dropped_indices")
    named = {k for key in keys for a, b in ledger[key] for k in range(a, b)}
    return place, named


def results_of(folder: Path, run_uid: str) -> dict[str, str]:
    """Return the state of every folder of results of a run."""
    states: dict[str, str] = {}
    for path in folder.glob("*/metadata.json"):
        metadata = json.loads(path.read_text())
        if metadata["start"].get("original_run_uid") == run_uid:
            states[path.parent.name] = metadata["state"]
    return states


def _documents(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A journal is a header, then ``[received, packed [name, document]]``."""
    with path.open("rb") as file:
        values = msgpack.Unpacker(file, max_buffer_size=2**31)
        next(values)
        for _, packed in values:
            name, doc = msgpack.unpackb(packed, ext_hook=_array, timestamp=1)
            yield name, doc


def _array(code: int, data: bytes) -> tuple[int, ...]:
    """Return an array's shape and the checksum of its bytes."""
    n_dimensions = data[0]
    end = 16 + 8 * n_dimensions
    shape = struct.unpack(f"<{n_dimensions}Q", data[16:end])
    start = end + end % 16  # the pixels lie aligned
    return (*shape, zlib.crc32(data[start:]))


def _crc_of_image(data: dict[str, Any]) -> int | None:
    arrays = [value for value in data.values() if isinstance(value, tuple)]
    return next((array[-1] for array in arrays if len(array) > 2), None)
