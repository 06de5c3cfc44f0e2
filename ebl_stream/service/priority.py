"""The service goes after the RunEngine on the machine that both are on."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

NICENESS = 5
"""Of a service that a door started on the RunEngine's machine."""


def step_back() -> None:
    """Let others go first, with every thread; those begun later inherit it."""
    level = os.nice(NICENESS)
    # On Linux each thread has its own, and libraries have begun some at import.
    for thread in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # it is gone
            os.setpriority(os.PRIO_PROCESS, int(thread.name), level)
