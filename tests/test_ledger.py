"""The conservation law."""

from typing import get_args

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ebl_stream.engine.ledger import DROPPED, Ledger, Ledgers, ranges
from ebl_stream.frames import Announced, Kind, Reason


def total(report):
    names = ("used", "superseded", "duplicate", "rejected", "dropped", "missing")
    return sum(report[name] for name in names) + report["in_flight"]


@given(st.sets(st.integers(0, 300)))
def test_ranges_name_exactly_the_indices(indices):
    found = [k for a, b in ranges(np.array(sorted(indices), int)) for k in range(a, b)]
    assert found == sorted(indices)


@given(
    st.sets(st.integers(0, 60)),
    st.sets(st.integers(0, 60)),
    st.integers(0, 80),
    st.integers(0, 5),
)
def test_every_frame_is_accounted_for(announced, unusable, promised, repeats):
    ledger = Ledger()
    ledger.promise(promised)
    for index in announced:
        ledger.announce(index, index + 1)
    refused = announced & unusable
    for index in refused:
        ledger.reject(index, "blank")
    ledger.repeat(repeats, "duplicate")
    ledger.close()
    report = ledger.report(announced - refused)
    owed = max(promised, max(announced, default=-1) + 1)
    assert report["residue"] == 0
    assert report["announced"] == owed + repeats == total(report)
    lost = {k for a, b in report["missing_indices"] for k in range(a, b)}
    assert lost == set(range(owed)) - announced


def test_a_frame_that_vanished_shows_as_residue():
    ledger = Ledger()
    ledger.announce(0, 10)
    ledger.close()
    report = ledger.report([*range(9), 42])  # 42 was never announced
    assert report["in_flight"] == 1
    assert report["residue"] == -1


def test_what_is_announced_and_not_yet_used_is_in_flight():
    ledger = Ledger()
    ledger.promise(10)
    ledger.announce(0, 4)
    report = ledger.report([0, 1])
    assert (report["announced"], report["in_flight"], report["missing"]) == (4, 2, 0)


def test_flats_between_projections_are_not_missing_projections():
    ledger = Ledger()
    ledger.announce(2, 5)
    ledger.announce(7, 9)
    ledger.set_aside(0, 2)
    ledger.set_aside(5, 7)
    ledger.set_aside(9, 12)
    ledger.close()
    report = ledger.report([2, 3, 4, 7, 8])
    assert report["missing"] == 0
    assert report["announced"] == report["used"] == 5


def test_kinds_that_share_a_stream_are_not_missing_in_each_other():
    ledgers = Ledgers(shared_index=True)
    ledgers.note(Announced(Kind.DARK, 0, 10))
    ledgers.note(Announced(Kind.FLAT, 10, 20))
    ledgers.note(Announced(Kind.PROJECTION, 20, 50))
    ledgers.note(Announced(Kind.FLAT, 50, 55))
    ledgers.close()
    for kind, n in ((Kind.DARK, 10), (Kind.FLAT, 15), (Kind.PROJECTION, 30)):
        report = ledgers[kind].report([])
        assert (report["announced"], report["missing"]) == (n, 0)


def test_what_nothing_explains_is_an_alarm_said_once(caplog):
    ledgers = Ledgers(shared_index=False, run_uid="abc")
    ledger = ledgers[Kind.PROJECTION]
    ledger.announce(0, 10)
    assert ledger.report(range(8))["alarm"] is None  # two are on their way
    ledgers.close()
    for _ in range(3):
        alarm = ledger.report(range(8))["alarm"]
        assert alarm == "2 announced frames are neither used nor named"
    assert caplog.text.count("run abc, projections: 2 announced frames") == 1
    ledger.reject(8, "blank")
    ledger.reject(9, "budget")
    report = ledger.report(range(8))
    assert (report["alarm"], report["residue"]) == (None, 0)
    assert report["rejected_by"] == {"blank": 1}
    assert report["dropped_by"] == {"budget": 1}
    alarm = ledger.report(range(12))["alarm"]
    assert alarm == "2 frames are in the books that nobody announced"
    assert alarm in caplog.text


def test_only_our_own_reasons_are_drops():
    """A new reason has to be sorted in: is it the frame's, or ours?"""
    assert set(DROPPED) == {"budget"}
    frames_own = set(get_args(Reason)) - set(DROPPED)
    assert frames_own == {
        *("non_finite", "blank", "unreadable", "no_angle", "wrong_shape"),
        *("no_image", "invalid_kind"),
    }
