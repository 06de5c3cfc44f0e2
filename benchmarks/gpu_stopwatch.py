"""How long each step takes on a device that would rather not say."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ebl_stream.gpu.device import Device, Stream


class Stopwatch:
    """A device that waits for each piece of work and adds up how long it took."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._streams: list[Stream] = []
        self.seconds: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def stream(self) -> Stream:
        self._streams.append(self._device.stream())
        return self._streams[-1]

    def _timed(self, what: str, work: Callable[[], None]) -> None:
        for stream in self._streams:
            stream.synchronize()
        begin = time.perf_counter()
        work()
        for stream in self._streams:
            stream.synchronize()
        spent = time.perf_counter() - begin
        self.seconds[what] = self.seconds.get(what, 0) + spent

    def launch(self, kernel: str, *arguments: Any) -> None:
        self._timed(kernel, lambda: self._device.launch(kernel, *arguments))

    def fft(self, array: Any, *, inverse: bool) -> None:
        what = f"fft of {array.shape[-1]}" + (" back" if inverse else "")
        self._timed(what, lambda: self._device.fft(array, inverse=inverse))

    def upload(self, target: Any, source: Any) -> None:
        self._timed("upload", lambda: self._device.upload(target, source))
