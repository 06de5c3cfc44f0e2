"""What somebody who looks at a run wants to see of it, while it runs.

``viewer.json`` in the run's folder says it; anybody who may write there may ask. It
changes previews only: the final volume is what the profile says.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ebl_stream import strict_json
from ebl_stream.numerics.windows import Window

log = logging.getLogger(__name__)

NAME = "viewer.json"
MAX_BYTES = 4096
MAX_ROW = 2**20


class Plane(BaseModel):
    """A cut through the volume at any angle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    point: tuple[float, float, float]
    """A voxel ``(z, y, x)`` on the plane."""
    normal: tuple[float, float, float]
    """Direction ``(z, y, x)`` that the plane is seen along; any length but zero."""

    @model_validator(mode="after")
    def _has_direction(self) -> Plane:
        if not all(abs(value) <= MAX_ROW for value in self.point):  # nor NaN
            raise ValueError(f"point must lie between -{MAX_ROW} and {MAX_ROW}")
        if not all(map(math.isfinite, self.normal)):
            raise ValueError("normal must be finite")
        if not 1e-6 <= max(map(abs, self.normal)) <= 1e6:
            raise ValueError("normal must not be (0, 0, 0), nor beyond 1e-6 and 1e6")
        return self


class Wishes(BaseModel):
    """What a viewer asks for; everything may be left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: tuple[int, int] | None = None
    """Half-open range of slices that are refreshed first, however late it is."""
    window: Window | None = None
    """Low-pass of the previews."""
    plane: Plane | None = None
    """An oblique plane that is shown beside the three orthogonal ones."""

    @model_validator(mode="after")
    def _is_range(self) -> Wishes:
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1] <= MAX_ROW:
            raise ValueError(f"rows must be A, B with 0 <= A < B <= {MAX_ROW}")
        return self


def read_wishes(folder: Path) -> Wishes:
    """Return what is asked for in a run's folder; nothing where nobody asks.

    A file that says something else is reported in the log and ignored: a viewer
    never stops a scan.
    """
    path = folder / NAME
    try:
        raw = _read(path)
    except OSError:
        return Wishes()
    try:
        if len(raw) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        return Wishes.model_validate(strict_json.loads(raw))
    except ValidationError as error:
        # Without what was read: it may be no viewer's.
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        log.warning("%s ignored: %.60s: %s", path, where, first["msg"])
    except ValueError as error:
        log.warning("%s ignored: %s", path, error)
    return Wishes()


def _read(path: Path) -> bytes:
    """Read a file of the folder itself, without waiting whatever lies there."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        return file.read(MAX_BYTES + 1) or b""


def write_wishes(folder: Path, wishes: Wishes) -> None:
    """Ask for something in a run's folder; replaces what was asked before.

    Raises
    ------
    OSError
        The folder is not there or cannot be written to.
    """
    # A name of its own: others may ask at the same time.
    draft = folder / f"{NAME}.{secrets.token_hex(8)}.part"
    try:
        draft.write_text(wishes.model_dump_json(exclude_none=True), encoding="utf-8")
        os.replace(draft, folder / NAME)
    finally:
        draft.unlink(missing_ok=True)
