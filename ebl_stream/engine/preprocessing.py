"""The preprocess room at work: raw images to line integrals, slab by slab.

Slabs are made on several threads, each of its own rows. What any row may need of the
others is done once per frame, before: `Preprocessor.prepare`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.engine.prepared import (
    NONE,
    NOTHING,
    Chain,
    Fields,
    Prepared,
    RawFrames,
    Rows,
    WholeFrames,
    beam_scale,
    native,
    run,
)
from ebl_stream.frames import Image
from ebl_stream.numerics import line_integrals
from ebl_stream.stages import PreprocessStage, References
from ebl_stream.stages.preprocess import repair


class Preprocessor:
    """Run the stages of the preprocess room that look at one projection at a time.

    Parameters
    ----------
    stages : sequence of PreprocessStage
        In their order; each ``per_frame``.
    """

    def __init__(self, stages: Sequence[PreprocessStage]) -> None:
        self.stages = tuple(stages)
        self._chain = Chain.of(self.stages)
        self._n_whole = max(_count_whole(self.stages), self._chain.length)
        self._fields: weakref.WeakKeyDictionary[References, Fields] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def fused(self) -> bool:
        """Whether one kernel does it all."""
        return 0 < self._chain.length == len(self.stages)

    @property
    def whole_frame(self) -> bool:
        """Whether most of the work is done in `prepare`, which then takes its time."""
        return not self.fused and self._n_whole > 0

    def __call__(
        self,
        images: Sequence[Image],
        references: References | None,
        rows: Rows,
        *,
        positions: Sequence[float] | None = None,
        total: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float32]:
        """Return line integrals ``[angle, row, column]`` of some rows.

        The same as `prepare` and then `Prepared.rows`, which see: that is for
        several ranges of rows of the same images.
        """
        return self.prepare(images, references, positions).rows(rows, total=total)

    def prepare(
        self,
        images: Sequence[Image],
        references: References | None,
        positions: Sequence[float] | None = None,
        each: Callable[..., Iterable[Any]] = map,
    ) -> Prepared:
        """Do what concerns whole frames.

        Parameters
        ----------
        images : sequence of ndarray, (row, column)
            Raw counts, all of one shape and dtype. Not copied: keep them as they are
            until the rows are made.
        references : References or None
            None where no stage needs them.
        positions : sequence of float, optional
            The frames' indices; they matter where the flats drift (`References.at`).
        each : callable
            ``map``, or that of a pool: frames are treated one by one.

        Raises
        ------
        ValueError
            A stage needs references and there are none, or of another shape.
        """
        at = [0.0] * len(images) if positions is None else positions
        holes = _has_holes(images)
        if self.fused and references is not None and not holes:
            return self._raw(images, references, at)
        # Holes are filled from neighbors, which may be in other rows.
        stop = len(self.stages) if holes else self._n_whole

        def one(k: int) -> NDArray[np.float32]:
            return self._whole(images[k], references, at[k], stop)

        values = np.stack(list(each(one, range(len(images)))))
        tail = self.stages[stop:]
        own = references.at(at) if references is not None and tail else None
        return WholeFrames(values.shape, values, tail, own)

    def _whole(
        self,
        image: Image,
        references: References | None,
        position: float,
        stop: int,
    ) -> NDArray[np.float32]:
        """Return an image as the stages before ``stop`` leave it."""
        done = self._chain.length
        if references is None or not done or _has_holes([image]):
            values, done = image[None].astype(np.float32), 0
        else:
            values = self._raw([image], references, [position]).rows((0, len(image)))
        own = references.at([position]) if references is not None else None
        values = run(self.stages[done:stop], values, own)
        if stop == len(self.stages):
            repair(values)
        return values[0]

    def _raw(
        self,
        images: Sequence[Image],
        references: References,
        positions: Sequence[float],
    ) -> RawFrames:
        chain = self._chain
        fields = self._fields.get(references)
        if fields is None:
            fields = self._fields[references] = Fields(references)
        if any(image.shape != fields.dark.shape for image in images):
            raise ValueError(f"an image is not {fields.dark.shape} as the flats are")
        pixels = [native(image) for image in images]
        flats = [fields.flat(references, position) for position in positions]
        scales = [NOTHING] * len(images)
        variances = [NONE] * len(images)
        for k, image in enumerate(pixels):
            known = (image, fields.dark, *flats[k])
            if chain.beam is not None:
                scales[k] = beam_scale(chain.beam, known)
            if chain.zingers is not None:
                noise = line_integrals.raw_noise(*known, scales[k])
                variances[k] = chain.zingers.variance(noise)
        shape = (len(images), *fields.dark.shape)
        return RawFrames(shape, pixels, chain, fields, flats, scales, variances)

    def warm_up(self, dtype: Any = np.uint16) -> None:
        """Compile or load the kernels for a detector's dtype."""
        image = np.full((8, 32), 100, dtype)
        flat = np.full(image.shape, 200, np.float32)
        dark = np.zeros_like(flat)
        drifting = References(flat, dark, groups=((0, flat), (2, flat)))
        total = np.zeros(image.shape)
        for references in (References(flat, dark), drifting):
            self([image] * 2, references, (2, 6), positions=[0, 1], total=total)


def _count_whole(stages: Sequence[PreprocessStage]) -> int:
    """Return how many stages, from the first on, must be done before the split."""
    raw = len(list(takewhile(lambda stage: stage.takes == "raw", stages)))
    whole = [k + 1 for k, stage in enumerate(stages) if _is_whole(stage)]
    return max([raw, *whole])


def _is_whole(stage: PreprocessStage) -> bool:
    """Whether a stage needs whole frames; so does one that does not say."""
    silent = not hasattr(stage, "halo")
    return getattr(stage, "whole_frame", silent) or silent


def _has_holes(images: Sequence[Image]) -> bool:
    """Whether a pixel of an image is not finite."""
    if images[0].dtype.kind != "f":
        return False
    # A sum may overflow without a hole: that only takes the slower way.
    with np.errstate(over="ignore", invalid="ignore"):
        return not all(np.isfinite(image.sum()) for image in images)
