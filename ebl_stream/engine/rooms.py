"""The five rooms of a profile, furnished: the order is physics, the stages choice."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.engine.preprocessing import Preprocessor
from ebl_stream.errors import InputError
from ebl_stream.frames import Image
from ebl_stream.nets.learner import IsBehind, Learner, LearningStage
from ebl_stream.numerics.quality import quality_row
from ebl_stream.numerics.warm_up import warm_up
from ebl_stream.profile import Profile
from ebl_stream.stages import (
    BatchReconstruct,
    CenterStage,
    DenoiseStage,
    PreprocessStage,
    QuantifyStage,
    References,
    RingStage,
    SegmentStage,
    SinogramStage,
    build,
    build_preprocess,
    describe,
)
from ebl_stream.stages.denoise import Wiener
from ebl_stream.stages.denoise_nets import missing
from ebl_stream.stages.reconstruct import Fourier

log = logging.getLogger(__name__)

WARM_UP_ANGLES = 32


@dataclass(frozen=True)
class Rooms:
    """The stages that a profile asks for."""

    preprocess: tuple[PreprocessStage, ...]
    """Stages that look at one projection at a time, in order."""
    rings: RingStage | None
    """The stage that takes away what every angle sees alike, by linearity."""
    final: tuple[SinogramStage, ...]
    """Stages that need all angles of a row, in order: for the final volume alone."""
    center: CenterStage
    reconstruct: Fourier
    """What makes the live volume."""
    backend: BatchReconstruct | None
    """What makes the final volume, where the profile asks for something else."""
    denoise: DenoiseStage | LearningStage | None
    segment: SegmentStage | None
    quantify: QuantifyStage | None

    @classmethod
    def furnish(cls, profile: Profile) -> Rooms:
        """Build the stages of a profile.

        Raises
        ------
        InputError
            A stage or a setting is unknown, or cannot stand in the live path.
        """
        stages = build_preprocess(profile.preprocess)
        rings = [stage for stage in stages if isinstance(stage, RingStage)]
        final = [stage for stage in stages if isinstance(stage, SinogramStage)]
        live = [stage for stage in stages if stage not in (*rings, *final)]
        for stage in live:
            if not stage.per_frame:
                raise InputError(
                    f"preprocess stage {stage!r} needs all angles at once; the live "
                    "path takes stages that work projection by projection (or that "
                    "declare whole_sinogram, for the final volume)"
                )
        if len(rings) > 1:
            raise InputError("preprocess: there can be one ring removal, not more")

        def optional(room: str) -> Any | None:
            entry = getattr(profile, room)
            return None if entry in (None, "none") else build(room, entry)

        chosen = build("reconstruct", profile.reconstruct)
        live_reconstruct, backend = chosen, None
        if not isinstance(chosen, Fourier):
            chosen.check()
            if profile.geometry.offset_detector and not chosen.takes_blended:
                raise InputError(
                    f"reconstruct: {describe(chosen)} cannot take rays that two "
                    "sides share; with geometry.offset_detector choose another"
                )
            live_reconstruct, backend = Fourier(window=chosen.window), chosen
        return cls(
            preprocess=tuple(live),
            rings=rings[0] if rings else None,
            final=tuple(final),
            center=build("center", profile.center),
            reconstruct=live_reconstruct,
            backend=backend,
            denoise=_denoiser(optional("denoise")),
            segment=optional("segment"),
            quantify=optional("quantify"),
        )

    @property
    def needs_references(self) -> bool:
        """Whether a stage divides by flats."""
        return any(stage.needs_references for stage in self.preprocess)

    @cached_property
    def preprocessor(self) -> Preprocessor:
        """What turns raw images into line integrals, slab by slab."""
        return Preprocessor(self.preprocess)

    def line_integrals(
        self,
        images: Sequence[Image],
        references: References | None,
        positions: Sequence[float] | None = None,
    ) -> NDArray[np.float32]:
        """Return line integrals ``[angle, row, column]`` of whole raw frames.

        Pixels that are not finite, or that see no beam, are filled from their
        neighbors in the image as soon as that makes sense: after the flat field.
        """
        rows = (0, len(images[0]))
        return self.preprocessor(images, references, rows, positions=positions)

    def learner(self, is_behind: IsBehind) -> Learner | None:
        """Return who denoises one run and learns from it, where the profile asks so."""
        stage = self.denoise
        return stage.begin(is_behind) if isinstance(stage, LearningStage) else None

    @property
    def learns(self) -> bool:
        """Whether the denoiser learns from the scan."""
        return isinstance(self.denoise, LearningStage)

    @property
    def maps_uncertainty(self) -> bool:
        """Whether an array says how far the denoised volume may be wrong."""
        stage = self.denoise
        return isinstance(stage, LearningStage) and stage.uncertainty_map

    def warm_up(self) -> None:
        """Use every stage once, so that the first projections of a scan wait for none.

        Kernels are compiled or loaded, and libraries imported, now.
        """
        theta = np.arange(WARM_UP_ANGLES) * np.pi / WARM_UP_ANGLES
        shape = (WARM_UP_ANGLES, 4, 64)
        counts = np.random.default_rng(0).poisson(1000, shape).astype(np.uint16)
        flat = np.full(shape[1:], 1000, np.float32)
        references = References(flat, np.zeros_like(flat), "measured")
        values = self.line_integrals(list(counts), references)
        self.preprocessor.warm_up()
        warm_up()
        self.center(values, theta)
        volume = self.reconstruct(values, theta, (shape[2] - 1) / 2)
        clean = self._denoise_once(volume)
        quality_row(0, 0, 4, volume, clean, version=1, n_used=1, coverage=1.0)
        if self.rings is not None:
            self.rings.profile(values.mean(0))
        if self.segment is not None:
            labels = self.segment(volume, clean)
            if self.quantify is not None:
                self.quantify(volume, labels)

    def _denoise_once(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        if isinstance(self.denoise, LearningStage):
            return volume  # its model was loaded when the room was furnished
        return self.denoise(volume, volume[::-1]) if self.denoise else volume

    def as_dict(self) -> dict[str, Any]:
        """Return every stage with its settings, for provenance."""
        others = ("center", "denoise", "segment", "quantify")
        stages = {name: getattr(self, name) for name in others}
        one = {name: describe(stage) for name, stage in stages.items() if stage}
        one["reconstruct"] = describe(self.backend or self.reconstruct)
        rings = [self.rings] if self.rings else []
        chain = [*self.preprocess, *rings, *self.final]
        return {"preprocess": [describe(stage) for stage in chain], **one}


def _denoiser(
    stage: DenoiseStage | LearningStage | None,
) -> DenoiseStage | LearningStage | None:
    """Return who denoises: a filter where what a net needs is not installed."""
    if not isinstance(stage, LearningStage):
        return stage
    if extra := missing():
        log.warning(
            "denoise: %s needs PyTorch (pip install 'ebl-stream[%s]'): "
            "wiener stands in",
            next(iter(describe(stage))),
            extra,
        )
        return Wiener()
    stage.check()
    return stage
