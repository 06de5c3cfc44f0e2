"""The two shapes of a denoiser: TomoGAN's generator, and a fast one made like it."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

SCALES = 3
"""Times that TomoGAN's generator halves the image."""


class Architecture(BaseModel):
    """What a net is built from; its weights fit no other.

    A net takes ``[batch, depth, y, x]`` float, ``depth`` adjacent slices about the one
    that is wanted, and returns ``[batch, 1, y, x]``; y and x are multiples of
    `multiple`. Values are those of `ebl_stream.nets.scale.Scale`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["tomogan", "fast"] = "fast"
    """``tomogan``: as published; ``fast``: behind a 2x pixel-unshuffle."""
    depth: int = Field(default=1, ge=1, le=15)
    """Adjacent slices that one slice is made from (2.5-D); odd."""
    width: int = Field(default=32, ge=4, le=256)
    """Channels of the first scale."""
    upsampling: Literal["bilinear", "nearest"] = "bilinear"
    """How a scale is doubled; ``nearest`` is what Keras does unless told otherwise."""

    @field_validator("depth")
    @classmethod
    def _is_odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("depth must be odd: the slice in the middle is wanted")
        return value

    @property
    def multiple(self) -> int:
        """What the sizes y and x of the net's input are multiples of, px."""
        return 8

    def build(self) -> nn.Module:
        """Return the net with new weights, which follow torch's own random state."""
        net = (Generator if self.kind == "tomogan" else Fast)(self.depth, self.width)
        net.upsampling = self.upsampling
        return net


class Generator(nn.Module):
    """TomoGAN's generator.

    Liu, Bicer, Kettimuthu, Gursoy, De Carlo and Foster, J. Opt. Soc. Am. A 37, 422
    (2020): a U-Net of three scales without normalization, 694,897 parameters at depth
    1 and width 32. It predicts the image, not the noise.
    """

    upsampling = "bilinear"

    def __init__(self, depth: int = 1, width: int = 32) -> None:
        super().__init__()
        sizes = [width * 2**k for k in range(SCALES)]
        self.enter = _conv(depth, 8, 1)
        self.down = nn.ModuleList(map(_two, [8, *sizes], sizes))
        self.middle = _conv(sizes[-1], sizes[-1])
        up = [2 * sizes[2], 2 * sizes[1], 2 * sizes[0]]
        self.up = nn.ModuleList(map(_two, up, [sizes[1], sizes[0], sizes[0]]))
        self.leave = nn.Sequential(_conv(width, 16, 1), nn.ReLU(), _conv(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Denoise ``[batch, depth, y, x]`` to ``[batch, 1, y, x]``."""
        made = _walk(self, functional.relu(self.enter(x)))
        # The last layers may be finer than the others, see `Applied`.
        return self.leave(made.to(next(self.leave.parameters()).dtype))


class Fast(nn.Module):
    """The same U-Net behind a 2x pixel-unshuffle: a quarter of the pixels.

    Two more scales follow (the unshuffle is the first); 213,700 parameters at depth 1
    and width 32.
    """

    upsampling = "bilinear"

    def __init__(self, depth: int = 1, width: int = 32) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [_two(4 * depth, width), _two(width, 2 * width)],
        )
        self.middle = _two(2 * width, 2 * width)
        self.up = nn.ModuleList([_two(4 * width, width), _two(2 * width, width)])
        self.leave = _conv(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Denoise ``[batch, depth, y, x]`` to ``[batch, 1, y, x]``."""
        made = _walk(self, functional.pixel_unshuffle(x, 2))
        made = self.leave(made.to(self.leave.weight.dtype))
        return functional.pixel_shuffle(made, 2)


def _walk(net: Generator | Fast, x: Tensor) -> Tensor:
    """Go down the scales and up again, past each one's shortcut."""
    kept: list[Tensor] = []
    for block in net.down:
        x = block(x)
        kept.append(x)
        x = functional.max_pool2d(x, 2)
    x = functional.relu(net.middle(x))
    for block in net.up:
        # Without aligned corners, where there are any to align.
        x = functional.interpolate(x, scale_factor=2, mode=net.upsampling)
        x = block(torch.cat([x, kept.pop()], 1))
    return x


def _conv(n_in: int, n_out: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, size, padding=size // 2)


def _two(n_in: int, n_out: int) -> nn.Sequential:
    one, two = _conv(n_in, n_out), _conv(n_out, n_out)
    return nn.Sequential(one, nn.ReLU(), two, nn.ReLU())
