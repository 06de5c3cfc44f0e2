"""What a run may write where the disk is short: the volume goes before all else.

Arrays give way in a fixed order, ``GIVES_WAY``; the volume never does. Where not even
the volume fits, nothing is published at all: a scan goes on without.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ebl_stream.publish.record import ArraySpec

log = logging.getLogger(__name__)

VOLUME = "recon"
GIVES_WAY = ("denoised", "labels", "previews")
"""What is left out first; previews are every array that is not named here."""
FILE_BYTES = 4096
"""What a file system rounds each chunk up by, at most."""
N_FILES = 6
"""Of an array beside its chunks: what zarr says of it, folders, share of metadata."""
GB = 1e9


@dataclass(frozen=True)
class Fit:
    """Which arrays of a run fit on the disk."""

    kept: tuple[str, ...]
    skipped: tuple[str, ...]
    need_bytes: int
    """What all of them would take, with the limit that is to stay free."""
    free_bytes: int | None

    @property
    def words(self) -> str:
        """What a person should know of it."""
        free = (
            "unknown" if self.free_bytes is None else f"{self.free_bytes / GB:.3g} GB"
        )
        left_out = f": without {', '.join(self.skipped)}" if self.skipped else ""
        return f"{self.need_bytes / GB:.3g} GB needed, {free} free{left_out}"


def free_bytes(folder: Path) -> int | None:
    """Return what this user may still write there; None where nobody says."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def array_bytes(spec: ArraySpec, chunks: Sequence[int]) -> int:
    """Return what an array takes at most: noise can hardly be compressed."""
    n_chunks = math.prod(
        -(-size // step) for size, step in zip(spec.shape, chunks, strict=True)
    )
    voxels = math.prod(spec.shape)
    values = voxels * np.dtype(spec.dtype).itemsize
    return values + (n_chunks + N_FILES) * FILE_BYTES


def fit(sizes: dict[str, int], spare: int, free: int | None) -> Fit:
    """Choose the arrays that fit.

    Parameters
    ----------
    sizes : dict
        Bytes of every array by its name; ``recon`` is the volume.
    spare : int
        Bytes that are to stay free beside them.
    free : int or None
        Bytes that are free now; None where it is not known: all fit.

    Raises
    ------
    OSError
        Not even the volume fits (ENOSPC).
    """
    need = sum(sizes.values()) + spare
    kept = dict(sizes)
    for group in GIVES_WAY:
        if free is None or sum(kept.values()) + spare <= free:
            break
        kept = {name: size for name, size in kept.items() if group_of(name) != group}
    skipped = tuple(name for name in sizes if name not in kept)
    found = Fit(tuple(kept), skipped, need, free)
    if free is not None and sum(kept.values()) + spare > free:
        volume = (sum(kept.values()) + spare) / GB
        raise OSError(
            errno.ENOSPC,
            f"the volume alone needs {volume:.3g} GB, {free / GB:.3g} GB are free "
            f"({spare / GB:.3g} GB of it are to stay free: retention.min_free_gb)",
        )
    return found


def group_of(name: str) -> str:
    """Return which of ``GIVES_WAY`` an array belongs to; the volume is of none."""
    if name == VOLUME or name in GIVES_WAY:
        return name
    return "previews"


class Space:
    """Watches the disk while a run is written; thread-safe.

    Parameters
    ----------
    folder : Path
        On the disk that is written to.
    min_free_bytes : int
        What is to stay free.
    """

    def __init__(self, folder: Path, min_free_bytes: int = 0) -> None:
        self._folder = folder
        self._min_free = min_free_bytes
        self._owed: dict[int, int] = {}
        self._replaced = 0
        self._left_out: Counter[str] = Counter()
        self._is_short = False
        self._fit: Fit | None = None
        self._lock = threading.Lock()

    def choose(self, sizes: dict[str, int], slab_bytes: dict[int, int]) -> Fit:
        """Choose the arrays of a run that fit; OSError where the volume does not.

        Parameters
        ----------
        sizes : dict
            As in `fit`.
        slab_bytes : dict
            Bytes of the volume's slabs by their first slice: kept for the volume
            until they are written.
        """
        # Slabs that replace others lie beside them for a moment.
        replaced = max(slab_bytes.values(), default=0) * (os.cpu_count() or 1)
        self._replaced = min(replaced, sizes.get(VOLUME, 0))
        spare = self._min_free + self._replaced
        self._fit = fit(sizes, spare, free_bytes(self._folder))
        self._owed = dict(slab_bytes)
        if self._fit.skipped:
            log.warning("%s: space is short: %s", self._folder, self._fit.words)
        return self._fit

    def written(self, z0: int) -> None:
        """Note that a slab of the volume is on the disk."""
        with self._lock:
            self._owed.pop(z0, None)

    def allows(self, name: str, n_bytes: int, *, again: bool = False) -> bool:
        """Whether a slab may be written; the volume always may.

        The others may as long as the limit stays free, and what the volume will need:
        for slabs that are not on the disk yet, and for those that replace others.

        Parameters
        ----------
        name : str
            Of the array.
        n_bytes : int
            Of the slab.
        again : bool
            Whether it replaces one: then its space is soon free again.
        """
        if name == VOLUME:
            return True
        free = free_bytes(self._folder)
        with self._lock:
            kept = self._min_free + sum(self._owed.values())
            kept += 0 if again else self._replaced
            allowed = free is None or free - n_bytes >= kept
            if not allowed:
                self._left_out[name] += 1
            if allowed == self._is_short:
                self._is_short = not allowed
                words = (
                    "is short: only the volume is written" if not allowed else "is back"
                )
                log.warning("%s: space %s", self._folder, words)
        return allowed

    def report(self) -> dict[str, Any]:
        """Return what is published with the data."""
        with self._lock:
            fit = self._fit
            return {
                "min_free_gb": self._min_free / GB,
                "words": fit.words if fit else None,
                "skipped": list(fit.skipped) if fit else [],
                "slabs_left_out": dict(self._left_out),
            }
