"""Keep the grids equal to the weighted sum over the projections in the window.

One rule covers arrivals, losses, any order, rewinds and rebuilds: every slot has
weights that it should have and weights with which it was added; `settle` adds the
difference. Sums are linear, so the grids are exact after every settle.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ebl_stream.engine.grids import Grids, Look, Shares
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.window import Slot, Window
from ebl_stream.frames import Frame
from ebl_stream.numerics.weights import HalfSplit, alternate, angular_weights
from ebl_stream.stages import References

BLOCK = 16
"""Projections that go through the rooms together."""

CENTER_ROWS = 16
"""Detector rows kept as line integrals for the center finder, at most."""

NEGLIGIBLE = 1e-6
"""Relative change of a weight that is not worth a scatter."""


class ProjectionSum:
    """The projections of one run, and their weighted sum in the grids."""

    def __init__(self, rooms: Rooms, window: Window, grids: Grids) -> None:
        self.window = window
        self.grids = grids
        self.references: References | None = None
        self._rooms = rooms
        self._split = HalfSplit()
        self._center_rows: dict[int, NDArray[np.float32]] = {}
        self._total: NDArray[np.float64] | None = None
        self._summed: set[int] = set()
        self.angular_coverage = 0.0
        """Share of the half circle that the angles present stand for, 0..1."""

    def put(self, frame: Frame) -> None:
        """Take a projection in; one that it replaces leaves the grids at once."""
        if frame.index in self.window:
            self._retract(frame.index)
        self.window.put(frame, self._split.assign(frame.theta))

    def settle(self) -> None:
        """Bring the grids to the exact weights of the angles present."""
        weights = angular_weights(self.window.thetas())
        self.angular_coverage = float(weights.sum() / np.pi)
        changed: list[tuple[int, Slot, Shares]] = []
        for (index, slot), weight in zip(self.window.items(), weights, strict=True):
            target = (float(weight), 0.0) if slot.half == 0 else (0.0, float(weight))
            if any(
                abs(new - old) > NEGLIGIBLE * weight
                for new, old in zip(target, slot.applied, strict=True)
            ):
                changed.append((index, slot, target))
        for block in _blocks(changed):
            self._apply(block)

    def reset(
        self, rotation_center: float, references: References | None = None
    ) -> None:
        """Empty the grids; the next settle adds everything anew.

        New references also make new line integrals, so sums over them start anew.
        """
        self.grids.reset(rotation_center)
        for slot in self.window.slots():
            slot.applied = (0.0, 0.0)
        if references is not None:
            self.references = references
            self._center_rows.clear()
            self._summed.clear()
            self._total = None

    def balance_halves(self) -> None:
        """Let the halves alternate in sorted direction; A + B stays as it is."""
        halves = alternate(self.window.thetas())
        for slot, half in zip(self.window.slots(), halves, strict=True):
            slot.half = int(half)

    def look(self, *, without_rings: bool) -> Look:
        """Return (A + B, A - B) of every slab, ``[z, y, x]``, 1/px.

        Parameters
        ----------
        without_rings : bool
            Take away what every angle sees alike, from both halves.
        """
        rings = None
        if without_rings and self._rooms.rings is not None and self._total is not None:
            mean = (self._total / len(self._summed)).astype(np.float32)
            rings = self._rooms.rings.profile(mean)
        slots = list(self.window.slots())
        shares = [slot.applied for slot in slots]
        return self.grids.look(rings, [slot.theta for slot in slots], shares)

    def center_rows(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return some rows' line integrals ``[angle, row, column]``, and theta, rad."""
        held = self._center_rows
        theta = np.array([self.window[index].theta for index in held])
        return np.stack(list(held.values())), theta

    def _apply(self, block: list[tuple[int, Slot, Shares]]) -> None:
        values = self._line_integrals([index for index, _, _ in block])
        changes = [
            (target[0] - slot.applied[0], target[1] - slot.applied[1])
            for _, slot, target in block
        ]
        self.grids.add(values, [slot.theta for _, slot, _ in block], changes)
        for _, slot, target in block:
            slot.applied = target

    def _retract(self, index: int) -> None:
        slot = self.window[index]
        if any(slot.applied):
            self._apply([(index, slot, (0.0, 0.0))])
        if index in self._summed and self._total is not None:
            self._total -= self._raw_line_integrals([index])[0]
            self._summed.discard(index)
        self._center_rows.pop(index, None)

    def _line_integrals(self, indices: list[int]) -> NDArray[np.float32]:
        values = self._raw_line_integrals(indices)
        for index, value in zip(indices, values, strict=True):
            if index not in self._summed:
                self._note(index, value)
        return values

    def _raw_line_integrals(self, indices: list[int]) -> NDArray[np.float32]:
        images = [self.window.image(index) for index in indices]
        return self._rooms.line_integrals(images, self.references)

    def _note(self, index: int, value: NDArray[np.float32]) -> None:
        """Keep what rings and center are found from."""
        if self._total is None:
            self._total = np.zeros(value.shape)
        self._total += value
        self._summed.add(index)
        step = max(1, len(value) // CENTER_ROWS)
        self._center_rows[index] = value[step // 2 :: step][:CENTER_ROWS].copy()


def _blocks(
    changed: list[tuple[int, Slot, Shares]],
) -> Iterator[list[tuple[int, Slot, Shares]]]:
    for start in range(0, len(changed), BLOCK):
        yield changed[start : start + BLOCK]
