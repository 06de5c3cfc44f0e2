"""Replay a recorded scan through the callbacks that a live scan goes through."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from ebl_stream.errors import InputError
from ebl_stream.profile import Profile
from ebl_stream.profile_file import load
from ebl_stream.publish.publishing import Publishing
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.result import Progress, Result
from ebl_stream.sources import Source, open_source


class Interruption:
    """Ctrl-C stops between two documents, never inside one; a second one at once."""

    def __init__(self) -> None:
        self._shielded = False
        self._asked = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._shielded and not self._asked:
            self._asked = True
            return
        raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answer SIGINT and SIGTERM."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._on_signal) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Do the work of the block to its end before Ctrl-C counts."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if self._asked:
            raise KeyboardInterrupt


@dataclass
class Outcome:
    """What a replay came to."""

    results: list[Result] = field(default_factory=list)
    tiled_uri: dict[str, str | None] = field(default_factory=dict)
    """By processed uid."""
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 complete, 3 partial, 1 failed, 130 interrupted."""
        if self.interrupted:
            return 130
        codes = {result.exit_code for result in self.results}
        return 1 if 1 in codes else max(codes, default=1)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return one plain dict per run, as ``--json`` prints it."""
        return [
            {**result.as_dict(), "tiled_uri": self.tiled_uri.get(result.processed_uid)}
            for result in self.results
        ]


def open_with_profile(
    address: str,
    profile_name: str | None,
    overrides: Mapping[str, Any],
    speed: float | None,
) -> tuple[Source, Profile]:
    """Open a source with the named profile, or the one that suits it.

    Raises
    ------
    InputError
        The source or the profile is wrong; nothing was written.
    """
    given = load(profile_name, dict(overrides)) if profile_name else None
    return open_source(address, given, overrides=dict(overrides), speed=speed)


def replay(
    source: Source,
    profile: Profile,
    publishing: Publishing,
    *,
    out: Path,
    rows: tuple[int, int] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Push a source's documents through a `Reconstruction` until it ends.

    Parameters
    ----------
    source : Source
        Closed at the end.
    profile : Profile
    publishing : Publishing
        Begun when the first result exists, left open for the caller.
    out : Path
        Folder of the results.
    rows : (int, int), optional
        Half-open range of stored detector rows.
    on_progress : callable, optional

    Raises
    ------
    InputError
        The input cannot be reconstructed; nothing was written.
    """

    def progressed(progress: Progress) -> None:
        if progress.volume is not None:
            publishing.begin()
        if on_progress is not None:
            on_progress(progress)

    reconstruction = Reconstruction(
        profile,
        out=out,
        link=publishing.link,
        rows=rows,
        roots=source.roots,
        on_progress=progressed,
        find_run=getattr(source, "find_run", None),
    )
    outcome = Outcome()
    outcome.interrupted = _pump(source, reconstruction)
    outcome.results = list(reconstruction.results.values())
    if not outcome.results and not outcome.interrupted:
        raise InputError("the source holds no tomography run: no frame was announced")
    if outcome.results:
        publishing.begin()
    try:
        for result in outcome.results:
            uid = result.processed_uid
            outcome.tiled_uri[uid] = publishing.node_uri(uid)
    except KeyboardInterrupt:  # the volume is there: only Tiled is not waited for
        outcome.interrupted = True
    return outcome


def _pump(source: Source, reconstruction: Reconstruction) -> bool:
    """Pass on documents until the source ends; True after Ctrl-C."""
    interruption = Interruption()
    interrupted = False
    with interruption.listening():
        try:
            for name, doc in source.documents():
                with interruption.shielded():
                    reconstruction(name, doc)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            source.close()
        # What came so far becomes a partial volume; a second Ctrl-C ends it here.
        reconstruction.close()
    return interrupted
