"""Runs that never stop, share a uid, overlap, or describe a stream anew."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consumer import GRACE_S, SILENCE_S, Line, N, metadata_of, volume_of, whole
from telling import COLUMNS, ROWS, Document, Teller

from ebl_stream.ingest.held import Arrived, HeldDocuments
from ebl_stream.ingest.router import MAX_OPEN, RunSorter


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


# ------------------------------------------------------------- runs without an end


def test_a_silent_run_is_closed_in_time_with_what_there_is(line: Line) -> None:
    teller = line.teller(1, promised=N)
    *documents, _ = whole(teller)
    line.send(documents)
    line.consumer.tick(30)
    line.send([documents[-1]])  # a repeat: a sign of life, too
    for _ in range(int(SILENCE_S) - 1):
        line.consumer.tick(1)
    assert line.consumer.results == {}
    line.consumer.tick(1)
    line.expected.give_up()
    result = line.consumer.results[teller.uid]
    metadata = metadata_of(result)
    assert (result.state, metadata["exit_status"]) == ("partial", "unknown")
    assert metadata["reason"] == result.message == "no stop document: silent for 600 s"
    assert result.ledger["used"] == N
    assert line.is_at_rest
    line.check()


def test_what_never_finds_its_referent_is_let_go(line: Line) -> None:
    teller = line.teller(1)
    start, descriptor, *rest = whole(teller)
    line.send([start, *rest[:-1]])  # flats have their descriptor, projections none
    assert len(line.consumer.house._sorter._held) == N
    line.consumer.tick(SILENCE_S)
    assert line.is_at_rest
    line.send([descriptor])
    assert line.is_at_rest


def test_time_that_a_reconstruction_takes_silences_nobody() -> None:
    now, ended = [0.0], []

    def factory(start: dict[str, Any]) -> Any:
        def consumer(name: str, doc: dict[str, Any]) -> None:
            if name == "stop":
                now[0] += 5000.0  # a large volume
                ended.append((start["uid"], doc["exit_status"]))

        return consumer

    sorter = RunSorter(factory, silence_s=600.0, clock=lambda: now[0])
    for uid in ("first", "next"):
        sorter("start", {"uid": uid})
    sorter("stop", {"run_start": "first", "exit_status": "success"})
    sorter.tick()
    assert ended == [("first", "success")]
    now[0] += 600.0
    sorter.tick()
    assert ended[1:] == [("next", "unknown")]


def test_a_sender_that_lives_keeps_a_run_open_until_its_stop() -> None:
    now, ended = [0.0], []

    def factory(start: dict[str, Any]) -> Any:
        def consumer(name: str, doc: dict[str, Any]) -> None:
            if name == "stop":
                ended.append(start["uid"])

        return consumer

    sorter = RunSorter(factory, stop_grace_s=2.0, silence_s=600.0, clock=lambda: now[0])
    for uid in ("paused", "stopped"):
        sorter("start", {"uid": uid})
    lost = {"primary": 3}
    sorter("stop", {"run_start": "stopped", "num_events": lost})
    for _ in range(1000):
        now[0] += 1.0
        for uid in ("paused", "stopped"):
            sorter.is_alive(uid)
        sorter.tick()
    assert ended == ["stopped"]
    now[0] += 601.0
    sorter.tick()
    assert ended == ["stopped", "paused"]


def test_a_late_rest_keeps_a_stopped_run_open(line: Line) -> None:
    """The grace is counted from the last document, not from the stop."""
    teller = line.teller(1)
    *documents, stop = whole(teller)
    line.send([*documents[:5], stop])
    for document in documents[5:-1]:
        line.consumer.tick(GRACE_S * 0.9)
        line.send([document])
    assert line.consumer.results == {}
    line.send(documents[-1:])
    assert line.consumer.results[teller.uid].state == "complete"
    line.check()


def test_no_more_runs_are_open_than_anybody_nests(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now, ended = [0.0], []

    def factory(start: dict[str, Any]) -> Any:
        return lambda name, doc: name == "stop" and ended.append(start["uid"])

    sorter = RunSorter(factory, clock=lambda: now[0])
    for k in range(MAX_OPEN + 5):
        now[0] += 1
        sorter("start", {"uid": f"run {k}"})
        life = {"uid": f"d{k}", "run_start": "run 0", "name": "p", "data_keys": {}}
        sorter("descriptor", life)
    assert ended == [f"run {k}" for k in range(1, 6)]  # 0 is alive
    assert "more than 64 runs are under way" in caplog.text


@pytest.mark.parametrize("in_file", [False, True], ids=["events", "file"])
def test_what_comes_after_the_end_is_refused_in_words(
    line: Line, in_file: bool, caplog: pytest.LogCaptureFixture
) -> None:
    teller = line.teller(1, in_file=in_file)
    documents = list(whole(teller))
    line.send(documents)
    before = volume_of(line.consumer.results[teller.uid])
    teller.rewind(4)
    late = list(teller.expose(4))
    line.send([*late, *documents])
    assert caplog.text.count(f"run {teller.uid} is over") == 1
    assert line.is_at_rest
    line.check()
    assert np.array_equal(before, volume_of(line.consumer.results[teller.uid]))


# ------------------------------------------------------------------ several at once


@pytest.mark.parametrize("seed", range(6))
def test_runs_that_overlap_do_not_mix(line: Line, seed: int) -> None:
    """2 to 8 runs, each in its own dialect, mixed document by document."""
    rng = np.random.default_rng(seed)
    runs = [
        list(whole(line.teller(10 * seed + k, in_file=bool(rng.integers(2)))))
        for k in range(rng.integers(2, 9))
    ]
    for _, start in (run[0] for run in runs):
        start["scan_id"] = 1
    turns = rng.permutation([k for k, run in enumerate(runs) for _ in run])
    heads = [iter(run) for run in runs]
    line.send(next(heads[k]) for k in turns)
    assert len(line.consumer.results) == len(runs)
    assert all(r.state == "complete" for r in line.consumer.results.values())
    line.check()


def test_a_run_with_the_uid_of_another_is_refused(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    """Its documents may come in between: none of its frames is mixed in."""
    first, second = line.teller(1), Teller(2, promised=99)
    ours, theirs = list(whole(first)), list(whole(second))
    for _, doc in theirs:
        for key in ("uid", "run_start"):
            if doc.get(key) == second.uid:
                doc[key] = first.uid
    head, tail = ours[:8], ours[8:]
    line.send(head)
    for name, doc in theirs[:-1]:
        line.consumer(name, doc)
    line.send(tail)
    assert "a second, different start is refused" in caplog.text
    assert "has a rival of the same uid" in caplog.text
    result = line.consumer.results[first.uid]
    assert (result.state, result.ledger["used"]) == ("complete", N)
    line.check()
    assert line.is_at_rest


def test_a_start_told_again_in_other_types_is_the_same_run(line: Line) -> None:
    teller = line.teller(1)
    (name, start), *rest = whole(teller)
    start |= {"shape": (1, 2), "dwell": math.nan, "gains": np.arange(3)}
    again = start | {"shape": [1, 2], "dwell": math.nan, "gains": [0, 1, 2]}
    line.send([(name, start), (name, again), *rest])
    assert line.consumer.results[teller.uid].state == "complete"
    line.check()


# ------------------------------------------------------- a stream described again


def described_again(teller: Teller, **change: Any) -> Document:
    ((name, doc),) = teller.describe("primary")
    for key, values in change.items():
        doc["data_keys"][key] |= values
    return name, doc


def test_a_stream_described_again_goes_on(line: Line) -> None:
    teller = line.teller(1)
    line.send(teller.start())
    line.send(teller.reference("flats", 1))
    for _ in range(3):
        line.send(teller.expose(5))
        line.send([described_again(teller)])
    line.send(teller.expose(5))
    line.send(teller.stop())
    assert line.consumer.results[teller.uid].state == "complete"
    line.check()


@pytest.mark.parametrize(
    "cut",
    [lambda image: image[:, :-2], lambda image: image.astype(np.float32)],
    ids=["shape", "dtype"],
)
def test_frames_of_another_shape_are_refused_and_the_earlier_ones_stay(
    line: Line, cut: Any
) -> None:
    teller = line.teller(1)
    line.send(teller.start())
    line.send(teller.reference("flats", 1))
    line.send(teller.expose(12))
    line.send([described_again(teller, image={"shape": [ROWS, COLUMNS - 2]})])
    for name, doc in teller.expose(6):
        doc["data"]["image"] = cut(doc["data"]["image"])
        line.send([(name, doc)])
    line.send(teller.stop())
    result = line.consumer.results[teller.uid]
    assert result.state == "partial"
    assert result.ledger["rejected_by"] == {"wrong_shape": 6}
    assert result.ledger["rejected_indices"] == [[12, 18]]
    line.check()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"theta": {"units": "deg"}}, "units of 'theta' were 'rad' and are 'deg'"),
        ({"image": {"external": "STREAM:"}}, "external of 'image'"),
        ({"image": None}, "it has no data key 'image' any more"),
    ],
)
def test_a_stream_that_would_be_read_otherwise_is_refused(
    line: Line, change: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Never a silent angle in the wrong unit: its frames are owed and missing."""
    teller = line.teller(1)
    line.send(teller.start())
    line.send(teller.reference("flats", 1))
    line.send(teller.expose(12))
    ((name, doc),) = teller.describe("primary")
    for key, values in change.items():
        known = doc["data_keys"].pop(key)
        if values is not None:
            doc["data_keys"][key] = known | values
    for pair in [(name, doc), *teller.expose(6), *teller.stop()]:
        line.consumer(*pair)
    line.consumer.tick(GRACE_S)
    result = line.consumer.results[teller.uid]
    assert words in caplog.text
    assert (result.state, result.ledger["used"]) == ("partial", 12)
    assert result.ledger["missing_indices"] == [[12, 18]]


# ------------------------------------------------------------------------- details


def test_what_waited_goes_on_in_the_order_in_which_it_came() -> None:
    """The last exposure of a number counts, whatever each of them waited for."""
    told: list[tuple[str, Any]] = []

    def consumer(name: str, doc: dict[str, Any]) -> None:
        told.append((name, doc.get("data")))

    sorter = RunSorter(lambda start: consumer)
    key = {"dtype": "number", "shape": [], "source": "test"}

    def descriptor(uid: str) -> Document:
        doc = {"uid": uid, "run_start": "r", "name": "primary", "time": 0.0}
        return "descriptor", doc | {"data_keys": {"x": key}}

    def event(uid: str, of: str, value: int) -> Document:
        doc = {"uid": uid, "descriptor": of, "seq_num": 1, "time": 0.0}
        return "event", doc | {"data": {"x": value}, "timestamps": {"x": 0.0}}

    for name, doc in (
        descriptor("one"),
        event("a", "two", 1),
        event("b", "one", 2),
        event("c", "two", 3),
        descriptor("two"),
        event("d", "one", 4),
        ("start", {"uid": "r", "time": 0.0}),
    ):
        sorter(name, doc)
    assert [data["x"] for name, data in told if name == "event"] == [2, 1, 3, 4]


def test_held_documents_are_bounded_and_counted() -> None:
    held, token = HeldDocuments(3, 10**6), ("run", "r")
    events = [Arrived(k, "event", {"k": k}) for k in range(5)]
    gone = [held.hold(event, token, None, 0.0) for event in events]
    assert [each.arrived for some in gone for each in some] == events[:2]
    assert [each.arrived for each in held.release(token)] == events[2:]
    assert (len(held), held.n_bytes) == (0, 0)
    big = {"data": {"image": np.zeros(600_000, np.uint8)}}
    assert held.hold(Arrived(5, "event", big), token, None, 0.0) == []
    assert len(held.hold(Arrived(6, "event", big), token, None, 0.0)) == 1
    assert len(held) == 1
