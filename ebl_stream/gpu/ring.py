"""From the host to the device while both go on working: a ring of pinned slots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ebl_stream.gpu.device import Device, DeviceArray, Event, Stream
from ebl_stream.gpu.layout import Shapes


@dataclass(eq=False)
class Slot:
    """Room for one batch, on the host (pinned) and on the device."""

    host: dict[str, NDArray[Any]]
    device: dict[str, DeviceArray]
    copied: Event | None = None
    """After it the host's side may be written again."""
    used: Event | None = None
    """After it the device's side may be written again."""


class UploadRing:
    """Slots that are filled on the host, copied, and used by a stream, in turn.

    The caller waits only where all slots are under way: when the device is slower
    than what arrives, which is as it must be, since memory is finite.

    Parameters
    ----------
    device : Device
        Where the copies go.
    shapes : dict
        Arrays of a slot; the first axis is the batch.
    n_slots : int
        2 overlap copy and work; 3 also let the host fill one meanwhile.
    """

    def __init__(self, device: Device, shapes: Shapes, n_slots: int) -> None:
        self._device = device
        self._copies = device.stream()
        self._slots = [
            Slot(
                {k: device.pinned(*shape) for k, shape in shapes.items()},
                {k: device.empty(*shape) for k, shape in shapes.items()},
            )
            for _ in range(n_slots)
        ]
        self._next = 0

    def acquire(self) -> Slot:
        """Return the next slot, free to be filled on the host's side."""
        slot = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        if slot.copied is not None:
            slot.copied.synchronize()
        return slot

    @contextmanager
    def uploaded(
        self, slot: Slot, n: int, stream: Stream
    ) -> Iterator[dict[str, DeviceArray]]:
        """Copy the first ``n`` of a slot; what ``stream`` is given inside uses them.

        Parameters
        ----------
        slot : Slot
            From `acquire`, filled.
        n : int
            Projections in it.
        stream : Stream
            Waits for the copy; the slot is free again when it has come to the end
            of the context.

        Yields
        ------
        dict
            The slot's arrays on the device, the first ``n`` of each.
        """
        with self._copies:
            if slot.used is not None:
                self._copies.wait_event(slot.used)
            for name, source in slot.host.items():
                self._device.upload(slot.device[name][:n], source[:n])
        slot.copied = self._device.record(self._copies)
        stream.wait_event(slot.copied)
        try:
            yield {name: array[:n] for name, array in slot.device.items()}
        finally:
            slot.used = self._device.record(stream)
