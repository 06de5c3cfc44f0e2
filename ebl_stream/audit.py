"""A trace of what was added to the grids, for whoever checks from outside.

``EBL_STREAM_AUDIT=<folder>`` makes every run leave ``<processed uid>.audit.jsonl``
there: what was added to the grids, projection by projection, with the checksum of
the raw frame as it was at that moment. Without the variable it costs one comparison.

Lines are ``{"begin": run_uid}``, ``{"reset": true}`` (the grids are empty again) and
``{"added": [[index, crc32, change, weight after], ...]}``, weights in rad.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

VARIABLE = "EBL_STREAM_AUDIT"


class Frames(Protocol):
    """What is asked of a window."""

    @property
    def indices(self) -> Sequence[int]:
        """Index of the frame in each place."""
        ...

    @property
    def applied(self) -> NDArray[np.float64]:
        """rad, (place, half): weights in the grids before the change."""
        ...

    def image(self, place: int) -> NDArray[Any]:
        """Return the raw frame of a place."""
        ...


_files: WeakKeyDictionary[Frames, Path] = WeakKeyDictionary()


def begin(window: Frames, run_uid: str, processed_uid: str) -> None:
    """Trace the projections of a window, where somebody asks for it."""
    if folder := os.environ.get(VARIABLE):
        _files[window] = Path(folder) / f"{processed_uid}.audit.jsonl"
        _write(window, {"begin": run_uid})


def reset(window: Frames) -> None:
    """Note that the grids are empty."""
    if window in _files:
        _write(window, {"reset": True})


def added(
    window: Frames, places: NDArray[np.intp], changes: NDArray[np.float64]
) -> None:
    """Note what was added: changes of the weights, rad, (place, half)."""
    if window not in _files:
        return
    after = window.applied[places] + changes
    sums = zip(changes.sum(axis=1).tolist(), after.sum(axis=1).tolist(), strict=True)
    rows = [
        [window.indices[place], zlib.crc32(_bytes(window.image(place))), *weights]
        for place, weights in zip(places.tolist(), sums, strict=True)
    ]
    _write(window, {"added": rows})


def _bytes(image: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(image).tobytes()


def _write(window: Frames, line: dict[str, Any]) -> None:
    with _files[window].open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
