"""Pixels whose values mean nothing: found in flats and darks, filled in projections."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ebl_stream.numerics import line_integrals

NEIGHBORS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]

BLOCK = 32
"""px; the beam and the dark level are taken to be even over such squares."""

DEAD_BELOW = 0.2
"""Of the beam around it: a pixel that answers less is dead."""

BRIGHT_ABOVE = 5.0
"""Times the beam around it: a pixel that answers more does not answer to light."""

HOT_ABOVE = 0.5
"""Of the beam around it: a pixel that is so much darker-current than others is hot."""


@dataclass(frozen=True, eq=False)
class Holes:
    """Pixels without a value, and how to fill them from their neighbors.

    Each is the mean of its known neighbors (up to eight), from the rim inwards.
    """

    order: NDArray[np.int32]
    """[hole, 3], see `line_integrals.fill`."""
    spans: NDArray[np.int64]
    """[hole, 2], half-open range of rows that the connected hole and its rim take."""

    @classmethod
    def of(cls, missing: NDArray[np.bool_]) -> Holes:
        """Return the holes of a mask ``(row, column)``; none if all is missing."""
        if missing.all():
            missing = np.zeros_like(missing)
        known = np.pad(~missing, 1)
        rows, columns = np.nonzero(missing)
        layers: list[NDArray[np.int64]] = [np.empty((0, 3), np.int64)]
        while rows.size:
            bits = np.zeros(rows.size, np.int64)
            for bit, (i, j) in enumerate(NEIGHBORS):
                bits |= known[rows + 1 + i, columns + 1 + j].astype(np.int64) << bit
            rim = bits > 0
            layers.append(np.stack([rows[rim], columns[rim], bits[rim]], axis=1))
            known[rows[rim] + 1, columns[rim] + 1] = True
            rows, columns = rows[~rim], columns[~rim]
        order = np.concatenate(layers).astype(np.int32)
        labels: Any = ndimage.label(missing, np.ones((3, 3)))
        labels = labels[0]
        spans = [
            (max(rows.start - 1, 0), min(rows.stop + 1, len(missing)))
            for rows, _ in ndimage.find_objects(labels)
        ]
        own = labels[order[:, 0], order[:, 1]] - 1
        return cls(order, np.array(spans, np.int64).reshape(-1, 2)[own])

    def touching(self, first: int, stop: int) -> tuple[int, int, NDArray[np.int32]]:
        """Return the holes that reach into some rows, and the rows to fill them from.

        Parameters
        ----------
        first, stop : int
            Half-open range of rows.

        Returns
        -------
        first, stop : int
            Widened so that these holes are whole, with their rims.
        order : ndarray int32, [hole, 3]
        """
        touch = (self.spans[:, 0] < stop) & (self.spans[:, 1] > first)
        order, spans = self.order[touch], self.spans[touch]
        if not order.size:
            return first, stop, order
        return (
            min(first, int(spans[:, 0].min())),
            max(stop, int(spans[:, 1].max())),
            order,
        )


def repair(values: NDArray[np.float32]) -> int:
    """Fill pixels that are not finite from their neighbors in the image, in place.

    Each is the mean of its finite neighbors (up to eight); holes fill from their rim.
    An image without any finite pixel stays as it is.

    Parameters
    ----------
    values : ndarray, [..., row, column]

    Returns
    -------
    int
        Pixels that were filled.
    """
    finite = np.isfinite(values)
    if finite.all():
        return 0
    n_filled, missing, holes = 0, ~finite[(0,) * (values.ndim - 2)], None
    for k in np.ndindex(values.shape[:-2]):
        if finite[k].all():
            continue
        # A detector's bad pixels are the same in every image.
        if holes is None or np.any(missing == finite[k]):
            missing = ~finite[k]
            holes = Holes.of(missing)
        line_integrals.fill(values[k], 0, holes.order)
        n_filled += len(holes.order)
    return n_filled


def find_bad_pixels(
    flat: NDArray[np.float32], dark: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Return the pixels that do not answer to light as those around them do.

    Parameters
    ----------
    flat, dark : ndarray, [row, column]

    Returns
    -------
    ndarray of bool, [row, column]
        Dead (no or little answer), stuck bright, or hot (dark current takes up the
        range), each against the median of its surroundings.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        beam = np.asarray(flat, np.float64) - dark
        usual = _surroundings(beam)
        lit = usual > 0
        unlike = (beam < DEAD_BELOW * usual) | (beam > BRIGHT_ABOVE * usual)
        hot = dark - _surroundings(np.asarray(dark, np.float64)) > HOT_ABOVE * usual
    return ~np.isfinite(beam) | (lit & (unlike | hot))


def _surroundings(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median of the square that each pixel is in, interpolated."""
    finite = np.isfinite(image)
    if not finite.all():
        image = np.where(finite, image, np.median(image[finite]) if finite.any() else 0)
    edges = [np.linspace(0, n, max(1, n // BLOCK) + 1).astype(int) for n in image.shape]
    rows, columns = (list(pairwise(edge)) for edge in edges)
    medians = [
        [np.median(image[top:bottom, left:right]) for left, right in columns]
        for top, bottom in rows
    ]
    down, across = map(_interpolation, edges)
    return down @ np.array(medians) @ across.T


def _interpolation(edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the matrix from values of intervals to values of their pixels."""
    middles = (edges[:-1] + edges[1:] - 1) / 2
    pixels = np.arange(edges[-1])
    return np.stack(
        [np.interp(pixels, middles, one) for one in np.eye(middles.size)], 1
    )
