"""Angles: their unit, the sense of the stage, and those that are missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.profile import Geometry, Keys

_UNITS = {
    **dict.fromkeys(("", "deg", "degs", "degree", "degrees", "°"), math.pi / 180),
    **dict.fromkeys(("rad", "rads", "radian", "radians"), 1.0),
    **dict.fromkeys(("mrad", "mrads", "milliradian", "milliradians"), 1e-3),
}
_MAX_GAP = 16
"""Frames: a longer gap between two known angles is not filled."""
_STEADY = 0.9
"""Share of the steps that have to be like the usual one."""


def radians_per_unit(data_key: Mapping[str, Any], keys: Keys) -> float:
    """Return the factor to radians: by the profile's unit, the key's, else degrees.

    Raises
    ------
    InputError
        The unit is none of an angle, or counts of an encoder without counts per turn.
    """
    if keys.theta_unit == "counts":
        if keys.counts_per_turn is None:
            raise InputError(
                "keys.theta_unit is counts: say how many there are in a full turn "
                "(keys.counts_per_turn)"
            )
        return 2 * math.pi / keys.counts_per_turn
    said = keys.theta_unit
    unit = said if said != "auto" else str(data_key.get("units") or "")
    factor = _UNITS.get(unit.strip().lower())
    if factor is None:
        raise InputError(
            f"the angle's unit is {unit!r}, which is none of an angle\n"
            "say what it is with keys.theta_unit (deg, rad, mrad, counts)"
        )
    return factor


@dataclass(frozen=True)
class AngleScale:
    """From the angles that are told to those of the house (rad)."""

    radians: float
    """Radians per unit."""
    geometry: Geometry

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return radians, in the sense of the house."""
        theta = values * self.radians
        if self.geometry.reverse_theta:
            theta = -theta
        theta = theta + math.radians(self.geometry.theta_offset_deg)
        return theta + math.pi if self.geometry.flip_columns else theta


def interpolate(known: Mapping[int, float], missing: Iterable[int]) -> dict[int, float]:
    """Put missing angles between their neighbors, where the stage turned steadily.

    That is, where nine of ten known steps are alike (within half of the usual one),
    and those across the gap are. Otherwise the stage went elsewhere in between
    (golden angle, another pass, back), and nobody knows where.

    Parameters
    ----------
    known : mapping
        Angle (rad) by frame.
    missing : iterable of int
        Frames without one.

    Returns
    -------
    dict
        Angle (rad) by frame, of those that could be filled.
    """
    index = np.array(sorted(k for k, v in known.items() if math.isfinite(v)), np.int64)
    gaps, turned = np.diff(index), np.diff(np.array([known[k] for k in index]))
    if not (gaps == 1).any():
        return {}
    turn = 2 * math.pi
    ones = (turned[gaps == 1] + math.pi) % turn - math.pi
    usual = float(np.median(ones))
    within = 0.5 * abs(usual)
    if np.mean(np.abs(ones - usual) <= within) < _STEADY or not usual:
        return {}
    # Encoders begin again after a turn: whole turns are as the usual step has them.
    steps = (turned + turn * np.round((usual * gaps - turned) / turn)) / gaps
    filled: dict[int, float] = {}
    for frame in missing:
        after = int(np.searchsorted(index, frame))
        if not 0 < after < len(index) or gaps[after - 1] > _MAX_GAP:
            continue
        before, step = int(index[after - 1]), float(steps[after - 1])
        if abs(step - usual) <= within:
            filled[frame] = known[before] + step * (frame - before)
    return filled


def fill_rows(
    rows: Mapping[int, tuple[float, ...] | None], m: int
) -> dict[int, tuple[float, ...]]:
    """Put missing angles between their neighbors.

    Parameters
    ----------
    rows : mapping
        Angles (rad) of an event by its number: one, or one for each of its frames;
        None, or NaN in it, where they are missing.
    m : int
        Frames per event.

    Returns
    -------
    dict
        The rows that changed.
    """
    width = max((len(row) for row in rows.values() if row), default=0)
    if width not in (1, m):
        return {}
    gap = (math.nan,) * width
    known: dict[int, float] = {}
    for seq, row in rows.items():
        values = row if row and len(row) == width else gap
        known.update(enumerate(values, (seq - 1) * width))
    filled = interpolate(known, [k for k, v in known.items() if not math.isfinite(v)])
    known |= filled
    return {
        seq: tuple(known[(seq - 1) * width + i] for i in range(width))
        for seq in {k // width + 1 for k in filled}
    }
