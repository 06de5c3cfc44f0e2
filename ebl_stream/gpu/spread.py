"""Projections onto the grids: upload, pack, transform, scatter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.gpu.device import DeviceArray
from ebl_stream.gpu.memory import WARP, Memory, blocks
from ebl_stream.gpu.ring import Slot, UploadRing
from ebl_stream.numerics.fourier_plan import Footprint

PACK_THREADS, SCATTER_WARPS = 256, 4
"""As in kernels.cu."""

SAMPLES_PER_WARP = 64
"""Neighboring samples of a spoke that one warp spreads, a multiple of `WARP`."""

RAW_KERNELS = {
    np.dtype(np.uint8): "pack_uint8",
    np.dtype(np.uint16): "pack_uint16",
    np.dtype(np.float32): "pack_float32",
}


@dataclass(frozen=True)
class References:
    """What turns counts into line integrals, on the device."""

    dark: DeviceArray
    beam: DeviceArray
    total: DeviceArray
    """float64 [row, column], of all line integrals."""
    clip: float


class Spreader:
    """Adds batches of projections to the grids in ``memory``."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._rings: dict[np.dtype[Any], UploadRing] = {}
        self.references: References | None = None

    def ring(self, dtype: np.dtype[Any]) -> UploadRing:
        """Return the slots for projections of a dtype, made when first asked for."""
        if dtype not in self._rings:
            layout = self._memory.layout
            self._rings[dtype] = UploadRing(
                self._memory.device, layout.slot(dtype.type), layout.n_slots
            )
        return self._rings[dtype]

    def set_references(
        self, dark: NDArray[np.float32], beam: NDArray[np.float32], clip: float
    ) -> None:
        """Copy dark and beam ``[row, column]`` to the device; the total goes on."""
        memory, before = self._memory, self.references
        empty = memory.device.empty
        total = empty(dark.shape, np.float64) if before is None else before.total
        self.references = References(
            empty(dark.shape, np.float32), empty(beam.shape, np.float32), total, clip
        )
        with memory.work:
            if before is None:
                memory.device.clear(total)
            memory.device.upload(self.references.dark, dark)
            memory.device.upload(self.references.beam, beam)
        # A copy that is still read may not be freed.
        memory.work.synchronize()

    def raw_kernel(self, dtype: np.dtype[Any]) -> tuple[str, References]:
        """Return the kernel for raw projections of a dtype, and its references.

        Raises
        ------
        ValueError
            There is none, or there are no references yet.
        """
        if self.references is None:
            raise ValueError("set_references comes before raw projections")
        if dtype not in RAW_KERNELS:
            known = ", ".join(map(str, RAW_KERNELS))
            raise ValueError(f"raw projections must be {known}, not {dtype}")
        return RAW_KERNELS[dtype], self.references

    def spread(
        self,
        slot: Slot,
        footprint: Footprint,
        shares: NDArray[np.float32],
        *,
        raw: bool = False,
        in_total: bool = False,
    ) -> None:
        """Send a filled slot on its way; returns before it has arrived."""
        n, memory = len(shares), self._memory
        slot.host["corner"][:n] = footprint.corner
        slot.host["fraction"][:n] = footprint.fraction
        slot.host["shares"][:n] = shares
        ring = self.ring(slot.host["frames"].dtype)
        with ring.uploaded(slot, n, memory.work) as arrays, memory.work:
            if raw:
                self._pack_raw(arrays["frames"], in_total=in_total)
            else:
                self._pack("pack_values", arrays["frames"])
            memory.device.fft(memory["spectrum"][:n], inverse=False)
            self._scatter(arrays)

    def _pack_raw(self, frames: DeviceArray, *, in_total: bool) -> None:
        kernel, to = self.raw_kernel(np.dtype(frames.dtype))
        total = to.total if in_total else None
        self._pack(kernel, frames, to.dark, to.beam, to.clip, total=total)

    def _pack(
        self, kernel: str, *source: Any, total: DeviceArray | None = None
    ) -> None:
        memory, plan = self._memory, self._memory.layout.plan
        memory.device.launch(
            kernel,
            (blocks(plan.n_padded, PACK_THREADS), memory.layout.n_pairs, 1),
            (PACK_THREADS, 1, 1),
            *source,
            memory["spectrum"],
            total,
            memory["edge_blend"] if plan.padding == "edge" else None,
            len(source[0]),
            memory.layout.n_rows,
            plan.n_columns,
            plan.n_padded,
        )

    def _scatter(self, arrays: dict[str, DeviceArray]) -> None:
        memory, layout = self._memory, self._memory.layout
        plan, n_pairs = layout.plan, layout.n_pairs
        samples = SCATTER_WARPS * SAMPLES_PER_WARP
        n_angles = len(arrays["shares"])
        memory.device.launch(
            f"scatter_{plan.taps}",
            (blocks(plan.n_frequencies, samples), blocks(n_pairs, WARP), 2 * n_angles),
            (WARP, SCATTER_WARPS, 1),
            memory["grid"],
            memory["spectrum"],
            memory["factor"],
            arrays["corner"],
            arrays["fraction"],
            memory["table"],
            arrays["shares"],
            np.int64(plan.stride**2 * n_pairs if layout.halves else 0),
            plan.n_padded,
            n_pairs,
            plan.stride,
            SAMPLES_PER_WARP,
        )
