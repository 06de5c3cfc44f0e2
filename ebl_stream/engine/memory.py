"""How much memory a scan needs, how much there is, and what gives way when it lacks.

The ladder, from the best rung to the last: both halves of every slab; the same on a
coarser grid; halves in a few monitor slabs only; slabs in passes, the raw frames read
again for each.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ebl_stream.errors import InputError
from ebl_stream.numerics.fourier_plan import FourierPlan

COARSE = 1.125
"""Oversampling of the lower rungs."""

INTERPRET_BYTES = 20
"""What denoising and segmenting the whole volume takes: bytes per voxel."""

VOLUME_BYTES = 4
"""The volume itself, kept until it is written: bytes per voxel."""

LEARN_BYTES = 2**30
"""What learning from the scan takes, at most: excerpts of a look, on the nets' scale,
and those that they take the place of."""

LEARN_SHARE = 24
"""The same of a small scan: bytes per voxel of the slabs that are learned from."""

SLAB_BYTES = 24
"""What looking at one slab takes for a moment, on each thread: bytes per voxel."""

MONITORS = 4
"""Slabs that keep their halves where not all can."""

SPARE = 0.9
"""Share of the free memory that may be planned with."""


@dataclass(frozen=True)
class MemoryPlan:
    """One rung of the ladder, worked out for a scan."""

    rung: int
    """1 is the best, 4 the last."""
    oversampling: float
    """Grid points per pixel."""
    monitors: frozenset[int] | None
    """Slabs that keep both halves; None: all of them."""
    interpret: bool
    """Whether the volume is denoised and segmented."""
    passes: tuple[tuple[int, int], ...]
    """Half-open ranges of slabs that are in memory together."""
    need_bytes: int

    @property
    def words(self) -> str:
        """What a person should know of it."""
        need = f"{self.need_bytes / 1e9:.3g} GB"
        coarse = f", oversampling {COARSE}"
        match self.rung:
            case 1:
                return f"{need}: both halves of every slab"
            case 2:
                return f"{need}: both halves of every slab{coarse}"
            case 3:
                n = len(self.monitors or ())
                return (
                    f"{need}: halves in {n} monitor slabs only{coarse}; "
                    "not denoised, not segmented"
                )
            case _:
                return (
                    f"{need}: slabs in {len(self.passes)} passes over the raw "
                    f"frames{coarse}; not denoised, not segmented"
                )

    def as_dict(self) -> dict[str, object]:
        """Return what is published with the data."""
        return {
            "rung": self.rung,
            "oversampling": self.oversampling,
            "passes": len(self.passes),
            "interpreted": self.interpret,
            "words": self.words,
        }


def n_threads() -> int:
    """Return how many slabs are worked on at one time."""
    return len(os.sched_getaffinity(0))


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
        kept = Path("/sys/fs/cgroup/memory.stat").read_text()
        # Files that are kept in memory make room when somebody needs it.
        files = re.findall(r"^(?:in)?active_file (\d+)$", kept, re.MULTILINE)
        used -= sum(map(int, files))
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)


def plan_memory(
    shape: tuple[int, int],
    slab_rows: int,
    *,
    oversampling: float,
    interpret: bool,
    learns: bool = False,
    ring_bytes: int,
    free: int | None,
    threads: int,
) -> MemoryPlan:
    """Return the best rung that fits.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of a reconstructed projection.
    slab_rows : int
        Rows reconstructed together.
    oversampling : float
        Wanted grid points per pixel.
    interpret : bool
        Whether the volume is to be denoised or segmented.
    learns : bool
        Whether a net learns from it.
    ring_bytes : int
        Raw frames that are kept in memory.
    free : int or None
        Bytes that may be used; None where it is not known: the best rung.
    threads : int
        Slabs that are worked on at one time.

    Raises
    ------
    InputError
        Not even one slab fits.
    """
    n_slabs = -(-shape[0] // slab_rows)
    wanted = (oversampling, interpret)
    fixed = ring_bytes + min(n_slabs, threads) * slab_rows * SLAB_BYTES * shape[1] ** 2
    if learns:
        learned = min(n_slabs, MONITORS) * slab_rows * shape[1] ** 2
        fixed += min(LEARN_BYTES, LEARN_SHARE * learned)
    for plan in _rungs(shape[1], slab_rows, n_slabs, wanted, fixed, free):
        if free is None or plan.need_bytes <= SPARE * free:
            return plan
    slab = slab_rows * (_grid_bytes(shape[1], COARSE, 2) + SLAB_BYTES * shape[1] ** 2)
    raise InputError(
        f"one slab of {slab_rows} rows of {shape[1]} columns needs "
        f"{slab / 1e9:.3g} GB of memory, {(free or 0) / 1e9:.3g} GB are free; "
        "bin the detector, or set refresh.slab_rows or window.max_bytes lower"
    )


def _rungs(
    n_columns: int,
    slab_rows: int,
    n_slabs: int,
    wanted: tuple[float, bool],
    fixed: int,
    free: int | None,
) -> Iterator[MemoryPlan]:
    oversampling, interpret = wanted
    voxels = slab_rows * n_columns**2
    look = n_slabs * voxels * (INTERPRET_BYTES if interpret else VOLUME_BYTES)
    whole = ((0, n_slabs),)
    coarse = min(COARSE, oversampling)
    for rung, fine in ((1, oversampling), (2, coarse)):
        grids = n_slabs * slab_rows * _grid_bytes(n_columns, fine, 2)
        need = fixed + grids + look
        yield MemoryPlan(rung, fine, None, interpret, whole, need)
    single = slab_rows * _grid_bytes(n_columns, coarse, 1)
    monitors = frozenset(_spread(n_slabs, MONITORS))
    need = fixed + (n_slabs + len(monitors)) * single
    yield MemoryPlan(3, coarse, monitors, False, whole, need)
    room = int(SPARE * (free or 0)) - fixed
    at_once = max(1, room // single - 1)
    edges = [*range(0, n_slabs, at_once), n_slabs]
    passes = list(itertools.pairwise(edges))
    # The first one shows the center: the sample is most likely in the middle.
    passes.insert(0, passes.pop(len(passes) // 2))
    middles = frozenset((a + b) // 2 for a, b in passes)
    yield MemoryPlan(
        4, coarse, middles, False, tuple(passes), fixed + (at_once + 1) * single
    )


def _grid_bytes(n_columns: int, oversampling: float, halves: int) -> int:
    """Bytes of a slice's grids: complex64 shared by two slices."""
    return 4 * halves * FourierPlan(n_columns, oversampling).stride ** 2


def _spread(n: int, wanted: int) -> list[int]:
    """Return numbers from 0 to n - 1, evenly spread."""
    count = min(n, wanted)
    return [(2 * k + 1) * n // (2 * count) for k in range(count)]
