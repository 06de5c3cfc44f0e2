"""What StreamResource documents name: opened when that is possible, bounded."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from ebl_stream.errors import InputError
from ebl_stream.ingest.hdf5 import (
    MissingFileError,
    open_dataset,
    open_hdf5,
    resolve_uri,
)
from ebl_stream.ingest.stored import Stored
from ebl_stream.profile import Files

log = logging.getLogger(__name__)

MAX_OPEN_FILES = 64
"""Of one run, at a time."""

_POLL_S = 0.01
_PATIENCE_S = 2.0


@dataclass
class Patience:
    """How long files that cannot be opened may delay the documents behind them."""

    left_s: float = _PATIENCE_S
    """In one run, all its files together."""


class Resource:
    """A StreamResource: where a data key's values lie, opened when that is possible.

    Parameters
    ----------
    doc : dict
        The StreamResource document.
    files : Files
        Path map and limits.
    roots : sequence of Path
        Folders that may be read from.
    datasets : sequence of str
        Where images may lie if the document does not say.
    patience : Patience, optional
        Shared by the resources of a run.
    others : callable
        Returns the resources of the run.
    """

    def __init__(
        self,
        doc: dict[str, Any],
        files: Files,
        roots: Sequence[Path],
        datasets: Sequence[str] = (),
        patience: Patience | None = None,
        others: Callable[[], Iterable[Resource]] = tuple,
    ) -> None:
        self.data_key: str = doc["data_key"]
        self._doc = doc
        self._files = files
        self._roots = roots
        self._datasets = datasets
        self._patience = patience or Patience()
        self._others = others
        self._stored: Stored | None = None
        self._tried = False

    @property
    def multiplier(self) -> int:
        """Frames per event as the document says it; 0 where it does not."""
        value = self._doc.get("parameters", {}).get("multiplier")
        return value if isinstance(value, int) and value > 0 else 0

    def open(self, deadline: float | None = None) -> Stored | None:
        """Open the dataset; None while that is not possible yet.

        The first try waits; later ones do not, so that a file that stays locked
        until its writer is done does not hold up the run. The last one has a
        deadline (s, monotonic).

        Raises
        ------
        InputError
            The document names something that must not or cannot be read.
        """
        if self._stored is not None:
            return self._stored
        began = time.monotonic()
        patience = 0.0 if self._tried else self._patience.left_s
        until = began + patience if deadline is None else deadline
        is_news, self._tried = not self._tried or deadline is not None, True
        while self._stored is None:
            is_over = time.monotonic() >= until
            try:
                dataset = self._open(is_final=is_over and deadline is not None)
                timeout_s = self._files.timeout_s
                self._stored = Stored(dataset, timeout_s, self._open, self._let_go)
            except (OSError, MissingFileError) as error:
                if is_over:
                    level = logging.WARNING if is_news else logging.DEBUG
                    log.log(level, "%s: not readable yet: %s", self.data_key, error)
                    break
                time.sleep(_POLL_S)
        if deadline is None:
            self._patience.left_s -= time.monotonic() - began
        return self._stored

    def path(self) -> Path:
        """Return the file, which is there and allowed; see `resolve_uri`."""
        return resolve_uri(self._doc["uri"], self._roots, self._files.path_map)

    def _open(self, *, is_final: bool = True) -> h5py.Dataset:
        kind = self._doc.get("mimetype", "")
        if "hdf5" not in kind:
            raise InputError(
                f"{self.data_key}: frames of type {kind!r} are not read, HDF5 only"
            )
        path = self.path()
        file = open_hdf5(path)
        try:
            limit, name = self._files.max_frame_bytes, self._dataset_in(file)
            return open_dataset(file, name, self._roots, max_frame_bytes=limit)
        except InputError as error:
            file.close()
            if is_final:
                raise
            # Without SWMR and without locks one may look into a half-written file.
            raise OSError(f"{path}: {error}") from None
        except BaseException:
            file.close()
            raise

    def _dataset_in(self, file: h5py.File) -> str:
        parameters = self._doc.get("parameters", {})
        told = parameters.get("dataset") or parameters.get("path")
        is_told = isinstance(told, str) and bool(told)
        # What a legacy document does not say was guessed; the profile may know better.
        if is_told and ("spec" not in parameters or find_dataset(file, [told])):
            return told
        name = find_dataset(file, self._datasets) or (told if is_told else None)
        if name is None:
            raise InputError(
                f"{self.data_key}: its StreamResource names no dataset\n"
                "name it as datasets.projections in the profile"
            )
        return name

    def put_away(self, path: str | None = None) -> None:
        """Close the file (if it is that one); it is opened again when needed."""
        if self._stored is not None and path in (None, self._stored.path):
            self._stored.put_away()

    def _let_go(self) -> None:
        """Close what other resources hold of the same file."""
        if self._stored is not None:
            for other in self._others():
                other.put_away(self._stored.path)


class Resources:
    """The resources of a run by uid, a bounded number of their files open.

    A detector that writes a file per event makes thousands of them.
    """

    def __init__(
        self, files: Files, roots: Sequence[Path], datasets: Sequence[str] = ()
    ) -> None:
        self._files = files
        self._roots = roots
        self._datasets = datasets
        self._patience = Patience(min(files.timeout_s, _PATIENCE_S))
        self._by_uid: dict[str, Resource] = {}
        self._in_use: OrderedDict[Resource, None] = OrderedDict()

    def add(self, doc: dict[str, Any]) -> None:
        """Take a StreamResource document; one that is known stays as it is."""
        resource = Resource(
            *(doc, self._files, self._roots, self._datasets),
            patience=self._patience,
            others=self._by_uid.values,
        )
        self._by_uid.setdefault(doc["uid"], resource)

    def get(self, uid: str) -> Resource | None:
        """Return a resource; its file may be opened now, the oldest is put away."""
        resource = self._by_uid.get(uid)
        if resource is not None:
            self._in_use[resource] = None
            self._in_use.move_to_end(resource)
        if len(self._in_use) > MAX_OPEN_FILES:
            self._in_use.popitem(last=False)[0].put_away()
        return resource

    def close(self) -> None:
        """Close all files."""
        for resource in self._by_uid.values():
            resource.put_away()


def find_dataset(file: h5py.File, names: Iterable[str]) -> str | None:
    """Return the first of these paths that a file has; links are not followed."""
    return next((name for name in names if _has(file, name)), None)


def _has(file: h5py.File, path: str) -> bool:
    here: Any = file
    for part in filter(None, path.split("/")):
        link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            return link is not None  # where it leads is judged by who opens it
        here = here[part]
    return True
