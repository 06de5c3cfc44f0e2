"""The memory ladder: what gives way, and in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebl_stream.engine.memory import MemoryPlan, plan_memory
from ebl_stream.errors import InputError

GB = 10**9


def plan(free, shape=(2048, 2048), interpret=True, ring=0, slab_rows=32):
    return plan_memory(
        shape,
        slab_rows,
        oversampling=1.25,
        interpret=interpret,
        ring_bytes=ring,
        free=free,
        threads=2,
    )


def test_the_rungs_follow_as_memory_shrinks():
    found = [plan(free * GB).rung for free in (400, 300, 100, 40, 20)]
    assert found == [1, 2, 3, 4, 4]


def test_what_is_known_of_2048_cubed():
    """Both halves of 2048 slices of 2048 x 2048 are 107 GB of grids."""
    best = plan(None, interpret=False)
    assert best.rung == 1
    rest = (4 + 2 * 24 / 64) * 2048**3
    assert best.need_bytes == pytest.approx(107.4 * GB + rest, rel=0.01)


def test_unknown_memory_is_not_guessed():
    assert plan(None).rung == 1


def test_the_ring_counts():
    assert plan(400 * GB).rung < plan(400 * GB, ring=250 * GB).rung


def test_not_even_one_slab():
    with pytest.raises(InputError, match=r"one slab of 32 rows .* bin the detector"):
        plan(2 * GB, shape=(64, 20_000))


@given(
    rows=st.integers(1, 5000),
    columns=st.integers(64, 4096),
    free=st.integers(5, 600),
    interpret=st.booleans(),
)
def test_every_plan_covers_all_slabs_within_memory(rows, columns, free, interpret):
    try:
        best = plan(free * GB, shape=(rows, columns), interpret=interpret)
    except InputError:
        return
    assert isinstance(best, MemoryPlan)
    assert best.need_bytes <= free * GB
    slabs = sorted(k for a, b in best.passes for k in range(a, b))
    assert slabs == list(range(-(-rows // 32)))
    if best.monitors is not None:
        assert best.monitors <= set(slabs)
        for a, b in best.passes:
            assert best.monitors & set(range(a, b))
