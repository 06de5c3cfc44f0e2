"""What a start document says: numbers, uids, angles that no event repeats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.profile import StartKeys


def find_value(start: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Return the value of the first of these keys; None where there is none.

    A key as it stands goes first; a dotted one leads into dictionaries.
    """
    for name in names:
        if start.get(name) is not None:
            return start[name]
        value: Any = start
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def find_number(start: Mapping[str, Any], names: Iterable[str]) -> float | None:
    """Return the first of these keys if it is a finite number."""
    value = find_value(start, names)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def find_text(start: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """Return the first of these keys if it is a text."""
    value = find_value(start, names)
    return value if isinstance(value, str) and value else None


class StartAngles:
    """Angles of the projections as the start document gives them, in its unit."""

    def __init__(self, listed: NDArray[np.float64], start: float, step: float) -> None:
        self._listed = listed
        self._start, self._step = start, step
        self.is_list = bool(len(listed))

    @classmethod
    def find(cls, start: Mapping[str, Any], names: StartKeys) -> StartAngles | None:
        """Find a list, or where the turn begins and its step; None: neither.

        Raises
        ------
        InputError
            The turn begins and ends somewhere, and its step does not follow.
        """
        listed = _numbers(find_value(start, names.theta))
        if len(listed):
            return cls(listed, 0.0, 0.0)
        first = find_number(start, names.theta_start)
        if first is None:
            return None
        step = find_number(start, names.theta_step)
        if step is None:
            step = _step_to_stop(start, names, first)
        return None if step is None else cls(np.zeros(0), first, step)

    def __call__(self, index: int) -> float:
        """Return the angle of a projection; NaN beyond the end of a list."""
        if not self.is_list:
            return self._start + index * self._step
        return float(self._listed[index]) if index < len(self._listed) else math.nan


def _step_to_stop(
    start: Mapping[str, Any], names: StartKeys, first: float
) -> float | None:
    stop = find_number(start, names.theta_stop)
    n = find_number(start, names.n_projections)
    if stop is None or n is None or n < 2:
        return None
    if names.stop_included is None:
        raise InputError(
            f"the start document says that {n:g} angles go from {first:g} to {stop:g}, "
            "not whether the last one is there\n"
            "say so in the profile: start.stop_included true or false"
        )
    return (stop - first) / (n - 1 if names.stop_included else n)


def _numbers(value: Any) -> NDArray[np.float64]:
    """Return a list of numbers (None in it is NaN); empty for anything else."""
    if not isinstance(value, list | tuple | np.ndarray):
        return np.zeros(0)
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return np.zeros(0)
    return numbers if numbers.ndim == 1 else np.zeros(0)
