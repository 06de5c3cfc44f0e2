"""Projections between raw and line integrals, from which slabs take their rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ebl_stream.frames import Image
from ebl_stream.numerics import line_integrals, zingers
from ebl_stream.stages import PreprocessStage, References
from ebl_stream.stages.preprocess import (
    FlatField,
    MinusLog,
    NormalizeBeam,
    RemoveZingers,
    repair,
)
from ebl_stream.stages.preprocess.flat_field import gain
from ebl_stream.stages.preprocess.pixels import Holes

Rows: TypeAlias = tuple[int, int]
"""Half-open range of detector rows."""

COMPILED = ["u1", "u2", "u4", "i2", "i4", "f4"]
"""Pixels that the fused kernel reads as they are."""

NONE, NOTHING = np.float32(-1), np.empty(0, np.float32)
"""Say to `line_integrals.fused`: not this step."""


@dataclass(frozen=True)
class Prepared(ABC):
    """Some projections, as far as they must be treated whole."""

    shape: tuple[int, int, int]
    """[angle, row, column] of whole frames."""

    def rows(
        self,
        rows: Rows,
        *,
        total: NDArray[np.float64] | None = None,
        signs: Sequence[int] | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return line integrals ``[angle, row, column]`` of some rows; thread-safe.

        Parameters
        ----------
        rows : (int, int)
            Half-open range.
        total : ndarray float64, [row, column], optional
            Of whole frames: each projection is added to these rows of it, in order.
        signs : sequence of int, optional
            How often each projection is added to ``total``: 1 (the default), 0, or
            -1 to take it back.
        out : ndarray float32, [angle, row, column], optional
            Where to write.

        Raises
        ------
        ValueError
            Rows outside of the frames, or arrays of another shape.
        """
        (z0, z1), (n, n_rows, n_columns) = rows, self.shape
        if not 0 <= z0 < z1 <= n_rows:
            raise ValueError(f"rows {rows} are not within the frame's {n_rows}")
        if out is None:
            out = np.empty((n, z1 - z0, n_columns), np.float32)
        if out.shape != (n, z1 - z0, n_columns) or out.dtype != np.float32:
            raise ValueError(f"out must be float32 {(n, z1 - z0, n_columns)}")
        if total is None:
            signs = [0] * n
        elif total.shape != self.shape[1:] or total.dtype != np.float64:
            raise ValueError(f"total must be float64 {self.shape[1:]}")
        self._write(rows, out, total, [1] * n if signs is None else signs)
        return out

    @abstractmethod
    def _write(self, rows: Rows, out: Any, total: Any, signs: Sequence[int]) -> None:
        """Write line integrals of rows to ``out``, and add them to ``total``."""


@dataclass(frozen=True)
class WholeFrames(Prepared):
    """Projections that the first stages have seen whole; the others see a few rows."""

    values: NDArray[np.float32]
    stages: tuple[PreprocessStage, ...]
    references: References | None

    def _write(self, rows: Rows, out: Any, total: Any, signs: Sequence[int]) -> None:
        z0, z1 = rows
        halo = sum(stage.halo for stage in self.stages)
        first, stop = max(z0 - halo, 0), min(z1 + halo, self.shape[1])
        values, references = self.values[:, first:stop], self.references
        if references is not None and self.stages:
            references = _crop(references, slice(first, stop))
        out[:] = run(self.stages, values, references)[:, z0 - first : z1 - first]
        for image, sign in zip(out, signs, strict=True):
            if sign:
                total[z0:z1] += sign * image.astype(np.float64)


@dataclass(frozen=True)
class RawFrames(Prepared):
    """Projections that the fused kernel takes from raw counts to the end."""

    images: list[Image]
    chain: Chain
    fields: Fields
    flats: list[tuple[Image, Image, np.float32]]
    scales: list[NDArray[np.float32]]
    variances: list[np.float32]

    def _write(self, rows: Rows, out: Any, total: Any, signs: Sequence[int]) -> None:
        z0, z1 = rows
        halo = zingers.HALO if self.chain.zingers else 0
        first, stop, order = self.fields.holes.touching(
            max(z0 - halo, 0), min(z1 + halo, self.shape[1])
        )
        scratch = np.empty((stop - first, self.shape[2]), np.float32)
        total = np.empty((1, 1)) if total is None else total
        stage, log = self.chain.zingers, self.chain.log
        for k, image in enumerate(self.images):
            line_integrals.fused(
                image,
                self.fields.dark,
                *self.flats[k],
                self.scales[k],
                order,
                first,
                z0,
                z1,
                self.variances[k],
                stage.max_pixels if stage else 0,
                np.float32(log.clip) if log else NONE,
                scratch,
                out[k],
                total,
                float(signs[k]),
            )


class Fields:
    """What the fused kernel needs of references; made once for each."""

    def __init__(self, references: References) -> None:
        self.dark = np.ascontiguousarray(references.dark, np.float32)
        self.flats = [np.array(flat, np.float32) for _, flat in references.groups]
        for flat in self.flats:
            flat[references.dead] = np.nan
        # One flat for all: to multiply is faster than to divide.
        self.gains = [
            gain(References(flat, self.dark, bad=references.dead))
            for flat in self.flats or [references.flat]
        ]
        self.holes = Holes.of(references.dead)

    def flat(
        self, references: References, position: float
    ) -> tuple[Image, Image, np.float32]:
        """Return what the kernel takes as ``a, b, share``."""
        if len(self.gains) == 1:
            return self.gains[0], self.gains[0], NONE
        after, share = references.between(position)
        if share == 0:
            return self.gains[after], self.gains[after], NONE
        return self.flats[after], self.flats[after + 1], np.float32(share)


@dataclass(frozen=True)
class Chain:
    """The first stages of the room that one kernel does at once."""

    beam: NormalizeBeam | None = None
    zingers: RemoveZingers | None = None
    log: MinusLog | None = None
    length: int = 0

    @classmethod
    def of(cls, stages: Sequence[PreprocessStage]) -> Chain:
        """Return as many of the stages, from the first on, as the kernel knows."""
        if not stages or type(stages[0]) is not FlatField:
            return cls()
        found: dict[str, Any] = {}
        places = {NormalizeBeam: "beam", RemoveZingers: "zingers", MinusLog: "log"}
        order = list(places.values())
        for stage in stages[1:]:
            place = places.get(type(stage))  # type: ignore[arg-type]
            if place is None or place not in order:
                break
            order = order[order.index(place) + 1 :]
            found[place] = stage
        return cls(**found, length=1 + len(found))


def native(image: Image) -> Image:
    """Return an image as the kernel reads it, itself if possible."""
    if image.dtype.str[1:] not in COMPILED or not image.dtype.isnative:
        image = image.astype(np.float32)
    return np.ascontiguousarray(image)


def beam_scale(stage: NormalizeBeam, known: tuple[Any, ...]) -> NDArray[np.float32]:
    """Return what normalize_beam multiplies the columns of a raw image with."""
    image, dark, a, b, share = known
    n = image.shape[1]
    edge = min(stage.columns, n)
    air = []
    for columns in (slice(0, edge), slice(n - edge, n)):
        part = (image[:, columns].astype(np.float32), dark[:, columns])
        gains = a[:, columns]
        if share >= 0:
            flat = gains + share * (b[:, columns] - gains)
            gains = np.float32(1) / (flat - part[1])
        air.append((part[0] - part[1]) * gains)
    return stage.scale(air[0], air[1], n)


def run(
    stages: Sequence[PreprocessStage],
    values: NDArray[np.float32],
    references: References | None,
) -> NDArray[np.float32]:
    """Run stages one by one; NaN are filled as soon as values are comparable."""
    for stage in stages:
        values = stage(values, references)
        if stage.role != "raw":
            values = np.ascontiguousarray(values, np.float32)
            repair(values)
    return values


def _crop(references: References, rows: slice) -> References:
    bad = references.dead[rows]
    flat, dark = references.flat[..., rows, :], references.dark[rows]
    return References(flat, dark, references.source, bad)
