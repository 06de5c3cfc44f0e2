"""A CUDA device, by way of CuPy."""

from __future__ import annotations

import functools
import importlib
import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ebl_stream.gpu.device import KERNELS, Argument, DeviceArray, Event, Stream


class CupyDevice:
    """The first CUDA device (``CUDA_VISIBLE_DEVICES`` chooses), with our kernels.

    Raises
    ------
    ImportError
        CuPy is not installed.
    RuntimeError
        No device answers, or the kernels do not compile.
    """

    def __init__(self) -> None:
        self._cupy: Any = importlib.import_module("cupy")
        self._runtime: Any = self._cupy.cuda.runtime
        self._name: str = self._runtime.getDeviceProperties(0)["name"].decode()
        module = self._cupy.RawModule(
            code=KERNELS.read_text(encoding="utf-8"), options=("-std=c++17",)
        )
        module.compile()
        self._kernel = functools.cache(module.get_function)
        # Of each stream, since a plan owns work space that two must not share.
        self._plans: dict[int, dict[tuple[int, int], Any]] = {}

    @property
    def name(self) -> str:
        """What the maker calls it."""
        return self._name

    def stream(self) -> Stream:
        """Return a new stream, which waits for no other."""
        stream = self._cupy.cuda.Stream(non_blocking=True)
        self._plans[stream.ptr] = {}
        weakref.finalize(stream, self._plans.pop, stream.ptr, None)
        return stream

    def record(self, stream: Stream) -> Event:
        """Return an event after all that the stream was given so far."""
        # A thread that waits for it sleeps instead of burning a core.
        event = self._cupy.cuda.Event(block=True, disable_timing=True)
        event.record(stream)
        return event

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray:
        """Return device memory with anything in it."""
        return self._cupy.empty(tuple(shape), dtype)

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Return host memory that is copied from and to beside other work."""
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        memory = self._cupy.cuda.alloc_pinned_memory(max(n_bytes, 1))
        return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)

    def clear(self, array: DeviceArray) -> None:
        """Fill with zeros."""
        self._runtime.memsetAsync(array.data.ptr, 0, array.nbytes, self._current())

    def upload(self, target: DeviceArray, source: NDArray[Any]) -> None:
        """Copy from the host; ``source`` must stay as it is until that is done."""
        _check_copy(target, source)
        self._runtime.memcpyAsync(
            target.data.ptr,
            source.ctypes.data,
            source.nbytes,
            self._runtime.memcpyHostToDevice,
            self._current(),
        )

    def download(self, target: NDArray[Any], source: DeviceArray) -> None:
        """Copy to the host; ``target`` is valid when that is done."""
        _check_copy(source, target)
        self._runtime.memcpyAsync(
            target.ctypes.data,
            source.data.ptr,
            target.nbytes,
            self._runtime.memcpyDeviceToHost,
            self._current(),
        )

    def fft(self, array: DeviceArray, *, inverse: bool) -> None:
        """Transform complex64 along its last axis, in place and without a scale."""
        cufft: Any = importlib.import_module("cupy.cuda.cufft")
        length = array.shape[-1]
        shape = (length, array.size // length)
        plans = self._plans[self._current()]
        if shape not in plans:
            plans[shape] = cufft.Plan1d(length, cufft.CUFFT_C2C, shape[1])
        direction = cufft.CUFFT_INVERSE if inverse else cufft.CUFFT_FORWARD
        plans[shape].fft(array, array, direction)

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        *arguments: Argument,
    ) -> None:
        """Run a kernel of ``kernels.cu``; ``grid`` and ``block`` are (x, y, z)."""
        given = tuple(_as_argument(argument) for argument in arguments)
        self._kernel(kernel)(grid, block, given)

    def free_bytes(self) -> int:
        """Return how much memory could still be taken."""
        free, _ = self._runtime.memGetInfo()
        return int(free) + int(self._cupy.get_default_memory_pool().free_bytes())

    def _current(self) -> int:
        return self._cupy.cuda.get_current_stream().ptr


def _as_argument(argument: Argument) -> Argument:
    """CuPy would pass Python's numbers as 64 bits."""
    if argument is None:
        return np.uintp(0)
    if isinstance(argument, int):
        return np.int32(argument)
    if isinstance(argument, float):
        return np.float32(argument)
    return argument


def _check_copy(device: DeviceArray, host: NDArray[Any]) -> None:
    same = device.nbytes == host.nbytes and device.dtype == host.dtype
    if not (same and host.flags.c_contiguous):
        raise ValueError(
            f"cannot copy between {device.dtype} {device.shape} on the device "
            f"and {host.dtype} {host.shape} on the host"
        )
