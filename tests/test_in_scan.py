"""A denoiser that learns from its scan: what is due, when, and what it leaves alone."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from learners import (
    LONG,
    STEPS,
    Documents,
    is_judged,
    learner,
    steps_of,
    tiny_start,
    until,
)
from noisy import error, noisy_foam

from ebl_stream.nets import in_scan
from ebl_stream.nets.architecture import Architecture
from ebl_stream.nets.guard import Standing
from ebl_stream.nets.in_scan import InScan, Start
from ebl_stream.nets.pairs import Pairs
from ebl_stream.nets.trainer import IN_SCAN, Trainer, weights_hash


@pytest.fixture(scope="module")
def look() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The truth, A + B and A - B."""
    return noisy_foam(48, 8)


@pytest.fixture
def live() -> Iterator[Callable[..., InScan]]:
    """Learners of live scans, which end with the test."""
    made: list[InScan] = []

    def make(documents: Documents, **how: Any) -> InScan:
        made.append(learner(is_behind=documents, **how))
        return made[-1]

    yield make
    for one in made:
        one.close()


# --- a replay -----------------------------------------------------------------------


def test_two_replays_are_the_same(look: Any) -> None:
    _, volume, difference = look
    made: list[list[Any]] = []
    for _ in range(2):
        one = learner(uncertainty_map=True)
        parts: list[Any] = []
        for coverage, noise in ((0.3, 2.0), (1.0, 1.0)):
            one.learn([noisy_foam(48, 8, noise=noise)[1:]], coverage)
            parts += [*astuple(one.denoise(volume, difference)), one.report()]
        made.append(parts)
    for first, second in zip(*made, strict=True):
        np.testing.assert_equal(first, second)


def test_another_seed_learns_something_else(look: Any) -> None:
    hashes = set()
    for seed in (0, 1):
        one = InScan(tiny_start(), steps=3, seed=seed)
        one.finish([look[1:]])
        hashes.add(weights_hash(one._trainer.average))
    assert len(hashes) == 2


def test_steps_are_counted_by_coverage(look: Any) -> None:
    one = learner()
    taken = []
    for coverage in (0.25, 0.5, 0.5, 0.3, 0.75, 1.2):
        one.learn([look[1:]], coverage)
        taken.append(steps_of(one))
    due = [round(STEPS * IN_SCAN * c) for c in (0.25, 0.5, 0.5, 0.5, 0.75, 1)]
    assert taken == due
    one.finish([look[1:]])
    assert steps_of(one) == one.report()["steps_budget"] == STEPS


def test_little_is_learned_from_little(look: Any) -> None:
    one = learner(10**6)
    one.learn([look[1:]], 0.001)
    few = Pairs([look[1:]]).steps_of_pass() * in_scan.MOST_PASSES
    assert one.report()["steps_budget"] == few


def test_what_it_starts_from_stays(look: Any) -> None:
    start = tiny_start()
    before = weights_hash(start.net)
    one = InScan(start, steps=STEPS)
    one.finish([look[1:]])
    assert weights_hash(start.net) == before
    told = one.report()
    assert told["start"]["weights"] == before
    assert weights_hash(one._trainer.average) != before


def test_longer_learning_does_not_make_it_worse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two slices are soon known by heart; what is published is from before."""
    monkeypatch.setattr(in_scan, "MOST_PASSES", 10**6)
    monkeypatch.setattr(in_scan, "CHECK_EVERY", 20)
    truth, volume, difference = noisy_foam(48, 2)
    errors: dict[int, float] = {}
    for steps in (80, 320):
        wide = Architecture(depth=3, width=16)
        torch.manual_seed(0)
        one = InScan(Start(wide.build(), wide), steps=steps, rate=1e-2, linear=False)
        one.finish([(volume, difference)])
        made = one.denoise(volume, None)
        errors[steps] = error(made.volume, truth)
    assert errors[320] < 1.02 * errors[80]
    assert errors[320] < 0.5 * error(volume, truth)
    # It is the guard that sees to it: the weights of the end are no good.
    last = one._as_candidate("last", one._trainer.average, steps)
    scale = one._chosen.scale
    made = scale.to_volume(last.denoise(scale.to_net(volume), None))
    assert error(made, truth) > 1.05 * errors[320]


# --- live ---------------------------------------------------------------------------


def test_learning_pauses_while_documents_wait(
    live: Callable[..., InScan], look: Any
) -> None:
    documents = Documents(wait=True)
    one = live(documents)
    one.learn([look[1:]], 0.5)
    until(lambda: is_judged(one))
    time.sleep(0.2)
    assert steps_of(one) == 0
    assert one.denoise(look[1], None).by in ("noise2filter", "fbp", "warm")
    documents.wait = False
    due = round(STEPS * IN_SCAN / 2)
    until(lambda: steps_of(one) == due)
    time.sleep(0.1)
    assert steps_of(one) == due


def test_learning_pauses_while_the_processor_is_needed(
    live: Callable[..., InScan], look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_scan, "MOST_PASSES", 10**6)
    one = live(Documents(), steps=10**6)
    with one.hold():
        one.learn([look[1:]], 1.0)
        time.sleep(0.1)
        assert not is_judged(one)
    until(lambda: steps_of(one) > 2)
    with one.hold(), one.hold():
        time.sleep(0.2)  # what was under way
        before = steps_of(one)
        time.sleep(0.2)
        assert steps_of(one) <= before + 1
    until(lambda: steps_of(one) > before + 3)


def test_the_scan_never_waits_for_a_step(
    live: Callable[..., InScan], look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for the guard: looks are handed over while a step takes forever."""
    go, under_way, step = threading.Event(), threading.Event(), Trainer.step

    def slow(self: Trainer, pairs: Pairs) -> float:
        under_way.set()
        assert go.wait(LONG)
        return step(self, pairs)

    monkeypatch.setattr(Trainer, "step", slow)
    documents = Documents()
    one = live(documents)
    one.learn([look[1:]], 0.1)
    assert under_way.wait(LONG)
    begun = time.monotonic()
    for coverage in (0.2, 0.3, 0.4):
        one.learn([look[1:]], coverage)
        with one.hold():
            one.denoise(look[1], None)
    documents.wait = True
    one.finish([look[1:]])
    assert time.monotonic() - begun < LONG / 2
    assert steps_of(one) == 0
    go.set()


def test_pairs_are_not_made_by_who_hands_them_over(
    live: Callable[..., InScan], look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a wide scan that takes a second: ingest would wait for it."""
    threads: list[str] = []

    def noted(excerpts: Any) -> Pairs:
        threads.append(threading.current_thread().name)
        return Pairs(excerpts)

    monkeypatch.setattr(in_scan, "Pairs", noted)
    one = live(Documents())
    one.learn([look[1:]], 0.1)
    until(lambda: is_judged(one))
    assert set(threads) == {"ebl-stream-learn"}


def test_the_budget_is_completed_after_the_last_projection(
    live: Callable[..., InScan], look: Any
) -> None:
    documents = Documents(wait=True)
    one = live(documents)
    one.learn([look[1:]], 0.5)
    until(lambda: is_judged(one))
    documents.wait = False
    one.finish([look[1:]])
    assert steps_of(one) == STEPS


def test_the_end_does_not_wait_where_the_next_scan_does(
    live: Callable[..., InScan], look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_scan, "MOST_PASSES", 10**6)
    documents = Documents()
    one = live(documents, steps=10**6)
    threading.Timer(0.5, lambda: setattr(documents, "wait", True)).start()
    begun = time.monotonic()
    one.finish([look[1:]])
    assert 0.4 < time.monotonic() - begun < LONG
    assert steps_of(one) < 10**5


@pytest.mark.parametrize("steps", [0, STEPS])
def test_the_last_look_is_judged_before_the_end(
    live: Callable[..., InScan], look: Any, steps: int
) -> None:
    """Even where nothing is left to learn: an earlier verdict would be an old one."""
    one = live(Documents(), steps=steps)
    one.finish([look[1:]])
    other = noisy_foam(48, 8, noise=0.3)[1:]
    one.finish([other])
    expected = Standing(Pairs([other])).losses["fbp"]
    assert one.report()["guard"]["fbp"] == pytest.approx(expected, rel=1e-4)


def test_closing_ends_the_thread_and_nothing_is_left(
    look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_scan, "MOST_PASSES", 10**6)
    begun = threading.active_count()
    left: list[weakref.ref[Any]] = []
    for _ in range(20):
        one = learner(10**6, is_behind=Documents())
        one.learn([look[1:]], 1.0)
        until(lambda one=one: steps_of(one) > 0)
        left += [
            weakref.ref(one),
            weakref.ref(one._trainer),
            weakref.ref(one._standing),
        ]
        one.close()
        del one
    gc.collect()
    assert threading.active_count() == begun
    assert [ref() for ref in left if ref() is not None] == []


def test_closing_what_never_learned() -> None:
    one = learner(is_behind=Documents())
    one.close()
    one.close()


def test_a_learner_that_was_closed_does_not_hold_up_the_end(look: Any) -> None:
    one = learner(is_behind=Documents())
    one.close()
    begun = time.monotonic()
    one.finish([look[1:]])
    assert time.monotonic() - begun < LONG
    one.close()
