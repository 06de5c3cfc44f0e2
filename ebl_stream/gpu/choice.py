"""Is there a GPU that can be used? Asked once, at start, and answered in one line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ebl_stream.gpu.cupy_device import CupyDevice
from ebl_stream.gpu.device import Device
from ebl_stream.gpu.raw import RawGpuAccumulator

_failed: list[str] = []


def give_up(why: str) -> None:
    """Use no GPU in this process any more: it failed, and may fail again."""
    _failed.append(" ".join(why.split())[:200])


def best_device() -> tuple[Device | None, str]:
    """Return the machine's CUDA device, or none, and one line that says why.

    Returns
    -------
    device : Device or None
        With kernels compiled, and one result fetched from it. It never raises.
    reason : str
        The device's name and free memory, or what is missing and what to do.
    """
    if _failed:
        return None, f"no GPU any more, it failed: {_failed[0]}"
    try:
        device = CupyDevice()
        try_out(device)
    except ImportError as error:
        return (
            None,
            f"no GPU: {error.name or 'cupy'} is not installed (extra ebl-stream[gpu])",
        )
    except Exception as error:
        said = " ".join(str(error).split()) or "no message"
        return None, f"no GPU: {type(error).__name__}: {said[:200]}"
    free = device.free_bytes() / 2**30
    return device, f"GPU: {device.name}, {free:.0f} GiB free"


def try_out(device: Device) -> None:
    """Raise unless a kernel and a transform give what they should."""
    stream = device.stream()
    plane, scale = device.empty((1, 1, 2), np.complex64), device.empty((2,), np.float32)
    slices = device.empty((2, 1, 1), np.float32)
    given = device.pinned((1, 1, 2), np.complex64)
    ones = device.pinned((2,), np.float32)
    answer = device.pinned((2, 1, 1), np.float32)
    given[:] = 1 + 2j, 3 - 1j
    ones[:] = 1
    with stream:
        device.upload(plane, given)
        device.upload(scale, ones)
        device.fft(plane, inverse=False)
        device.launch("unpack", (1, 1, 1), (32, 1, 1), plane, scale, slices, 2, 1, 2)
        device.download(answer, slices)
    stream.synchronize()
    if not np.allclose(answer.ravel(), [4, 1]):
        raise RuntimeError(f"{device.name} computes {answer.ravel()} instead of [4 1]")


def accumulator_factory(
    device: Device, **settings: Any
) -> Callable[..., RawGpuAccumulator]:
    """Return what stands in for the class `Accumulator` where a GPU is chosen.

    Parameters
    ----------
    device : Device
        From `best_device`.
    **settings
        ``frames``, ``batch``, ``n_slots`` and ``look_bytes``, see `GpuAccumulator`.
    """
    return functools.partial(RawGpuAccumulator, device=device, **settings)
