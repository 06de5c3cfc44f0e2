"""Give every id its class at every place."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from checker.records import Exposure, Place

CLASSES = ("ok", "lost", "duplicated", "unexpected", "superseded", "named")
SAME_ANGLE = 1e-9
"""rad."""


@dataclass
class Verdict:
    """The class of every id at one place."""

    place: str
    classes: dict[int, str]
    n_superseded: int = 0
    """Exposures that later ones of their id replaced."""

    @property
    def counts(self) -> dict[str, int]:
        """How many ids there are of each class."""
        found = Counter(self.classes.values())
        found["superseded"] += self.n_superseded
        return {name: found[name] for name in CLASSES}

    @property
    def faults(self) -> dict[int, str]:
        """Ids that are lost, duplicated or unexpected."""
        bad = ("lost", "duplicated", "unexpected")
        return {k: what for k, what in sorted(self.classes.items()) if what in bad}


@dataclass
class Expected:
    """What the detector exposed: the last exposure of every id counts."""

    exposures: list[Exposure]
    last: dict[int, Exposure] = field(init=False)
    earlier: dict[int, set[int]] = field(init=False)
    n_twice: int = field(init=False)

    def __post_init__(self) -> None:
        self.last, self.earlier, self.n_twice = {}, {}, 0
        for exposure in self.exposures:
            old = self.last.get(exposure.id)
            if old is not None and old.crc == exposure.crc:
                self.n_twice += 1  # the detector itself counted one frame twice
            elif old is not None:
                self.earlier.setdefault(exposure.id, set()).add(old.crc)
            self.last[exposure.id] = exposure


def classify_detector(expected: Expected, n_planned: int | None) -> Verdict:
    """Judge the detector by the plan: every id once; rewinds expose anew."""
    times = Counter((e.id, e.crc) for e in expected.exposures)
    classes = dict.fromkeys(expected.last, "ok")
    for (frame_id, _), n in times.items():
        if n > 1:
            classes[frame_id] = "duplicated"
    if n_planned is not None:
        for frame_id in range(n_planned):
            classes.setdefault(frame_id, "lost")
        for frame_id in expected.last:
            if not 0 <= frame_id < n_planned:
                classes[frame_id] = "unexpected"
    n_superseded = sum(map(len, expected.earlier.values()))
    return Verdict("detector", classes, n_superseded)


def classify_journal(expected: Expected, journal: Place) -> Verdict:
    """Judge the journal: every exposure once, replaced ones before the last."""
    classes: dict[int, str] = {}
    n_superseded = 0
    for frame_id, exposure in expected.last.items():
        found = journal.found.get(frame_id, [])
        earlier = expected.earlier.get(frame_id, set())
        n_superseded += sum(crc in earlier for crc in found)
        rest = [crc for crc in found if crc not in earlier]
        classes[frame_id] = _class_of(rest, [crc == exposure.crc for crc in rest])
    return _with_strangers("journal", classes, journal, n_superseded)


def classify_effect(
    name: str, expected: Expected, place: Place, named: set[int], *, by_angle: bool
) -> Verdict:
    """Judge a place that only the last exposure may have an effect on."""
    classes: dict[int, str] = {}
    for frame_id, exposure in expected.last.items():
        found = place.found.get(frame_id, [])
        if by_angle:
            same = [_near(theta, exposure.theta) for theta in found]
        else:
            same = [crc == exposure.crc for crc in found]
        is_named = not found and frame_id in named
        classes[frame_id] = "named" if is_named else _class_of(found, same)
    return _with_strangers(name, classes, place, 0)


def _class_of(found: list[object], same: list[bool]) -> str:
    if not found:
        return "lost"
    if not all(same):
        return "unexpected"
    return "ok" if len(found) == 1 else "duplicated"


def _with_strangers(
    name: str, classes: dict[int, str], place: Place, n_superseded: int
) -> Verdict:
    strangers = {k: "unexpected" for k in place.found if k not in classes}
    return Verdict(name, classes | strangers, n_superseded)


def _near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=0, abs_tol=SAME_ANGLE)
