"""How well a net does on slices that are held out of its training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ebl_stream.nets.architecture import Architecture
from ebl_stream.nets.train.lessons import Slab, Stack, around
from ebl_stream.numerics.quality import INSIDE, inside_circle

SLICES = 24
"""Held-out slices that are looked at, at most about; one or more of every stack."""


class Scores:
    """Scores nets on the held-out slices.

    Parameters
    ----------
    held : sequence of Stack
    architecture : Architecture
    device : torch.device
    """

    def __init__(
        self, held: Sequence[Stack], architecture: Architecture, device: torch.device
    ) -> None:
        self._held = held
        self._architecture = architecture
        self._device = device
        self._n_each = max(1, SLICES // max(1, len(held)))

    def loss(self, net: nn.Module, pixel: str) -> float:
        """Return the weighted mean of the pixel loss (``mse`` or ``l1``)."""
        losses: list[float] = []
        for stack, z in self._slices():
            circle = inside_circle(stack.shape, INSIDE)
            for see, want in stack.ways:
                apart = (self._made(net, see, z) - want[z])[circle]
                value = np.abs(apart) if pixel == "l1" else np.square(apart)
                losses.append(stack.weight * float(value.mean(dtype=np.float64)))
        return float(np.mean(losses)) if losses else float("nan")

    def gains(self, net: nn.Module) -> dict[str, float]:
        """Return the PSNR gained over the volume, dB: mean and worst, by family.

        Where no truth is known, ``split_gain_db`` says by how much closer a net's
        image is to what it should make than the image it saw.
        """
        by_family: dict[str, list[float]] = {}
        for stack, z in self._slices():
            circle = inside_circle(stack.shape, INSIDE)
            made = [self._made(net, see, z) for see, _ in stack.ways]
            seen = [see[z] for see, _ in stack.ways]
            if stack.truth is None:
                wanted = [want[z] for _, want in stack.ways]
                after = np.stack(made) - wanted
                before = np.stack(seen) - wanted
                name = f"split_gain_db {stack.family}"
            else:
                after = (np.mean(made, 0) - stack.truth[z])[None]
                before = (np.mean(seen, 0) - stack.truth[z])[None]
                name = f"gain_db {stack.family}"
            gain = 10 * np.log10(_power(before, circle) / _power(after, circle))
            by_family.setdefault(name, []).append(float(gain))
        found: dict[str, float] = {}
        for name, gains in sorted(by_family.items()):
            found[name] = round(float(np.mean(gains)), 3)
            found[f"worst {name}"] = round(min(gains), 3)
        return found

    def _slices(self) -> Iterator[tuple[Stack, int]]:
        for stack in self._held:
            n = stack.shape[0]
            some = min(n, self._n_each)
            for k in range(some):
                yield stack, (2 * k + 1) * n // (2 * some)

    def _made(self, net: nn.Module, see: Slab, z: int) -> NDArray[np.float32]:
        depth, multiple = self._architecture.depth, self._architecture.multiple
        n_y, n_x = see.shape[1:]
        slices = torch.from_numpy(see[around(z, depth, len(see))][None])
        pad = (0, -n_x % multiple, 0, -n_y % multiple)
        padded = functional.pad(slices.to(self._device), pad, mode="replicate")
        net.eval()
        with torch.inference_mode():
            made = net(padded)[0, 0, :n_y, :n_x].float().cpu().numpy()
        net.train()
        return made


def _power(apart: NDArray[np.float32], circle: NDArray[np.bool_]) -> float:
    return max(float(np.square(apart[:, circle]).mean(dtype=np.float64)), 1e-12)
