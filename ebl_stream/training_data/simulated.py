"""Lessons from simulated samples, whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from ebl_stream.nets.card import Kind
from ebl_stream.nets.train.lessons import Lessons, Stack, of_halves, of_whole
from ebl_stream.simulation.library import Known, Library


def lessons(
    kind: Kind,
    train: Library,
    held: Library,
    *,
    cache: Path | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Lessons:
    """Simulate what a net is to learn from, and what it is judged on.

    Parameters
    ----------
    kind : str
        ``noise2inverse``: one half to the truth; ``tomogan``: the volume to the truth.
    train, held : Library
    cache : Path, optional
        As of `Library.known`.
    report : callable
        Told how many scans are done, of how many.
    """
    total = train.scans + held.scans

    def stacks(library: Library, before: int) -> Iterable[Stack]:
        for k, known in enumerate(library.known(cache)):
            yield _stack(kind, known)
            report(before + k + 1, total)

    about = {"train": train.as_dict(), "held_out": held.as_dict()}
    return Lessons(
        tuple(stacks(train, 0)), tuple(stacks(held, train.scans)), {"sources": [about]}
    )


def _stack(kind: Kind, known: Known) -> Stack:
    make = of_halves if kind == "noise2inverse" else of_whole
    return make(
        known.family, known.volume, known.half_difference, known.truth, known.truth
    )
