"""Families of samples, drawn at random: what a denoiser learns to tell from noise.

Every family is a list of ellipsoids, so that its projections are exact. An ellipsoid
may lean: its horizontal cuts are ellipses of one shape, whose centers lie on a line.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ebl_stream.simulation.phantom import Foam, Phantom

Bodies = NDArray[np.float64]
"""``(n, 10)``: ``x, y, z, a, b, c, phi, density`` as of a `Phantom`, and the slopes
dx/dz and dy/dz of the center of its cuts."""

OUTER = 0.46
"""Radius of the cylinder that holds the sample, over the number of columns."""


class Leaning:
    """A body of ellipsoids that lean, row by row an exact `Phantom`.

    Parameters
    ----------
    n_columns, n_rows : int
    bodies : (n, 10) float64
        See `Bodies`.
    """

    def __init__(self, n_columns: int, n_rows: int, bodies: Bodies) -> None:
        self._rows = [
            Phantom(n_columns, 1, _cut(bodies, float(z))) for z in range(n_rows)
        ]

    def project(self, theta: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return exact line integrals ``[angle, row, column]``."""
        return np.concatenate([row.project(theta) for row in self._rows], axis=1)

    def volume(self) -> NDArray[np.float32]:
        """Return the truth ``[z, y, x]``, averaged over each pixel's area."""
        return np.concatenate([row.volume() for row in self._rows])


def _cut(bodies: Bodies, z: float) -> Bodies:
    """Return upright cylinders that look at height z as the bodies do."""
    dz = z - bodies[:, 2]
    shrink = 1 - np.square(dz / bodies[:, 5])
    cut, dz = bodies[shrink > 0].copy(), dz[shrink > 0]
    cut[:, 3:5] *= np.sqrt(shrink[shrink > 0])[:, None]
    cut[:, :2] += cut[:, 8:] * dz[:, None]
    cut[:, 5] = np.inf
    return cut[:, :8]


def foam(rng: np.random.Generator, n: int, n_rows: int) -> Bodies:
    """Bubbles and dense grains in a cylinder."""
    bodies = _spheres(rng, n, n_rows, rng.uniform(0.05, 0.35), rng.uniform(0, 0.12))
    dense = bodies[:, 7] > 0
    dense[0] = False  # the cylinder
    bodies[dense, 7] *= rng.uniform(0.2, 2)
    return bodies


def grains(rng: np.random.Generator, n: int, n_rows: int) -> Bodies:
    """Crowded ellipsoids of several phases, none touching another."""
    bodies = _spheres(rng, n, n_rows, rng.uniform(0.25, 0.5), 0.0)
    some = len(bodies) - 1
    bodies[1:, 3:6] *= rng.uniform(0.5, 1, (some, 3))
    bodies[1:, 6] = rng.uniform(0, math.pi, some)
    phases = rng.uniform(-0.4, 2, int(rng.integers(1, 5)))
    bodies[1:, 7] = rng.choice(phases, some)
    bodies[0, 7] = rng.uniform(0.2, 1)
    return bodies


def fibers(rng: np.random.Generator, n: int, n_rows: int) -> Bodies:
    """Long ellipsoids in all directions, crossing each other."""
    some = int(rng.integers(40, 250))
    radius = rng.uniform(1, 4) * rng.uniform(0.7, 1.3, some)
    length = rng.uniform(0.08, 0.3, some) * n
    bodies = _scattered(rng, some, OUTER * n - length, n_rows)
    lies = rng.random(some) < rng.uniform(0.2, 0.8)
    bodies[:, 3] = np.where(lies, length, radius)
    bodies[:, 4] = radius
    bodies[:, 5] = np.where(lies, radius, length)
    bodies[:, 6] = rng.uniform(0, math.pi, some)
    bodies[:, 7] = rng.uniform(0.3, 1) * rng.choice([0.7, 1.0, 1.3], some)
    bodies[:, 8:] = np.where(lies[:, None], 0, rng.normal(0, 0.6, (some, 2)))
    return np.concatenate([_cylinder(n, rng.uniform(0, 0.5)), bodies])


def layers(rng: np.random.Generator, n: int, n_rows: int) -> Bodies:
    """Leaning sheets one beside the other, and thin cracks."""
    sheets, cracks = int(rng.integers(3, 16)), int(rng.integers(5, 40))
    some = sheets + cracks
    long = rng.uniform(0.15, 0.4, some) * n
    bodies = _scattered(rng, some, OUTER * n - long, n_rows)
    is_crack = np.arange(some) >= sheets
    bodies[:, 3] = long
    bodies[:, 4] = np.where(
        is_crack, rng.uniform(0.4, 2, some), rng.uniform(2, 12, some)
    )
    bodies[:, 5] = rng.uniform(0.2, 1, some) * n
    along = rng.uniform(0, math.pi)
    bodies[:, 6] = along + rng.normal(0, np.where(is_crack, 0.8, 0.1))
    bodies[:, 7] = np.where(is_crack, -1, rng.uniform(-0.3, 0.8, some))
    bodies[:, 8:] = rng.normal(0, 0.3, 2)
    return np.concatenate([_cylinder(n, 1.0), bodies])


def clutter(rng: np.random.Generator, n: int, n_rows: int) -> Bodies:
    """Ellipsoids of all sizes, contrasts and shapes, through each other."""
    some = int(rng.integers(80, 500))
    size = 1.2 * (0.15 * n / 1.2) ** (rng.random(some) ** rng.uniform(1, 3))
    bodies = _scattered(rng, some, OUTER * n - size, n_rows)
    bodies[:, 3:6] = size[:, None] * rng.uniform(0.4, 1, (some, 3))
    bodies[:, 6] = rng.uniform(0, math.pi, some)
    bodies[:, 7] = rng.normal(0, 0.5, some)
    bodies[:, 8:] = rng.normal(0, 0.4, (some, 2))
    return np.concatenate([_cylinder(n, 1.0), bodies])


FAMILIES: dict[str, Callable[[np.random.Generator, int, int], Bodies]] = {
    "foam": foam,
    "grains": grains,
    "fibers": fibers,
    "layers": layers,
    "clutter": clutter,
}
"""By name: a random source, columns and rows to bodies of relative density."""


def _spheres(
    rng: np.random.Generator, n: int, n_rows: int, bubbles: float, grains: float
) -> Bodies:
    """Return a foam's cylinder and spheres, as coarse as it comes or finer."""
    finer = rng.uniform(1, 2)
    made = Foam(
        round(finer * n),
        math.ceil(finer * n_rows),
        seed=int(rng.integers(2**31)),
        radius=finer * OUTER * n,
        bubbles=bubbles,
        grains=grains,
    )
    lengths = [finer] * 6
    bodies = np.zeros((len(made.bodies), 10))
    bodies[:, :8] = made.bodies / [*lengths, 1, made.matrix]
    return bodies


def _cylinder(n: int, density: float) -> Bodies:
    outer = OUTER * n
    return np.array([[0, 0, 0, outer, outer, np.inf, 0, density, 0, 0]])


def _scattered(
    rng: np.random.Generator, some: int, reach: NDArray[np.float64], n_rows: int
) -> Bodies:
    """Return bodies that are only places yet: even within circles of that reach."""
    bodies = np.zeros((some, 10))
    away = reach * np.sqrt(rng.random(some))
    around = rng.uniform(0, 2 * math.pi, some)
    bodies[:, 0], bodies[:, 1] = away * np.cos(around), away * np.sin(around)
    bodies[:, 2] = rng.uniform(-0.3 * n_rows - 4, 1.3 * n_rows + 4, some)
    return bodies
