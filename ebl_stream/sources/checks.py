"""A scan in an HDF5 file, looked at before anything is made of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.frames import Kind
from ebl_stream.ingest.truncated import shortage, survivors
from ebl_stream.profile import Profile
from ebl_stream.sources.layouts import Container, Layout

logger = logging.getLogger(__name__)

_UM_PER = {
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer"), 1.0),
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
    **dict.fromkeys(("mm", "millimeter"), 1e3),
    **dict.fromkeys(("nm", "nanometer"), 1e-3),
}

MIN_ANGLES_TO_JUDGE = 16
"""Fewer angles say nothing of their unit."""

UNIT_TOLERANCE = 0.05
"""How far, in half turns, a scan may be from one or two to be taken as radians."""


@dataclass(frozen=True)
class Stack:
    """A dataset of frames."""

    dataset: str
    shape: tuple[int, ...]
    """``(frame, row, column)``."""
    dtype: str
    chunks: tuple[int, ...]
    image: NDArray[Any] | None = None
    """The one frame ``(row, column)`` of a dataset that is 2-D."""


@dataclass(frozen=True)
class ScanFile:
    """What a file says of its scan; only references and angles are in memory."""

    layout: Layout
    projections: Stack
    """With an image key, every stored frame."""
    theta: Stack
    theta_unit: Literal["deg", "rad"]
    flats: Stack | None = None
    darks: Stack | None = None
    kinds: NDArray[np.integer[Any]] | None = None
    """(frame,) image key of every stored frame; None: all are projections."""
    rotation_center: float | None = None
    """px, column of the stored frame."""
    voxel_size_um: float | None = None
    sample: str | None = None
    times: NDArray[np.float64] | None = None
    """(frame,) s, when each frame was taken."""
    shortage: str = ""
    """Which file is truncated, and how much of it is there; empty: none."""

    @property
    def n_projections(self) -> int:
        """How many of the frames are projections."""
        if self.kinds is None:
            return self.projections.shape[0]
        return int(np.count_nonzero(self.kinds == Kind.PROJECTION))


def check_scan(scan: Container, layout: Layout, profile: Profile) -> ScanFile:
    """Look at every dataset of a scan and refuse what cannot be reconstructed.

    Raises
    ------
    InputError
        Impossible shapes or dtypes, counts that do not fit together, references
        or projections without a single usable value.
    """
    projections = _stack(scan, layout.projections, "projections", profile)
    n_frames = projections.shape[0]
    theta, angles = _theta(scan, layout.theta, n_frames)
    kinds = _kinds(scan, layout.image_key, n_frames) if layout.image_key else None
    used = kinds == Kind.PROJECTION if kinds is not None else np.full(n_frames, True)
    if not np.isfinite(angles[used]).any():
        raise InputError(
            f"{scan.path}: all angles in {layout.theta} are NaN\n"
            "name the right ones with --set datasets.theta=[/path/in/the/file]"
        )
    _require_signal(scan, layout.projections, "projections", np.flatnonzero(used))
    for kind in (Kind.FLAT, Kind.DARK) if kinds is not None else ():
        _check_keyed(scan, layout.projections, kind, np.flatnonzero(kinds == kind))
    return ScanFile(
        layout=layout,
        projections=projections,
        theta=theta,
        theta_unit=_theta_unit(scan, layout.theta, angles[used], profile),
        flats=_references(scan, layout, "flats", projections, profile),
        darks=_references(scan, layout, "darks", projections, profile),
        kinds=kinds,
        rotation_center=_rotation_center(scan, layout, projections.shape[2]),
        voxel_size_um=_voxel_size_um(scan, layout),
        sample=scan.text(layout.samples),
        times=_times(scan, layout, n_frames),
        shortage=_shortage(scan, layout),
    )


def _shortage(scan: Container, layout: Layout) -> str:
    """Say which of the scan's files is truncated, frames behind links included."""
    paths = (str(scan.path), scan.open(layout.projections).file.filename)
    return next(filter(None, map(shortage, paths)), "")


def _stack(scan: Container, name: str, role: str, profile: Profile) -> Stack:
    dataset = scan.open(name)
    where = f"{scan.path}: {name} ({role})"
    if dataset.dtype.kind not in "biuf":
        raise InputError(f"{where} holds {dataset.dtype}, not numbers")
    if dataset.ndim != 3:
        raise InputError(
            f"{where} has shape {dataset.shape}, expected (angle, row, column)"
        )
    if 0 in dataset.shape or dataset.shape[2] < 2:
        raise InputError(
            f"{where} has shape {dataset.shape} (angle, row, column): "
            f"nothing to reconstruct, two columns at least are needed"
        )
    _check_count(where, dataset, profile)
    return _described(name, dataset, dataset.shape)


def _check_count(where: str, dataset: h5py.Dataset, profile: Profile) -> None:
    limit = profile.files.max_projections
    if dataset.shape[0] > limit:
        raise InputError(
            f"{where} has {dataset.shape[0]} frames, at most {limit} "
            f"are allowed\n"
            f"if that is meant: --set files.max_projections={dataset.shape[0]}"
        )


def _described(
    name: str, dataset: h5py.Dataset, shape: tuple[int, ...], **more: Any
) -> Stack:
    chunks = dataset.chunks or (1, *shape[1:])
    return Stack(name, tuple(shape), dataset.dtype.str, tuple(chunks), **more)


def _references(
    scan: Container, layout: Layout, role: str, like: Stack, profile: Profile
) -> Stack | None:
    """Look at flats or darks; None where there are none (an empty stack, too)."""
    if layout.image_key is not None:
        return None  # they lie among the projections
    name = layout.flats if role == "flats" else layout.darks
    dataset = scan.open(name) if name else None
    if name is None or dataset is None or dataset.size == 0:
        logger.warning("%s: no %s, they will be assumed", scan.path, role)
        return None
    if dataset.dtype.kind not in "biuf":
        raise InputError(
            f"{scan.path}: {name} ({role}) holds {dataset.dtype}, not numbers"
        )
    if dataset.ndim not in (2, 3) or dataset.shape[-2:] != like.shape[1:]:
        raise InputError(
            f"{scan.path}: {name} ({role}) has shape {dataset.shape}, "
            f"the projections are {like.shape[1:]} (row, column)\n"
            f"name the right ones with --set datasets.{role}=[/path/in/the/file]"
        )
    if not _survives(scan, dataset, role):
        return None
    if dataset.ndim == 2:
        image = dataset[()]
        _require_usable([image], scan, name, role)
        return _described(name, dataset, (1, *image.shape), image=image)
    _check_count(f"{scan.path}: {name} ({role})", dataset, profile)
    _require_signal(scan, name, role, np.arange(dataset.shape[0]))
    return _described(name, dataset, dataset.shape)


def _survives(scan: Container, dataset: h5py.Dataset, role: str) -> bool:
    """Say whether a truncated file has left any reference, or all of a lone one."""
    there = survivors(dataset)
    if there.all() if dataset.ndim == 2 else there.any():
        return True
    logger.warning("%s: the %s are cut off, they will be assumed", scan.path, role)
    return False


def _check_keyed(
    scan: Container, name: str, kind: Kind, indices: NDArray[np.integer[Any]]
) -> None:
    role = "flats" if kind == Kind.FLAT else "darks"
    if len(indices):
        if not survivors(scan.open(name))[indices].any():
            logger.warning(
                "%s: the %s are cut off, they will be assumed", scan.path, role
            )
            return
        _require_signal(scan, name, f"{role} (image key {kind.value})", indices)
    else:
        logger.warning("%s: no %s, they will be assumed", scan.path, role)


def _require_signal(
    scan: Container, name: str, role: str, indices: NDArray[np.integer[Any]]
) -> None:
    dataset = scan.open(name)
    _require_usable(_readable(dataset, indices), scan, name, role)


def _readable(
    dataset: h5py.Dataset, indices: NDArray[np.integer[Any]]
) -> Iterator[NDArray[Any]]:
    """Yield one frame after the other, those left out that the file cannot give."""
    for index in indices[survivors(dataset)[indices]]:
        try:
            yield dataset[int(index)]
        except OSError as error:
            logger.debug("%s frame %d: %s", dataset.name, index, error)


def _require_usable(images: Any, scan: Container, name: str, role: str) -> None:
    """Refuse frames that are all NaN or, darks excepted, all zero."""
    seen = False
    for image in images:
        seen = True
        finite = np.isfinite(image)
        if finite.any() and (role.startswith("darks") or image[finite].any()):
            return
    what = "are all NaN or zero" if seen else "cannot be read"
    raise InputError(f"{scan.path}: the {role} in {name} {what}")


def _per_frame(dataset: h5py.Dataset) -> bool:
    """Say whether a dataset is a list of numbers: ``(N,)``, or ``(N, 1)``."""
    return dataset.ndim in (1, 2) and dataset.shape[1:] in ((), (1,))


def _theta(
    scan: Container, name: str, n_frames: int
) -> tuple[Stack, NDArray[np.float64]]:
    dataset = scan.open(name)
    if dataset.dtype.kind not in "iuf" or not _per_frame(dataset):
        raise InputError(
            f"{scan.path}: {name} (theta) has shape {dataset.shape} and dtype "
            f"{dataset.dtype}, expected one angle per frame"
        )
    if dataset.shape[0] != n_frames:
        raise InputError(
            f"{scan.path}: {dataset.shape[0]} angles in {name}, but {n_frames} frames\n"
            "name the right ones with --set datasets.theta=[/path/in/the/file]"
        )
    return _described(name, dataset, dataset.shape), scan.values(dataset).ravel()


def _theta_unit(
    scan: Container, name: str, angles: NDArray[np.float64], profile: Profile
) -> Literal["deg", "rad"]:
    if profile.datasets.theta_unit != "auto":
        return profile.datasets.theta_unit
    units = _units(scan.open(name))
    if not units and _spans_half_turns_in_rad(angles):
        logger.warning(
            "%s: %s names no unit and spans half a turn or a whole one in radians: "
            "taken as radians (--set datasets.theta_unit=deg if it is not)",
            scan.path,
            name,
        )
        return "rad"
    return "rad" if units.startswith("rad") else "deg"


def _spans_half_turns_in_rad(angles: NDArray[np.float64]) -> bool:
    """Say whether angles can hardly be degrees: many of them, and pi or 2 pi wide."""
    distinct = np.unique(angles[np.isfinite(angles)])
    if len(distinct) < MIN_ANGLES_TO_JUDGE:
        return False
    turns = (distinct[-1] - distinct[0]) / np.pi
    return min(abs(turns - 1), abs(turns - 2) / 2) < UNIT_TOLERANCE


def _units(dataset: h5py.Dataset) -> str:
    """Read the ``units`` attribute: its first word, in lower case."""
    units = dataset.attrs.get("units", "")
    if isinstance(units, np.ndarray) and units.size:
        units = units.ravel()[0]
    if isinstance(units, bytes):
        units = units.decode("utf-8", "replace")
    words = str(units).split()
    return words[0].lower() if words else ""


def _kinds(scan: Container, name: str, n_frames: int) -> NDArray[np.integer[Any]]:
    dataset = scan.open(name)
    if dataset.dtype.kind not in "iuf" or not _per_frame(dataset):
        raise InputError(
            f"{scan.path}: {name} (image key) has shape {dataset.shape} and dtype "
            f"{dataset.dtype}, expected one integer per frame"
        )
    if dataset.shape[0] != n_frames:
        raise InputError(
            f"{scan.path}: {dataset.shape[0]} image keys in {name}, "
            f"but {n_frames} frames"
        )
    kinds = _whole_numbers(scan.values(dataset).ravel())
    if not (kinds == Kind.PROJECTION).any():
        raise InputError(
            f"{scan.path}: no projection among the image keys in {name} "
            f"(0 projection, 1 flat, 2 dark, 3 invalid)"
        )
    return kinds


def _whole_numbers(keys: NDArray[np.float64]) -> NDArray[np.integer[Any]]:
    """Return image keys as integers; what is none of the four is invalid."""
    known = np.isin(keys, [kind.value for kind in Kind])
    return np.where(known, keys, Kind.INVALID).astype(np.int8)


def _rotation_center(scan: Container, layout: Layout, n_columns: int) -> float | None:
    if layout.rotation_center is None:
        return None
    dataset = scan.open_optional([layout.rotation_center])
    value = _number(scan, dataset) if dataset is not None else None
    # Beyond one width either side no ray would meet the axis.
    if value is not None and -n_columns <= value <= 2 * n_columns:
        return value
    name = layout.rotation_center
    logger.warning("%s: no use for the rotation center in %s", scan.path, name)
    return None


def _voxel_size_um(scan: Container, layout: Layout) -> float | None:
    dataset = scan.open_optional(layout.voxel_sizes)
    if dataset is None:
        return None
    value, unit = _number(scan, dataset), _UM_PER.get(_units(dataset))
    if value is None or value <= 0 or unit is None:
        logger.info("%s: %s without a known unit, left out", scan.path, dataset)
        return None
    return value * unit


def _number(scan: Container, dataset: h5py.Dataset) -> float | None:
    """Read a dataset with one finite number in it."""
    if dataset.size != 1 or dataset.dtype.kind not in "iuf":
        return None
    value = float(scan.values(dataset).ravel()[0])
    return value if math.isfinite(value) else None


def _times(
    scan: Container, layout: Layout, n_frames: int
) -> NDArray[np.float64] | None:
    """Read when each frame was taken, where a dataset says so for every one."""
    for name in layout.times:
        dataset = scan.open_optional([name])
        if dataset is None:
            continue
        if dataset.shape == (n_frames,) and dataset.dtype.kind in "iuf":
            times = scan.values(dataset)
            if np.isfinite(times).all():
                return np.maximum.accumulate(times)
    return None
