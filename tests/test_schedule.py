"""When slabs are looked at, and which first."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebl_stream.engine import schedule
from ebl_stream.engine.schedule import Points, SlabOrder, Timings
from ebl_stream.errors import InputError

SLABS = [(0, 32), (32, 64), (64, 96), (96, 100)]
ALL = range(len(SLABS))


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(schedule.time, "monotonic", lambda: self.now)

    def work(self, slabs, seconds):
        done = []
        for slab in slabs:
            self.now += seconds
            done.append(slab)
        return done


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@given(every=st.floats(0.01, 1), promised=st.integers(1, 5000))
def test_points_are_evenly_spread_and_leave_the_end_alone(every, promised):
    points = Points(every)
    points.begin(promised)
    at = []
    for n in range(1, promised + 1):
        if points.reached(n):
            at.append(n)
            points.passed(n, promised)
    step = max(1, round(every * promised))
    assert at == [k for k in range(step, promised, step) if k + step / 2 <= promised]


def test_no_points_at_all():
    points = Points(0)
    points.begin(100)
    assert not any(points.reached(n) for n in range(1000))


def test_without_a_promise_points_grow_apart():
    points = Points(0.1)
    points.begin(None)
    at = []
    for n in range(5000):
        if points.reached(n):
            at.append(n)
            points.passed(n, None)
    steps = [b - a for a, b in itertools.pairwise(at)]
    assert steps == sorted(steps)
    assert len(at) < 40


def test_nobody_waits_and_nothing_is_left_out():
    order = SlabOrder(SLABS, None, None)
    for n in (10, 20, 30):
        assert list(order(n, ALL)) == [0, 1, 2, 3]
    assert order.n_skipped == 0


def test_watched_rows_come_first_then_the_region_of_interest():
    order = SlabOrder(SLABS, (64, 65), None)
    assert list(order(10, ALL)) == [2, 0, 1, 3]
    assert list(order(20, ALL, (40, 97))) == [2, 1, 3, 0]
    assert list(order(30, ALL, (33, 34))) == [1, 2, 0, 3]


def test_ingest_goes_before_but_nobody_starves(clock):
    """Frames always wait; each look may take as long as ingest did."""
    order = SlabOrder(SLABS, None, lambda: True)
    seen = []
    for n in range(1, 9):
        clock.now += 1.0  # ingest
        seen.append(clock.work(order(n, ALL), 0.5))
    assert sum(map(len, seen)) * 0.5 <= 8 * 1.0 + 0.5
    assert {slab for slabs in seen for slab in slabs} == {0, 1, 2, 3}
    counts = [sum(slabs.count(k) for slabs in seen) for k in ALL]
    assert max(counts) - min(counts) <= 1
    assert order.n_skipped == 4 * 8 - sum(counts)


def test_watched_slabs_are_never_left_out(clock):
    order = SlabOrder(SLABS, None, lambda: True)
    for n in range(1, 5):
        assert 3 in clock.work(order(n, ALL, (98, 99)), 10.0)


def test_the_end_leaves_nothing_out(clock):
    order = SlabOrder(SLABS, None, lambda: True)
    clock.work(order(1, ALL), 10.0)
    assert sorted(clock.work(order(2, ALL, final=True), 10.0)) == [0, 1, 2, 3]


def test_when_nobody_waits_a_slow_look_is_finished(clock):
    order = SlabOrder(SLABS, None, lambda: False)
    assert len(clock.work(order(1, ALL), 60.0)) == 4


def test_region_outside_of_the_detector():
    with pytest.raises(InputError, match=r"first_rows .*rows 0 to 99"):
        SlabOrder(SLABS, (100, 120), None)


def test_timings_by_stage_and_slab():
    timings = Timings()
    timings.note("accumulate", 1, 0.5)
    timings.note("accumulate", 1, 0.25)
    timings.note("accumulate", 0, 2.0)
    assert timings.as_dict() == {
        "accumulate": {
            "last_s": [2.0, 0.25],
            "total_s": [2.0, 0.75],
            "turns": [1, 2],
        }
    }
