"""Steps of learning on the scan under way, as few and as good as they can be."""

from __future__ import annotations

import copy
import hashlib
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ebl_stream.nets.apply import device, has_bfloat16, one_thread
from ebl_stream.nets.architecture import Architecture
from ebl_stream.nets.pairs import BATCH, Pairs

WARM_UP = 30
"""Steps over which the learning rate rises."""

LAST_RATE = 0.02
"""Share of the learning rate at the end of the budget."""

IN_SCAN = 0.3
"""Share of the budget that is learned while projections come, the rest after them:
early looks show few projections, and their streaks."""

MEMORY = 0.99
"""How much of the average weights stays at each step."""


class Trainer:
    """Teach a copy of a net to make each half of a scan from the other.

    The weights that are used are an average over the last hundred steps: it is ahead of
    each of them, as targets are noisy (Polyak and Juditsky, SIAM J. Control Optim. 30,
    838 (1992)).

    Parameters
    ----------
    net : torch.nn.Module
        Where it starts; stays as it is.
    architecture : Architecture
    budget : int
        Steps in all: the learning rate falls along a cosine.
    rate : float
        Learning rate of Adam.
    seed : int
        Of the crops that are drawn.
    """

    def __init__(
        self,
        net: nn.Module,
        architecture: Architecture,
        *,
        budget: int,
        rate: float,
        seed: int = 0,
    ) -> None:
        one_thread()
        self.steps = 0
        """Taken so far."""
        self.architecture = architecture
        self._budget = budget
        self._rate = rate
        self._rng = np.random.default_rng(seed)
        self._device = device()
        self._autocast = has_bfloat16()
        self.begin_from(net)

    def begin_from(self, net: nn.Module) -> None:
        """Go on from other weights; what was learned before is forgotten."""
        self._fresh = 0
        self._net = copy.deepcopy(net).train().requires_grad_(True)
        self._net.to(self._device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._average = copy.deepcopy(self._net).eval().requires_grad_(False)
        self._adam = torch.optim.Adam(self._net.parameters(), self._rate)

    @property
    def average(self) -> nn.Module:
        """The net that is used; changes with every step."""
        return self._average

    def step(self, pairs: Pairs) -> float:
        """Learn from one batch; return its loss."""
        for group in self._adam.param_groups:
            group["lr"] = self._rate * self._schedule()
        drawn = pairs.crops(self._rng, BATCH, self.architecture.depth)
        x, target = (torch.from_numpy(each).to(self._device) for each in drawn)
        x = x.to(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            made = self._net(x)
        made = made.float()
        # What may not be learned from counts as if it were right.
        target = torch.where(torch.isnan(target), made.detach(), target)
        loss = functional.mse_loss(made, target)
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()
        self.steps += 1
        self._fresh += 1
        keep = min(MEMORY, self._fresh / (self._fresh + 9))
        with torch.no_grad():
            for mean, new in zip(
                self._average.parameters(), self._net.parameters(), strict=True
            ):
                mean.lerp_(new, 1 - keep)
        return float(loss.detach())

    def _schedule(self) -> float:
        # Until then there is more to come, which must find a net that still learns.
        done = (self.steps / self._budget - IN_SCAN) / (1 - IN_SCAN)
        done = min(max(done, 0.0), 1.0)
        rise = min(1.0, (self._fresh + 1) / WARM_UP)
        fall = 0.5 * (1 + math.cos(math.pi * done))
        return rise * (LAST_RATE + (1 - LAST_RATE) * fall)


def weights_hash(net: nn.Module) -> str:
    """Return a hash of a net's weights: what they are, not how they are kept."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        values = tensor.detach().float().cpu().contiguous().numpy()
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
