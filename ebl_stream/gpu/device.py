"""What the accumulation asks of a device: memory, streams, transforms, kernels.

`CupyDevice` is the real one. Tests run the same Python and the same ``kernels.cu``
on an emulated device, so nothing beyond this protocol may be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

KERNELS = Path(__file__).with_name("kernels.cu")

DeviceArray: TypeAlias = Any
"""Memory of the device: has ``shape``, ``dtype``, ``nbytes`` and ``reshape``, and
may be cut along its first axis. Nothing else, since its operators would run on
another stream."""

Argument: TypeAlias = "DeviceArray | int | float | np.generic | None"
"""Of a kernel: memory (None is a null pointer), int32 or float32; others as NumPy
scalars."""


class Event(Protocol):
    """A point in a stream."""

    def synchronize(self) -> None:
        """Wait here until the stream has come to it."""
        ...


class Stream(Protocol):
    """Work that the device does in order, beside what other streams do.

    As a context it is where the device's methods put their work.
    """

    def __enter__(self) -> Any: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> Any: ...

    def wait_event(self, event: Any) -> None:
        """Let later work of this stream wait for an event."""
        ...

    def synchronize(self) -> None:
        """Wait here until all its work is done."""
        ...


class Device(Protocol):
    """One accelerator. Work goes to the current stream and returns at once."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        ...

    def stream(self) -> Stream:
        """Return a new stream, which waits for no other."""
        ...

    def record(self, stream: Stream) -> Event:
        """Return an event after all that the stream was given so far."""
        ...

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray:
        """Return device memory with anything in it."""
        ...

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Return host memory that is copied from and to beside other work."""
        ...

    def clear(self, array: DeviceArray) -> None:
        """Fill with zeros."""
        ...

    def upload(self, target: DeviceArray, source: NDArray[Any]) -> None:
        """Copy from the host; ``source`` must stay as it is until that is done."""
        ...

    def download(self, target: NDArray[Any], source: DeviceArray) -> None:
        """Copy to the host; ``target`` is valid when that is done."""
        ...

    def fft(self, array: DeviceArray, *, inverse: bool) -> None:
        """Transform complex64 along its last axis, in place and without a scale."""
        ...

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        *arguments: Argument,
    ) -> None:
        """Run a kernel of ``kernels.cu``; ``grid`` and ``block`` are (x, y, z)."""
        ...

    def free_bytes(self) -> int:
        """Return how much memory could still be taken."""
        ...
