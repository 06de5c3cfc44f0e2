"""What is known of one processed run: the content of its folder, except pixels."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ebl_stream import strict_json

FORMAT = "ebl_stream.output/1"
MAX_ROWS_BYTES = 2**28
NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
"""Of an array: the folder in which it lies."""
DTYPE = re.compile(r"[<|]?[fiu][1248]|u?int(8|16|32|64)|float(16|32|64)")


@dataclass(frozen=True)
class ArraySpec:
    """One array of a run, ``[z, y, x]``."""

    name: str
    shape: tuple[int, int, int]
    dtype: str
    unit: str
    """``1/px``, ``1/um``, or an empty string for labels."""
    slab_rows: int | None = None
    """Height of the slabs that are written; None: as of the volume."""


@dataclass(frozen=True)
class Slab:
    """Which version of slices ``z0`` to ``z1`` (half-open) is on disk."""

    z0: int
    z1: int
    version: int
    n_used: int
    """Projections that went into it."""
    coverage: float
    """Projections in it over projections that the run owes, 0..1."""


class RunRecord:
    """All that may be told of one run, except pixels; safe across threads.

    Written by ``RunOutput`` only. ``revision`` grows with every change.
    """

    def __init__(
        self,
        folder: Path,
        arrays: Sequence[ArraySpec],
        chunks: Mapping[str, tuple[int, int, int]],
        metadata: dict[str, Any],
        state: str = "running",
    ) -> None:
        self.folder = folder
        self.arrays = tuple(arrays)
        self.chunks = dict(chunks)
        self._lock = threading.Lock()
        self._metadata = {**metadata, "state": state}
        self._slabs: dict[str, dict[int, Slab]] = {spec.name: {} for spec in arrays}
        self._rows: list[dict[str, Any]] = []
        self._revision = 1

    @property
    def processed_uid(self) -> str:
        """The run's uid, which names its folder and its place in Tiled."""
        return self.folder.name

    @property
    def revision(self) -> int:
        """Number of changes so far."""
        return self._revision

    @property
    def state(self) -> str:
        """``running``, ``complete``, ``partial``, ``failed``, ``superseded``."""
        with self._lock:
            return self._metadata["state"]

    def metadata(self) -> dict[str, Any]:
        """Return the run's metadata with its ``state``; plain JSON types."""
        with self._lock:
            return dict(self._metadata)

    def slabs(self, name: str) -> list[Slab]:
        """Return the latest version of every slab of an array, by ``z0``."""
        with self._lock:
            return sorted(self._slabs[name].values(), key=lambda slab: slab.z0)

    def has(self, name: str, z0: int) -> bool:
        """Return whether a version of the slab at ``z0`` is on disk."""
        with self._lock:
            return z0 in self._slabs[name]

    def rows(self, start: int = 0) -> list[dict[str, Any]]:
        """Return the quality rows from number ``start`` on."""
        with self._lock:
            return self._rows[start:]

    def merge(self, metadata: Mapping[str, Any], state: str | None = None) -> None:
        """Merge metadata: sections key by key, everything below is replaced."""
        with self._lock:
            # A new dict: what was handed out before stays as it was.
            merged = dict(self._metadata)
            for key, value in plain(metadata).items():
                old = merged.get(key)
                if isinstance(old, dict) and isinstance(value, dict):
                    merged[key] = {**old, **value}
                else:
                    merged[key] = value
            merged["state"] = state or self._metadata["state"]
            self._metadata = merged
            self._revision += 1

    def note(self, name: str, slab: Slab) -> None:
        """Note a slab that is on disk."""
        with self._lock:
            self._slabs[name][slab.z0] = slab
            self._revision += 1

    def add_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add quality rows; their order is their number."""
        with self._lock:
            self._rows.extend(rows)
            self._revision += 1

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``metadata.json``."""
        arrays = {
            spec.name: {**asdict(spec), "chunks": self.chunks[spec.name]}
            for spec in self.arrays
        }
        slabs = {
            spec.name: [asdict(slab) for slab in self.slabs(spec.name)]
            for spec in self.arrays
        }
        return plain(
            {"format": FORMAT, **self.metadata(), "arrays": arrays, "slabs": slabs}
        )


def read_record(folder: Path) -> RunRecord:
    """Read a run's record back from its folder, to tell Tiled of it again.

    Raises
    ------
    OSError, ValueError
        The folder is not there, or not one of ours.
    """
    content = strict_json.load(Path(folder) / "metadata.json")
    if content.pop("format", None) != FORMAT:
        raise ValueError(f"{folder}: metadata.json is not of the format {FORMAT}")
    arrays, slabs = content.pop("arrays"), content.pop("slabs")
    chunks = {name: tuple(array.pop("chunks")) for name, array in arrays.items()}
    specs = [
        ArraySpec(**{**array, "shape": tuple(array["shape"])})
        for array in arrays.values()
    ]
    for spec in specs:
        _require_array(spec, chunks[spec.name])
    state = content.pop("state")
    record = RunRecord(Path(folder).absolute(), specs, chunks, content, state)
    for name, versions in slabs.items():
        for slab in versions:
            _require_natural(name, slab["z0"], slab["z1"], slab["n_used"])
            record.note(name, Slab(**slab))
    rows = Path(folder) / "quality.jsonl"
    if rows.exists():
        # A process that died within an append leaves a last line without an end.
        text = strict_json.read(rows, max_bytes=MAX_ROWS_BYTES).decode()
        lines = text.split("\n")[:-1]
        record.add_rows([strict_json.loads(line) for line in lines])
    return record


def _require_array(spec: ArraySpec, chunks: tuple[int, ...]) -> None:
    """Refuse what would lead out of the folder, or is no array of ours."""
    if not NAME.fullmatch(spec.name):
        raise ValueError(f"an array cannot have the name {spec.name[:40]!r}")
    if not len(spec.shape) == len(chunks) == 3 or 0 in (*spec.shape, *chunks):
        raise ValueError(f"{spec.name}: shape {spec.shape}, chunks {chunks}")
    _require_natural(spec.name, *spec.shape, *chunks)
    if not DTYPE.fullmatch(spec.dtype):
        raise ValueError(f"{spec.name}: values of type {spec.dtype[:40]!r}")


def _require_natural(name: str, *numbers: object) -> None:
    for number in numbers:
        if type(number) is not int or number < 0:
            raise ValueError(f"{name}: {str(number)[:40]} where a number is expected")


def plain(value: Any) -> Any:
    """Turn a value into plain JSON types: NaN and infinity become null."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)
