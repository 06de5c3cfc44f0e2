"""Which images of a stream can be used; a reason for each that cannot."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.frames import Frame, Kind, Rejected
from ebl_stream.ingest.places import Place, check_rows


class Judge:
    """Make frames of the images of one stream; all have to look like the first.

    Parameters
    ----------
    rows : (int, int), optional
        Stored rows to use of images that came inside their events.
    """

    def __init__(self, rows: tuple[int, int] | None) -> None:
        self._rows = rows
        self._shape: tuple[int, ...] | None = None
        self._dtype: np.dtype[Any] | None = None

    def frame(
        self,
        index: int,
        kind: Kind,
        theta: float,
        image: NDArray[Any] | None,
        place: Place | None,
        i: int,
    ) -> Frame | Rejected:
        """Return one frame, or why it is none.

        Parameters
        ----------
        index, kind, theta
            As of `Frame`.
        image : ndarray, optional
            ``(row, column)``; empty: it has no such shape; None: nobody could read it.
        place : Place, optional
            Where it can be read again, as frame ``i`` of its event.
        """
        if kind is Kind.INVALID:
            return Rejected(kind, index, "invalid_kind")
        if image is None:
            return Rejected(kind, index, "unreadable")
        if not self._fits(image):
            return Rejected(kind, index, "wrong_shape")
        if kind is Kind.PROJECTION and not math.isfinite(theta):
            return Rejected(kind, index, "no_angle")
        if place is not None:
            ref = place.images.ref(place.event, i)
            return Frame(index, kind, theta, image, ref)
        return Frame(index, kind, theta, self._cut(image))

    def _fits(self, image: NDArray[Any]) -> bool:
        if image.ndim != 2 or image.dtype.kind not in "uif" or not image.size:
            return False
        if self._shape is None:
            self._shape, self._dtype = image.shape, image.dtype
        return image.shape == self._shape and image.dtype == self._dtype

    def _cut(self, image: NDArray[Any]) -> NDArray[Any]:
        if self._rows is None:
            return image
        check_rows(self._rows, image.shape[0])
        return image[slice(*self._rows)]
