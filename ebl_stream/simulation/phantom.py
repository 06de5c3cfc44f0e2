"""Phantoms whose projections are known exactly, and orders of angles.

A phantom is a list of ellipsoids around the rotation axis. A detector row cuts
them into ellipses, whose line integrals over a pixel are closed forms, so that
no interpolation error enters a comparison. Geometry: a ray of angle theta obeys
``x cos(theta) + y sin(theta) = s`` with ``s = column - rotation_center``;
``z = row``; pixel ``(y, x)`` of the volume lies at ``(x - c, y - c)`` about the
axis, ``c = (n_columns - 1) / 2``; values are 1/px.
"""

from __future__ import annotations

import difflib
import math
from typing import Any, Literal, TypeAlias

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebl_stream.errors import InputError

Order: TypeAlias = Literal["golden", "interlaced", "sequential"]
"""In which order the angles over half a turn are visited."""

PASSES = 8
"""Turns of an interlaced scan."""

SUBLINES = 16
"""Lines per pixel along y that the area average of the truth is made of."""


class Phantom:
    """A body of ellipsoids: its projections, its volume.

    Parameters
    ----------
    n_columns, n_rows : int
        Detector pixels; the volume is ``[n_rows, n_columns, n_columns]``.
    bodies : (n, 8) float64
        ``x, y, z, a, b, c`` (px about the axis; z in rows; semi-axes, ``c`` may be
        infinite), ``phi`` (rad, of ``a`` against x, in the plane), and the density
        (1/px) that the body adds where it lies.
    """

    def __init__(self, n_columns: int, n_rows: int, bodies: ArrayLike) -> None:
        self.n_columns = n_columns
        self.n_rows = n_rows
        self.bodies: NDArray[np.float64] = np.ascontiguousarray(bodies, np.float64)

    def project(
        self,
        theta: ArrayLike,
        rotation_center: float | None = None,
        rows: tuple[int, int] | None = None,
    ) -> NDArray[np.float32]:
        """Integrate along rays, exactly, averaged over each pixel's width.

        Parameters
        ----------
        theta : (angle,) rad
        rotation_center : float, optional
            px, the column that the axis is seen at; the middle of the columns.
        rows : (start, stop), optional
            Half-open range of rows.

        Returns
        -------
        float32 [angle, row, column]
            Line integrals, without a unit (1/px times px).
        """
        center = (
            (self.n_columns - 1) / 2 if rotation_center is None else rotation_center
        )
        angles = np.atleast_1d(np.asarray(theta, np.float64))
        z = self._heights(rows)
        out = np.empty((angles.size, z.size, self.n_columns), np.float32)
        _project(self.bodies, angles, z, float(center), out)
        return out

    def volume(self, rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Return the truth, averaged over each pixel's area (1/px).

        Parameters
        ----------
        rows : (start, stop), optional
            Half-open range of rows.

        Returns
        -------
        float32 [z, y, x]
        """
        z = self._heights(rows)
        out = np.zeros((z.size, self.n_columns, self.n_columns), np.float64)
        _rasterize(self.bodies, z, out)
        return out.astype(np.float32)

    def _heights(self, rows: tuple[int, int] | None) -> NDArray[np.float64]:
        start, stop = rows or (0, self.n_rows)
        return np.arange(start, stop, dtype=np.float64)


class Foam(Phantom):
    """Air bubbles and dense grains in a cylinder, none touching another.

    Parameters
    ----------
    n_columns, n_rows : int
    seed : int
        The same seed gives the same foam.
    radius : float, optional
        Of the cylinder (px); ``0.46 * n_columns``.
    bubbles, grains : float
        Fractions of the volume that are aimed at; crowding leaves some spheres out.
    """

    def __init__(
        self,
        n_columns: int = 256,
        n_rows: int = 128,
        seed: int = 0,
        *,
        radius: float | None = None,
        bubbles: float = 0.24,
        grains: float = 0.06,
    ) -> None:
        outer = 0.46 * n_columns if radius is None else radius
        self.matrix = 0.65 / outer
        """Density of the matrix (1/px); grains have twice as much, air none."""
        rng = np.random.default_rng(seed)
        radii = _sphere_radii(rng, n_columns, n_rows, outer, bubbles + grains)
        spheres = _place(radii, rng.random((radii.size, 50, 3)), outer, float(n_rows))
        solid = rng.random(len(spheres)) < grains / max(bubbles + grains, 1e-9)
        # What a sphere adds to the matrix that it lies in.
        density = np.where(solid, self.matrix, -self.matrix)
        cylinder = [[0, 0, 0, outer, outer, np.inf, 0, self.matrix]]
        bodies = np.concatenate([cylinder, _sphere_bodies(spheres, density)])
        super().__init__(n_columns, n_rows, bodies)

    def labels(self, rows: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Return the true phases: 0 air, 1 matrix, 2 grain.

        Returns
        -------
        uint8 [z, y, x]
            The phase that most of each pixel's area belongs to.
        """
        volume = self.volume(rows)
        labels = (volume > 0.5 * self.matrix).astype(np.uint8)
        labels += volume > 1.5 * self.matrix
        return labels


class Asymmetric(Phantom):
    """A few ellipsoids without any symmetry, for orientation, sign and scale.

    No mirror and no rotation in x, y or z maps it onto itself.
    """

    def __init__(self, n_columns: int = 64, n_rows: int = 32) -> None:
        # x, y, z, a, b, c, phi, density; lengths in columns (z and c: in rows).
        unit = np.array(
            [
                [0.02, -0.03, 0.50, 0.40, 0.34, 1.50, 0.30, 1.0],
                [0.20, 0.10, 0.30, 0.11, 0.06, 0.40, 0.80, 1.0],
                [-0.12, 0.17, 0.70, 0.07, 0.10, 0.35, 0.00, -0.7],
                [-0.17, -0.11, 0.35, 0.05, 0.12, 0.50, -0.50, 0.6],
                [0.12, -0.21, 0.80, 0.04, 0.04, 0.30, 0.00, 1.5],
            ]
        )
        across, along = n_columns, n_rows
        scale = [across, across, along, across, across, along, 1, 1.5 / n_columns]
        super().__init__(n_columns, n_rows, unit * scale)


def _sphere_radii(
    rng: np.random.Generator, n_columns: int, n_rows: int, outer: float, fill: float
) -> NDArray[np.float64]:
    """Draw radii (px), large first, that would fill that fraction of the cylinder."""
    smallest, largest = max(0.012 * n_columns, 1.5), 0.065 * n_columns
    room = math.pi * outer**2 * (n_rows + 2 * largest)
    enough = math.ceil(room * fill / (4 / 3 * math.pi * smallest**3)) + 1
    radii = smallest + (largest - smallest) * rng.random(enough) ** 3
    filled = np.cumsum(4 / 3 * math.pi * radii**3)
    return np.sort(radii[filled <= room * fill])[::-1]


def _sphere_bodies(
    spheres: NDArray[np.float64], density: NDArray[np.float64]
) -> NDArray[np.float64]:
    radius = spheres[:, 3:4]
    upright = np.zeros_like(radius)
    columns = [spheres[:, :3], radius, radius, radius, upright, density[:, None]]
    return np.concatenate(columns, axis=1)


@numba.njit(cache=True)
def _place(radii: Any, draws: Any, outer: float, height: float) -> Any:
    """Put spheres where they touch neither the wall nor one another."""
    placed = np.empty((radii.size, 4))
    n = 0
    for i in range(radii.size):
        r = radii[i]
        for u, v, w in draws[i]:
            rho = (outer - r - 2) * math.sqrt(u)
            x, y = rho * math.cos(2 * math.pi * v), rho * math.sin(2 * math.pi * v)
            z = -r - 0.5 + w * (height + 2 * r)
            free = True
            for other in placed[:n]:
                gap = r + other[3] + 1.5
                dx, dy, dz = x - other[0], y - other[1], z - other[2]
                if dx * dx + dy * dy + dz * dz < gap * gap:
                    free = False
                    break
            if free:
                placed[n] = (x, y, z, r)
                n += 1
                break
    return placed[:n]


@numba.njit(cache=True)
def _cut(bodies: Any, z: float) -> Any:
    """Cut the ellipsoids at a height: rows of x, y, a, b, phi, density."""
    cuts = np.empty((len(bodies), 6))
    n = 0
    for body in bodies:
        shrink = 1 - ((z - body[2]) / body[5]) ** 2
        if shrink > 1e-12:
            q = math.sqrt(shrink)
            cuts[n] = (body[0], body[1], body[3] * q, body[4] * q, body[6], body[7])
            n += 1
    return cuts[:n]


@numba.njit(cache=True)
def _segment(t: float, w: float) -> float:
    """Area under the half circle of radius w, from 0 to t."""
    if t >= w:
        return 0.25 * math.pi * w * w
    if t <= -w:
        return -0.25 * math.pi * w * w
    return 0.5 * (t * math.sqrt(w * w - t * t) + w * w * math.asin(t / w))


@numba.njit(nogil=True, cache=True)
def _project(bodies: Any, theta: Any, heights: Any, center: float, out: Any) -> None:
    line = np.empty(out.shape[2])
    for row in range(heights.size):
        cuts = _cut(bodies, heights[row])
        for k in range(theta.size):
            line[:] = 0.0
            for cut in cuts:
                _add_shadow(cut, theta[k], center, line)
            out[k, row, :] = line


@numba.njit(cache=True)
def _add_shadow(cut: Any, theta: float, center: float, line: Any) -> None:
    """Add one ellipse's line integrals to one row of pixels."""
    x, y, a, b, phi, density = cut
    w = math.hypot(a * math.cos(theta - phi), b * math.sin(theta - phi))
    middle = x * math.cos(theta) + y * math.sin(theta) + center + 0.5
    first = max(math.floor(middle - w), 0)
    last = min(math.ceil(middle + w), line.size)
    # The chord at distance t is 2ab/w^2 sqrt(w^2 - t^2); a pixel is one wide.
    scale = density * 2 * a * b / (w * w)
    before = _segment(first - middle, w)
    for column in range(first, last):
        after = _segment(column + 1 - middle, w)
        line[column] += scale * (after - before)
        before = after


@numba.njit(nogil=True, cache=True)
def _rasterize(bodies: Any, heights: Any, out: Any) -> None:
    size = out.shape[2]
    for k in range(heights.size):
        for cut in _cut(bodies, heights[k]):
            _, y, a, b, phi, _ = cut
            reach = math.hypot(a * math.sin(phi), b * math.cos(phi))
            top = max(math.floor(y - reach + 0.5 * size), 0)
            bottom = min(math.ceil(y + reach + 0.5 * size), size)
            for row in range(top, bottom):
                _add_lines(cut, row - 0.5 * size - y, reach, out[k, row])


@numba.njit(cache=True)
def _add_lines(cut: Any, edge: float, reach: float, line: Any) -> None:
    """Add one ellipse to a row of pixels whose lower edge is that far from it."""
    # Even steps of the angle: chords shrink like a cosine towards the ends.
    low = math.asin(max(edge / reach, -1.0))
    step = (math.asin(min((edge + 1) / reach, 1.0)) - low) / SUBLINES
    for sub in range(SUBLINES):
        begin = low + sub * step
        thickness = reach * (math.sin(begin + step) - math.sin(begin))
        _add_chord(cut, reach * math.sin(begin + 0.5 * step), thickness, line)


@numba.njit(cache=True)
def _add_chord(cut: Any, dy: float, thickness: float, line: Any) -> None:
    """Add one ellipse's chord along x, dy off its center, to a row of pixels."""
    u, v = math.cos(cut[4]), math.sin(cut[4])
    p, q = 1 / cut[2] ** 2, 1 / cut[3] ** 2
    # (dx, dy) inside the rotated ellipse: A dx^2 + 2 B dx + C < 0.
    A = u * u * p + v * v * q
    B = dy * u * v * (p - q)
    C = dy * dy * (v * v * p + u * u * q) - 1
    half = math.sqrt(max(B * B - A * C, 0.0)) / A
    middle = cut[0] - B / A + 0.5 * line.size
    left, right = max(middle - half, 0.0), min(middle + half, 1.0 * line.size)
    for column in range(math.floor(left), math.ceil(right)):
        inside = min(right, column + 1.0) - max(left, 1.0 * column)
        line[column] += cut[5] * inside * thickness


def angles_of(order: str, n: int) -> NDArray[np.float64]:
    """Return the n angles (rad) of an order, as they are visited.

    Raises
    ------
    InputError
        There is no such order.
    """
    orders = {
        "golden": golden_angles,
        "interlaced": lambda n: interlaced_angles(n, PASSES),
        "sequential": sequential_angles,
    }
    if order not in orders:
        close = difflib.get_close_matches(order, orders, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(
            f"no order of angles is called {order!r}{hint} "
            f"(there are: {', '.join(orders)})"
        )
    return orders[order](n)


def golden_angles(n: int) -> NDArray[np.float64]:
    """Return n angles (rad, in 0..pi), each pi/phi = 111.2 degrees after the last."""
    return np.arange(n) * math.pi * (math.sqrt(5) - 1) / 2 % math.pi


def interlaced_angles(n: int, k: int) -> NDArray[np.float64]:
    """Return n angles (rad) evenly over 0..pi in k passes that fill each other's gaps.

    The passes start at offsets in van der Corput (bit reversed) order, so that
    every prefix of passes is nearly even (TIMBIR: Mohan et al., IEEE Trans.
    Comput. Imaging 1, 96 (2015)).
    """
    passes = np.argsort([_radical_inverse(i) for i in range(k)], kind="stable")
    order = [np.arange(offset, n, k) for offset in passes]
    return np.concatenate(order) * math.pi / n


def sequential_angles(n: int, span: float = math.pi) -> NDArray[np.float64]:
    """Return n angles (rad) evenly over a span, its end left out."""
    return np.arange(n) * span / n


def _radical_inverse(i: int) -> float:
    return int(f"{i:b}"[::-1], 2) / 2 ** i.bit_length()
