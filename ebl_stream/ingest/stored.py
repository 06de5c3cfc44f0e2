"""A dataset that a StreamResource names: read by event, while it grows."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.frames import FrameRef
from ebl_stream.ingest.ranges import RangeSet
from ebl_stream.ingest.truncated import Reach, Superblock

log = logging.getLogger(__name__)

BLOCK_BYTES = 64 * 2**20
"""Read at once, at most; one event is read whole."""

MAX_EVENT_BYTES = 2**30
_MAX_SCALARS = 8 * 2**20
"""Values of one datum."""

_POLL_S = 0.01
_FRESH_S = 2.0
"""A file that was changed so lately may still be written."""


class Stored:
    """An open dataset whose first axis counts events, or frames.

    Parameters
    ----------
    dataset : h5py.Dataset
    timeout_s : float
        How long `wait` waits for a file that is being written.
    reopen : callable
        Opens the dataset anew, with all that is looked at before one does.
    let_go : callable
        Closes whatever else of its file is open: HDF5 would go on from what it has
        in memory.
    """

    def __init__(
        self,
        dataset: h5py.Dataset,
        timeout_s: float,
        reopen: Callable[[], h5py.Dataset],
        let_go: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = str(dataset.file.filename)
        self._timeout_s = timeout_s
        self._reopen = reopen
        self._let_go = let_go
        self._gave_up_at = -1
        self._seen_written = 0
        self._look(dataset)

    def _look(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self._seen = _state(self.path)
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
            self._dataset = self._reopen()
        return self._dataset

    def put_away(self) -> None:
        """Close the file until it is asked for again."""
        if self._dataset.id.valid:
            self._dataset.file.close()

    def is_fresh(self) -> bool:
        """Return whether the file was changed a moment ago."""
        return is_fresh(self.path)

    def _look_again(self) -> None:
        """Open a file anew that a writer without SWMR has gone on with."""
        if _state(self.path) == self._seen:
            return
        self.put_away()
        self._let_go()
        try:
            self._look(self._reopen())
        except (OSError, InputError) as error:
            log.debug("%s: not readable for now: %s", self.path, error)

    def length(self) -> int:
        """Return how long the first axis is by now."""
        if self._may_grow:
            try:
                self.dataset.refresh()
            except (OSError, RuntimeError) as error:
                # Caught between two writes: the next look will do.
                log.debug("%s: %s", self.path, error)
        else:
            self._look_again()
        return self.dataset.shape[0] if self.dataset.ndim else 1

    def wait(self, n: int) -> int:
        """Wait, bounded, until the first axis is n long; return how long it is.

        A file that let one wait in vain is not waited for again before it grows, so
        a dead writer costs one timeout, not one per document.
        """
        length = self._n_written(n)
        deadline = time.monotonic() + self._timeout_s
        while length < n and length != self._gave_up_at and self._is_growing():
            if time.monotonic() >= deadline:
                self._gave_up_at = length
                log.warning("%s: %d of %d after the timeout", self.path, length, n)
                break
            time.sleep(_POLL_S)
            length = self._n_written(n)
        # What came between the last look and the writer's leaving counts too.
        return length if length >= n else self.length()

    def _n_written(self, n: int) -> int:
        """Return how many of the first n are in the file, not only in its length.

        A writer may have told of a longer dataset before its pixels: till then they
        are zeros.
        """
        length = self.length()
        if self._may_grow and self.dataset.chunks is not None:
            while self._seen_written < min(n, length):
                if not self._is_allocated(self._seen_written):
                    return self._seen_written
                self._seen_written += 1
        return length

    def _is_allocated(self, index: int) -> bool:
        """Return whether the first and the last chunk of an index are in the file."""
        dataset = self.dataset
        assert dataset.chunks is not None  # noqa: S101  (whoever calls has looked)
        sides = zip(dataset.shape[1:], dataset.chunks[1:], strict=True)
        last = [(n - 1) // chunk * chunk for n, chunk in sides]
        corners = {(index, *(0 for _ in last)), (index, *last)}
        found = (dataset.id.get_chunk_info_by_coord(corner) for corner in corners)
        return all(chunk.byte_offset is not None for chunk in found)

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
        self._name = str(stored.dataset.name)
        self._by_event = len(shape) == 4
        self.m = shape[1] if self._by_event else frames_per_event
        self._step = 1 if self._by_event else self.m
        self.named = RangeSet()
        height = rows[1] - rows[0] if rows else shape[-2]
        self.event_bytes = self.m * height * shape[-1] * stored.dataset.dtype.itemsize
        if self.event_bytes > MAX_EVENT_BYTES:
            raise InputError(
                f"{stored.path}: {self.m} frames per event, {self.event_bytes} bytes"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns as stored."""
        return self._stored.dataset.shape[-2:]

    def wait(self, n_events: int) -> int:
        """Wait, bounded, for so many events; return how many there are."""
        return self._stored.wait(n_events * self._step) // self._step

    @property
    def n_events(self) -> int:
        """Events that there are by now."""
        is_lone = self._stored.dataset.ndim == 2
        return 1 if is_lone else self._stored.length() // self._step

    def is_fresh(self) -> bool:
        """Return whether their file was changed a moment ago."""
        return self._stored.is_fresh()

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
        return FrameRef(self._stored.path, self._name, index, self._rows)


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
    # It may have been opened anew in the meantime.
    values = np.asarray(stored.dataset[start * step : n * step], np.float64)
    values[~stored.inside(start * step, n * step)] = np.nan
    return values.reshape(n - start, width)


def is_fresh(path: Path | str) -> bool:
    """Return whether a file was changed so lately that it may still be written."""
    try:
        return abs(time.time() - os.stat(path).st_mtime) < _FRESH_S
    except OSError:
        return False


def _state(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (-1, -1)
    return (status.st_size, status.st_mtime_ns)
