"""Hand a processed run on to other programs: TIFF slices, BigTIFF, or HDF5."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ebl_stream import strict_json
from ebl_stream.errors import InputError
from ebl_stream.publish import export_hdf5, export_tiff
from ebl_stream.publish.attempts import SUPERSEDED
from ebl_stream.publish.export import (
    ARRAYS,
    Dtype,
    Progress,
    Scale,
    Volume,
    check_unchanged,
    choose_scale,
    open_run,
    warnings,
)
from ebl_stream.publish.export_place import check_space, check_target, draft
from ebl_stream.publish.record import RunRecord

TIFF_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Wanted:
    """What is to be exported, and where to; exactly one of the two places."""

    tiff: Path | None
    """A folder for slices; a name that ends with .tif is one BigTIFF."""
    hdf5: Path | None
    arrays: tuple[str, ...]
    """Empty: the volume for TIFF, all for HDF5."""
    rows: tuple[int, int] | None
    dtype: Dtype | None
    limits: tuple[float, float] | None
    force: bool

    @property
    def target(self) -> Path:
        """Where to."""
        if (self.tiff is None) == (self.hdf5 is None):
            raise InputError("say where to: either --tiff DIR or --hdf5 FILE")
        return self.tiff or self.hdf5 or Path()

    @property
    def is_folder(self) -> bool:
        """Whether a folder of slices is wanted."""
        return self.tiff is not None and self.tiff.suffix.lower() not in TIFF_SUFFIXES


def export(out: Path, run: str, wanted: Wanted) -> dict[str, Any]:
    """Export a run; returns what was done.

    Parameters
    ----------
    out : Path
        Folder of the results.
    run : str
        See `find_run`.
    wanted : Wanted

    Raises
    ------
    InputError
        There is no such run or array, it is damaged, or the place cannot be written.
    """
    begun, target = time.monotonic(), wanted.target
    record = open_run(find_run(out, run))
    volumes = _volumes(record, wanted)
    check_target(target, "folder" if wanted.is_folder else "file", wanted.force)
    for words in dict.fromkeys(words for v in volumes for words in warnings(v)):
        click.echo(f"ebl-stream: warning: {words}", err=True)
    with _stopping(), draft(target) as place, _progress(target) as progress:
        scale = _write(place, volumes, wanted, progress)
        check_unchanged(volumes)
    return {
        "exported": str(target.absolute()),
        "processed_uid": record.processed_uid,
        "state": record.state,
        "arrays": [volume.name for volume in volumes],
        "shape": list(volumes[0].shape),
        "dtype": scale.dtype,
        "offset": scale.offset,
        "slope": scale.slope,
        "bytes": sum(file.stat().st_size for file in (target, *target.glob("*"))),
        "seconds": round(time.monotonic() - begun, 3),
    }


def summary(done: dict[str, Any]) -> str:
    """Return one line about an export."""
    nz, ny, nx = done["shape"]
    size = f"{done['bytes'] / 1e9:.3g} GB in {done['seconds']:.1f} s"
    return (
        f"{done['processed_uid']} ({done['state']}): {', '.join(done['arrays'])}, "
        f"{nz} x {ny} x {nx} {done['dtype']}, {size}\n{done['exported']}"
    )


def find_run(out: Path, run: str) -> Path:
    """Return the folder of a run.

    Parameters
    ----------
    out : Path
        Folder of the results.
    run : str
        ``latest`` (of those that have ended), a folder, the beginning of a processed
        uid, or the uid of a raw run, or its beginning.

    Raises
    ------
    InputError
        There is none, or several fit.
    """
    if (Path(run) / "metadata.json").is_file():
        return Path(run)
    if os.sep in run:
        raise InputError(f"{run}: no result (there is no metadata.json)")
    if not out.is_dir():
        raise InputError(f"there is no folder {str(out)!r} with results")
    folders = [path.parent for path in out.glob("*/metadata.json")]
    if run == "latest":
        return _latest(out, folders)
    fitting = [folder for folder in folders if run and folder.name.startswith(run)]
    fitting = fitting or [f for f in folders if run and _is_of(f, run)]
    if not fitting:
        raise InputError(f"no result in {out} is {run!r}, or of a raw run {run!r}")
    if len(fitting) > 1:
        names = ", ".join(sorted(folder.name for folder in fitting)[:4])
        raise InputError(f"{run!r} fits {len(fitting)} results: {names}")
    return fitting[0]


def _latest(out: Path, folders: list[Path]) -> Path:
    newest = sorted(
        folders, key=lambda folder: (folder / "metadata.json").stat().st_mtime
    )
    for folder in reversed(newest):
        if _content(folder).get("state") not in (None, "running", SUPERSEDED):
            return folder
    raise InputError(f"no run in {out} has ended; name one, to have it as it is")


def _content(folder: Path) -> dict[str, Any]:
    try:
        content = strict_json.load(folder / "metadata.json")
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_of(folder: Path, raw_uid: str) -> bool:
    """Whether a result is of a raw run whose uid begins so."""
    content = _content(folder)
    start = content.get("start")
    uid = start.get("original_run_uid") if isinstance(start, dict) else None
    return str(uid).startswith(raw_uid) and content.get("state") != SUPERSEDED


def _volumes(record: RunRecord, wanted: Wanted) -> list[Volume]:
    there = [spec.name for spec in record.arrays if record.slabs(spec.name)]
    names = wanted.arrays
    if wanted.hdf5 is None:
        names = names or ("recon",)
        if len(names) > 1:
            raise InputError("TIFF holds one --array at a time")
    elif wanted.dtype is not None or wanted.limits is not None:
        raise InputError("HDF5 keeps values as they are: --dtype is for --tiff")
    names = names or tuple(name for name in ARRAYS if name in there) or ("recon",)
    ordered = sorted(set(names), key=ARRAYS.index)
    return [Volume(record, name, wanted.rows) for name in ordered]


def _write(
    place: Path, volumes: Sequence[Volume], wanted: Wanted, progress: Progress
) -> Scale:
    if wanted.hdf5 is not None:
        check_space(wanted.hdf5, export_hdf5.needed_bytes(volumes))
        export_hdf5.write(place, volumes, progress)
        return Scale(str(volumes[0].dtype))
    (volume,) = volumes
    scale = choose_scale(volume, wanted.dtype, wanted.limits)
    check_space(wanted.target, export_tiff.needed_bytes(volume, scale))
    write = export_tiff.write_slices if wanted.is_folder else export_tiff.write_single
    write(place, volume, scale, progress)
    return scale


@contextmanager
def _progress(target: Path) -> Iterator[Progress]:
    """Show how far it is, on a terminal."""
    console = Console(stderr=True, markup=False, highlight=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} slices"),
        TimeRemainingColumn(),
    )
    with Bar(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(target.name, total=1)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _stopping() -> Iterator[None]:
    """Let SIGTERM end it as Ctrl-C does: what was begun is removed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
