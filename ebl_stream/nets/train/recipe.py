"""How a net is trained: everything that its weights follow from but the data."""

from __future__ import annotations

import hashlib
import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ebl_stream.nets.architecture import Architecture

LAST_RATE = 0.01
"""Learning rate at the end of a cosine, over the first."""


class Adversary(BaseModel):
    """What the discriminator adds to the generator's loss."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(default=0.02, ge=0, le=100)
    """Of the adversarial loss; 0: no discriminator. (TomoGAN's published weights, on
    images of standard deviation 1 instead of 8 bits.)"""
    loss: Literal["bce", "hinge"] = "bce"
    """Binary cross-entropy, as published, or hinge."""
    features: float = Field(default=0.0, ge=0, le=100)
    """Weight of the distance between what the discriminator sees in both images."""
    steps: int = Field(default=2, ge=1, le=16)
    """Of the discriminator for one of the generator."""
    pretrain: float = Field(default=0.5, ge=0, le=1)
    """Share of the steps before the adversary enters."""
    width: int = Field(default=16, ge=4, le=128)
    """Channels of the discriminator's first scale."""
    scales: int = Field(default=3, ge=1, le=5)
    """Times that it halves the image; 3 see 46 px, 4 see 94 px."""

    @property
    def exists(self) -> bool:
        """Whether there is a discriminator at all."""
        return self.weight > 0 or self.features > 0


class Recipe(BaseModel):
    """How a net is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["tomogan", "noise2inverse"]
    architecture: Architecture
    steps: int = Field(ge=1, le=10_000_000)
    batch: int = Field(default=8, ge=1, le=1024)
    crop: int = Field(default=64, ge=16, le=4096)
    """Edge of the crops, px."""
    rate: float = Field(default=1e-3, gt=0, le=1)
    """Learning rate of Adam."""
    schedule: Literal["cosine", "constant"] = "cosine"
    pixel: Literal["mse", "l1"] = "mse"
    adversary: Adversary | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)
    check_every: int = Field(default=500, ge=1)
    """Steps between two looks at the held-out slices."""
    patience: int = Field(default=0, ge=0)
    """Looks in a row that may bring nothing before the training stops; 0: no end."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the convolutions; weights and sums are float32."""

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        if self.schedule == "constant":
            return self.rate
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.rate * (LAST_RATE + (1 - LAST_RATE) * fall)

    def has_adversary(self, step: int) -> bool:
        """Whether the discriminator takes part in a step."""
        adversary = self.adversary
        if adversary is None or not adversary.exists:
            return False
        return step >= adversary.pretrain * self.steps
