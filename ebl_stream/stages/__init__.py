"""Stages: frozen dataclasses that stand in the rooms of the corridor.

A stage's fields are its settings, calling it is its work. Built-ins and strangers
register alike, by the entry points ``ebl_stream.<room>``. The order of the rooms is
physics and fixed; what stands in each room is the profile's choice.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from ebl_stream.errors import InputError
from ebl_stream.numerics.windows import Window
from ebl_stream.profile import ROOMS, StageEntry
from ebl_stream.stages.references import References as References

Values: TypeAlias = Literal["raw", "transmission", "line_integral"]
"""What the pixels of a projection mean on their way through the preprocess room."""


@dataclass(frozen=True)
class CenterVerdict:
    """What a search for the rotation center found, and whether to trust it."""

    center: float | None
    """px, column of the stored frame; None when there is no estimate at all."""
    reliable: bool
    spread_px: float
    """Disagreement of independent parts of the data; NaN when unknown."""
    why: str
    """One line for people: what it rests on, or why it is not reliable."""
    method: str = ""
    """What it rests on, in a word."""
    checks: dict[str, float] = field(default_factory=dict)
    """px; what other methods answered, by method."""


class PreprocessStage(Protocol):
    """Works on projections before they are accumulated.

    A stage that does not say how it looks across rows is given whole frames.
    """

    per_frame: ClassVar[bool]
    """True: every projection is treated by itself, in any batch."""
    needs_references: ClassVar[bool]
    linear: ClassVar[bool]
    """True: the stage of a weighted sum is the weighted sum of the stage's."""
    whole_frame: ClassVar[bool]
    """True: any pixel may depend on all others of its projection."""
    halo: ClassVar[int]
    """Rows on either side that a row's result depends on, if not whole_frame."""
    takes: ClassVar[Values]
    """What its input means."""
    role: ClassVar[Values]
    """What its output means."""

    def __call__(
        self, values: NDArray[np.float32], references: References | None = None
    ) -> NDArray[np.float32]:
        """Return new values, ``[angle, row, column]``; the input stays as it is."""
        ...


@runtime_checkable
class RingStage(Protocol):
    """A stage that removes what all projections see alike, so it may come afterwards.

    Taking away a constant is linear: live it is taken away from the grids.
    """

    min_coverage: float
    """Below this coverage the mean still shows the sample: leave it alone."""

    def profile(self, mean: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what to subtract from every projection, ``[row, column]``."""
        ...


@runtime_checkable
class SinogramStage(Protocol):
    """A stage that needs all angles of a row: not live, but for the final volume."""

    whole_sinogram: ClassVar[bool]

    def __call__(
        self, values: NDArray[np.float32], references: References | None = None
    ) -> NDArray[np.float32]:
        """Return new line integrals ``[angle, row, column]`` of some rows.

        Rows are independent of each other. The angles are those of a sinogram, see
        `ebl_stream.stages.preprocess.rings.sinogram_order`.
        """
        ...


class CenterStage(Protocol):
    """Finds the rotation axis in the projections themselves."""

    def __call__(
        self, projections: NDArray[np.float32], theta: NDArray[np.float64]
    ) -> CenterVerdict:
        """Judge line integrals ``[angle, row, column]`` at theta (rad)."""
        ...


class BatchReconstruct(Protocol):
    """Makes slices of a whole scan: not live, but for the final volume."""

    @property
    def window(self) -> Window:
        """Low-pass on top of the ramp filter, which live versions share."""
        ...

    @property
    def takes_blended(self) -> bool:
        """Whether rows of an offset detector may be blended about the axis."""
        ...

    def check(self) -> None:
        """Say whether it can run here; InputError where it cannot."""
        ...

    def __call__(
        self,
        values: NDArray[np.float32],
        theta: NDArray[np.float64],
        rotation_center: float,
    ) -> NDArray[np.float32]:
        """Reconstruct line integrals ``[angle, row, column]`` at theta (rad).

        Returns ``[z, y, x]``, 1/px; ``rotation_center`` is a column, px.
        """
        ...


class DenoiseStage(Protocol):
    """Lowers the noise of a slab, which the two halves reveal."""

    def __call__(
        self, volume: NDArray[np.float32], half_difference: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return a volume ``[z, y, x]`` of the same shape and unit."""
        ...


class SegmentStage(Protocol):
    """Tells the phases of a sample apart."""

    def __call__(
        self, volume: NDArray[np.float32], denoised: NDArray[np.float32]
    ) -> NDArray[np.uint8]:
        """Return labels ``[z, y, x]``, 0 outside of the reconstructed circle."""
        ...


class QuantifyStage(Protocol):
    """Turns labels into the numbers that the user asked for."""

    def __call__(
        self, volume: NDArray[np.float32], labels: NDArray[np.uint8]
    ) -> dict[str, float]:
        """Return named numbers."""
        ...


def available(room: str) -> dict[str, EntryPoint]:
    """Return what may stand in a room: name to entry point, built-ins and strangers.

    Raises
    ------
    InputError
        There is no such room.
    """
    if room not in ROOMS:
        raise InputError(f"there is no room {room!r}{_hint(room, ROOMS)}")
    return dict(_registered(room, tuple(sys.path)))


@lru_cache(len(ROOMS))
def _registered(room: str, path: tuple[str, ...]) -> tuple[tuple[str, EntryPoint], ...]:
    # To look through all that is installed takes longer than a small volume.
    found = entry_points(group=f"ebl_stream.{room}")
    return tuple((entry.name, entry) for entry in sorted(found, key=lambda e: e.name))


def build(room: str, entry: StageEntry) -> Any:
    """Make the stage that a profile's entry names.

    Parameters
    ----------
    room : str
        One of ``ebl_stream.profile.ROOMS``.
    entry : str or dict
        A stage's name, or ``{name: {setting: value}}``.

    Raises
    ------
    InputError
        Unknown room, stage or setting, or a wrong value; one line.
    """
    name, settings = _parse(room, entry)
    known = available(room)
    if name not in known:
        raise InputError(f"{room}: there is no stage {name!r}{_hint(name, known)}")
    stage = _load(room, known[name])
    fields = [field.name for field in dataclasses.fields(stage) if field.init]
    for setting in settings:
        if setting not in fields:
            hint = _hint(setting, fields) if fields else " (it has no settings)"
            raise InputError(f"{room}: {name} has no setting {setting!r}{hint}")
    try:
        return TypeAdapter(stage).validate_python(settings)
    except ValidationError as error:
        raise InputError(f"{room}: {name}: {_explain(error)}") from None


def build_preprocess(entries: Sequence[StageEntry]) -> tuple[PreprocessStage, ...]:
    """Make the stages of the preprocess room and check that their order is physical.

    Raises
    ------
    InputError
        As in `build`, or a stage is handed something else than what it takes.
    """
    stages = tuple(build("preprocess", entry) for entry in entries)
    has: Values = "raw"
    for stage in stages:
        takes = getattr(stage, "takes", has)
        if takes != has:
            raise InputError(
                f"preprocess: {_name(stage)} works on {takes} values, but at its place "
                f"they are {has}; the usual order is flat_field, remove_zingers, "
                "minus_log, remove_rings"
            )
        has = stage.role
    return stages


def describe(stage: Any) -> dict[str, dict[str, Any]]:
    """Return ``{name: settings}`` of a stage: provenance that `build` reads back."""
    settings = {
        field.name: getattr(stage, field.name)
        for field in dataclasses.fields(stage)
        if field.init
    }
    return {_name(stage): settings}


def _parse(room: str, entry: StageEntry) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if len(entry) == 1:
        ((name, settings),) = entry.items()
        if settings is None or isinstance(settings, dict):
            return str(name), {str(k): v for k, v in (settings or {}).items()}
    raise InputError(
        f"{room}: expected a stage's name or {{name: {{setting: value}}}}, "
        f"got {str(entry)[:80]!r}"
    )


def _load(room: str, entry: EntryPoint) -> type[Any]:
    try:
        stage = entry.load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"{room}: {entry.name} cannot be loaded: {error}") from None
    if not (isinstance(stage, type) and dataclasses.is_dataclass(stage)):
        raise InputError(f"{room}: {entry.name} ({entry.value}) is not a dataclass")
    return stage


def _name(stage: Any) -> str:
    """Return a stage's registered name; for a stranger's object its class's path."""
    path = f"{type(stage).__module__}:{type(stage).__qualname__}"
    for room in ROOMS:
        for name, entry in available(room).items():
            if entry.value == path:
                return name
    return path


def _hint(word: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"{guess} (there are: {', '.join(names) or 'none'})"


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if not where:
        return message
    return f"{where}: {message}, got {str(first['input'])[:80]!r}"
