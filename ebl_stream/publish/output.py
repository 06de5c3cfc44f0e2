"""What a run leaves behind: zarr arrays and two text files in one folder.

``<folder>/<processed_uid>/`` holds one zarr v3 array per result (``recon``,
``denoised``, ``labels``), ``metadata.json`` and ``quality.jsonl``. It is the
truth; Tiled is told of it afterwards and can be told again from it.

Chunks and ``metadata.json`` are replaced whole (see ``chunks``), and metadata follow
the pixels: a slab is of the version that ``metadata.json`` says, or of a later one.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from ebl_stream import failpoints
from ebl_stream.publish.chunks import ChunkedArray, chunk_shape, commit
from ebl_stream.publish.record import ArraySpec, RunRecord, Slab, plain, read_record
from ebl_stream.publish.retention import mark_open
from ebl_stream.publish.space import VOLUME, Space, array_bytes

__all__ = ["ArraySpec", "Follower", "RunOutput", "RunRecord", "Slab", "read_record"]

MOST_THREADS = 16
"""Threads that compress and write: more than a disk takes are of no use."""

FinalState = Literal["complete", "partial", "failed"]


class Follower(Protocol):
    """Whoever tells others of a run, in a thread of its own; never raises."""

    def follow(self, record: RunRecord) -> None:
        """Take up a run."""
        ...

    def changed(self) -> None:
        """Look again: a record has changed."""
        ...


class RunOutput:
    """The folder of one processed run; creates nothing before ``create``.

    After ``create`` all methods may be called from several threads at a time: a slab
    can be read as soon as its ``write`` returns, whatever the others do.

    Parameters
    ----------
    folder : Path
        Holds one folder per run.
    processed_uid : str
        Names the run's folder and its place in Tiled.
    link : Follower, optional
        Told of every change, usually a ``TiledLink``.
    min_free_bytes : int
        What is to stay free on the disk: arrays that do not fit are left out.

    Raises
    ------
    ValueError
        The uid is not a plain name.
    """

    def __init__(
        self,
        folder: Path,
        processed_uid: str,
        link: Follower | None = None,
        *,
        min_free_bytes: int = 0,
    ) -> None:
        if Path(processed_uid).name != processed_uid or processed_uid in ("", ".."):
            raise ValueError(f"a run's uid must be a plain name: {processed_uid!r}")
        self.folder = Path(folder).absolute() / processed_uid
        self._link = link
        self._record: RunRecord | None = None
        self._arrays: dict[str, ChunkedArray] = {}
        self._slab_rows: dict[str, int] = {}
        self._space = Space(self.folder, min_free_bytes)
        self._skipped: frozenset[str] = frozenset()
        self._mark: int | None = None
        self._pool = ThreadPoolExecutor(_n_threads(), "chunks")
        self._placing = threading.Lock()
        self._saving = threading.Lock()
        self._saved_revision = 0

    def path(self, name: str) -> Path:
        """Return where an array lies (absolute)."""
        return self.folder / name

    @property
    def processed_uid(self) -> str:
        """The run's uid, which names its folder and its place in Tiled."""
        return self.folder.name

    @property
    def record(self) -> RunRecord:
        """What may be told of the run; RuntimeError before ``create``."""
        if self._record is None:
            raise RuntimeError("RunOutput.create must be called first")
        return self._record

    def create(
        self, arrays: Sequence[ArraySpec], metadata: dict[str, Any], slab_rows: int
    ) -> None:
        """Allocate the arrays at full shape, filled with 0, as far as there is space.

        Parameters
        ----------
        arrays : sequence of ArraySpec
            The results, ``[z, y, x]``.
        metadata : dict
            Sections ``start``, ``analysis``, ``progress``, ``ledger``, ...
        slab_rows : int
            Height of the slabs that ``write`` will get, where a spec says nothing else.

        Raises
        ------
        FileExistsError
            The run's folder exists: a result is never overwritten.
        OSError
            The disk does not let us, or the volume does not fit (then nothing is left
            behind); the message says where.
        """
        with _named(f"cannot create the result in {self.folder}"):
            arrays = self._begin(arrays, slab_rows)
            for spec in arrays:
                path = self.path(spec.name)
                height = spec.slab_rows or slab_rows
                array = ChunkedArray(path, spec, height, self._pool)
                self._slab_rows[spec.name] = height
                self._arrays[spec.name] = array
        chunks = {name: array.chunks for name, array in self._arrays.items()}
        metadata = {**metadata, "storage": self._space.report()}
        self._record = RunRecord(self.folder, arrays, chunks, plain(metadata))
        self._save()
        if self._link is not None:
            self._link.follow(self._record)

    def write(
        self,
        name: str,
        z0: int,
        slab: NDArray[Any],
        *,
        version: int,
        n_used: int,
        coverage: float,
    ) -> None:
        """Write a slab and record its version; when this returns it can be read.

        Of two versions of a slab that are written at a time, the one that is ready
        last stays. Where space is short, slabs of all arrays but the volume are left
        out; the metadata count them.

        Parameters
        ----------
        name : str
            Array to write to.
        z0 : int
            First slice; a multiple of ``slab_rows``.
        slab : NDArray
            ``[z, y, x]``, all of y and x; as high as ``slab_rows``, except the last.
        version, n_used, coverage
            Which look at the sample this is, see ``Slab``.

        Raises
        ------
        OSError
            The disk is full, gone or read-only; the message says where.
        ValueError
            The slab does not fit the array.
        """
        if name in self._skipped:
            return
        array = self._arrays[name]
        z1 = z0 + slab.shape[0]
        self._check_fit(name, z0, slab)
        again = self.record.has(name, z0)
        if not self._space.allows(name, slab.nbytes, again=again):
            self.record.merge({"storage": self._space.report()})
            return
        stamp = Slab(int(z0), int(z1), int(version), int(n_used), float(coverage))
        with _named(f"cannot write slices {z0}:{z1} of {self.path(name)}"):
            staged = array.stage(z0, slab)
            with self._placing:
                commit(staged)
                self.record.note(name, stamp)
        if name == VOLUME:
            self._space.written(z0)
        self._save()
        self._tell()

    def quality(self, rows: Sequence[Mapping[str, float | int | str]]) -> None:
        """Append quality rows to ``quality.jsonl`` and to the table in Tiled.

        The first row of a run decides on the columns of the table in Tiled.

        Raises
        ------
        OSError
            The disk does not let us; the message says where.
        """
        clean = [plain(row) for row in rows]
        path = self.folder / "quality.jsonl"
        lines = [json.dumps(row) + "\n" for row in clean]
        with self._saving, _named(f"cannot write {path}"):
            with path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
            self.record.add_rows(clean)
        self._tell()

    def update(self, metadata: dict[str, Any]) -> None:
        """Merge into the metadata, section by section; OSError as in ``write``."""
        self.record.merge(metadata)
        self._save()
        self._tell()

    def finish(self, state: FinalState, metadata: dict[str, Any]) -> None:
        """Merge the last metadata and the run's final state, written last."""
        self.record.merge(metadata, state)
        # Tiled is told even if the disk refuses the final state.
        try:
            self._save()
            failpoints.hit("output.finished")
        finally:
            self._tell()

    def close(self) -> None:
        """Let go of the threads; nothing can be written any more."""
        self._pool.shutdown()
        mark, self._mark = self._mark, None
        if mark is not None:
            os.close(mark)

    def _begin(self, arrays: Sequence[ArraySpec], slab_rows: int) -> list[ArraySpec]:
        """Make the folder, mark it as in use, and choose the arrays that fit."""
        self.folder.mkdir(parents=True)
        try:
            self._mark = mark_open(self.folder)
            sizes: dict[str, int] = {}
            slabs: dict[int, int] = {}
            for spec in arrays:
                height = spec.slab_rows or slab_rows
                sizes[spec.name] = array_bytes(spec, chunk_shape(spec.shape, height))
                if spec.name == VOLUME:
                    share = sizes[VOLUME] * height // spec.shape[0]
                    slabs |= dict.fromkeys(range(0, spec.shape[0], height), share)
            fit = self._space.choose(sizes, slabs)
        except OSError:
            self.folder.rmdir()
            raise
        self._skipped = frozenset(fit.skipped)
        return [spec for spec in arrays if spec.name in fit.kept]

    def _check_fit(self, name: str, z0: int, slab: NDArray[Any]) -> None:
        array = self._arrays[name]
        slab_rows = self._slab_rows[name]
        height = min(slab_rows, array.shape[0] - z0)
        wanted = (height, *array.shape[1:])
        if z0 < 0 or z0 % slab_rows or slab.shape != wanted:
            raise ValueError(f"{name}: slab {slab.shape} at z={z0}, expected {wanted}")
        if slab.dtype != array.dtype:
            raise ValueError(f"{name}: slab is {slab.dtype}, expected {array.dtype}")

    def _save(self) -> None:
        path = self.folder / "metadata.json"
        with self._saving, _named(f"cannot write {path}"):
            # Who had to wait finds its change saved with the one before.
            revision = self.record.revision
            if revision == self._saved_revision:
                return
            draft = path.with_suffix(".json.part")
            draft.write_text(json.dumps(self.record.as_json()), encoding="utf-8")
            failpoints.hit("metadata.drafted")
            os.replace(draft, path)
            failpoints.hit("metadata.replaced")
            self._saved_revision = revision

    def _tell(self) -> None:
        if self._link is not None:
            self._link.changed()


def _n_threads() -> int:
    return min(MOST_THREADS, os.cpu_count() or 1)


class _named:  # noqa: N801  (reads as a statement)
    """Say what was being done when the disk refused."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            # OSError picks the subclass by errno, so FileExistsError stays one.
            raise OSError(error.errno, f"{self._doing}: {reason}") from error
