"""Flats and darks that lie outside of a run's own streams: another run, or a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from ebl_stream.errors import InputError
from ebl_stream.frames import Announced, Frame, Item, Kind, Rejected, Repeated, Scan
from ebl_stream.ingest.hdf5 import open_dataset, open_hdf5, resolve_uri
from ebl_stream.ingest.links import DAMAGE
from ebl_stream.ingest.places import check_rows
from ebl_stream.ingest.resources import find_dataset
from ebl_stream.ingest.start_document import find_text
from ebl_stream.ingest.stored import Stored, StoredImages, is_fresh
from ebl_stream.profile import Profile

log = logging.getLogger(__name__)

Document: TypeAlias = tuple[str, dict[str, Any]]
FindRun: TypeAlias = Callable[[str], Iterable[Document] | None]
"""Returns the documents of a run by its uid; None where it is not known."""
ReadRun: TypeAlias = Callable[[Iterable[Document]], Iterable[Scan | Item]]
"""Makes the flats and darks of a run's documents."""

BESIDE = "projections"
"""In place of a file name: the file that the projections lie in."""


class Elsewhere:
    """Look for the flats and darks that profile or start document point to.

    Parameters
    ----------
    profile : Profile
    start : mapping
        The start document of the run that wants them.
    roots : sequence of Path
        Folders that files may lie in; the one that the profile names may, anyway.
    rows : (int, int), optional
        Half-open range of stored rows to read.
    find_run : callable
    read_run : callable
    """

    def __init__(
        self,
        profile: Profile,
        start: Mapping[str, Any],
        roots: Sequence[Path],
        rows: tuple[int, int] | None,
        find_run: FindRun,
        read_run: ReadRun,
    ) -> None:
        self._profile = profile
        self._roots = tuple(roots)
        self._rows = rows
        self._find_run = find_run
        self._read_run = read_run
        keys, own = profile.start, profile.references.file
        run_uid = find_text(start, keys.references_run)
        self._run_uid = run_uid if run_uid != start.get("uid") else None
        named = find_text(start, keys.references_file)
        self._files = [file for file in (named, own) if file]
        self._tried: set[str] = set()
        if own and own != BESIDE:
            self._roots += (_local(own).parent,)
        # What an image key calls a flat is one; there are no others.
        self.is_wanted = bool(self._run_uid or self._files)
        self.is_wanted = self.is_wanted and profile.keys.image_key is None
        self.found: dict[Kind, str] = {}
        """Where flats and darks came from."""
        self.failures: dict[str, str] = {}
        """Why a place gave nothing."""
        self.n: dict[Kind, int] = {}
        """How many there were."""

    def find(
        self,
        lacking: Iterable[Kind],
        beside: Callable[[], Path | None],
        *,
        is_last: bool,
    ) -> Iterator[Item]:
        """Yield the frames of the kinds that the run lacks, from the first place.

        Parameters
        ----------
        lacking : iterable of Kind
            Kinds of which the run has had no frame.
        beside : callable
            Returns the file of the projections, None while it is not known.
        is_last : bool
            The run is over: a file that is still being written will not do better.
        """
        wanted = {kind for kind in lacking if kind not in self.found}
        if not self.is_wanted or not wanted:
            return
        if self._run_uid is not None and self._is_time(self._run_uid, is_last):
            yield from self._noted(f"run {self._run_uid}", wanted, self._in_run)
        for name in self._files:
            path = self._resolve(name, beside) if wanted else None
            if path is None or (is_fresh(path) and not is_last):
                continue  # flats may be on their way into it
            if self._is_time(name, is_last):
                look = partial(_in_file, self._profile, path, self._roots, self._rows)
                yield from self._noted(f"file {path}", wanted, look)

    def _is_time(self, place: str, is_last: bool) -> bool:
        """Return whether to look: once as soon as that may help, and at the end."""
        if place in self._tried and not is_last:
            return False
        self._tried.add(place)
        return True

    def report(self) -> dict[str, Any] | None:
        """Return where flats and darks came from; None where nobody looked."""
        if not self.is_wanted:
            return None
        found = {kind.name.lower() + "s": where for kind, where in self.found.items()}
        return {"found": found, "failed": dict(self.failures)}

    def _noted(
        self,
        place: str,
        wanted: set[Kind],
        look: Callable[[set[Kind]], Iterator[Item]],
    ) -> Iterator[Item]:
        """Hand on what a place has; note why, where it has nothing."""
        here: set[Kind] = set()
        try:
            for item in look(set(wanted)):
                if isinstance(item, Announced):
                    n = self.n.get(item.kind, 0)
                    self.n[item.kind] = max(n, item.stop)
                if isinstance(item, Frame):
                    here.add(item.kind)
                yield item
            if Kind.FLAT in wanted - here:
                self.failures[place] = "it has no flats that can be read"
        except (InputError, *DAMAGE) as error:
            self.failures[place] = " ".join(str(error).split())[:300]
        else:
            if here:
                self.failures.pop(place, None)
        self.found |= dict.fromkeys(here, place)
        wanted -= here

    def _in_run(self, kinds: set[Kind]) -> Iterator[Item]:
        documents = self._find_run(str(self._run_uid))
        if documents is None:
            raise InputError("neither among the last runs nor in a journal")
        for item in self._read_run(documents):
            is_frame = isinstance(item, Announced | Repeated | Frame | Rejected)
            if is_frame and item.kind in kinds:
                yield item

    def _resolve(self, name: str, beside: Callable[[], Path | None]) -> Path | None:
        path_map = self._profile.files.path_map
        try:
            if name == BESIDE:
                path = beside()
            else:
                text = name if name.startswith("file:") else str(_local(name))
                path = resolve_uri(text, self._roots, path_map)
        except InputError as error:
            self.failures[f"file {name}"] = " ".join(str(error).split())[:300]
            return None
        self.failures.pop(f"file {name}", None)
        return path


def _local(name: str) -> Path:
    """Return the path in a file name or a ``file:`` URI."""
    is_uri = name.startswith("file:")
    return Path(unquote(urlsplit(name).path) if is_uri else name).expanduser()


def _in_file(
    profile: Profile,
    path: Path,
    roots: Sequence[Path],
    rows: tuple[int, int] | None,
    kinds: set[Kind],
) -> Iterator[Item]:
    """Yield the flats and darks of an HDF5 file."""
    names = {Kind.FLAT: profile.datasets.flats, Kind.DARK: profile.datasets.darks}
    limit = profile.files.max_frame_bytes
    with open_hdf5(path) as file:
        for kind in sorted(kinds):
            name = find_dataset(file, names[kind])
            if name is None:
                continue
            dataset = open_dataset(file, name, roots, max_frame_bytes=limit)
            stored = Stored(dataset, 0.0, lambda dataset=dataset: dataset)
            images = StoredImages(stored, 1, rows)
            if rows is not None:
                check_rows(rows, images.shape[0])
            if images.n_events * images.m > profile.files.max_projections:
                raise InputError(f"{name} has {images.n_events} events, too many")
            yield from _frames(kind, images)


def _frames(kind: Kind, images: StoredImages) -> Iterator[Item]:
    n = images.n_events
    yield Announced(kind, 0, n * images.m)
    for event in range(n):
        (block,) = images.read(event, event + 1)
        for i in range(images.m):
            index = event * images.m + i
            if block is None:
                yield Rejected(kind, index, "unreadable")
            else:
                ref = images.ref(event, i)
                yield Frame(index, kind, float("nan"), block[i], ref)
