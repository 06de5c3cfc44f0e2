"""When slabs are looked at, and which first."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebl_stream.engine import schedule
from ebl_stream.engine.schedule import SHARE, Budget, Points, SlabOrder, Timings
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


def order_of(is_behind=None, first_rows=None):
    budget = Budget(is_behind)
    budget.start()
    return budget, SlabOrder(SLABS, first_rows, budget)


def test_nobody_waits_and_nothing_is_left_out():
    _, order = order_of()
    for n in (10, 20, 30):
        assert list(order(n, ALL)) == [0, 1, 2, 3]
    assert order.n_skipped == 0


def test_watched_rows_come_first_then_the_region_of_interest():
    _, order = order_of(first_rows=(64, 65))
    assert list(order(10, ALL)) == [2, 0, 1, 3]
    assert list(order(20, ALL, (40, 97))) == [2, 1, 3, 0]
    assert list(order(30, ALL, (33, 34))) == [1, 2, 0, 3]


def test_ingest_goes_before_but_nobody_starves(clock):
    """Frames always wait; looks get their share of the time, and no slab less."""
    budget, order = order_of(lambda: True)
    seen = []
    for n in range(1, 65):
        clock.now += 1.0  # ingest
        budget.begin()
        seen.append(clock.work(order(n, ALL), 0.5))
        budget.end()
    counts = [sum(slabs.count(k) for slabs in seen) for k in ALL]
    assert SHARE * 64 - 0.5 <= sum(counts) * 0.5 <= SHARE * 64 + 0.5
    assert max(counts) - min(counts) <= 1
    assert order.n_skipped == 4 * 64 - sum(counts)


def test_watched_slabs_are_never_left_out(clock):
    budget, order = order_of(lambda: True)
    for n in range(1, 5):
        budget.begin()
        assert clock.work(order(n, ALL, (98, 99)), 10.0) == [3]
        budget.end()


def test_the_end_leaves_nothing_out(clock):
    budget, order = order_of(lambda: True)
    budget.begin()
    clock.work(order(1, ALL), 10.0)
    assert sorted(clock.work(order(2, ALL, final=True), 10.0)) == [0, 1, 2, 3]


def test_when_nobody_waits_a_slow_look_is_finished(clock):
    budget, order = order_of(lambda: False)
    budget.begin()
    assert len(clock.work(order(1, ALL), 60.0)) == 4


def test_region_outside_of_the_detector():
    with pytest.raises(InputError, match=r"first_rows .*rows 0 to 99"):
        SlabOrder(SLABS, (100, 120), Budget(None))


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
