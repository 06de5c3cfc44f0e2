"""A processed run on its way to other programs: checked, and slab by slab."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ebl_stream import __version__
from ebl_stream.errors import InputError
from ebl_stream.publish.own_zarr import OwnArray
from ebl_stream.publish.record import ArraySpec, RunRecord, plain, read_record

FORMAT = "ebl_stream.export/1"
ARRAYS = ("recon", "denoised", "labels")

Dtype = Literal["float32", "uint16", "uint8"]
Progress = Callable[[int, int], None]
"""Called with the slices that are done, and with all."""


class Volume:
    """One array of a processed run, read slab by slab.

    Parameters
    ----------
    record : RunRecord
    name : str
        One of ``ARRAYS``.
    rows : (int, int), optional
        Half-open range of slices; all by default.

    Raises
    ------
    InputError
        The run has no such array, or not these slices.
    """

    def __init__(
        self, record: RunRecord, name: str, rows: tuple[int, int] | None = None
    ) -> None:
        self.record = record
        self.spec = self._find(name)
        self.z0, self.z1 = rows or (0, self.spec.shape[0])
        if not 0 <= self.z0 < self.z1 <= self.spec.shape[0]:
            raise InputError(
                f"slices {self.z0}:{self.z1}: {name} has slices 0:{self.spec.shape[0]}"
            )
        if not record.slabs(name):
            raise InputError(f"{record.folder}: nothing was written to {name} yet")
        self._path = record.folder / name
        self._own = OwnArray(self._path, self.spec, record.chunks[name])

    @property
    def name(self) -> str:
        """Of the array."""
        return self.spec.name

    @property
    def shape(self) -> tuple[int, int, int]:
        """``[z, y, x]`` of what is exported."""
        return (self.z1 - self.z0, *self.spec.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored."""
        return np.dtype(self.spec.dtype)

    def _find(self, name: str) -> ArraySpec:
        there = {spec.name: spec for spec in self.record.arrays if spec.name in ARRAYS}
        if name not in there:
            names = ", ".join(there) or "none"
            raise InputError(
                f"{self.record.folder}: no array {name!r} (it has {names})"
            )
        return there[name]

    def __iter__(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield ``(first slice, [z, y, x])``, as high as a chunk.

        Raises
        ------
        InputError
            A part of the slab is missing or damaged; the message says which.
        """
        step = self._own.chunks[0]
        for z in range(self.z0 - self.z0 % step, self.z1, step):
            first, stop = max(z, self.z0), min(z + step, self.z1)
            self._check_files(first, stop)
            try:
                values = self._own.array[first:stop]
            except Exception as error:  # checksum, decompressor, disk
                raise self._damaged(first, stop, error) from None
            yield first, values

    def _check_files(self, first: int, stop: int) -> None:
        """Chunks that were written must be there: zarr takes a lost one for zeros."""
        slabs = self.record.slabs(self.name)
        is_owed = any(slab.z0 < stop and first < slab.z1 for slab in slabs)
        for key in self._own.keys(first):
            try:
                is_there = self._own.check(key)
            except (OSError, ValueError) as error:
                raise self._unreadable(first, stop, f"{key} {error}") from None
            if is_owed and not is_there:
                raise self._unreadable(first, stop, f"{key} is lost")

    def _damaged(self, first: int, stop: int, error: Exception) -> InputError:
        """Find out which chunk it is."""
        for key in self._own.keys(first):
            z, y, x = (int(part) for part in key.split("/")[1:])
            try:
                self._own.array.blocks[z, y, x]
            except Exception as found:
                return self._unreadable(first, stop, f"{key}: {found}")
        return self._unreadable(first, stop, str(error))

    def _unreadable(self, first: int, stop: int, why: str) -> InputError:
        why = " ".join(why.split())
        return InputError(
            f"slices {first}:{stop} of {self._path} are damaged: {why}"
            "\nReconstruct the run again, or export other slices with --rows."
        )


@dataclass(frozen=True)
class Scale:
    """How values are stored: ``value = offset + slope * stored``."""

    dtype: str
    offset: float = 0.0
    slope: float = 1.0

    @classmethod
    def between(cls, dtype: Dtype, low: float, high: float) -> Scale:
        """Spread a range over all integers of a dtype; what is outside is clipped."""
        steps = np.iinfo(dtype).max
        return cls(dtype, low, (high - low) / steps if high > low else 1.0)

    @property
    def is_plain(self) -> bool:
        """Whether values are stored as they are."""
        return (self.offset, self.slope) == (0.0, 1.0)

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return what is stored of values."""
        if self.is_plain:
            return values.astype(self.dtype, copy=False)
        scaled = values - np.float32(self.offset)
        scaled *= np.float32(1 / self.slope)
        np.rint(scaled, out=scaled)
        np.clip(scaled, 0, np.iinfo(self.dtype).max, out=scaled)
        return scaled.astype(self.dtype)


def choose_scale(
    volume: Volume, dtype: Dtype | None, limits: tuple[float, float] | None
) -> Scale:
    """Return how to store a volume; without limits its extremes are looked for.

    Raises
    ------
    InputError
        The choice makes no sense for this array, or a slab is damaged.
    """
    if dtype in (None, str(volume.dtype)):
        if limits is not None:
            raise InputError("--range is for --dtype uint16 and uint8")
        return Scale(str(volume.dtype))
    if volume.name == "labels":
        raise InputError(f"labels are numbers of phases: {volume.dtype} only")
    if dtype == "float32" or dtype is None:
        return Scale("float32")
    if limits is None:
        lows, highs = zip(*((v.min(), v.max()) for _, v in volume), strict=True)
        limits = float(min(lows)), float(max(highs))
    if not (np.isfinite(limits).all() and limits[0] <= limits[1]):
        raise InputError(f"--range {limits[0]:g} {limits[1]:g}: expected LOW <= HIGH")
    return Scale.between(dtype, *limits)


def open_run(folder: Path) -> RunRecord:
    """Read a run's record.

    Raises
    ------
    InputError
        The folder is not there, or holds no result.
    """
    try:
        return read_record(folder)
    except FileNotFoundError:
        raise InputError(f"{folder}: no result (there is no metadata.json)") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: no result that can be read: {error}") from None


def warnings(volume: Volume) -> list[str]:
    """Return what somebody who takes the volume for whole should know."""
    record, found = volume.record, []
    ledger = record.metadata().get("ledger") or {}
    if record.state != "complete":
        used, owed = ledger.get("used"), ledger.get("announced")
        state = "not ended" if record.state == "running" else record.state
        found.append(f"the run is {state}: {used} of {owed} projections are in it")
    slabs = record.slabs(volume.name)
    inside = [slab for slab in slabs if slab.z0 < volume.z1 and volume.z0 < slab.z1]
    n_written = sum(min(s.z1, volume.z1) - max(s.z0, volume.z0) for s in inside)
    if n_written < volume.shape[0]:
        n_empty = volume.shape[0] - n_written
        found.append(f"{n_empty} slices of {volume.name} are 0: they were not written")
    newest = max((slab.n_used for slab in record.slabs("recon")), default=0)
    oldest = min((slab.n_used for slab in inside), default=newest)
    if oldest < newest:
        found.append(
            f"parts of {volume.name} are of {oldest} projections, others of {newest}"
        )
    return found


def provenance(volume: Volume, scale: Scale) -> dict[str, Any]:
    """Return all that is known of an exported array; plain JSON types."""
    record = volume.record
    metadata = record.metadata()
    return plain(
        {
            "format": FORMAT,
            "exported_by": f"ebl_stream {__version__}",
            "exported_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "processed_uid": record.processed_uid,
            "original_run_uid": (metadata.get("start") or {}).get("original_run_uid"),
            "complete": record.state == "complete",
            "warnings": warnings(volume),
            "array": volume.name,
            "slices": [volume.z0, volume.z1],
            "shape": volume.shape,
            "unit": volume.spec.unit,
            "voxel_size_um": voxel_size_um(record),
            "stored": {**asdict(scale), "value": "offset + slope * stored"},
            "run": record.as_json(),
            "quality": record.rows(),
        }
    )


def voxel_size_um(record: RunRecord) -> float | None:
    """Return the edge of a voxel, µm; None where nobody stated it."""
    size = (record.metadata().get("analysis") or {}).get("voxel_size_um")
    return float(size) if isinstance(size, int | float) and size > 0 else None


def check_unchanged(volumes: Sequence[Volume]) -> None:
    """Refuse an export during which the run went on.

    Raises
    ------
    InputError
        Slabs were written meanwhile, so that versions may be mixed.
    """
    for volume in volumes:
        now = open_run(volume.record.folder).slabs(volume.name)
        if now != volume.record.slabs(volume.name):
            raise InputError(
                f"{volume.record.folder}: the run went on meanwhile; "
                "export it when it has ended"
            )
