"""Sorting documents into runs, and each run's into order."""

import logging

import event_model
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebl_stream.ingest.router import RunSorter

KEYS = {"x": {"dtype": "number", "shape": [], "source": "test"}}
STREAMED = {"dtype": "array", "shape": [4, 4], "source": "t", "external": "STREAM:"}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Book:
    """Per run, what its consumer was given."""

    def __init__(self, **kwargs):
        self.clock = Clock()
        self.got: dict[str, list[tuple[str, dict]]] = {}
        self.sorter = RunSorter(self.open, clock=self.clock, **kwargs)

    def open(self, start):
        docs = self.got.setdefault(start["uid"], [])
        return lambda name, doc: docs.append((name, doc))

    def reason(self, uid):
        """Why a run was cut short; None: it was not."""
        name, doc = self.got[uid][-1]
        is_cut = name == "stop" and doc["exit_status"] == "unknown"
        return doc["reason"] if is_cut else None

    def names(self, uid):
        return [name for name, _ in self.got[uid]]


def scan(n=3, **start):
    run = event_model.compose_run(metadata=start)
    descriptor = run.compose_descriptor(name="primary", data_keys=KEYS)
    events = [
        ("event", descriptor.compose_event(data={"x": k}, timestamps={"x": 0.0}))
        for k in range(n)
    ]
    head = [("start", run.start_doc), ("descriptor", descriptor.descriptor_doc)]
    return [*head, *events, ("stop", run.compose_stop())]


def fly(n=4):
    """A run of StreamDatums for two detectors."""
    run = event_model.compose_run()
    keys = {"a": STREAMED, "b": STREAMED}
    descriptor = run.compose_descriptor(name="primary", data_keys=keys)
    docs = [("start", run.start_doc), ("descriptor", descriptor.descriptor_doc)]
    for key in keys:
        resource = run.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri="file://h/f.h5",
            data_key=key,
            parameters={},
        )
        docs.append(("stream_resource", resource.stream_resource_doc))
        for k in range(n):
            ranges = {"start": k, "stop": k + 1}, {"start": k + 1, "stop": k + 2}
            datum = resource.compose_stream_datum(
                indices=ranges[0],
                seq_nums=ranges[1],
                descriptor=descriptor.descriptor_doc,
            )
            docs.append(("stream_datum", datum))
    stop = run.compose_stop() | {"num_events": {"primary": n}}
    return [*docs, ("stop", stop)]


def legacy(n=2):
    run = event_model.compose_run()
    keys = {"image": {**STREAMED, "external": "FILESTORE:"}}
    descriptor = run.compose_descriptor(name="primary", data_keys=keys)
    resource = run.compose_resource(
        spec="AD_HDF5", root="/", resource_path="f.h5", resource_kwargs={}
    )
    docs = [
        ("start", run.start_doc),
        ("descriptor", descriptor.descriptor_doc),
        ("resource", resource.resource_doc),
    ]
    for k in range(n):
        datum = resource.compose_datum(datum_kwargs={"point_number": k})
        event = descriptor.compose_event(
            data={"image": datum["datum_id"]},
            timestamps={"image": 0.0},
            filled={"image": False},
        )
        docs += [("datum", datum), ("event", event)]
    return [*docs, ("stop", run.compose_stop())]


def assert_in_order(docs):
    """Every document comes after all that it refers to."""
    known = set()
    for name, doc in docs:
        refers = [
            doc[k]
            for k in ("run_start", "descriptor", "stream_resource", "resource")
            if k in doc
        ]
        if name == "event":
            refers += [
                value
                for key, value in doc["data"].items()
                if doc.get("filled", {}).get(key) is False
            ]
        assert known.issuperset(refers), (name, doc)
        known.add(doc.get("uid") or doc.get("datum_id"))
        known.add(doc.get("datum_id"))
    assert docs[0][0] == "start"
    assert docs[-1][0] == "stop"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_of_interleaved_runs_comes_out_in_order(data):
    runs = [scan(), fly(), legacy()]
    mixed = data.draw(st.permutations([doc for run in runs for doc in run]))
    book = Book()
    for name, doc in mixed:
        book.sorter(name, doc)
    # Nothing is lost, so no stop has to wait for its grace.
    for run in runs:
        docs = book.got[run[0][1]["uid"]]
        assert_in_order(docs)
        assert sorted(map(repr, docs)) == sorted(map(repr, run))


def test_an_early_stop_waits_for_every_detector():
    docs = fly(2)
    *rest, last, stop = docs
    book, uid = Book(), docs[0][1]["uid"]
    for name, doc in [*rest, stop]:
        book.sorter(name, doc)
    assert "stop" not in book.names(uid)
    book.sorter(*last)
    assert book.names(uid)[-2:] == ["stream_datum", "stop"]


def test_an_early_stop_waits_for_its_grace_at_most():
    docs = scan(3)
    del docs[3]
    book, uid = Book(stop_grace_s=2.0), docs[0][1]["uid"]
    for name, doc in docs:
        book.sorter(name, doc)
    book.clock.now = 1.9
    book.sorter.tick()
    assert "stop" not in book.names(uid)
    book.clock.now = 2.0
    book.sorter.tick()
    assert book.names(uid)[-1] == "stop"
    assert book.reason(uid) is None


def test_an_event_whose_datum_is_lost_comes_before_the_stop():
    docs = [doc for doc in legacy(2) if doc[0] != "datum"]
    book, uid = Book(), docs[0][1]["uid"]
    for name, doc in docs:
        book.sorter(name, doc)
    assert "event" not in book.names(uid)
    book.sorter.close()
    assert book.names(uid)[-3:] == ["event", "event", "stop"]


def test_a_silent_run_and_the_end_of_the_source_close_without_a_stop():
    first, second = scan(), scan()
    book = Book(silence_s=10.0)
    for name, doc in first[:-1]:
        book.sorter(name, doc)
    book.clock.now = 10.0
    for name, doc in second[:-1]:
        book.sorter(name, doc)
    book.sorter.tick()
    uids = [run[0][1]["uid"] for run in (first, second)]
    assert book.reason(uids[0]) == "no stop document: silent for 10 s"
    assert "stop" not in book.names(uids[1])
    book.sorter.close()
    assert book.reason(uids[1]) == "no stop document: the documents ended"
    stops = [doc for uid in uids for name, doc in book.got[uid] if name == "stop"]
    assert [stop["run_start"] for stop in stops] == uids


def test_duplicates_are_passed_on_but_no_second_start_or_stop(caplog):
    docs = scan(2)
    book, uid = Book(), docs[0][1]["uid"]
    other = {**docs[0][1], "sample": np.zeros(3)}
    for name, doc in [docs[0], *docs[:4], ("start", other), docs[3], *docs[-1:] * 3]:
        book.sorter(name, doc)
    assert book.names(uid) == ["start", "descriptor", "event", "event", "event", "stop"]
    assert "second, different start" in caplog.text
    book.sorter(*docs[0])
    assert len(book.names(uid)) == 6


def test_results_of_an_analysis_are_skipped_whatever_comes_first():
    docs = scan(3, original_run_uid="abc")
    for order in (docs, docs[::-1]):
        book = Book()
        for name, doc in order:
            book.sorter(name, doc)
        assert book.got == {}
        assert not book.sorter._held


def test_pages_and_bulk_documents_are_unpacked():
    docs = legacy(3)
    uid = docs[0][1]["uid"]
    events = [doc for name, doc in docs if name == "event"]
    datums = [doc for name, doc in docs if name == "datum"]
    page = event_model.pack_event_page(*events)
    book = Book()
    for name, doc in [
        *docs[:3],
        ("event_page", page),
        ("datum_page", event_model.pack_datum_page(*datums)),
        docs[-1],
    ]:
        book.sorter(name, doc)
    assert_in_order(book.got[uid])
    assert book.names(uid).count("event") == 3


def test_what_is_held_is_bounded(caplog):
    lost = scan(50)
    book = Book(max_held=10)
    for name, doc in lost[2:-1]:
        book.sorter(name, doc)
    assert len(book.sorter._held) == 10
    assert "given up" in caplog.text
    big = Book(max_held_bytes=10_000_000)
    for k in range(20):
        event = {
            "descriptor": "d",
            "seq_num": k,
            "uid": str(k),
            "data": {"x": np.zeros((1000, 1000), np.uint8)},
            "timestamps": {},
        }
        big.sorter("event", event)
    assert len(big.sorter._held) == 9


@pytest.mark.parametrize(
    ("name", "doc"),
    [
        ("nonsense", {}),
        ("start", {}),
        ("start", {"uid": ["a"]}),
        ("event", {"descriptor": ["d"]}),
        ("event_page", {"data": 3}),
        ("descriptor", {"run_start": "R", "uid": "d", "name": "p", "data_keys": 7}),
        ("stream_datum", {"descriptor": "D"}),
        ("stop", {}),
        ("event", None),
    ],
)
def test_nonsense_is_refused_and_logged(name, doc, caplog):
    docs = scan(2)
    book, uid = Book(), docs[0][1]["uid"]
    book.sorter(*docs[0])
    if isinstance(doc, dict) and doc.get("run_start") == "R":
        doc = {**doc, "run_start": uid}
    with caplog.at_level(logging.WARNING):
        book.sorter(name, doc)
    assert "refused" in caplog.text
    for later in docs[1:]:
        book.sorter(*later)
    assert book.names(uid)[-1] == "stop"


def test_nothing_is_kept_of_finished_runs():
    book = Book()
    for _ in range(5):
        for name, doc in legacy(20):
            book.sorter(name, doc)
    sorter = book.sorter
    left = [sorter._runs, sorter._known, sorter._held]
    assert not any(left)
    assert len(sorter._gone) == 15


def test_what_a_consumer_raises_comes_out_and_the_others_are_closed():
    runs, closed = [scan(), scan()], []

    def factory(start):
        def consumer(name, doc):
            if name == "stop":
                closed.append(start["uid"])
                raise ValueError(start["uid"])

        return consumer

    sorter = RunSorter(factory)
    for run in runs:
        for name, doc in run[:-1]:
            sorter(name, doc)
    with pytest.raises(ValueError, match=runs[0][0][1]["uid"]):
        sorter.close()
    assert len(closed) == 2
