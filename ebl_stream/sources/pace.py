"""The cadence of a replay: as recorded, faster, slower, or not at all."""

from __future__ import annotations

import time


class Pace:
    """Waits until it is a document's turn.

    Parameters
    ----------
    speed : float, optional
        1 is the recorded cadence, 2 twice as fast; None does not wait.
    """

    def __init__(self, speed: float | None) -> None:
        self._speed = speed
        self._began: tuple[float, float] | None = None

    def wait(self, recorded_s: float) -> None:
        """Wait as long after the first call as the record did, over the speed."""
        if not self._speed:
            return
        now = time.monotonic()
        if self._began is None:
            self._began = (now, recorded_s)
        began, first = self._began
        due = began + (recorded_s - first) / self._speed
        if due > now:
            time.sleep(due - now)
