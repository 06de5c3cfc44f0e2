"""Which data key of a stream is the image, which the angle, in which unit."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ebl_stream.errors import InputError

_MIN_PIXELS = 64
_NAMES = re.compile(
    r"(?<![a-z])(theta|rotation[ _-]?angle|rotation|rot|angles?|omega)(?![a-z])", re.I
)
_SETPOINT = re.compile(r"setpoint|set_point|_sp$|offset|velocity|readback_?time", re.I)

DataKeys = Mapping[str, Mapping[str, Any]]


def is_image(data_key: Mapping[str, Any]) -> bool:
    """Return whether a data key has the shape of a detector image.

    ``(row, column)`` or ``(frame, row, column)``; not a spectrum, not a color image.
    """
    shape = _shape(data_key)
    if len(shape) == 2:
        return min(shape) > 1 and math.prod(shape) >= _MIN_PIXELS
    if len(shape) != 3 or shape[2] in (3, 4):
        return False
    # The number of frames may be 0 as long as nothing has been taken.
    return math.prod(shape[1:]) >= _MIN_PIXELS


def frames_per_event(data_key: Mapping[str, Any]) -> int:
    """Return how many frames an event has by its descriptor; at least 1."""
    shape = _shape(data_key)
    return max(1, shape[0]) if len(shape) == 3 else 1


def values_per_event(data_key: Mapping[str, Any]) -> int:
    """Return how many scalars an event has by its descriptor; at least 1."""
    return max(1, math.prod(_shape(data_key)))


def find_image_key(
    data_keys: DataKeys, wanted: str | None, stream: str, other: str | None = None
) -> str | None:
    """Return the key of the image; None where the stream has no image.

    Parameters
    ----------
    data_keys : mapping
        Of the event descriptor.
    wanted : str, optional
        ``keys.image`` of the profile.
    other : str, optional
        The image key of another stream of the run, taken where there are several.

    Raises
    ------
    InputError
        There are several, or the wanted one is not among them.
    """
    candidates = [key for key, data_key in data_keys.items() if is_image(data_key)]
    if wanted is not None and wanted in data_keys:
        return wanted
    if not candidates:
        return None
    listed = ", ".join(sorted(candidates))
    if wanted is not None:
        raise InputError(
            f"stream {stream!r} has no data key {wanted!r} (keys.image)\n"
            f"its images: {listed}"
        )
    if len(candidates) == 1:
        return candidates[0]
    if other in candidates:
        return other
    raise InputError(
        f"stream {stream!r} has several images: {listed}\n"
        "name the right one as keys.image in the profile"
    )


def find_theta_key(
    start: Mapping[str, Any],
    descriptor: Mapping[str, Any],
    wanted: str | None,
) -> str:
    """Return the key of the angle.

    The profile's; else what the plan scanned (``hints.dimensions``, ``motors``);
    else the only key with a name like theta, rotation, angle.

    Raises
    ------
    InputError
        None, or several.
    """
    keys: DataKeys = descriptor["data_keys"]
    stream = descriptor.get("name")
    if wanted is not None:
        if wanted in keys:
            return wanted
        close = difflib.get_close_matches(wanted, keys, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(
            f"stream {stream!r} has no data key {wanted!r} (keys.theta){hint}\n"
            f"its keys: {', '.join(sorted(keys))}"
        )
    scalars = [key for key, data_key in keys.items() if _is_scalar(data_key)]
    scanned = [key for key in _scanned(start, descriptor) if key in scalars]
    for candidates in (scanned, [k for k in scalars if not _SETPOINT.search(k)]):
        named = [key for key in candidates if _NAMES.search(key)]
        if len(named) > 1:
            named = [key for key in named if key.lower() == "theta"] or named
        if len(named) == 1:
            return named[0]
        if candidates is scanned and len(scanned) == 1:
            return scanned[0]
        if named:
            raise InputError(
                f"stream {stream!r} has several angles: {', '.join(sorted(named))}\n"
                "name the right one as keys.theta in the profile"
            )
    raise InputError(
        f"stream {stream!r} has images but no angle; its keys: "
        f"{', '.join(sorted(keys))}\nname the angle as keys.theta in the profile"
    )


def _scanned(start: Mapping[str, Any], descriptor: Mapping[str, Any]) -> list[str]:
    """Return the data keys of what the plan moved, each once."""
    found = dict.fromkeys(_dimension_fields(start))
    objects = descriptor.get("object_keys") or {}
    hints = descriptor.get("hints") or {}
    for motor in _texts(start.get("motors")):
        hint = hints.get(motor)
        fields = _texts(hint.get("fields")) if isinstance(hint, Mapping) else []
        found.update(dict.fromkeys(fields or _texts(objects.get(motor)) or [motor]))
    return list(found)


def _dimension_fields(start: Mapping[str, Any]) -> Iterator[str]:
    hints = start.get("hints")
    dimensions = hints.get("dimensions") if isinstance(hints, Mapping) else None
    for dimension in dimensions if isinstance(dimensions, Sequence) else ():
        if isinstance(dimension, Sequence) and dimension:
            yield from _texts(dimension[0])


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence):
        return []
    return [item for item in value if isinstance(item, str)]


def _is_scalar(data_key: Mapping[str, Any]) -> bool:
    return data_key.get("dtype") != "string" and len(_shape(data_key)) < 2


def _shape(data_key: Mapping[str, Any]) -> tuple[int, ...]:
    shape = data_key.get("shape") or ()
    if not isinstance(shape, Sequence):
        return ()
    return tuple(n if isinstance(n, int) and n > 0 else 0 for n in shape)
