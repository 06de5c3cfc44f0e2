"""TIFF as ImageJ, Fiji and Dragonfly read it: one file per slice, or one BigTIFF.

Every file says voxel size and unit twice: in the resolution tags (per centimeter, as
TIFF has it) and in ImageJ's words in the description, from which ImageJ also takes
the distance of slices and how integers become values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ebl_stream import __version__
from ebl_stream.publish.export import (
    Progress,
    Scale,
    Volume,
    provenance,
    voxel_size_um,
)
from ebl_stream.publish.export_place import PROVENANCE

PROVENANCE_TAG = 65_000
"""Private tag of the single file: what is `provenance.json` beside slices."""
FILE_BYTES = 4096
"""Tags, description and rounding of one slice."""


def needed_bytes(volume: Volume, scale: Scale) -> int:
    """Return what an export takes at most."""
    nz, ny, nx = volume.shape
    slice_bytes = ny * nx * np.dtype(scale.dtype).itemsize + 2 * FILE_BYTES
    return nz * slice_bytes + len(json.dumps(provenance(volume, scale)))


def write_slices(
    folder: Path, volume: Volume, scale: Scale, progress: Progress
) -> None:
    """Write ``<array>_<z>.tif`` for every slice, and ``provenance.json``."""
    folder.mkdir()
    about = provenance(volume, scale)
    digits = max(5, len(str(volume.spec.shape[0])))
    tags = _tags(volume)
    for z, image in _slices(volume, scale, progress):
        words = _description(volume, scale, about, 1) + f"slice={z}\n"
        path = folder / f"{volume.name}_{z:0{digits}}.tif"
        tifffile.imwrite(path, image, description=words, **tags)
    (folder / PROVENANCE).write_text(json.dumps(about, indent=1), encoding="utf-8")


def write_single(file: Path, volume: Volume, scale: Scale, progress: Progress) -> None:
    """Write one BigTIFF; what is known of it lies in the private tag."""
    about = provenance(volume, scale)
    known = json.dumps(about)
    tifffile.imwrite(
        file,
        (image for _, image in _slices(volume, scale, progress)),
        shape=volume.shape,
        dtype=scale.dtype,
        bigtiff=True,
        description=_description(volume, scale, about, volume.shape[0]),
        extratags=[(PROVENANCE_TAG, "s", 0, known, True)],
        **_tags(volume),
    )


def _slices(
    volume: Volume, scale: Scale, progress: Progress
) -> Iterator[tuple[int, NDArray[Any]]]:
    total = volume.shape[0]
    for first, values in volume:
        slab = scale(values)
        for k, image in enumerate(slab):
            yield first + k, image
        progress(first + len(slab) - volume.z0, total)


def _tags(volume: Volume) -> dict[str, Any]:
    size = voxel_size_um(volume.record)
    per_cm = 1e4 / size if size else 1.0
    return {
        "photometric": "minisblack",
        "metadata": None,
        "software": f"ebl_stream {__version__}",
        "resolution": (per_cm, per_cm),
        "resolutionunit": "CENTIMETER" if size else "NONE",
    }


def _description(
    volume: Volume, scale: Scale, about: dict[str, Any], n_slices: int
) -> str:
    """Return ImageJ's lines, and ours, which it hands on as they are."""
    size = voxel_size_um(volume.record)
    lines: dict[str, Any] = {
        "ImageJ": "1.53t",
        "images": n_slices,
        "slices": n_slices,
        "unit": "um" if size else "pixel",
        "spacing": size or 1.0,
        "loop": "false",
    }
    if not scale.is_plain:
        # ImageJ's calibration: 0 is a straight line, c0 + c1 * pixel.
        lines |= {"cf": 0, "c0": scale.offset, "c1": scale.slope}
    lines |= {
        "vunit": volume.spec.unit,
        "processed_uid": about["processed_uid"],
        "original_run_uid": about["original_run_uid"],
        "complete": str(about["complete"]).lower(),
        "warnings": "; ".join(about["warnings"]) or "none",
    }
    return "".join(f"{key}={_one_line(value)}\n" for key, value in lines.items())


def _one_line(value: Any) -> str:
    """TIFF's text is ASCII; a line of ours must not become two."""
    return " ".join(str(value).split()).encode("ascii", "replace").decode()
