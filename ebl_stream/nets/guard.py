"""Who denoises: whoever foretells best what it has not seen; nobody is believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebl_stream.nets.pairs import Pairs, Window
from ebl_stream.numerics.noise2filter import NormalEquations, filter_slices

CONTEXT = 32
"""Pixels about a window that a net sees, too."""

RAW = "fbp"
"""The volume as it is."""

RAW_SHARE = 0.75
"""Loss of the whole volume over that of one half.

Each half has the noise power s; the halves differ by 2 s. The volume, which is their
mean, would differ from a third measurement like them by s / 2 + s. A net sees one half
when it is judged, and both when it is used, so its loss is not flattered: a net that
returns what it was given loses against the volume.
"""

Denoise = Callable[[NDArray[np.float32], Sequence[int] | None], NDArray[np.float32]]
"""Makes slices of a slab, [z, y, x]: rows (all of them) on the nets' scale."""


@dataclass(frozen=True)
class Candidate:
    """Somebody who may denoise."""

    name: str
    """``fbp``, ``noise2filter``, ``warm``, ``adapted``, ..."""
    denoise: Denoise
    weights: str = ""
    """Hash of the weights, where there are any."""
    steps: int = 0
    """Steps that these weights learned in this scan."""


def split_loss(denoise: Denoise, pairs: Pairs) -> float:
    """Return how far halves that were made from their other half are from the truth.

    Parameters
    ----------
    denoise : callable
    pairs : Pairs
        Judged in ``pairs.windows``, which nobody learned from.

    Returns
    -------
    float
        Mean square on the nets' scale; the target's own noise is part of it. Infinite
        where something that is not finite came out.
    """
    squares = [_square(denoise, pairs, window) for window in pairs.windows]
    mean = float(np.mean(squares))
    return mean if math.isfinite(mean) else math.inf


class Standing:
    """Who is how good on one look: the best of each name, and the best of all.

    Parameters
    ----------
    pairs : Pairs
    """

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.losses: dict[str, float] = {}
        """By name."""
        self._flat = _flat_loss(pairs)
        self._who: dict[str, Candidate] = {}
        self.enter(Candidate(RAW, raw))

    def enter(self, candidate: Candidate) -> bool:
        """Judge somebody; say whether it is better than who had its name."""
        loss = split_loss(candidate.denoise, self.pairs)
        if candidate.name == RAW:
            loss *= RAW_SHARE
        is_better = loss < self.losses.get(candidate.name, math.inf)
        if is_better or candidate.name not in self._who:
            self.losses[candidate.name] = loss
            self._who[candidate.name] = candidate
        return is_better

    @property
    def best(self) -> Candidate:
        """Who has the lowest loss; the volume as it is where nobody is better.

        In much noise even a constant is nearer to the truth than the volume; who knows
        no better than that is not published.
        """
        able = [k for k, loss in self.losses.items() if loss < self._flat or k == RAW]
        return self._who[min(able, key=self.losses.__getitem__)]

    def holder(self, name: str) -> Candidate | None:
        """Return the best of a name."""
        return self._who.get(name)


def rounded(losses: Mapping[str, float]) -> dict[str, float | None]:
    """Return losses as they are published: plain JSON, None where there is none."""
    return {
        name: float(f"{loss:.6g}") if math.isfinite(loss) else None
        for name, loss in losses.items()
    }


def raw(
    seen: NDArray[np.float32], rows: Sequence[int] | None = None
) -> NDArray[np.float32]:
    """Return the slices as they are."""
    return seen if rows is None else seen[np.asarray(rows, np.intp)]


def linear(pairs: Pairs) -> Candidate:
    """Return the filter that the halves themselves ask for."""
    equations = NormalEquations(pairs.n_columns)
    for one, other in pairs.halves:
        half = np.float32(0.5)
        equations.add(half * (one + other), half * (one - other))
    response = equations.solve()

    def denoise(
        seen: NDArray[np.float32], rows: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        return filter_slices(raw(seen, rows), response)

    return Candidate("noise2filter", denoise)


def _flat_loss(pairs: Pairs) -> float:
    """Return the loss of the best constant."""
    values = [
        half[w.row, w.y : w.y + w.size, w.x : w.x + w.size]
        for w in pairs.windows
        for half in pairs.halves[w.excerpt]
    ]
    return float(np.var(values, dtype=np.float64))


def _square(denoise: Denoise, pairs: Pairs, window: Window) -> float:
    """Return the mean square in one window, both ways."""
    one, other = pairs.halves[window.excerpt]
    n = pairs.n_columns
    top, left = max(0, window.y - CONTEXT), max(0, window.x - CONTEXT)
    bottom = min(n, window.y + window.size + CONTEXT)
    right = min(n, window.x + window.size + CONTEXT)
    inner = (
        slice(window.y - top, window.y - top + window.size),
        slice(window.x - left, window.x - left + window.size),
    )
    around = (slice(None), slice(top, bottom), slice(left, right))
    total = 0.0
    for seen, target in ((one, other), (other, one)):
        made = denoise(seen[around], [window.row])[0][inner]
        wanted = target[around][window.row][inner]
        total += float(np.mean(np.square(made - wanted, dtype=np.float64)))
    return total / 2
