"""Walk to a dataset without ever leaving the allowed folders.

HDF5 follows soft links, external links, virtual datasets and external storage by
itself, to any file that the process may read. Here every step is looked at first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py

from ebl_stream.errors import InputError
from ebl_stream.ingest.truncated import is_truncated

_MAX_HOPS = 16
_MAX_SOURCES = 20_000

DAMAGE = (KeyError, OSError, RuntimeError, ValueError)
"""What h5py raises where a file's structure is broken or cut off."""

_REDIRECTED = [
    name for name in ("HDF5_VDS_PREFIX", "HDF5_EXTFILE_PREFIX") if os.environ.get(name)
]
"""HDF5 has read them when it was loaded: what it opens is not what is looked at."""

Opener = Callable[[Path], h5py.File]


def is_inside(path: Path, roots: Sequence[Path]) -> bool:
    """Return whether a resolved path lies under one of the (resolved) folders."""
    return any(path.is_relative_to(root.resolve()) for root in roots)


def walk(
    file: h5py.File, path: str, roots: Sequence[Path], opener: Opener, hops: int = 0
) -> h5py.Dataset:
    """Go to a dataset, through links where they stay inside the roots.

    Raises
    ------
    InputError
        There is no such dataset, or a link on the way leaves the roots.
    """
    if hops > _MAX_HOPS:
        raise InputError(f"{file.filename}: links to {path} go in circles")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    here: h5py.Group | h5py.Dataset = _member(file, file, "/", path)
    for i, part in enumerate(parts):
        link = _link(file, here, part, path)
        rest = "/".join(parts[i + 1 :])
        if isinstance(link, h5py.SoftLink):
            base = "" if link.path.startswith("/") else f"{here.name}/"
            target = f"{base}{link.path}/{rest}"
            return walk(file, target, roots, opener, hops + 1)
        if isinstance(link, h5py.ExternalLink):
            other = _beside(file, link.filename, roots, f"link {path}")
            target = f"{link.path}/{rest}"
            return walk(opener(other), target, roots, opener, hops + 1)
        if link is None:
            raise InputError(_absent(file, path, here, part))
        here = _member(file, here, part, path)
    if not isinstance(here, h5py.Dataset):
        raise InputError(f"{file.filename}: {path} is a group, not a dataset")
    _check_storage(here, roots, opener, hops)
    return here


def _link(
    file: h5py.File, here: h5py.Group | h5py.Dataset, part: str, path: str
) -> object:
    try:
        return here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
    except DAMAGE as error:
        raise InputError(_unopened(file, path, error)) from None


def _member(
    file: h5py.File, here: h5py.Group | h5py.Dataset, part: str, path: str
) -> h5py.Group | h5py.Dataset:
    try:
        member = here[part]
    except DAMAGE as error:
        raise InputError(_unopened(file, path, error)) from None
    if isinstance(member, h5py.Group | h5py.Dataset):
        return member
    raise InputError(f"{file.filename}: {path} is a data type, not a dataset")


def _unopened(file: h5py.File, path: str, error: Exception) -> str:
    text = " ".join(str(error).strip("'\"").split())[:200]
    return f"{file.filename}: cannot open {path}: {text}"


def _absent(
    file: h5py.File, path: str, here: h5py.Group | h5py.Dataset, part: str
) -> str:
    text = f"{file.filename}: there is no dataset {path}"
    if isinstance(here, h5py.Group):
        names = ", ".join(sorted(here)[:12]) or "nothing"
        text += f"\nin {here.name} there is no {part!r}, but: {names}"
    return text


def _check_storage(
    dataset: h5py.Dataset, roots: Sequence[Path], opener: Opener, hops: int
) -> None:
    """Look at the other files that a dataset's values come from."""
    where = f"{dataset.file.filename}: {dataset.name}"
    if _REDIRECTED and (dataset.external or dataset.is_virtual):
        raise InputError(
            f"{where}: its values lie in other files, and {_REDIRECTED[0]} would send "
            "HDF5 elsewhere\nunset it"
        )
    for name, *_ in dataset.external or ():
        # HDF5 takes such names relative to the working folder.
        raw = Path(os.path.realpath(os.fsdecode(name)))
        if not is_inside(raw, roots):
            raise InputError(f"{where}: stored in {raw}, outside the allowed folders")
        if raw.exists() and not raw.is_file():
            raise InputError(f"{where}: stored in {raw}, which is not a regular file")
    if not dataset.is_virtual:
        return
    sources = {(s.file_name, s.dset_name) for s in dataset.virtual_sources()}
    if len(sources) > _MAX_SOURCES:
        raise InputError(f"{where}: {len(sources)} sources of a virtual dataset")
    for file_name, name in sorted(sources):
        if "%" in file_name or "%" in name:
            raise InputError(f"{where}: virtual sources with patterns are not read")
        _check_source(dataset.file, file_name, name, roots, opener, hops)


def _check_source(
    file: h5py.File,
    file_name: str,
    name: str,
    roots: Sequence[Path],
    opener: Opener,
    hops: int,
) -> None:
    if file_name == ".":
        walk(file, name, roots, opener, hops + 1)
        return
    other = _beside(file, file_name, roots, f"virtual source {name}")
    if is_truncated(other):
        # HDF5 would quietly put fill values in its place.
        raise InputError(f"{file.filename}: virtual source {other} is truncated")
    with opener(other) as source:
        walk(source, name, roots, opener, hops + 1)


def _beside(file: h5py.File, name: str, roots: Sequence[Path], what: str) -> Path:
    """Resolve a file name found in a file, relative to that file."""
    folder = Path(file.filename).parent
    other = Path(os.path.realpath(folder / name))
    if not is_inside(other, roots):
        raise InputError(
            f"{file.filename}: {what} leads to {other}, outside the allowed folders\n"
            "allow its folder in files.roots of the profile if that is meant"
        )
    if not other.is_file():
        raise InputError(f"{file.filename}: {what} leads to {other}: no such file")
    return other
