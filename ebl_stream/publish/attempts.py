"""Folders of one run that was begun more than once, and which of them counts.

A service that died within a run begins it anew from its journal, in a folder of its
own. What the attempt before left stays on disk; its state becomes ``superseded``, so
that of a run's folders exactly one is ``complete``, ``partial`` or ``failed``.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ebl_stream import failpoints
from ebl_stream.publish.record import RunRecord, read_record
from ebl_stream.publish.space import free_bytes
from ebl_stream.publish.tiled_link import TiledLink
from ebl_stream.result import Result

logger = logging.getLogger(__name__)

SUPERSEDED = "superseded"
IS_TOLD = ".in_tiled"
"""File in a run's folder: Tiled has all of it."""
TELL_WITHIN_S = 86_400.0
ROOM_BYTES = 4 * 2**20
SLACK_S = 2.0
"""File systems keep time in steps, on a clock of their own."""


class Attempts:
    """What earlier attempts at a run left in the folder of the results.

    Parameters
    ----------
    out : Path
        Holds one folder per processed run.
    link : TiledLink, optional
        Told of what changes.
    min_free_bytes : int
        What is to stay free on the disk.
    """

    def __init__(
        self, out: Path, link: TiledLink | None, min_free_bytes: int = 0
    ) -> None:
        self._out = out
        self._link = link
        self._min_free_bytes = min_free_bytes

    def result(self, run_uid: str, begun: float) -> dict[str, Any] | None:
        """Return what came of a run, if it was written to the end.

        Parameters
        ----------
        run_uid : str
            Of the raw run.
        begun : float
            s since the epoch; older folders are somebody else's.
        """
        records = list(self._records(run_uid, begun))
        ended = [r for r in records if r.state in ("complete", "partial", "failed")]
        return _result(run_uid, ended[-1]) if ended else None

    def supersede(self, run_uid: str, begun: float, why: str) -> None:
        """Mark what earlier attempts left: it does not count any more."""
        for record in self._records(run_uid, begun):
            if record.state == SUPERSEDED:
                continue
            record.merge({"reason": why}, SUPERSEDED)
            try:
                _save(record)
            except OSError as error:
                logger.error("%s: not marked as superseded: %s", record.folder, error)
            if self._link is not None:
                self._link.follow(record)
        failpoints.hit("resume.superseded")

    def has_room(self) -> bool:
        """Whether the disk takes results again."""
        try:
            free = free_bytes(self._out)
            if free is not None and free < self._min_free_bytes + ROOM_BYTES:
                return False
            with tempfile.TemporaryFile(dir=self._out) as file:
                file.write(bytes(ROOM_BYTES))
        except OSError:
            return False
        return True

    def tell_again(self) -> None:
        """Tell Tiled of ended runs that it did not hear of before the service ended."""
        if self._link is None:
            return
        since = time.time() - TELL_WITHIN_S
        for record in self._recent(since):
            if record.state != "running" and not (record.folder / IS_TOLD).exists():
                self._link.follow(record)

    def _records(self, run_uid: str, begun: float) -> Iterator[RunRecord]:
        """Yield a run's folders, the oldest first."""
        for record in self._recent(begun - SLACK_S):
            if record.metadata().get("start", {}).get("original_run_uid") == run_uid:
                yield record

    def _recent(self, since: float) -> Iterator[RunRecord]:
        known: list[tuple[float, Path]] = []
        for path in self._out.glob("*/metadata.json"):
            try:
                modified = path.stat().st_mtime
            except OSError:
                continue
            if modified >= since:
                known.append((modified, path.parent))
        for _, folder in sorted(known):
            try:
                yield read_record(folder)
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.warning("%s is left out: %s", folder, error)


def note_told(record: RunRecord) -> None:
    """Remember that Tiled has all of an ended run."""
    try:
        (record.folder / IS_TOLD).touch()
    except OSError as error:
        logger.debug("%s: not noted that Tiled has it: %s", record.folder, error)
    failpoints.hit("tiled.noted")


def _save(record: RunRecord) -> None:
    path = record.folder / "metadata.json"
    draft = path.with_suffix(".json.part")
    draft.write_text(json.dumps(record.as_json()), encoding="utf-8")
    os.replace(draft, path)
    (record.folder / IS_TOLD).unlink(missing_ok=True)


def _result(run_uid: str, record: RunRecord) -> dict[str, Any]:
    """Return a `Result` of what a folder says."""
    metadata = record.metadata()
    center, ledger = metadata["rotation_center"], metadata["ledger"]
    recon = next(spec for spec in record.arrays if spec.name == "recon")
    state: Any = record.state
    return Result(
        run_uid=run_uid,
        processed_uid=record.processed_uid,
        volume=str(record.folder / recon.name),
        shape=recon.shape,
        rotation_center=center["column"],
        rotation_center_source=center["source"],
        n_projections=len(metadata.get("angles", {}).get("index", ())),
        ledger=ledger,
        state=state,
        latency_s=metadata.get("latency_s", {}),
        wall_s=0.0,
        message=str(metadata.get("reason") or ""),
    ).as_dict()
