"""What the engine knows of a denoiser that learns: nothing of nets, nor of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Slab: TypeAlias = NDArray[np.float32]
"""[z, y, x], 1/px."""

Excerpt: TypeAlias = tuple[Slab, Slab]
"""A + B and A - B of adjacent slices."""

IsBehind: TypeAlias = Callable[[], bool] | None
"""Live: whether documents wait. None: a replay."""


@dataclass(frozen=True)
class Denoised:
    """A denoised slab, and what is known of it."""

    volume: Slab | None = None
    """None: it was not denoised at this look."""
    by: str = ""
    """Who did it; see `ebl_stream.nets.guard`."""
    weights: str = ""
    """Hash of the net's weights, where there is a net."""
    steps: int = 0
    """Steps that these weights learned in this scan."""
    split: float = math.nan
    """1/px, RMS error as the halves tell it; see `ebl_stream.nets.uncertainty`."""
    ensemble: float = math.nan
    """1/px, RMS error as several nets tell it."""
    map: Slab | None = None
    """The same, voxel by voxel, where it was asked for."""

    def as_row(self) -> dict[str, Any]:
        """Return columns of the quality table."""
        return {
            "denoised_by": self.by,
            "denoised_weights": self.weights[:16],
            "denoised_steps": self.steps,
            "uncertainty_split": _known(self.split),
            "uncertainty_ensemble": _known(self.ensemble),
        }


class Learner(Protocol):
    """Denoises one run, and learns from it."""

    def slabs(self, n_columns: int) -> int:
        """Return how many slabs it wants to learn from at most."""
        ...

    def rows(self, n_columns: int, n_rows: int, n_slabs: int) -> tuple[int, int]:
        """Return the half-open range of a slab's rows that it wants to learn from."""
        ...

    def learn(self, excerpts: Sequence[Excerpt], coverage: float) -> None:
        """Take a new look to learn from."""
        ...

    def finish(self, excerpts: Sequence[Excerpt]) -> None:
        """Take the last look; return when what can be learned from it is learned."""
        ...

    def hold(self) -> AbstractContextManager[None]:
        """Do not learn meanwhile."""
        ...

    def denoise(self, volume: Slab, half_difference: Slab | None) -> Denoised:
        """Denoise a slab; with A - B, say how far it may be wrong."""
        ...

    def report(self) -> dict[str, Any]:
        """Return what is published of it: plain JSON."""
        ...

    def close(self) -> None:
        """Stop learning."""
        ...


@runtime_checkable
class LearningStage(Protocol):
    """A denoise stage that is begun for every run."""

    uncertainty_map: bool
    """Whether an array of it is published."""
    correction_steps: int
    """Steps toward the projections that a slab may take after the net, at most."""

    def begin(self, is_behind: IsBehind) -> Learner:
        """Return who denoises one run."""
        ...

    def check(self) -> None:
        """Load what `begin` needs; InputError where it is not there."""
        ...


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
