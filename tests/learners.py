"""Learners that are small enough for tests, and live scans for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from ebl_stream.nets.architecture import Architecture
from ebl_stream.nets.in_scan import InScan, Start

SHAPE = Architecture(depth=3, width=4)
STEPS = 24
LONG = 20.0
"""Patience, s."""


def tiny_start(seed: int = 0) -> Start:
    """Return random weights, the same for a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Start(SHAPE.build(), SHAPE)


def learner(steps: int = STEPS, **how: Any) -> InScan:
    """Return who learns the same every time."""
    return InScan(tiny_start(), steps=steps, **how)


def steps_of(one: InScan) -> int:
    """Return the steps that were taken."""
    return one.report()["steps_taken"]


def is_judged(one: InScan) -> bool:
    """Whether a look was judged."""
    return bool(one.report()["guard"])


class Documents:
    """What a live scan says of its documents."""

    def __init__(self, *, wait: bool = False) -> None:
        self.wait = wait

    def __call__(self) -> bool:
        return self.wait


def until(condition: Callable[[], bool]) -> None:
    """Wait for something."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
