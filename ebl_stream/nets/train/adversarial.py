"""The discriminator, and what it asks of the generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ebl_stream.nets.train.recipe import Adversary

SLOPE = 0.2
"""Of leaky ReLU below zero."""


class Discriminator(nn.Module):
    """Says of every patch how real it looks; takes images of any size.

    Fully convolutional (Isola et al., CVPR 2017): `scales` strided convolutions, two
    more, one logit per patch.
    """

    def __init__(self, width: int = 16, scales: int = 3) -> None:
        super().__init__()
        sizes = [1, *(width * 2 ** min(k, 3) for k in range(scales + 1))]
        strides = [2] * scales + [1]
        self.scales = nn.ModuleList(
            nn.Conv2d(n_in, n_out, 4, stride, 2)
            for n_in, n_out, stride in zip(sizes, sizes[1:], strides, strict=False)
        )
        self.leave = nn.Conv2d(sizes[-1], 1, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Judge ``[batch, 1, y, x]``: logits, and what every scale saw."""
        seen: list[Tensor] = []
        for scale in self.scales:
            image = functional.leaky_relu(scale(image), SLOPE)
            seen.append(image)
        return self.leave(image), seen


def discriminator_loss(
    judge: nn.Module, made: Tensor, wanted: Tensor, how: Adversary
) -> Tensor:
    """Return what the discriminator lowers; the generator gets no gradient of it."""
    real, _ = judge(wanted)
    fake, _ = judge(made.detach())
    if how.loss == "hinge":
        return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()
    return _bce(real, 1.0) + _bce(fake, 0.0)


def generator_terms(
    judge: nn.Module, made: Tensor, wanted: Tensor, how: Adversary
) -> dict[str, Tensor]:
    """Return what the generator lowers besides its pixel loss, weighted, by name."""
    logits, seen = judge(made)
    terms: dict[str, Tensor] = {}
    if how.weight:
        wish = -logits.mean() if how.loss == "hinge" else _bce(logits, 1.0)
        terms["adversarial"] = how.weight * wish
    if how.features:
        with torch.no_grad():
            _, real = judge(wanted)
        apart = [functional.l1_loss(a, b) for a, b in zip(seen, real, strict=True)]
        terms["features"] = how.features * torch.stack(apart).mean()
    return terms


def _bce(logits: Tensor, label: float) -> Tensor:
    labels = torch.full_like(logits, label)
    return functional.binary_cross_entropy_with_logits(logits, labels)
