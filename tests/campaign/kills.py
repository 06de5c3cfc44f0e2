"""Kill the service somewhere, start it again, and see what the run became."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from campaign.house import PATIENCE_S, House, volume
from campaign.scan import Doors, paced
from ebl_stream import failpoints

SAME = 1e-6
"""Largest difference of two volumes, relative L2: sums in another order."""
PAUSE_S = 0.005
HIT = {
    "journal.appended": 20,
    "acknowledged": 2,
    "queued": 30,
    "worked": 20,
    "window.kept": 25,
    "metadata.drafted": 3,
    "metadata.replaced": 3,
    "resume.queued": 9,
}
"""At which hit a point kills; the first one where nothing is said."""


@dataclass
class Outcome:
    """What came of one run that was killed in its midst."""

    name: str
    good: bool
    problem: str
    l2: float
    """Relative difference to the run that nobody killed."""
    bit_equal: bool
    restart_s: float
    """From the last restart to the first update."""
    wall_s: float
    door: dict[str, float]
    checker: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


class Killer:
    """Runs scans through a house whose service is killed, one scan after the other.

    Parameters
    ----------
    house : House
        Nothing runs in it yet.
    """

    def __init__(self, house: House) -> None:
        self.house = house
        house.start()
        uid, documents = house.detector.scan()
        for name, doc in documents:
            house.door.send(name, doc)
        result = house.door.wait(PATIENCE_S, uid)
        self.clean: NDArray[np.float32] = volume(result)

    def at_point(self, point: str, hit: int | None = None) -> Outcome:
        """Kill at a fail-point."""
        armed = f"{point}:{hit or HIT.get(point, 1)}"
        house = self.house
        is_resume = point.startswith("resume.")
        house.kill()
        house.start("" if is_resume else armed)

        def midway(k: int, n: int) -> None:
            if is_resume and k == n // 2:
                house.door.flush(PATIENCE_S)
                house.kill()
                house.start(armed)

        return self._run(armed, midway, must_die=True)

    def at_random(self, seed: int) -> Outcome:
        """Kill once to three times, at random moments of the scan or after it."""
        dice = random.Random(seed)
        moments = sorted(dice.uniform(0, 1.3) for _ in range(dice.choice((1, 1, 2, 3))))
        waiting = list(moments)

        def midway(k: int, n: int) -> None:
            if waiting and k / n >= waiting[0]:
                waiting.pop(0)
                time.sleep(dice.uniform(0, 0.01))
                self.house.kill()
                self.house.start()

        def after() -> None:
            for _ in waiting:
                time.sleep(dice.uniform(0, 0.4))
                self.house.kill()
                self.house.start()

        words = ", ".join(f"{moment:.2f}" for moment in moments)
        return self._run(f"seed {seed} (kills at {words})", midway, after)

    def _run(
        self,
        name: str,
        midway: Callable[[int, int], None],
        after: Callable[[], None] = lambda: None,
        *,
        must_die: bool = False,
    ) -> Outcome:
        house, doors, begun = self.house, Doors(), time.monotonic()
        uid, documents = house.detector.scan()
        send = doors.timed(house.door.send)
        for k, document in enumerate(paced(documents, PAUSE_S)):
            midway(k, len(documents))
            send(*document)
        after()
        problem, restarted = "", time.monotonic()
        if must_die:
            if house.died(20.0):
                restarted = time.monotonic()
                house.start()
            else:
                problem = "the service never came to this point; "
        restart_s = self._first_update(uid, restarted)
        try:
            result = house.door.wait(PATIENCE_S, uid)
        except TimeoutError as error:
            return self._outcome(name, f"{problem}{error}", doors, begun, restart_s)
        return self._judge(name, problem, result, doors, begun, restart_s)

    def _first_update(self, uid: str, restarted: float) -> float:
        """Return how long it took until the door heard of a version, or of the end."""
        while time.monotonic() - restarted < PATIENCE_S:
            status = self.house.door.status(uid) or {}
            if status.get("version") or status.get("final"):
                break
            time.sleep(0.005)
        return time.monotonic() - restarted

    def _judge(
        self,
        name: str,
        problem: str,
        result: dict[str, Any],
        doors: Doors,
        begun: float,
        restart_s: float,
    ) -> Outcome:
        outcome = self._outcome(name, problem, doors, begun, restart_s)
        report = self.house.check(result["run_uid"])
        outcome.checker = report.as_dict()
        ledger = result.get("ledger") or {}
        wanted = ("complete", 0, 0, 0)
        facts = (
            result["state"],
            *(ledger.get(k) for k in ("duplicate", "missing", "residue")),
        )
        if facts != wanted:
            outcome.problem += f"{facts} {result.get('message')}; "
        if not report.is_good:
            outcome.problem += (
                f"checker: {report.problem or report.as_dict()['faults']}"
            )
        if result["state"] == "complete":
            found = volume(result)
            outcome.bit_equal = np.array_equal(found, self.clean)
            norm = np.linalg.norm(self.clean)
            outcome.l2 = float(np.linalg.norm(found - self.clean) / norm)
            if outcome.l2 > SAME:
                outcome.problem += f"another volume: L2 {outcome.l2:.2g}; "
        outcome.good = not outcome.problem
        return outcome

    def _outcome(
        self, name: str, problem: str, doors: Doors, begun: float, restart_s: float
    ) -> Outcome:
        return Outcome(
            name=name,
            good=False,
            problem=problem,
            l2=float("nan"),
            bit_equal=False,
            restart_s=round(restart_s, 3),
            wall_s=round(time.monotonic() - begun, 2),
            door=doors.figures(),
            checker={},
        )


def plain_points() -> list[str]:
    """Return the fail-points that a run without Tiled and center comes to."""
    return [p for p in failpoints.POINTS if not p.startswith(("tiled.", "center."))]


def tiled_points() -> list[str]:
    """Return the fail-points that a run comes to which is told to Tiled."""
    return [p for p in failpoints.POINTS if p.startswith("tiled.")]
