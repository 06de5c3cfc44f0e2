"""The conservation law: every announced frame is used, or named with a reason.

``announced = used + superseded + duplicate + rejected + dropped + missing +
in_flight``. ``announced`` counts every distinct frame that the run owes, once,
and every repeated delivery. What does not add up is the residue: an alarm, and so is
what is still in flight when the run is over.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.frames import Announced, Kind, Reason, Rejected, Repeated

log = logging.getLogger(__name__)

DROPPED: tuple[Reason, ...] = ("budget",)
"""Reasons that are ours: the frame was fine. All others are the frame's."""


def ranges(indices: NDArray[np.int64]) -> list[list[int]]:
    """Return sorted indices as half-open ranges ``[[start, stop), ...]``."""
    if len(indices) == 0:
        return []
    breaks = np.flatnonzero(np.diff(indices) > 1)
    starts = indices[np.r_[0, breaks + 1]]
    stops = indices[np.r_[breaks, len(indices) - 1]] + 1
    return [[int(a), int(b)] for a, b in zip(starts, stops, strict=True)]


class Ledger:
    """What became of the frames of one kind in one run.

    Parameters
    ----------
    name : str
        Of the run and the kind, for the log.
    """

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._alarm: str | None = None
        self._announced = np.zeros(0, bool)
        self._refused: dict[int, tuple[str, Reason]] = {}
        self._repeated: Counter[str] = Counter()
        self._owed_elsewhere = np.zeros(0, bool)
        self._promised = 0
        self._closed = self._failed = False
        self.n_orphan = 0

    def promise(self, n: int | None) -> None:
        """Note how many distinct frames the plan or the stop document owes."""
        self._promised = max(self._promised, n or 0)

    @property
    def n_owed(self) -> int:
        """Distinct frames that the run owes, as far as known."""
        # An index that a later one jumped over is owed, too.
        owed = np.count_nonzero(~self._elsewhere(len(self._announced)))
        return max(self._promised, int(owed))

    @property
    def n_promised(self) -> int:
        """Distinct frames promised by plan or stop document; 0 when neither says."""
        return self._promised

    def announce(self, start: int, stop: int) -> None:
        """Note frames that documents named for the first time."""
        self._announced = _mark(self._announced, start, stop)

    def set_aside(self, start: int, stop: int) -> None:
        """Note indices that belong to frames of another kind in the same stream."""
        self._owed_elsewhere = _mark(self._owed_elsewhere, start, stop)

    def repeat(self, n: int, how: str) -> None:
        """Note ``n`` repeated deliveries: ``duplicate`` or ``superseded``."""
        self._repeated[how] += n

    def reject(self, index: int, reason: Reason) -> None:
        """Note a frame that cannot be used, or that there was no room for."""
        how = "dropped" if reason in DROPPED else "rejected"
        self._refused[index] = (how, reason)

    def accept(self, index: int) -> None:
        """Note that a later delivery of a refused frame can be used."""
        self._refused.pop(index, None)

    def close(self) -> None:
        """From now on, what was owed and not announced is missing."""
        self._closed = True

    def give_up(self) -> None:
        """The run failed: what is in flight stays there, for no fault of the books."""
        self._failed = True

    def missing(self) -> NDArray[np.int64]:
        """Return indices that are owed and were never announced, sorted."""
        if not self._closed:
            return np.zeros(0, np.int64)
        known = len(self._announced)
        absent = np.flatnonzero(~self._announced & ~self._elsewhere(known))
        rest = max(0, self.n_owed - np.count_nonzero(self._announced) - len(absent))
        tail = max(known, len(self._owed_elsewhere))
        return np.concatenate([absent, np.arange(tail, tail + rest)])

    def _elsewhere(self, n: int) -> NDArray[np.bool_]:
        held = np.zeros(n, bool)
        shared = self._owed_elsewhere[:n]
        held[: len(shared)] = shared
        return held

    def report(self, used: Iterable[int]) -> dict[str, Any]:
        """Return the ledger as published.

        Parameters
        ----------
        used : iterable of int
            Indices that are in the volume now, as the accumulator tells it (not as
            this ledger believes), so that the residue can find a mistake.
        """
        present = np.unique(np.fromiter(used, np.int64))
        named = np.fromiter(self._refused, np.int64)
        left = np.setdiff1d(named, present, assume_unique=True).tolist()
        refused = {index: self._refused[index] for index in left}
        by = {
            how: dict(Counter(reason for h, reason in refused.values() if h == how))
            for how in ("rejected", "dropped")
        }
        missing = self.missing()
        repeated = {k: self._repeated[k] for k in ("superseded", "duplicate")}
        counts = {
            "announced": self._n_announced(len(missing)) + sum(repeated.values()),
            "used": len(present),
            **repeated,
            "rejected": sum(by["rejected"].values()),
            "dropped": sum(by["dropped"].values()),
            "missing": len(missing),
            "in_flight": self._n_in_flight(present, refused),
        }
        residue = counts["announced"] - sum(
            n for name, n in counts.items() if name != "announced"
        )
        return counts | {
            "orphan": self.n_orphan,
            "residue": residue,
            "alarm": self._raise_alarm(residue, counts["in_flight"]),
            "rejected_by": by["rejected"],
            "dropped_by": by["dropped"],
            "missing_indices": ranges(missing),
            "rejected_indices": _indices(refused, "rejected"),
            "dropped_indices": _indices(refused, "dropped"),
        }

    def _raise_alarm(self, residue: int, in_flight: int) -> str | None:
        """Say what nothing explains, in words; log it when it is news."""
        alarm = None
        if residue:
            alarm = f"{abs(residue)} frames are in the books that nobody announced"
        elif self._closed and in_flight and not self._failed:
            alarm = f"{in_flight} announced frames are neither used nor named"
        if alarm is not None and alarm != self._alarm:
            log.error("%s: %s; this is a fault of the software", self._name, alarm)
        self._alarm = alarm
        return alarm

    def _n_announced(self, n_missing: int) -> int:
        return int(np.count_nonzero(self._announced)) + n_missing

    def _n_in_flight(self, used: NDArray[np.int64], refused: dict[int, Any]) -> int:
        """Announced frames that are neither in the volume nor refused yet."""
        waiting = self._announced.copy()
        waiting[used[used < len(waiting)]] = False
        waiting[[index for index in refused if index < len(waiting)]] = False
        return int(np.count_nonzero(waiting))


def _indices(refused: dict[int, tuple[str, Reason]], how: str) -> list[list[int]]:
    return ranges(np.array(sorted(k for k, v in refused.items() if v[0] == how), int))


def _mark(marks: NDArray[np.bool_], start: int, stop: int) -> NDArray[np.bool_]:
    if stop > len(marks):
        grown = np.zeros(max(stop, 1), bool)
        grown[: len(marks)] = marks
        marks = grown
    marks[start:stop] = True
    return marks


class Ledgers:
    """One ledger per kind of frame.

    Parameters
    ----------
    shared_index : bool
        Kinds share one stream (frames with an image key), so an index that holds a
        flat is not a missing projection.
    run_uid : str
        For the log.
    """

    def __init__(self, *, shared_index: bool, run_uid: str = "") -> None:
        self._shared_index = shared_index
        self._by_kind = {
            kind: Ledger(f"run {run_uid}, {kind.name.lower()}s") for kind in Kind
        }

    def __getitem__(self, kind: Kind) -> Ledger:
        return self._by_kind[kind]

    def note(self, item: Announced | Repeated | Rejected) -> None:
        """Note what the assembler says of frames."""
        ledger = self._by_kind[item.kind]
        match item:
            case Announced():
                ledger.announce(item.start, item.stop)
                if self._shared_index:
                    for kind, other in self._by_kind.items():
                        if kind is not item.kind:
                            other.set_aside(item.start, item.stop)
            case Repeated():
                ledger.repeat(item.stop - item.start, item.how)
            case Rejected():
                ledger.reject(item.index, item.reason)

    def close(self) -> None:
        """From now on, what was owed and not announced is missing."""
        for ledger in self._by_kind.values():
            ledger.close()

    def give_up(self) -> None:
        """The run failed: what is in flight stays there."""
        for ledger in self._by_kind.values():
            ledger.give_up()
