"""A dataset that a StreamResource names: read by event, while it grows."""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.frames import FrameRef
from ebl_stream.ingest.hdf5 import (
    MissingFileError,
    open_dataset,
    open_hdf5,
    resolve_uri,
)
from ebl_stream.ingest.ranges import RangeSet
from ebl_stream.ingest.truncated import Reach, Superblock
from ebl_stream.profile import Files

log = logging.getLogger(__name__)

BLOCK_BYTES = 64 * 2**20
"""Read at once, at most."""

MAX_OPEN_FILES = 64
"""Of one run, at a time."""

_POLL_S = 0.01
_FIRST_PATIENCE_S = 2.0
"""How long a file that is locked may delay the documents behind it, once."""


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
    """

    def __init__(
        self, doc: dict[str, Any], files: Files, roots: Sequence[Path]
    ) -> None:
        self.data_key: str = doc["data_key"]
        self._doc = doc
        self._files = files
        self._roots = roots
        self._stored: Stored | None = None
        self._tried = False

    @property
    def multiplier(self) -> int:
        """Frames per event as the document says it; 0 where it does not."""
        value = self._doc.get("parameters", {}).get("multiplier")
        return value if isinstance(value, int) and value > 0 else 0

    def open(self, *, last_chance: bool = False) -> Stored | None:
        """Open the dataset; None while that is not possible yet.

        The first try, and the last one, wait; those between do not, so that a file
        that stays locked until its writer is done does not hold up the run.

        Raises
        ------
        InputError
            The document names something that must not or cannot be read.
        """
        if self._stored is not None:
            return self._stored
        patience = min(self._files.timeout_s, _FIRST_PATIENCE_S)
        if last_chance:
            patience = self._files.timeout_s
        elif self._tried:
            patience = 0.0
        self._tried = True
        deadline = time.monotonic() + patience
        while True:
            try:
                self._stored = self._open()
                return self._stored
            except (OSError, MissingFileError) as error:
                if time.monotonic() >= deadline:
                    level = logging.WARNING if patience else logging.DEBUG
                    log.log(level, "%s: not readable yet: %s", self.data_key, error)
                    return None
            time.sleep(_POLL_S)

    def _open(self) -> Stored:
        kind = self._doc.get("mimetype", "")
        if "hdf5" not in kind:
            raise InputError(
                f"{self.data_key}: frames of type {kind!r} are not read, HDF5 only"
            )
        parameters = self._doc.get("parameters", {})
        name = parameters.get("dataset") or parameters.get("path")
        if not isinstance(name, str):
            raise InputError(f"{self.data_key}: its StreamResource names no dataset")
        path = resolve_uri(self._doc["uri"], self._roots, self._files.path_map)
        file = open_hdf5(path)
        try:
            limit = self._files.max_frame_bytes
            dataset = open_dataset(file, name, self._roots, max_frame_bytes=limit)
        except BaseException:
            file.close()
            raise
        return Stored(dataset, self._files.timeout_s)

    def put_away(self) -> None:
        """Close the file; it is opened again when it is needed."""
        if self._stored is not None:
            self._stored.put_away()


class Resources:
    """The resources of a run by uid, a bounded number of their files open.

    A detector that writes a file per event makes thousands of them.
    """

    def __init__(self, files: Files, roots: Sequence[Path]) -> None:
        self._files = files
        self._roots = roots
        self._by_uid: dict[str, Resource] = {}
        self._in_use: OrderedDict[Resource, None] = OrderedDict()

    def add(self, doc: dict[str, Any]) -> None:
        """Take a StreamResource document; one that is known stays as it is."""
        self._by_uid.setdefault(doc["uid"], Resource(doc, self._files, self._roots))

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


class Stored:
    """An open dataset whose first axis counts events, or frames.

    Parameters
    ----------
    dataset : h5py.Dataset
    timeout_s : float
        How long `wait` waits for a file that is being written.
    """

    def __init__(self, dataset: h5py.Dataset, timeout_s: float) -> None:
        self._dataset = dataset
        self._name = str(dataset.name)
        self.path = str(dataset.file.filename)
        self._timeout_s = timeout_s
        self._gave_up_at = -1
        size = os.path.getsize(self.path)
        superblock = Superblock.read(self.path)
        cut = superblock is not None and size < superblock.stored_end
        writing = superblock is not None and superblock.being_written
        # A file that its writer has closed is not asked again and again.
        self._may_grow = writing and dataset.file.swmr_mode
        self._reach = Reach(dataset, size) if cut and not writing else None

    @property
    def dataset(self) -> h5py.Dataset:
        """The open dataset; opened again where it has been put away."""
        if not self._dataset.id.valid:
            again = open_hdf5(Path(self.path))[self._name]
            if not isinstance(again, h5py.Dataset):
                raise OSError(f"{self.path}: {self._name} is no dataset any more")
            self._dataset = again
        return self._dataset

    def put_away(self) -> None:
        """Close the file until it is asked for again."""
        if self._dataset.id.valid:
            self._dataset.file.close()

    def length(self) -> int:
        """Return how long the first axis is by now."""
        if self._may_grow:
            try:
                self.dataset.refresh()
            except (OSError, RuntimeError) as error:
                # Caught between two writes: the next look will do.
                log.debug("%s: %s", self.path, error)
        return self.dataset.shape[0] if self.dataset.ndim else 1

    def wait(self, n: int) -> int:
        """Wait, bounded, until the first axis is n long; return how long it is.

        A file that let one wait in vain is not waited for again before it grows, so
        a dead writer costs one timeout, not one per document.
        """
        length = self.length()
        deadline = time.monotonic() + self._timeout_s
        while length < n and length != self._gave_up_at and self._is_growing():
            if time.monotonic() >= deadline:
                self._gave_up_at = length
                log.warning("%s: %d of %d after the timeout", self.path, length, n)
                break
            time.sleep(_POLL_S)
            length = self.length()
        # What came between the last look and the writer's leaving counts too.
        return length if length >= n else self.length()

    def _is_growing(self) -> bool:
        superblock = Superblock.read(self.path)
        is_growing = (
            superblock is not None
            and superblock.being_written
            and bool(self.dataset.file.swmr_mode)
        )
        self._may_grow = self._may_grow or is_growing
        return is_growing

    def inside(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return for each index of the first axis whether the file really has it."""
        if self._reach is None:
            return np.ones(stop - start, bool)
        return self._reach(start, stop)


class StoredImages:
    """Images of a dataset, by event.

    ``(N, row, column)``, one or m of them per event; ``(N, m, row, column)``; or one
    lone ``(row, column)``.

    Raises
    ------
    InputError
        The dataset has another number of axes.
    """

    def __init__(
        self, stored: Stored, frames_per_event: int, rows: tuple[int, int] | None
    ) -> None:
        shape = stored.dataset.shape
        if len(shape) not in (2, 3, 4):
            raise InputError(
                f"{stored.path}: {stored.dataset.name} has shape {shape}; "
                "images are (N, row, column) or (N, m, row, column)"
            )
        self._stored = stored
        self._rows = rows
        self._by_event = len(shape) == 4
        self.m = shape[1] if self._by_event else frames_per_event
        self._step = 1 if self._by_event else self.m
        self.named = RangeSet()
        height = rows[1] - rows[0] if rows else shape[-2]
        self.event_bytes = self.m * height * shape[-1] * stored.dataset.dtype.itemsize

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns as stored."""
        return self._stored.dataset.shape[-2:]

    def wait(self, n_events: int) -> int:
        """Wait, bounded, for so many events; return how many there are."""
        return self._stored.wait(n_events * self._step) // self._step

    def n_orphan(self) -> int:
        """Return how many frames there are that no document named."""
        n = self._stored.length() // self._step
        named = sum(min(stop, n) - min(start, n) for start, stop in self.named)
        return (n - named) * self.m

    def read(self, start: int, stop: int) -> Iterator[NDArray[Any] | None]:
        """Read events as ``(m, row, column)`` each; None where that fails."""
        try:
            block = self._read(start, stop)
        except (OSError, RuntimeError):
            block = None
        if block is None and stop - start > 1:
            # Somewhere in it is a broken chunk: lose that one only.
            for event in range(start, stop):
                yield from self.read(event, event + 1)
            return
        inside = self._stored.inside(start * self._step, stop * self._step)
        per_event = inside.reshape(stop - start, -1)
        for i in range(stop - start):
            yield block[i] if block is not None and per_event[i].all() else None

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        rows = slice(*self._rows) if self._rows else slice(None)
        dataset = self._stored.dataset
        if dataset.ndim == 2:
            values = dataset[rows][None]
        elif self._by_event:
            values = dataset[start:stop, :, rows]
        else:
            values = dataset[start * self._step : stop * self._step, rows]
        return np.asarray(values).reshape(stop - start, self.m, *values.shape[-2:])

    def ref(self, event: int, frame: int) -> FrameRef:
        """Return where one frame lies."""
        if self._stored.dataset.ndim == 2:
            index: tuple[int, ...] = ()
        elif self._by_event:
            index = (event, frame)
        else:
            index = (event * self._step + frame,)
        name = str(self._stored.dataset.name)
        return FrameRef(self._stored.path, name, index, self._rows)


def read_values(stored: Stored, start: int, stop: int, per_event: int) -> NDArray[Any]:
    """Read scalars by event: ``(event, value)``, as many events as there are by now.

    What a truncated file has lost is NaN.

    Parameters
    ----------
    stored : Stored
        Of shape ``(N,)`` with ``per_event`` values per event, or ``(N, k)``.
    """
    dataset = stored.dataset
    flat = dataset.ndim == 1
    step = per_event if flat else 1
    width = per_event if flat else int(np.prod(dataset.shape[1:]))
    if dataset.ndim == 0 or width > 65_536:
        raise InputError(f"{stored.path}: {dataset.name} is no list of scalars")
    n = max(start, min(stored.wait(stop * step) // step, stop))
    values = np.asarray(dataset[start * step : n * step], np.float64)
    values[~stored.inside(start * step, n * step)] = np.nan
    return values.reshape(n - start, width)
