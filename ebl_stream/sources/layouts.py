"""Which dataset of an HDF5 scan holds what: Data Exchange, NXtomo, or as named."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.ingest.hdf5 import open_dataset
from ebl_stream.ingest.links import DAMAGE
from ebl_stream.ingest.truncated import survivors
from ebl_stream.profile import Datasets, Profile
from ebl_stream.profile_file import load

logger = logging.getLogger(__name__)

_MAX_SOFT_LINKS = 16
_MAX_LISTED = 8
_MAX_GROUPS = 100
"""Looked at on one level; a scan has a few."""
_MAX_DATASETS = 1000
"""Counted for a message."""
_MAX_TEXT = 256
_TIMES = (
    "/exchange/time",
    "/defaults/NDArrayTimeStamp",
    "/entry/instrument/NDAttributes/NDArrayTimeStamp",
)
_VOXEL_SIZES = (
    "/measurement/instrument/detection_system/objective/resolution",
    "/measurement/instrument/detector/pixel_size",
)


@dataclass(frozen=True)
class Layout:
    """Paths of the datasets of one scan; None where the file has none."""

    name: str
    """``data_exchange``, ``nxtomo``, or ``named`` by the profile alone."""
    projections: str
    theta: str
    flats: str | None = None
    darks: str | None = None
    image_key: str | None = None
    rotation_center: str | None = None
    times: tuple[str, ...] = _TIMES
    """Where the time of each frame may stand (s)."""
    voxel_sizes: tuple[str, ...] = _VOXEL_SIZES
    samples: tuple[str, ...] = ("/measurement/sample/name",)


@dataclass(frozen=True)
class _Sniffed:
    """A layout's usual dataset names, before it is known which ones exist."""

    name: str
    datasets: Datasets = field(default_factory=Datasets)
    times: tuple[str, ...] = _TIMES
    voxel_sizes: tuple[str, ...] = _VOXEL_SIZES
    samples: tuple[str, ...] = ("/measurement/sample/name",)


class Container:
    """An open HDF5 scan: its datasets by path, links kept within allowed folders."""

    def __init__(
        self,
        file: h5py.File,
        path: Path,
        roots: Sequence[Path],
        *,
        max_frame_bytes: int,
    ) -> None:
        self.file = file
        self.path = path
        self.roots = tuple(roots)
        self._max_frame_bytes = max_frame_bytes

    def open(self, name: str) -> h5py.Dataset:
        """Open a dataset that must be there.

        Raises
        ------
        InputError
            It is not there, is no dataset of numbers, is too large, or a link
            leads out of the roots.
        """
        if not _exists(self.file, name):
            raise InputError(
                f"{self.path}: there is no dataset {name}\n{self.advice('projections')}"
            )
        return open_dataset(
            self.file, name, self.roots, max_frame_bytes=self._max_frame_bytes
        )

    def open_optional(self, names: Sequence[str]) -> h5py.Dataset | None:
        """Open the first of these; None where there is none that can be read."""
        name = self.find(names)
        try:
            return self.open(name) if name else None
        except InputError as error:
            logger.warning("left out: %s", error)
            return None

    def find(self, names: Sequence[str]) -> str | None:
        """Return the first of these names that the file has."""
        return next((name for name in names if _exists(self.file, name)), None)

    def values(self, dataset: h5py.Dataset) -> NDArray[np.float64]:
        """Read a list of numbers, or one; what a truncated file has lost is NaN."""
        values = np.asarray(dataset[()], np.float64)
        if not values.ndim:
            return values if survivors(dataset).all() else np.full((), np.nan)
        values[~survivors(dataset)] = np.nan
        return values

    def text(self, names: Sequence[str]) -> str | None:
        """Read the first of these that is there as a text."""
        dataset = self.open_optional(names)
        if dataset is None or not survivors(dataset).all():
            return None
        value = dataset[()]
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.ravel()[0]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        return value[:_MAX_TEXT] if isinstance(value, str) else None

    def advice(self, role: str) -> str:
        """Say which datasets there are and how one is named."""
        listed = list(_datasets(self.file))
        shown = ", ".join(listed[:_MAX_LISTED]) or "none with a shape"
        more = f" and {len(listed) - _MAX_LISTED} more" * (len(listed) > _MAX_LISTED)
        return (
            f"its datasets: {shown}{more}\n"
            f"name the right one with --set datasets.{role}=[/path/in/the/file]"
        )


def find_layout(scan: Container, profile: Profile | None) -> Layout:
    """Find the datasets of a scan: those that the profile names, else the usual ones.

    Raises
    ------
    InputError
        No known layout and no names, a named dataset that is not there, no angles.
    """
    sniffed = _sniff(scan) or _Sniffed("named")
    named = profile.datasets if profile else Datasets()

    def choose(role: str) -> str | None:
        usual: tuple[str, ...] = getattr(sniffed.datasets, role)
        wanted: tuple[str, ...] = getattr(named, role) or usual
        found = scan.find(wanted)
        # What a layout may leave out is no mistake; a name of the user's own is.
        if found is None and set(wanted) - _usual(role, usual):
            raise InputError(
                f"{scan.path}: there is no dataset {wanted[0]} (datasets.{role})\n"
                f"{scan.advice(role)}"
            )
        return found

    return Layout(
        name=sniffed.name,
        projections=_required(scan, "projections", choose("projections")),
        theta=_required(scan, "theta", choose("theta")),
        image_key=choose("image_key"),
        flats=choose("flats"),
        darks=choose("darks"),
        rotation_center=choose("rotation_center"),
        times=sniffed.times,
        voxel_sizes=sniffed.voxel_sizes,
        samples=sniffed.samples,
    )


def _usual(role: str, sniffed: tuple[str, ...]) -> set[str]:
    return {*sniffed, *getattr(load("data_exchange").datasets, role)}


def _required(scan: Container, role: str, found: str | None) -> str:
    if found is not None:
        return found
    if role == "theta":
        what = "the projections have no angles (no dataset of theta)"
    else:
        what = "neither APS Data Exchange (/exchange/data) nor NXtomo"
    raise InputError(f"{scan.path}: {what}\n{scan.advice(role)}")


def _sniff(scan: Container) -> _Sniffed | None:
    data_exchange = load("data_exchange").datasets
    if scan.find(data_exchange.projections):
        return _Sniffed("data_exchange", data_exchange)
    entries = (_nxtomo(scan, entry) for entry in _entries(scan.file))
    return next((entry for entry in entries if entry), None)


def _nxtomo(scan: Container, entry: str) -> _Sniffed | None:
    """Read one NeXus entry as NXtomo: by its definition, or by an image key."""
    detectors = [
        f"{entry}/instrument/{name}"
        for name in _subgroups(scan.file, f"{entry}/instrument")
    ]
    keys = [f"{place}/image_key" for place in (*detectors, f"{entry}/data")]
    found = scan.find(keys)
    if found is None and scan.text([f"{entry}/definition"]) != "NXtomo":
        return None
    detector = found.removesuffix("/image_key") if found else f"{entry}/data"
    pixels = (f"{entry}/sample/x_pixel_size", f"{detector}/x_pixel_size")
    return _Sniffed(
        "nxtomo",
        Datasets(
            projections=(f"{detector}/data", f"{entry}/data/data"),
            image_key=(found,) if found else (),
            theta=(f"{entry}/sample/rotation_angle", f"{entry}/data/rotation_angle"),
        ),
        times=(f"{detector}/time", *_TIMES),
        voxel_sizes=pixels,
        samples=(f"{entry}/sample/name",),
    )


def _entries(file: h5py.File) -> Iterator[str]:
    """Yield the groups at the top and one below: NXentry and NXsubentry."""
    for top in _subgroups(file, "/"):
        yield f"/{top}"
        yield from (f"/{top}/{below}" for below in _subgroups(file, f"/{top}"))


def _subgroups(file: h5py.File, path: str) -> list[str]:
    """Name the groups in a group, those behind external links left out."""
    group = file.get(path) if _is_local(file, path) else None
    if not isinstance(group, h5py.Group):
        return []
    try:
        names = list(islice(group, _MAX_GROUPS))
    except DAMAGE as error:
        logger.debug("%s: %s", path, error)
        return []
    return [str(name) for name in names if _is_own_group(group, name)]


def _is_own_group(group: h5py.Group, name: str) -> bool:
    try:
        return (
            isinstance(group.get(name, getlink=True), h5py.HardLink)
            and group.get(name, getclass=True) is h5py.Group
        )
    except DAMAGE:
        return False


def _exists(file: h5py.File, path: str) -> bool:
    """Say whether a path leads somewhere, without following external links.

    Something broken is there, too: who opens it is told so.
    """
    return _walk(file, path, _MAX_SOFT_LINKS) is not None


def _is_local(file: h5py.File, path: str) -> bool:
    return _walk(file, path, _MAX_SOFT_LINKS) == "local"


def _walk(file: h5py.File, path: str, soft_links: int) -> str | None:
    """Follow a path: ``local``, ``external``, ``broken``, or None: nothing is there.

    ``external`` as soon as it leaves the file (judged on opening).
    """
    try:
        return _follow(file, path, soft_links)
    except DAMAGE as error:
        logger.debug("%s: %s", path, error)
        return "broken"


def _follow(file: h5py.File, path: str, soft_links: int) -> str | None:
    parts = [part for part in path.split("/") if part]
    here: h5py.Group = file
    for i, part in enumerate(parts):
        link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            return "external"
        if isinstance(link, h5py.SoftLink):
            base = "" if link.path.startswith("/") else "/".join(parts[:i]) + "/"
            target = "/".join((base + link.path, *parts[i + 1 :]))
            return _walk(file, target, soft_links - 1) if soft_links else None
        if link is None:
            return None
        here = here[part]  # pyright: ignore[reportAssignmentType]
    return "local"


def _datasets(file: h5py.File) -> Iterator[str]:
    """Yield ``/path shape`` of every dataset with a shape, links left out."""
    found: list[str] = []

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> bool | None:
        if isinstance(item, h5py.Dataset) and item.shape:
            found.append(f"/{name} {item.shape}")
        return True if len(found) >= _MAX_DATASETS else None  # anything else goes on

    with contextlib.suppress(*DAMAGE):
        file.visititems(visit)
    return iter(found)
