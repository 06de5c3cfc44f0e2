"""Denoise by a net: TomoGAN, or one that learns from the scan under way.

PyTorch is imported when a run begins, or a service warms up: nobody else waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ebl_stream.errors import InputError
from ebl_stream.nets.learner import IsBehind, Learner

if TYPE_CHECKING:
    from ebl_stream.nets.in_scan import Start


MOST_CORRECTIONS = 20
"""Steps after which SIRT fits noise rather than anything else."""


def _check_steps(correction_steps: int) -> None:
    if not 0 <= correction_steps <= MOST_CORRECTIONS:
        raise ValueError(f"correction_steps must be from 0 to {MOST_CORRECTIONS}")


def missing() -> str:
    """Return the extra that has to be installed for nets; empty: none."""
    there = all(find_spec(name) is not None for name in ("torch", "safetensors"))
    return "" if there else "learn"


@dataclass(frozen=True)
class TomoGan:
    """A net that was trained elsewhere, and sees the whole volume.

    Liu, Bicer, Kettimuthu, Gursoy, De Carlo and Foster, J. Opt. Soc. Am. A 37, 422
    (2020). Where the halves say that the volume is better as it is, it stays so.
    """

    model: str = "tomogan-fast"
    """A model of ``ebl-stream models``, or the path of one."""
    uncertainty_map: bool = False
    """Publish an array ``uncertainty`` beside ``denoised``."""
    correction_steps: int = 0
    """Steps of SIRT from the net's output toward the projections, at the last look, at
    most: they end at the projections' noise."""

    def __post_init__(self) -> None:
        _check_steps(self.correction_steps)

    def begin(self, is_behind: IsBehind) -> Learner:
        """Return who denoises one run."""
        from ebl_stream.nets.in_scan import InScan

        start = _start(self.model, "tomogan", label="tomogan")
        return InScan(
            start,
            linear=False,
            uncertainty_map=self.uncertainty_map,
            is_behind=is_behind,
        )

    def check(self) -> None:
        """Load the model; InputError where it is not there."""
        _start(self.model, "tomogan", label="tomogan")


@dataclass(frozen=True)
class Noise2Inverse:
    """A net that learns from the scan under way, each half from the other.

    Hendriksen, Pelt and Batenburg, IEEE Trans. Comput. Imaging 6, 1320 (2020). The
    halves, which the net does not learn from everywhere, say whether the volume, a
    filter, the net as it came or as it has become is published.
    """

    model: str | None = "noise2inverse-warm"
    """Where learning starts, see ``ebl-stream models``; null: random weights."""
    steps: int = 600
    """Steps of learning in a whole scan; 0: the model stays as it is."""
    rate: float = 1e-3
    """Learning rate."""
    seed: int = 0
    """Of what is drawn at random."""
    uncertainty_map: bool = False
    """Publish an array ``uncertainty`` beside ``denoised``."""
    correction_steps: int = 0
    """Steps of SIRT from the net's output toward the projections, at the last look, at
    most: they end at the projections' noise."""

    def __post_init__(self) -> None:
        if not 0 <= self.steps <= 1_000_000:
            raise ValueError("steps must be from 0 to 1000000")
        if not 0 < self.rate <= 1:
            raise ValueError("rate must be above 0 and at most 1")
        if self.model is None and not self.steps:
            raise ValueError("without a model, steps must be above 0")
        _check_steps(self.correction_steps)

    def begin(self, is_behind: IsBehind) -> Learner:
        """Return who denoises and learns in one run."""
        from ebl_stream.nets.in_scan import InScan

        return InScan(
            self._start(),
            steps=self.steps,
            rate=self.rate,
            seed=self.seed,
            uncertainty_map=self.uncertainty_map,
            is_behind=is_behind,
        )

    def check(self) -> None:
        """Load the model; InputError where it is not there."""
        self._start()

    def _start(self) -> Start:
        if self.model is not None:
            return _start(self.model, "noise2inverse")
        from ebl_stream.nets.in_scan import random_start

        return random_start(self.seed)


@lru_cache(4)
def _start(model: str, kind: str, label: str = "warm") -> Start:
    """Load a model of the kind that a stage takes: once, its file may go then."""
    from ebl_stream.nets import frozen
    from ebl_stream.nets.in_scan import Start
    from ebl_stream.nets.zoo import load

    found = load(model)
    if found.card.kind != kind:
        raise InputError(
            f"denoise: {found.card.name} is a model for {found.card.kind}, not {kind}"
        )
    stays = kind == "tomogan"
    return Start(
        found.net,
        found.card.architecture,
        name=found.card.name,
        label=label,
        frozen=frozen.freeze(found) if stays and frozen.is_available() else None,
        sees_whole=stays,
        origin={"trained_on": found.card.data, "licence": found.card.licence},
    )
