"""HDF5 as NeXus wants a reconstructed volume: the application definition NXtomoproc.

https://manual.nexusformat.org/classes/applications/NXtomoproc.html

The definition names the axes x, y, z; the array is stored ``[z, y, x]``, as its
attribute ``axes`` says, so that a slice lies in one piece. Further arrays and the
quality figures are groups (NXdata) beside ``data``; viewers find their way by the
attributes ``default`` and ``signal``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ebl_stream import __version__
from ebl_stream.publish.export import (
    Progress,
    Scale,
    Volume,
    provenance,
    voxel_size_um,
    warnings,
)
from ebl_stream.publish.record import RunRecord

NOT_STATED = "not stated"
"""In the place of what the definition demands and no document said."""
HEADER_BYTES = 2**20


def needed_bytes(volumes: Sequence[Volume]) -> int:
    """Return what an export takes at most."""
    known = 2 * len(json.dumps(provenance(volumes[0], Scale(str(volumes[0].dtype)))))
    voxels = sum(math.prod(v.shape) * v.dtype.itemsize for v in volumes)
    return HEADER_BYTES + known + voxels


def write(file: Path, volumes: Sequence[Volume], progress: Progress) -> None:
    """Write volumes of one run, values as they are; the first one is ``data``."""
    record = volumes[0].record
    with h5py.File(file, "x") as root:
        _root(root, file.name)
        entry = _group(root, "entry", "NXentry")
        entry.attrs["default"] = "data"
        _say(entry, definition="NXtomoproc", title=_title(record))
        _say(entry, entry_identifier=record.processed_uid)
        _instrument(entry, record)
        _process(entry, volumes)
        _quality(entry, record)
        total, done = sum(v.shape[0] for v in volumes), 0
        for k, volume in enumerate(volumes):
            name = volume.name if k else "data"
            group = _group(entry, name, "NXdata")
            axes = entry["data"] if k else None
            data = _volume(group, name, volume, axes)
            for first, values in volume:
                data[first - volume.z0 : first - volume.z0 + len(values)] = values
                done += len(values)
                progress(done, total)


def _group(parent: Any, name: str, nx_class: str) -> Any:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def _say(group: Any, **facts: Any) -> None:
    """Write facts as scalars; what is not known is left out."""
    for name, value in facts.items():
        if value is not None:
            group[name] = value


def _root(root: Any, name: str) -> None:
    root.attrs["NX_class"] = "NXroot"
    root.attrs["default"] = "entry"
    root.attrs["creator"] = f"ebl_stream {__version__}"
    root.attrs["file_name"] = name
    root.attrs["file_time"] = _iso(time.time())
    root.attrs["HDF5_Version"] = h5py.version.hdf5_version
    root.attrs["h5py_version"] = h5py.version.version


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _title(record: RunRecord) -> str:
    ledger = record.metadata().get("ledger") or {}
    name = _sample_name(record)
    title = record.processed_uid if name == NOT_STATED else name
    if record.state == "complete":
        return title
    used, owed = ledger.get("used"), ledger.get("announced")
    return f"{title} ({record.state}: {used} of {owed} projections)"


def _sample_name(record: RunRecord) -> str:
    start = record.metadata().get("start") or {}
    sample = start.get("sample") or start.get("sample_name")
    if isinstance(sample, Mapping):
        sample = sample.get("name")
    return str(sample) if sample else NOT_STATED


def _instrument(entry: Any, record: RunRecord) -> None:
    profile = (record.metadata().get("analysis") or {}).get("profile") or {}
    instrument = _group(entry, "instrument", "NXinstrument")
    _say(instrument, name=f"profile {profile.get('name', NOT_STATED)}")
    source = _group(instrument, "source", "NXsource")
    _say(source, type="Synchrotron X-ray Source", name=NOT_STATED, probe="x-ray")
    _say(_group(entry, "sample", "NXsample"), name=_sample_name(record))


def _process(entry: Any, volumes: Sequence[Volume]) -> None:
    record = volumes[0].record
    metadata = record.metadata()
    start, analysis = metadata.get("start") or {}, metadata.get("analysis") or {}
    process = _group(entry, "reconstruction", "NXprocess")
    date = _iso(float(start.get("time") or 0))
    _say(process, program="ebl_stream", date=date, sequence_index=1)
    _say(process, version=str(analysis.get("version") or NOT_STATED))
    _parameters(process, record, warnings(volumes[0]))
    _angles(process, metadata.get("angles") or {})
    ledger = _group(process, "ledger", "NXcollection")
    for name, value in (metadata.get("ledger") or {}).items():
        if isinstance(value, int):
            ledger[name] = value
        elif isinstance(value, list):
            ledger[name] = np.array(value, np.int64).reshape(-1, 2)
    note = _group(process, "provenance", "NXnote")
    known = provenance(volumes[0], Scale(str(volumes[0].dtype)))
    _say(note, type="application/json", data=json.dumps(known))
    _say(note, description="all that is known of the run, as in its metadata.json")


def _parameters(process: Any, record: RunRecord, said: list[str]) -> None:
    metadata = record.metadata()
    start, analysis = metadata.get("start") or {}, metadata.get("analysis") or {}
    center = metadata.get("rotation_center") or {}
    parameters = _group(process, "parameters", "NXparameters")
    raw = start.get("original_run_uid")
    _say(
        parameters,
        raw_file=f"Bluesky run {raw or NOT_STATED}",
        original_run_uid=raw,
        processed_uid=record.processed_uid,
        state=record.state,
        warnings="; ".join(said) or "none",
        rotation_center_source=center.get("source"),
        stages=json.dumps(analysis.get("stages")),
        profile=json.dumps(analysis.get("profile")),
        geometry=analysis.get("geometry"),
    )
    for name, value, units in (
        ("rotation_center", center.get("column"), "px"),
        ("voxel_size", voxel_size_um(record), "um"),
    ):
        if value is not None:
            parameters[name] = value
            parameters[name].attrs["units"] = units


def _angles(process: Any, angles: Mapping[str, Any]) -> None:
    """Write the projections in the volume: index, angle, and half of each."""
    if not angles:
        return
    group = _group(process, "projections", "NXcollection")
    group["index"] = np.asarray(angles["index"], np.int64)
    group["theta"] = np.asarray(angles["theta_rad"], np.float64)
    group["theta"].attrs["units"] = "rad"
    halves = np.frombuffer(str(angles["half"]).encode("ascii"), np.uint8)
    group["half"] = halves - ord("A")
    group["half"].attrs["long_name"] = "half of the set: 0 is A, 1 is B"


def _volume(group: Any, name: str, volume: Volume, axes: Any) -> Any:
    """Allocate a volume, not compressed; axes are those of ``data`` where given."""
    group.attrs["signal"] = name
    group.attrs["axes"] = ["z", "y", "x"]
    for place, axis in enumerate("zyx"):
        group.attrs[f"{axis}_indices"] = place
        if axes is not None:
            group[axis] = axes[axis]
            continue
        values, units = _axis(volume, place)
        group[axis] = values
        group[axis].attrs["units"] = units
    data = group.create_dataset(name, volume.shape, volume.dtype)
    data.attrs["units"] = volume.spec.unit
    data.attrs["long_name"] = volume.name
    data.attrs["interpretation"] = "image"
    # Demanded by the definition, which does not say what they are.
    data.attrs["transform"] = "value = offset + scaling * data"
    data.attrs["offset"], data.attrs["scaling"] = 0.0, 1.0
    return data


def _axis(volume: Volume, place: int) -> tuple[NDArray[np.float64], str]:
    """Return where voxels are: x, y from the rotation axis, z from the first slice."""
    size = voxel_size_um(volume.record)
    if place == 0:
        values = np.arange(volume.z0, volume.z1, dtype=np.float64)
    else:
        n = volume.shape[place]
        values = np.arange(n, dtype=np.float64) - (n - 1) / 2
    return np.multiply(values, size or 1.0), "um" if size else "px"


def _quality(entry: Any, record: RunRecord) -> None:
    """Write the quality figures: a row per slab and version."""
    rows = record.rows()
    if not rows:
        return
    group = _group(entry, "quality", "NXdata")
    for name in rows[0]:
        column = [row.get(name) for row in rows]
        if any(isinstance(value, str) for value in column):
            group[name] = [str(value) for value in column]
        else:
            group[name] = np.array(
                [np.nan if value is None else value for value in column], np.float64
            )
    numbers = [name for name in rows[0] if group[name].dtype.kind == "f"]
    group["row"] = np.arange(len(rows))
    group.attrs["axes"] = ["row"]
    if numbers:
        best = "resolution_px" if "resolution_px" in numbers else numbers[0]
        group.attrs["signal"] = best
