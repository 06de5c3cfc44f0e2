"""Grids to slices: sum, transform, crop; copied out while the next are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.gpu.device import DeviceArray, Event
from ebl_stream.gpu.memory import TILE_WARPS, WARP, Memory, blocks
from ebl_stream.gpu.sampling import Sampling

UNPACK_THREADS = 256

Term = tuple[DeviceArray, float]
"""A grid ``[kx, ky, pair]``, and its weight in a sum."""


class Look:
    """Makes slices of weighted sums of grids.

    Parameters
    ----------
    memory : Memory
        Of the slab that looks.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._downloads = memory.device.stream()
        self._read: list[Event | None] = [None, None]

    def respond(self, sampling: Sampling) -> None:
        """Upload what the grid is multiplied with; fine and coarse apart."""
        memory, response = self._memory, sampling.response
        where = _names(sampling)
        memory.copy(_front(memory[where[0]], response.shape), response)
        scale = memory[where[1]][: sampling.n_slice]
        memory.copy(scale, sampling.deapodization)

    def slices(
        self, terms: Sequence[Term], sampling: Sampling, out: NDArray[np.float32]
    ) -> None:
        """Write the slices ``[row, y, x]`` of a sum of grids, and wait for them."""
        # One chunk is computed while the one before it is copied out.
        waiting: tuple[slice, int, DeviceArray, Event] | None = None
        for chunk in self.chunks(terms, sampling):
            if waiting is not None:
                self._copy_out(out, *waiting)
            waiting = chunk
        if waiting is not None:
            self._copy_out(out, *waiting)
        self._downloads.synchronize()

    def chunks(
        self, terms: Sequence[Term], sampling: Sampling
    ) -> Iterator[tuple[slice, int, DeviceArray, Event]]:
        """Yield slices on the device: rows, which buffer, array, and when it is done.

        A buffer is overwritten by the next chunk but one.
        """
        memory, layout = self._memory, self._memory.layout
        chunk = layout.chunk * (layout.plan.n_grid // sampling.n_out) ** 2
        for k, first in enumerate(range(0, layout.n_pairs, chunk)):
            n = min(chunk, layout.n_pairs - first)
            rows = slice(2 * first, min(2 * (first + n), layout.n_rows))
            shape = (rows.stop - rows.start, sampling.n_slice, sampling.n_slice)
            slices = _front(memory["slices"][k % 2], shape)
            read = self._read[k % 2]
            if read is not None:
                memory.work.wait_event(read)
            with memory.work:
                plane = _front(memory["plane"], (n, sampling.n_out, sampling.n_out))
                self._blend(terms, sampling, first, plane)
                self._transform(sampling, plane, slices)
            yield rows, k % 2, slices, memory.device.record(memory.work)

    def _copy_out(
        self,
        out: NDArray[np.float32],
        rows: slice,
        buffer: int,
        slices: DeviceArray,
        done: Event,
    ) -> None:
        device = self._memory.device
        self._downloads.wait_event(done)
        with self._downloads:
            device.download(out[rows], slices)
        self._read[buffer] = device.record(self._downloads)

    def _blend(
        self, terms: Sequence[Term], sampling: Sampling, first: int, plane: DeviceArray
    ) -> None:
        memory, layout = self._memory, self._memory.layout
        plan, n_out, n = layout.plan, sampling.n_out, len(plane)
        missing = 4 - len(terms)
        memory.device.launch(
            "blend",
            (blocks(n_out, WARP), n_out, blocks(n, WARP)),
            (WARP, TILE_WARPS, 1),
            *[grid for grid, _ in terms] + [None] * missing,
            *[float(weight) for _, weight in terms] + [0.0] * missing,
            memory[_names(sampling)[0]],
            sampling.first,
            len(sampling.response),
            plane,
            plan.n_grid,
            n_out,
            plan.stride,
            plan.margin,
            layout.n_pairs,
            first,
            n,
        )

    def _transform(
        self, sampling: Sampling, plane: DeviceArray, slices: DeviceArray
    ) -> None:
        memory, n_out, n_slice = self._memory, sampling.n_out, sampling.n_slice
        turned = _front(memory["turned"], (len(plane), n_slice, n_out))
        memory.device.fft(plane, inverse=True)
        memory.device.launch(
            "turn",
            (blocks(n_out, WARP), blocks(n_slice, WARP), len(plane)),
            (WARP, TILE_WARPS, 1),
            plane,
            turned,
            n_out,
            n_slice,
        )
        memory.device.fft(turned, inverse=True)
        memory.device.launch(
            "unpack",
            (blocks(n_slice, UNPACK_THREADS), n_slice, len(plane)),
            (UNPACK_THREADS, 1, 1),
            turned,
            memory[_names(sampling)[1]],
            slices,
            n_out,
            n_slice,
            len(slices),
        )


def _names(sampling: Sampling) -> tuple[str, str]:
    if sampling.first:
        return "coarse_response", "coarse_deapodization"
    return "response", "deapodization"


def _front(array: DeviceArray, shape: tuple[int, ...]) -> Any:
    """Return an array of some shape in the first bytes of a larger one."""
    return array.reshape(-1)[: int(np.prod(shape))].reshape(shape)
