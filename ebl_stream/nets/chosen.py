"""Who denoises now: a slab in, a slab and its uncertainty out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ebl_stream.nets.guard import Candidate, Denoise
from ebl_stream.nets.learner import Denoised, Slab
from ebl_stream.nets.scale import Scale
from ebl_stream.nets.uncertainty import Ensemble, Split, Uncertainty, scalar

JUDGED_SLICES = 8
"""Slices of a slab that its uncertainty is made of, about."""


@dataclass(frozen=True)
class Chosen:
    """Who denoises, and why; replaced whole."""

    candidate: Candidate
    scale: Scale
    losses: dict[str, float]
    members: tuple[Denoise, ...] = ()
    """States of the net from which the ensemble's spread is taken."""
    by_half: bool = True
    """Whether it is made for one half of the projections; else for all."""

    def __call__(
        self, volume: Slab, half_difference: Slab | None, *, with_map: bool = False
    ) -> Denoised:
        """Denoise a slab, ``[z, y, x]``, 1/px.

        What a net makes of either half is averaged, as it has learned from halves;
        without A - B it sees the whole, at once and almost as well. Voxels that are
        not finite, or of which nothing finite was made, stay.
        """
        seen, halves = self.scale.to_net(volume), None
        who = self.candidate
        if half_difference is None or not self.by_half:
            made = who.denoise(seen, None)
        else:
            difference = self._seen_difference(half_difference)
            halves = (
                who.denoise(seen + difference, None),
                who.denoise(seen - difference, None),
            )
            made = (halves[0] + halves[1]) * np.float32(0.5)
        made = self.scale.to_volume(made)
        clean = np.where(np.isfinite(made) & np.isfinite(volume), made, volume)
        known = Denoised(clean, by=who.name, weights=who.weights, steps=who.steps)
        if half_difference is None:
            return known
        errors = self._errors(seen, half_difference, halves, with_map=with_map)
        return replace(known, **errors)

    def _errors(
        self,
        seen: Slab,
        half_difference: Slab,
        halves: tuple[Slab, Slab] | None,
        *,
        with_map: bool,
    ) -> dict[str, Any]:
        """Return what the methods of `ebl_stream.nets.uncertainty` say, in 1/px."""
        gain = self.scale.gain
        difference = self._seen_difference(half_difference)
        some = range(0, len(seen), max(1, len(seen) // JUDGED_SLICES))
        split = Split(self.candidate.denoise)
        known = None if halves is None else split.of(*halves)
        error = split(seen, difference, some) if known is None else known
        errors: dict[str, Any] = {"split": gain * scalar(error)}
        best: Uncertainty = split
        if len(self.members) > 1 and self.candidate.weights:
            best, known = Ensemble(self.members), None
            errors["ensemble"] = gain * scalar(best(seen, difference, some))
        if with_map:
            error = best(seen, difference) if known is None else known
            errors["map"] = np.float32(gain) * error
        return errors

    def _seen_difference(self, values: Slab) -> Slab:
        return np.divide(values, np.float32(self.scale.gain), dtype=np.float32)
