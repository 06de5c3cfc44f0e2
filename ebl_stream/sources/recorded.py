"""A journal of recorded documents, told again."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py

from ebl_stream.errors import InputError
from ebl_stream.ingest.hdf5 import resolve_uri
from ebl_stream.profile import Profile
from ebl_stream.profile_file import load
from ebl_stream.sources.pace import Pace
from ebl_stream.sources.past_runs import journaled_run
from ebl_stream.transport.journal import read_journal

logger = logging.getLogger(__name__)


class RecordedSource:
    """Documents of every run in a journal, in the order in which they came.

    Frames may be read from the journal's own folder and ``profile.files.roots``.
    A journal is the user's own recording, so where the profile gives no roots the
    folders of the files that it names count too: of those files alone that are
    regular HDF5 files which this user may read.

    Parameters
    ----------
    path : pathlib.Path
    profile : Profile, optional
        None takes the shipped profile that fits the recorded data keys.
    overrides : mapping, optional
        ``{"dotted.path": value}`` on top of the shipped profile.
    speed : float, optional
        1 keeps the recorded cadence; None is as fast as possible.

    Raises
    ------
    InputError
        Not a journal, or one without a single run.
    """

    def __init__(
        self,
        path: Path,
        profile: Profile | None,
        *,
        overrides: dict[str, Any] | None = None,
        speed: float | None = None,
    ) -> None:
        self.path = path.resolve()
        self._speed = speed
        look = _Look()
        for _, name, doc in read_journal(self.path):
            look(name, doc)
        if not look.n_runs:
            raise InputError(f"{path}: the journal holds no run (no start document)")
        fitting = "nxtomo" if look.has_image_key else "default"
        self.profile = profile or load(fitting, overrides)
        own = (self.path.parent,)
        given = tuple(
            Path(root).expanduser().resolve() for root in self.profile.files.roots
        )
        self.roots = own + (given or _folders(look.uris, self.profile))

    def documents(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the documents; several runs follow or interleave as they did."""
        pace = Pace(self._speed)
        for received_s, name, doc in read_journal(self.path):
            pace.wait(received_s)
            yield name, doc

    def find_run(self, run_uid: str) -> Iterable[tuple[str, dict[str, Any]]] | None:
        """Return the documents of another run that was recorded beside this one."""
        return journaled_run(self.path.parent)(run_uid)

    def close(self) -> None:
        """Do nothing: the file closes with the iterator."""


class _Look:
    """What a first look through the documents is for."""

    def __init__(self) -> None:
        self.n_runs = 0
        self.has_image_key = False
        self.uris: set[str] = set()

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        if name == "start":
            self.n_runs += 1
        elif name == "descriptor" and isinstance(doc.get("data_keys"), dict):
            self.has_image_key |= "image_key" in doc["data_keys"]
        elif name == "stream_resource" and isinstance(doc.get("uri"), str):
            self.uris.add(doc["uri"])
        elif name == "resource" and isinstance(doc.get("resource_path"), str):
            root = str(doc.get("root", ""))
            self.uris.add(os.path.join(root, doc["resource_path"]))


def _folders(uris: set[str], profile: Profile) -> tuple[Path, ...]:
    """Return the folders of those files that are regular, readable and HDF5."""
    anywhere = (Path("/"),)
    paths = (find_hdf5(uri, anywhere, profile) for uri in uris)
    return tuple(sorted({path.parent for path in paths if path}))


def find_hdf5(uri: str, roots: Sequence[Path], profile: Profile) -> Path | None:
    """Return where a URI's file lies, if it is HDF5, readable and inside the roots."""
    try:
        path = resolve_uri(uri, roots, profile.files.path_map)
    except InputError as error:
        logger.info("not read as a file: %s", error)
        return None
    return path if os.access(path, os.R_OK) and h5py.is_hdf5(path) else None
