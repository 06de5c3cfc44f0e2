"""Uploads beside the work: nothing is overwritten before it was used, nobody waits.

The emulated device does what it is given late and out of step, in a different order
for every seed, so what is not ordered by an event comes out wrong.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from cuda_on_cpu.emulator import EmulatedDevice, Event, Stream

from ebl_stream.gpu.accumulator import GpuAccumulator
from ebl_stream.gpu.raw import RawGpuAccumulator
from ebl_stream.numerics.fourier_plan import FourierPlan

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="CUDA source runs on the CPU through g++"
)

N_ANGLES, N_ROWS, N_COLUMNS = 14, 3, 16
PLAN = FourierPlan(N_COLUMNS)
RNG = np.random.default_rng(5)
VALUES = RNG.normal(size=(N_ANGLES, N_ROWS, N_COLUMNS)).astype(np.float32)
THETA = RNG.uniform(0, np.pi, N_ANGLES)
SHARES = RNG.uniform(0.1, 0.2, (N_ANGLES, 2))


def live(device: EmulatedDevice) -> np.ndarray:
    """Add projection by projection from one buffer, as a reader does; look midway."""
    grids = GpuAccumulator(
        PLAN, N_ROWS, 7.0, device=device, batch=2, n_slots=2, look_bytes=1
    )
    buffer = np.empty((1, N_ROWS, N_COLUMNS), np.float32)
    for k in range(N_ANGLES):
        buffer[0] = VALUES[k]
        grids.add(buffer, THETA[k : k + 1], SHARES[k : k + 1])
        buffer[:] = np.nan
        if k == N_ANGLES // 2:
            grids.preview(2)
    return grids.volume()


EXPECTED = None if shutil.which("g++") is None else live(EmulatedDevice())


def test_the_expected_volume_is_that_of_one_batch():
    grids = GpuAccumulator(PLAN, N_ROWS, 7.0, device=EmulatedDevice(), batch=16)
    grids.add(VALUES, THETA, SHARES)
    assert EXPECTED is not None
    np.testing.assert_allclose(EXPECTED, grids.volume(), atol=1e-6)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("eagerness", [0.0, 0.3, 0.8])
def test_any_order_that_the_events_allow_gives_the_same(eagerness, seed):
    volume = live(EmulatedDevice(eagerness=eagerness, seed=seed))
    np.testing.assert_array_equal(volume, EXPECTED)


class Forgetful(EmulatedDevice):
    """Its events let everybody through: as if none were waited for."""

    def record(self, stream: Stream) -> Event:
        event = super().record(stream)
        event.done = True
        return event


class ForgetfulHost(EmulatedDevice):
    """Only the host does not wait for its events; the streams do."""

    def record(self, stream: Stream) -> Event:
        event = super().record(stream)
        event.synchronize = lambda: None  # type: ignore[method-assign]
        return event


@pytest.mark.parametrize("careless", [Forgetful, ForgetfulHost])
def test_a_missing_event_would_be_seen(careless):
    wrong = 0
    for seed in range(12):
        volume = live(careless(eagerness=0.3, seed=seed))
        wrong += not np.array_equal(volume, EXPECTED)
    assert wrong > 0


def test_add_returns_before_anything_is_done():
    device = EmulatedDevice(eagerness=0)
    grids = GpuAccumulator(PLAN, N_ROWS, 7.0, device=device, batch=2, n_slots=3)
    grids.add(VALUES[:6], THETA[:6], SHARES[:6])
    assert device.launched == []
    # All three slots are under way: the fourth batch waits for one copy, no more.
    grids.add(VALUES[6:8], THETA[6:8], SHARES[6:8])
    assert device.launched == []
    grids.synchronize()
    assert device.launched == ["pack_values", "scatter_4"] * 4


def test_what_is_dropped_is_finished_first():
    device = EmulatedDevice(eagerness=0)
    grids = GpuAccumulator(PLAN, N_ROWS, 7.0, device=device)
    grids.add(VALUES, THETA, SHARES)
    del grids
    # Else the device would write to memory that may be somebody else's by then.
    assert device.launched == ["pack_values", "scatter_4"]


def test_a_reader_may_fill_pinned_memory_itself():
    raw = np.exp(-VALUES / 4)
    dark, flat = np.zeros((N_ROWS, N_COLUMNS)), np.ones((N_ROWS, N_COLUMNS))
    volumes = []
    for reserved in (False, True):
        device = EmulatedDevice(eagerness=0.3)
        grids = RawGpuAccumulator(PLAN, N_ROWS, 7.0, device=device, batch=4)
        grids.set_references(dark, flat)
        for k in range(0, N_ANGLES, 3):
            some = slice(k, k + 3)
            if reserved:
                memory = grids.reserve(np.float32)
                assert memory.shape == (4, N_ROWS, N_COLUMNS)
                memory[: len(THETA[some])] = raw[some]
                grids.add_reserved(THETA[some], SHARES[some])
            else:
                grids.add_raw(raw[some], THETA[some], SHARES[some])
        volumes.append(grids.volume())
    np.testing.assert_array_equal(*volumes)
    with pytest.raises(ValueError, match="14 angles, but 0"):
        grids.add_reserved(THETA, SHARES)
