"""What single documents say, checked: ranges of datums, values of events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_INDEX = 2**40


@dataclass(frozen=True, slots=True)
class DatumRanges:
    """A checked StreamDatum."""

    seq: tuple[int, int]
    """Event numbers, from 1, half-open."""
    index: tuple[int, int]
    """Places in the dataset, half-open."""

    def after(self, n: int) -> DatumRanges | None:
        """Return what is left without the first n events; None: nothing."""
        if n >= self.seq[1] - self.seq[0]:
            return None
        return DatumRanges(
            (self.seq[0] + n, self.seq[1]), (self.index[0] + n, self.index[1])
        )


def check_datum(doc: dict[str, Any], m: int, max_frames: int) -> DatumRanges | None:
    """Read the ranges of a StreamDatum; None where they make no sense.

    Nothing is sized by the ranges before they are known to be sane.
    """
    index, seq = _ranges(doc)
    if not all(isinstance(n, int) for n in (*index, *seq)):
        return None
    if seq[0] == seq[1]:
        # As detectors write it; the RunEngine may not have numbered it.
        seq = (index[0] + 1, index[1] + 1)
    if not 0 <= index[0] < index[1] <= _MAX_INDEX or not 1 <= seq[0] < seq[1]:
        return None
    n_events = seq[1] - seq[0]
    if index[1] - index[0] == n_events * m and index[0] % m == 0:
        # A legacy Datum counts frames, not events.
        index = (index[0] // m, index[1] // m)
    if (seq[1] - 1) * m > max_frames or index[1] - index[0] != n_events:
        return None
    return DatumRanges(seq, index)


def _ranges(doc: dict[str, Any]) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    index, seq = doc.get("indices") or {}, doc.get("seq_nums") or {}
    return (index.get("start"), index.get("stop")), (seq.get("start"), seq.get("stop"))


def as_images(value: Any, data_key: Mapping[str, Any]) -> NDArray[Any]:
    """Return an image of an event as ``(m, row, column)``; empty if it is none."""
    try:
        if isinstance(value, np.ndarray):
            images = value
        else:
            images = np.asarray(value, data_key.get("dtype_numpy"))
    except (TypeError, ValueError):
        return np.zeros((0, 0, 0))
    if images.dtype.kind == "b":
        images = images.astype(np.uint8)
    return images[None] if images.ndim == 2 else images


def as_values(value: Any) -> NDArray[Any]:
    """Return a scalar, or a few, of an event as ``(1, value)``; NaN if it is none."""
    try:
        return np.asarray(value, np.float64).reshape(1, -1)
    except (TypeError, ValueError):
        return np.full((1, 1), np.nan)
