"""Compile before the first frame comes, not while it waits."""

from __future__ import annotations

import numpy as np

from ebl_stream.numerics import previews
from ebl_stream.numerics.accumulate import Accumulator
from ebl_stream.numerics.fan import Common, Fan
from ebl_stream.numerics.fourier_plan import FourierPlan
from ebl_stream.numerics.projector import Sirt


def warm_up() -> None:
    """Compile all kernels of a run, or load them from `kernel_cache.folder`.

    It takes some ten seconds on a new machine, and less than one from then on.
    """
    plan, theta = FourierPlan(20), np.array([0.0, 1.0])
    accumulator = Accumulator(plan, 33, 9.5)
    values = np.zeros((2, 33, 20), np.float32)
    accumulator.add(values, theta, np.full((2, 2), 0.5))
    less = Common(values[0], Fan(plan, 9.5, theta, np.ones(2)))
    accumulator.volume(window="hann", less=less)
    previews.plane_x(accumulator, 10)
    previews.plane_y(accumulator, 10)
    previews.binned(accumulator, 2)
    Sirt(theta, 9.5, 20, 20)
