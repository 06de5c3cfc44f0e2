"""Documents out of order, lost or lying; clocks that step; pixels that mean nothing."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consumer import GRACE_S, SILENCE_S, Line, N, volume_of, whole
from telling import Document, Teller


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


# ------------------------------------------------------------- order, loss, repeats


@pytest.mark.parametrize("in_file", [False, True], ids=["events", "file"])
@pytest.mark.parametrize("window", [2, 16, 64])
def test_disorder_within_a_window_changes_nothing(
    tmp_path: Path, window: int, in_file: bool
) -> None:
    for seed in range(4):
        line = Line(tmp_path / str(seed))
        teller = line.teller(seed, in_file=in_file, promised=N)
        documents = list(whole(teller, each=1))
        places = np.random.default_rng(seed).uniform(0, window, len(documents))
        order = np.argsort(places + np.arange(len(documents)))
        line.send(documents[k] for k in order)
        assert line.consumer.results[teller.uid].state == "complete"
        line.check()
        teller.close()


def test_what_comes_too_late_is_named(line: Line) -> None:
    teller = line.teller(1)
    documents = list(whole(teller, each=1))
    late = [k for k, (_, doc) in enumerate(documents) if doc.get("seq_num") in (9, 15)]
    line.send(pair for k, pair in enumerate(documents) if k not in late)
    line.consumer.tick(GRACE_S)
    line.expected.stop_waiting()
    line.send(documents[k] for k in late)
    ledger = line.consumer.results[teller.uid].ledger
    assert ledger["missing_indices"] == [[8, 9], [14, 15]]
    line.check()


@pytest.mark.parametrize("in_file", [False, True], ids=["events", "file"])
def test_any_one_document_lost_is_named_by_its_frame(
    tmp_path: Path, in_file: bool
) -> None:
    line = Line(tmp_path)
    n = len(list(whole(Teller(0, tmp_path if in_file else None), each=1)))
    for lost in range(n):
        teller = line.teller(lost, in_file=in_file, promised=N)
        documents = list(whole(teller, each=1))
        line.send(documents[:lost] + documents[lost + 1 :])
        line.consumer.tick(SILENCE_S)
        line.expected.give_up()
        teller.close()
        assert line.is_at_rest
    kinds = {
        run.refused.get(k, "missing")
        for run in line.expected.runs.values()
        for k in run.missing | run.refused.keys()
    }
    assert kinds == ({"missing", "no_angle", "no_image"} if in_file else {"missing"})
    line.check()
    assert len(line.expected.runs) == n - 1  # all but the one without a start


# ------------------------------------------------------------------- lying documents


RANGES = {
    "reversed": ((8, 4), (9, 5)),
    "negative": ((-4, 4), (1, 9)),
    "empty": ((4, 4), (5, 5)),
    "of two lengths": ((4, 8), (5, 8)),
    "huge": ((0, 10**15), (1, 10**15 + 1)),
    "from afar": ((10**15, 10**15 + 1), (10**15, 10**15 + 1)),
    "no number": (("a", None), (1.5, [])),
}


@pytest.mark.parametrize("lie", RANGES)
def test_a_datum_with_impossible_ranges_costs_nothing(line: Line, lie: str) -> None:
    teller = line.teller(1, in_file=True, promised=N)
    *documents, stop = whole(teller)
    line.send(documents)
    (name, doc) = next(pair for pair in documents if pair[0] == "stream_datum")
    indices, seq_nums = RANGES[lie]
    lies = doc | {
        "uid": "a lie",
        "indices": dict(zip(("start", "stop"), indices, strict=True)),
        "seq_nums": dict(zip(("start", "stop"), seq_nums, strict=True)),
    }
    tracemalloc.start()
    line.consumer.house(name, lies)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    line.send([stop])
    assert line.consumer.results[teller.uid].state == "complete"
    line.check()
    teller.close()


def test_overlapping_datums_and_frames_that_nobody_named(line: Line) -> None:
    teller = line.teller(1, in_file=True, promised=N)
    line.send(teller.start())
    line.send(teller.reference("flats", 1))
    line.send(teller.expose(12))
    teller.rewind(5)
    line.send(teller.expose(13))
    list(teller.expose(3))  # written, never told
    teller.highest = N
    line.send(teller.stop())
    result = line.consumer.results[teller.uid]
    assert result.state == "complete"
    assert (result.ledger["superseded"], result.ledger["orphan"]) == (5, 3)
    line.check()
    teller.close()


def test_frames_that_were_never_written_are_named(line: Line) -> None:
    teller = line.teller(1, in_file=True, promised=N)
    line.send(teller.start())
    line.send(teller.reference("flats", 1))
    line.send(teller.expose(N - 3))
    for name, doc in line_of_unwritten(teller, 3):
        line.consumer(name, doc)
    ((name, stop),) = teller.stop()
    line.consumer(name, stop | {"num_events": {"primary": N, "flats": 1}})
    ledger = line.consumer.results[teller.uid].ledger
    assert ledger["rejected_indices"] == [[N - 3, N]]
    assert sum(ledger["rejected_by"].values()) == 3
    assert (ledger["used"], ledger["residue"], ledger["alarm"]) == (N - 3, 0, None)
    teller.close()


def line_of_unwritten(teller: Teller, n: int) -> Iterator[Document]:
    """Datums of frames that a detector counted and lost."""
    first, seq = len(teller.images), teller.seq
    for resource in teller._resources:
        datum = resource.compose_stream_datum(
            indices={"start": first, "stop": first + n},
            seq_nums={"start": seq, "stop": seq + n},
            descriptor=teller._streams["primary"].descriptor_doc,
            validate=False,
        )
        yield "stream_datum", datum


# --------------------------------------------------------------- clocks and pixels


def test_no_clock_is_believed(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times in documents are wild, and the wall clock goes back by an hour a look."""
    wall = iter(1e9 - 3600.0 * k for k in range(10**6))
    monkeypatch.setattr(time, "time", lambda: next(wall))
    teller = line.teller(1, wild_times=True, promised=N)
    line.send(whole(teller))
    result = line.consumer.results[teller.uid]
    assert result.state == "complete"
    told = [s for s in result.latency_s.values() if s is not None]
    assert told
    assert all(math.isfinite(s) and s >= 0 for s in told)
    line.check()


def of_images(line: Line, change: Any) -> tuple[np.ndarray, np.ndarray]:
    """The volume of a run whose images were changed, and of the same run as it was."""
    volumes = []
    for changed in (True, False):
        teller = line.teller(1, dtype="<f4", promised=N)
        for name, doc in whole(teller):
            if changed and name == "event":
                change(doc["seq_num"], doc["data"])
            line.consumer(name, doc)
        result = line.consumer.results[teller.uid]
        assert (result.state, result.ledger["used"]) == ("complete", N)
        volumes.append(volume_of(result))
    assert np.isfinite(volumes[0]).all()
    return volumes[0], volumes[1]


def test_a_nan_pixel_stays_in_its_ray(line: Line) -> None:
    def change(seq: int, data: dict[str, Any]) -> None:
        if "theta" in data and seq == 7:
            data["image"][2, 9] = np.nan

    changed, clean = of_images(line, change)
    difference = np.abs(changed - clean) / np.abs(clean).max()
    # Rows are transformed in pairs: what is left in the others is round-off.
    assert difference[[0, 1, 3]].max() < 1e-6
    assert 1e-4 < difference[2].max() < 0.05


def test_a_dead_row_spoils_no_other(line: Line) -> None:
    def change(seq: int, data: dict[str, Any]) -> None:
        data["image"][1] = 0

    changed, clean = of_images(line, change)
    difference = np.abs(changed - clean) / np.abs(clean).max()
    assert difference[3].max() < 1e-6
    assert difference[1].max() > 1e-3
