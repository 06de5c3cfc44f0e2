"""The arrays of one slab on the device, and the stream that works on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.gpu.device import Device, DeviceArray
from ebl_stream.gpu.layout import Layout

WARP, TILE_WARPS = 32, 8
"""Lanes of a warp, and warps of a block that turns tiles; as in kernels.cu."""


class Memory:
    """Arrays that stay on the device, by name, as `Layout.resident` says.

    Parameters
    ----------
    device : Device
        Where they are.
    layout : Layout
        How large they are.
    """

    def __init__(self, device: Device, layout: Layout) -> None:
        self.device, self.layout = device, layout
        self.work = device.stream()
        """All that reads or writes the arrays, in order."""
        self._arrays = {
            name: device.empty(*shape) for name, shape in layout.resident.items()
        }
        for name in ("table", "edge_blend"):
            self.copy(self[name], getattr(layout.plan, name))

    def __getitem__(self, name: str) -> DeviceArray:
        return self._arrays[name]

    def copy(self, target: DeviceArray, values: NDArray[Any]) -> None:
        """Copy an array from the host in the order of the work, and wait for it."""
        if values.size:
            with self.work:
                self.device.upload(target, np.ascontiguousarray(values))
            self.work.synchronize()


def blocks(n: int, each: int) -> int:
    """Return how many blocks of ``each`` hold ``n``."""
    return -(-n // each)
