"""Line integrals of slices, and their exact adjoint: what a volume says of the data.

Joseph's method (IEEE Trans. Med. Imaging 1, 192 (1982)): a ray takes one step per pixel
along the axis that it is nearer to, and interpolates between two pixels across it. The
adjoint puts everything back with the same weights. Rays end at the inscribed circle:
beyond it no pixel was seen from all sides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics.kernel_cache import kernel


def project(
    slices: NDArray[np.float32],
    theta: NDArray[np.float64],
    rotation_center: float,
    n_columns: int | None = None,
) -> NDArray[np.float32]:
    """Return the line integrals of slices inside their circle; one thread, no GIL.

    Parameters
    ----------
    slices : ndarray, [z, y, x]
        1/px; pixel (y, x) at (x - (n - 1) / 2, y - (n - 1) / 2) about the axis.
    theta : ndarray, (angle,)
        rad; x cos(theta) + y sin(theta) = column - rotation_center.
    rotation_center : float
        px, column of the detector.
    n_columns : int, optional
        Of the detector; as many as a slice has.

    Returns
    -------
    ndarray of float32, [angle, z, column]

    Raises
    ------
    ValueError
        Slices are not square, or theta is not a list of angles.
    """
    n, angles = _size(slices, theta), np.ascontiguousarray(theta, np.float64)
    out = np.empty((len(slices), len(angles), n_columns or n), np.float32)
    for z, image in enumerate(slices):
        padded = np.pad(np.asarray(image, np.float32), 1)
        across = np.ascontiguousarray(padded.T)
        _project(padded, across, angles, float(rotation_center), out[z])
    return out.swapaxes(0, 1)


def backproject(
    line_integrals: NDArray[np.float32],
    theta: NDArray[np.float64],
    rotation_center: float,
    n: int,
) -> NDArray[np.float32]:
    """Return the adjoint of `project`: line integrals laid back along their rays.

    Parameters
    ----------
    line_integrals : ndarray, [angle, z, column]
    theta, rotation_center
        See `project`.
    n : int
        Pixels along a side of a slice.

    Returns
    -------
    ndarray of float32, [z, y, x]
    """
    n_rows, angles = line_integrals.shape[1], np.ascontiguousarray(theta, np.float64)
    out = np.empty((n_rows, n, n), np.float32)
    padded, across = np.empty((2, n + 2, n + 2), np.float32)
    for z in range(n_rows):
        padded[:], across[:] = 0, 0
        values = np.ascontiguousarray(line_integrals[:, z], np.float32)
        _backproject(values, angles, float(rotation_center), padded, across)
        out[z] = (padded + across.T)[1:-1, 1:-1]
    return out


def _size(slices: NDArray[np.float32], theta: NDArray[np.float64]) -> int:
    if slices.ndim != 3 or slices.shape[1] != slices.shape[2] or theta.ndim != 1:
        raise ValueError(
            f"slices must be [z, n, n] and theta (angle,), not {slices.shape} and "
            f"{theta.shape}"
        )
    return slices.shape[2]


@kernel(fastmath={"nnan", "contract"})
def _ray(angle: float, s: float, n: int) -> Any:
    """Return whether a ray runs along x, and its steps inside of the circle.

    Its pixels ``k`` from ``first`` to ``stop``, the place across at pixel 0 and by how
    much it moves with each (both in the padded image), and the length of a step.
    """
    c, sn = np.cos(angle), np.sin(angle)
    along_x = abs(sn) >= abs(c)
    # As if it ran along x: the other way round x and y change places.
    ahead, side = (c, sn) if along_x else (sn, c)
    middle = 0.5 * (n - 1)
    room = 0.25 * n * n - s * s
    if room <= 0:
        return along_x, 0, 0, 0.0, 0.0, 0.0
    reach = np.sqrt(room) * abs(side)
    first = max(int(np.ceil(middle + s * ahead - reach)), 0)
    stop = min(int(np.floor(middle + s * ahead + reach)), n - 1) + 1
    slope = -ahead / side
    place = s / side - middle * slope + middle + 1
    return along_x, first, stop, place, slope, 1 / abs(side)


@kernel(fastmath={"nnan", "contract", "reassoc"})
def _project(padded: Any, across: Any, theta: Any, center: float, out: Any) -> None:
    n = padded.shape[0] - 2
    for i in range(theta.size):
        for column in range(out.shape[1]):
            along_x, first, stop, place, slope, step = _ray(
                theta[i], column - center, n
            )
            image = padded if along_x else across
            total = np.float32(0)
            for k in range(first, stop):
                at = place + slope * k
                below = int(at)
                share = np.float32(at - below)
                near, far = image[below, k + 1], image[below + 1, k + 1]
                total += near + share * (far - near)
            out[i, column] = total * np.float32(step)


@kernel(fastmath={"nnan", "contract"})
def _backproject(
    values: Any, theta: Any, center: float, padded: Any, across: Any
) -> None:
    n = padded.shape[0] - 2
    for i in range(theta.size):
        for column in range(values.shape[1]):
            along_x, first, stop, place, slope, step = _ray(
                theta[i], column - center, n
            )
            image = padded if along_x else across
            value = values[i, column] * np.float32(step)
            for k in range(first, stop):
                at = place + slope * k
                below = int(at)
                share = np.float32(at - below) * value
                image[below, k + 1] += value - share
                image[below + 1, k + 1] += share


class Sirt:
    """Steps from slices toward measured line integrals; each weighs all rays alike.

    x + C A^T R (p - A x), where R and C are one over the sums of A along rays and over
    pixels (Gregor and Benson, IEEE Trans. Med. Imaging 27, 918 (2008)).

    Parameters
    ----------
    theta : ndarray, (angle,)
        rad.
    rotation_center : float
        px.
    n : int
        Pixels along a side of a slice.
    n_columns : int
        Of the detector.
    """

    def __init__(
        self,
        theta: NDArray[np.float64],
        rotation_center: float,
        n: int,
        n_columns: int,
    ) -> None:
        self._how = theta, rotation_center
        self._n, self._n_columns = n, n_columns
        lengths = project(np.ones((1, n, n), np.float32), *self._how, n_columns)
        self._rays = np.reciprocal(np.maximum(lengths, 1, dtype=np.float32))
        counts = backproject(np.ones_like(lengths), *self._how, n)[0]
        self._pixels = np.reciprocal(np.maximum(counts, 1e-3, dtype=np.float32))

    def residual(
        self, image: NDArray[np.float32], measured: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return what a slice ``[y, x]`` lacks of ``measured``, [angle, column]."""
        return measured - project(image[None], *self._how, self._n_columns)[:, 0]

    def step(
        self, image: NDArray[np.float32], residual: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the slice after a step by its residual."""
        back = backproject(residual[:, None] * self._rays, *self._how, self._n)
        return image + self._pixels * back[0]
