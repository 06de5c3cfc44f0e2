"""One scan after the other for a long time: does memory grow, does the door wait?"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from campaign.house import PATIENCE_S, House
from campaign.scan import Doors, N, paced

PAUSE_S = 0.002
CHECK_EVERY = 5
"""Runs of which one is judged."""
WARM_UP = 0.25
"""Share of the time that memory may still grow in."""


@dataclass
class Soaked:
    """What a long time of scans came to."""

    n_runs: int = 0
    n_projections: int = 0
    n_checked: int = 0
    problems: list[str] = field(default_factory=list)
    memory: list[tuple[int, float]] = field(default_factory=list)
    """Projections so far, and the service's resident memory, MiB."""
    doors: Doors = field(default_factory=Doors)

    def slope(self) -> float:
        """Return the growth of memory after the warm-up, MiB per 1000 projections."""
        kept = self.memory[int(WARM_UP * len(self.memory)) :]
        if len(kept) < 3:
            return 0.0
        n, mib = np.array(kept).T
        return float(1000 * np.polyfit(n, mib, 1)[0])

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        mib = [m for _, m in self.memory] or [0.0]
        return {
            "runs": self.n_runs,
            "projections": self.n_projections,
            "checked": self.n_checked,
            "problems": self.problems,
            "memory_mib": {"first": mib[0], "last": mib[-1], "largest": max(mib)},
            "slope_mib_per_1000": round(self.slope(), 3),
            "door": self.doors.figures(),
        }


def soak(house: House, minutes: float, say: Callable[[str], None]) -> Soaked:
    """Scan for some minutes; the house is fresh."""
    soaked, until = Soaked(), time.monotonic() + 60 * minutes
    process = house.start()
    send = soaked.doors.timed(house.door.send)
    while time.monotonic() < until or not soaked.n_runs:
        uid, documents = house.detector.scan()
        for document in paced(documents, PAUSE_S):
            send(*document)
        result = house.door.wait(PATIENCE_S, uid)
        soaked.n_runs += 1
        soaked.n_projections += N
        if result["state"] != "complete":
            soaked.problems.append(f"run {uid}: {result}")
        if soaked.n_runs % CHECK_EVERY == 1:
            report = house.check(uid)
            soaked.n_checked += 1
            if not report.is_good:
                soaked.problems.append(str(report.as_dict()))
            soaked.memory.append((soaked.n_projections, _resident_mib(process.pid)))
            say(f"{soaked.n_runs} runs, {soaked.memory[-1][1]:.0f} MiB")
        _tidy_up(house, result)
    return soaked


def _resident_mib(pid: int | None) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def _tidy_up(house: House, result: dict[str, Any]) -> None:
    """Remove what was judged: a long campaign must not fill the disk."""
    shutil.rmtree(Path(result["volume"]).parent, ignore_errors=True)
    for path in (house.out / "journal").glob("*"):
        path.unlink(missing_ok=True)
    for path in house.folder.glob("*.audit.jsonl"):
        path.unlink(missing_ok=True)
    house.detector.record.unlink(missing_ok=True)
