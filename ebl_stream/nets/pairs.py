"""What a net learns from in the scan under way: the same slices, seen by each half.

Nothing here was measured twice: of a slice, one half of the projections makes the
input, the other the target (Noise2Inverse: Hendriksen, Pelt and Batenburg, IEEE Trans.
Comput. Imaging 6, 1320 (2020)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebl_stream.nets.learner import Excerpt
from ebl_stream.nets.scale import Scale

EXCERPT_BYTES = 256 * 2**20
"""What the excerpts of a look may take in memory."""

FEWEST_ROWS = 8
"""Adjacent slices of an excerpt below which fewer slabs are rather looked at."""

WINDOWS = 8
"""Windows that are never learned from: what is learned is judged there."""

INSIDE = 0.95
"""Radius of what is learned from, over that of the reconstructed circle."""

BATCH = 8
"""Crops that are learned from together."""

CROP = 64
"""Sides of what is learned from, px."""


def excerpt_slabs(n_columns: int) -> int:
    """Return how many slabs may be learned from at a look."""
    return max(1, EXCERPT_BYTES // (FEWEST_ROWS * 2 * 4 * n_columns**2))


def excerpt_rows(n_columns: int, n_rows: int, n_slabs: int) -> tuple[int, int]:
    """Return the half-open range of a slab's rows that its excerpt holds."""
    fits = EXCERPT_BYTES // (n_slabs * 2 * 4 * n_columns**2)
    count = min(n_rows, max(1, fits))
    start = (n_rows - count) // 2
    return start, start + count


@dataclass(frozen=True)
class Window:
    """A square part of one slice."""

    excerpt: int
    row: int
    y: int
    x: int
    size: int


class Pairs:
    """Excerpts of one look, on the nets' scale.

    Parameters
    ----------
    excerpts : sequence of (ndarray, ndarray)
        A + B and A - B, ``[z, y, x]``, 1/px.
    """

    def __init__(self, excerpts: Sequence[Excerpt]) -> None:
        whole = np.concatenate([volume for volume, _ in excerpts])
        difference = np.concatenate([difference for _, difference in excerpts])
        self.scale = Scale.of(whole, difference)
        self.n_columns = whole.shape[-1]
        self.halves = [
            (
                _finite(self.scale.to_net(volume + half_difference)),
                _finite(self.scale.to_net(volume - half_difference)),
            )
            for volume, half_difference in excerpts
        ]
        """2A and 2B, [z, y, x] each."""
        self.windows = self._choose_windows()
        """Parts that are never learned from."""

    @property
    def n_rows(self) -> int:
        """Slices in all."""
        return sum(len(a) for a, _ in self.halves)

    def steps_of_pass(self) -> int:
        """Return how many batches hold about as many pixels as there are."""
        return max(1, round(self.n_rows * self.n_columns**2 / (BATCH * CROP**2)))

    def crops(
        self, rng: np.random.Generator, n: int, depth: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Draw inputs and their targets, turned and mirrored at random.

        Returns
        -------
        ndarray, [n, depth, y, x] and ndarray, [n, 1, y, x]
            Targets are NaN in the windows.
        """
        inputs: list[NDArray[np.float32]] = []
        targets: list[NDArray[np.float32]] = []
        size = min(CROP, self.n_columns // 8 * 8)
        for window in [self._any(rng, size) for _ in range(n)]:
            one, other = self.halves[window.excerpt]
            if rng.integers(2):
                one, other = other, one
            y, x = (
                slice(window.y, window.y + window.size),
                slice(window.x, window.x + window.size),
            )
            stack = one[_stack(window.row, depth, len(one)), y, x]
            target = self._target(window, other)[None]
            turn, mirror, swap = (int(rng.integers(k)) for k in (4, 2, 2))
            inputs.append(_turned(stack[::-1] if swap else stack, turn, mirror))
            targets.append(_turned(target, turn, mirror))
        return np.stack(inputs), np.stack(targets)

    def _target(self, crop: Window, half: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what is to be made: NaN where nobody may learn from."""
        y, x, size = crop.y, crop.x, crop.size
        made = half[crop.row, y : y + size, x : x + size].copy()
        for held in self.windows:
            if (held.excerpt, held.row) == (crop.excerpt, crop.row):
                top, left = held.y - y, held.x - x
                bottom, right = top + held.size, left + held.size
                made[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = (
                    np.nan
                )
        return made

    def _any(self, rng: np.random.Generator, size: int) -> Window:
        """Draw a window whose middle lies inside the circle."""
        row = int(rng.integers(self.n_rows))
        excerpt = 0
        while row >= len(self.halves[excerpt][0]):
            row -= len(self.halves[excerpt][0])
            excerpt += 1
        n = self.n_columns
        radius = max(INSIDE * n / 2 - size / 4, 0.0)
        distance, angle = radius * np.sqrt(rng.random()), 2 * np.pi * rng.random()
        middle = (n - size) / 2
        y = np.clip(round(middle + distance * np.sin(angle)), 0, n - size)
        x = np.clip(round(middle + distance * np.cos(angle)), 0, n - size)
        return Window(excerpt, row, int(y), int(x), size)

    def _choose_windows(self) -> list[Window]:
        """Choose what is never learned from: at most a quarter of a single slice."""
        size = max(8, min(128, self.n_columns // 4) // 8 * 8)
        count = WINDOWS if self.n_rows >= 4 else WINDOWS // 2
        rng = np.random.default_rng(self.n_columns)
        return [self._any(rng, size) for _ in range(count)]


def _stack(row: int, depth: int, n: int) -> NDArray[np.intp]:
    reach = np.arange(row - depth // 2, row + depth // 2 + 1)
    return np.clip(reach, 0, n - 1)


def _turned(planes: NDArray[np.float32], turn: int, mirror: int) -> NDArray[np.float32]:
    planes = np.rot90(planes, turn, (1, 2))
    return planes[..., ::-1] if mirror else planes


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
