"""Does the object leave the field of view?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EDGE_SHARE = 0.01
"""Columns on each side that are judged, over all columns; two at least."""

CLEARLY = 0.1
"""Of the object's attenuation: more than this at an edge is object, not air."""

JUDGED_ROWS = 16
"""Rows that are looked at, at most."""

JUDGED_VIEWS = 128
"""Projections that are looked at, at most."""

NOISE = 4.0
"""Standard errors that it must be above, too."""


class Truncation(NamedTuple):
    """Verdict on a scan, and why."""

    truncated: bool
    reason: str


def truncation(line_integrals: NDArray[np.floating]) -> Truncation:
    """Judge whether the object is cut off at the left or right edge of the detector.

    Where it is, zero padding would make a bright rim and a bowl of the slices; use
    ``padding="edge"``. A single direction that is cut off is enough: an object can
    be wide in one direction and narrow in another.

    Parameters
    ----------
    line_integrals : ndarray, [angle, row, column]
        Some projections that cover half a turn; a few rows are enough.

    Returns
    -------
    Truncation
    """
    n_rows, n_columns = line_integrals.shape[1:]
    step = max(1, n_rows // JUDGED_ROWS)
    every = -(-len(line_integrals) // JUDGED_VIEWS)
    line_integrals = line_integrals[::every, step // 2 :: step][:, :JUDGED_ROWS]
    width = max(2, round(EDGE_SHARE * n_columns))
    object_level = float(np.percentile(line_integrals, 95))
    found = []
    for name, edge in (
        ("left", line_integrals[..., :width]),
        ("right", line_integrals[..., -width:]),
    ):
        # Rows one by one: the object may be cut off in some of them only.
        per_view = edge.mean(axis=2)
        level = float(np.percentile(per_view, 98))
        differences = np.diff(edge, axis=2)
        noise = float(np.median(np.abs(differences))) / 0.6745 / np.sqrt(2 * width)
        if level > CLEARLY * object_level and level > NOISE * noise:
            found.append(f"{level:.2g} at the {name} edge")
    if not found:
        return Truncation(False, "both edges of the detector see air")
    return Truncation(
        True,
        f"line integrals reach {' and '.join(found)} of the detector, "
        f"{object_level:.2g} in the object: it is wider than the field",
    )
