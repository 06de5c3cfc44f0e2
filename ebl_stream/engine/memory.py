"""How much memory a scan needs, and how much there is."""

from __future__ import annotations

import re
from pathlib import Path

from ebl_stream.errors import InputError

GRID_BYTES = 12.5
"""Both halves' grids at oversampling 1.25: bytes per slice and pixel."""

LOOK_BYTES = 20
"""A + B, A - B, and what the rooms make of them: bytes per slice and pixel."""


def free_memory() -> int | None:
    """Return bytes that a new process may use; None where nobody says."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
        free = int(re.findall(r"MemAvailable:\s+(\d+) kB", meminfo)[0]) * 1024
    except (OSError, IndexError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)


def check_fit(shape: tuple[int, int]) -> None:
    """Refuse a scan whose grids do not fit, before the system ends the process.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of a projection.

    Raises
    ------
    InputError
        Says how many rows would fit.
    """
    n_rows, n_columns = shape
    per_row = (GRID_BYTES + LOOK_BYTES) * n_columns**2
    free = free_memory()
    if free is not None and per_row * n_rows > free:
        need = per_row * n_rows
        raise InputError(
            f"{n_rows} rows of {n_columns} columns need {need / 1e9:.0f} GB of memory, "
            f"{free / 1e9:.0f} GB are free; about {int(free / per_row)} rows fit at a "
            "time: choose some with --rows A:B"
        )
