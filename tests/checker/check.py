"""Check one run at all places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checker import records
from checker.classify import (
    Expected,
    Verdict,
    classify_detector,
    classify_effect,
    classify_journal,
)

ENDED = ("complete", "partial", "failed")


@dataclass
class Report:
    """What was found of one run."""

    run_uid: str
    verdicts: list[Verdict]
    states: dict[str, str]
    """State of every folder of results."""
    problem: str = ""
    """Why there is no one result."""

    @property
    def is_good(self) -> bool:
        """Whether everything was used once, and one result counts."""
        return not self.problem and not any(v.faults for v in self.verdicts)

    def as_dict(self) -> dict[str, object]:
        """Return plain JSON types."""
        return {
            "run": self.run_uid,
            "good": self.is_good,
            "problem": self.problem,
            "states": dict(Counter(self.states.values())),
            "places": {v.place: v.counts for v in self.verdicts},
            "faults": {v.place: v.faults for v in self.verdicts if v.faults},
        }


def check(
    detector: Path,
    run_uid: str,
    *,
    journal: Path,
    audit: Path,
    results: Path,
    n_planned: int | None = None,
) -> Report:
    """Check one run; files that are not there count as empty places."""
    expected = Expected(records.read_detector(detector, run_uid))
    verdicts = [classify_detector(expected, n_planned)]
    at_journal = records.read_journal(journal, run_uid)
    verdicts.append(classify_journal(expected, at_journal))
    states = records.results_of(results, run_uid)
    ended = [uid for uid, state in states.items() if state in ENDED]
    if len(ended) != 1 or "running" in states.values():
        return Report(run_uid, verdicts, states, f"not one result: {_words(states)}")
    published, named = records.read_back(results, ended[0])
    added = records.read_audit(audit, ended[0])
    for name, place, by_angle in (
        ("accumulator", added, False),
        ("read-back", published, True),
    ):
        verdicts.append(
            classify_effect(name, expected, place, named, by_angle=by_angle)
        )
    return Report(run_uid, verdicts, states)


def _words(states: Mapping[str, str]) -> str:
    counts = Counter(states.values())
    return ", ".join(f"{n} {state}" for state, n in sorted(counts.items())) or "none"
