"""The way out of the RunEngine's process: packed quickly, kept in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebl_stream.transport.backlog import Backlog
from ebl_stream.transport.buffers import Buffers
from ebl_stream.transport.documents import pack
from ebl_stream.transport.packable import pack_quickly


@pytest.mark.parametrize(
    "image",
    [
        np.arange(200_000.0).reshape(400, 500),
        np.arange(200_000.0).reshape(400, 500).T,
        np.asfortranarray(np.arange(600_000, dtype=">u2").reshape(3, 400, 500)),
        np.arange(90_000).reshape(300, 300) % 2 == 0,
        np.full(70_000, "abc"),
        np.full(70_000, None),
    ],
    ids=lambda image: str(image.dtype),
)
def test_the_quick_way_packs_the_same_bytes(image: Any) -> None:
    data = {"theta": 1, "a": image, "b": image[::-1], "small": np.arange(3)}
    doc = {"uid": "x", "data": data, "timestamps": {"a": 1.0}}
    if image.dtype.hasobject:
        with pytest.raises(TypeError, match="cannot travel"):
            pack_quickly("event", doc, Buffers())
    else:
        assert bytes(pack_quickly("event", doc, Buffers())) == pack("event", doc)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), max_size=40),
    takes=st.lists(st.integers(0, 5), max_size=40),
)
def test_a_backlog_keeps_order_and_bound(sizes: list[int], takes: list[int]) -> None:
    backlog = Backlog(max_bytes=100)
    waiting = [bytes([i]) * size for i, size in enumerate(sizes)]
    taken: list[bytes] = []
    for i, message in enumerate(waiting):
        backlog.append(message)
        assert backlog.memory_bytes <= 100
        backlog.refill()
        for _ in range(takes[i] if i < len(takes) else 0):
            found = backlog.get(backlog.first)
            if found is not None:
                taken.append(found)
                assert backlog.release(backlog.first + 1) == 1
    taken += backlog.drain()
    assert taken == waiting
    assert len(backlog) == backlog.memory_bytes == backlog.n_spilled == 0
    backlog.close()


def test_memory_is_used_again_but_never_while_somebody_reads_it() -> None:
    buffers = Buffers(max_free_bytes=300_000)
    first = buffers.take(100_000)
    first[:] = 1
    message = memoryview(first)[5:]  # what 0MQ holds on to
    address = first.ctypes.data
    del first
    second = buffers.take(100_000)
    assert second.ctypes.data != address
    second[:] = 2
    assert set(message) == {1}
    del message
    assert buffers.take(99_000).ctypes.data == address
    many = [buffers.take(100_000) for _ in range(10)]
    assert len({part.ctypes.data for part in many}) == 10
    many.clear()
    assert 0 < buffers.free_bytes <= 300_000


def test_memory_is_ready_before_it_is_asked_for() -> None:
    buffers = Buffers()
    buffers.stock_up()
    assert buffers.free_bytes == 0  # of no size yet
    taken = buffers.take(100_000)
    assert buffers.free_bytes == 0
    for _ in range(10):
        buffers.stock_up()
    spare = buffers.free_bytes
    assert 100_000 <= spare <= 10 * 100_000
    also = buffers.take(99_990)
    assert buffers.free_bytes < spare
    assert also.ctypes.data != taken.ctypes.data
