"""What may come in as a document: the attacks, and that they are named."""

from __future__ import annotations

import logging
import tracemalloc

import h5py
import numpy as np
import pytest

from ebl_stream.ingest.admission import Admission, Refusal, refusal
from ebl_stream.ingest.router import RunSorter
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.sources.files import FileSource

UID = "0b9f4d3e-8a2b-4c1d-9e5f-123456789abc"
HUGE = 10**15


def start(**more):
    return {"uid": UID, "time": 1.0, "plan_name": "scan", **more}


def descriptor(**more):
    key = {"source": "PV", "dtype": "array", "shape": [1, 16, 24]}
    keys = {"image": key, "theta": {"source": "PV", "dtype": "number", "shape": []}}
    doc = {"uid": "d", "run_start": UID, "time": 1.0, "name": "primary"}
    return {**doc, "data_keys": keys, **more}


def image_key(**more):
    keys = descriptor()["data_keys"]
    return descriptor(data_keys={**keys, "image": {**keys["image"], **more}})


def event(**more):
    doc = {"uid": "e", "descriptor": "d", "time": 1.0, "seq_num": 1, "filled": {}}
    data = {"theta": 1.0, "image": np.ones((16, 24), "u2")}
    return {**doc, "data": data, "timestamps": dict.fromkeys(data, 1.0), **more}


def resource(**more):
    doc = {"uid": "r", "run_start": UID, "data_key": "image"}
    place = {"mimetype": "application/x-hdf5", "uri": "file://localhost/a.h5"}
    return {**doc, **place, "parameters": {"dataset": "/x"}, **more}


def datum(**more):
    ranges = {"indices": {"start": 0, "stop": 5}, "seq_nums": {"start": 1, "stop": 6}}
    return {
        "uid": "r/0",
        "stream_resource": "r",
        "descriptor": "d",
        **ranges,
        **more,
    }


def stop(**more):
    doc = {"uid": "s", "run_start": UID, "time": 2.0, "exit_status": "success"}
    return {**doc, "num_events": {"primary": 5}, **more}


def nested(depth):
    tree = 0
    for _ in range(depth):
        tree = [tree]
    return tree


SOUND = [
    ("start", start()),
    ("start", start(time=float("nan"), sample={"name": "Gr\u00f6\u00dfe 3 \u00b5m"})),
    ("start", start(scan_id=None, motors=("theta",), shape=(3, 4))),
    ("descriptor", descriptor()),
    ("descriptor", image_key(shape=[None], dtype_numpy="<u2", units=None)),
    ("descriptor", image_key(dtype_numpy=[["a", "<f8"], ["b", "|S40"]])),
    ("event", event()),
    ("event", event(time=-1e9, timestamps={})),
    ("stream_resource", resource()),
    ("stream_resource", {"uid": "r", "spec": "AD_HDF5", "resource_path": "a.h5"}),
    ("stream_datum", datum()),
    ("stream_datum", datum(seq_nums={"start": 0, "stop": 0})),
    ("stop", stop()),
    ("stop", stop(exit_status="abort", reason="line 1\nline 2", num_events={})),
    (
        "resource",
        {"uid": "r", "spec": "s", "resource_path": "a", "resource_kwargs": {}},
    ),
    ("datum", {"datum_id": "r/0", "resource": "r", "datum_kwargs": {"point": 3}}),
]

HOSTILE = [
    ("start", start(uid="")),
    ("start", start(uid=7)),
    ("start", start(uid="x" * 513)),
    ("start", start(uid="a\x1b[2Jb")),
    ("start", start(uid="a\nERROR: forged")),
    ("start", start(note="x" * 2_000_000)),
    ("start", start(many=dict.fromkeys(map(str, range(5000)), 0))),
    ("start", start(deep=nested(100))),
    ("start", start(n_projections=10**400)),
    ("start", start(objects=np.array([None]))),
    ("start", start(axes=np.zeros((1,) * 9))),
    ("start", start(huge=np.broadcast_to(np.uint8(0), (1 << 20, 1 << 20)))),
    ("start", start(time="now")),
    ("descriptor", image_key(shape=[-1, 4, 4])),
    ("descriptor", image_key(shape=[10**18, 10**18])),
    ("descriptor", image_key(shape=[1] * 3000)),
    ("descriptor", image_key(shape=[2**31] * 3)),
    ("descriptor", image_key(shape="16x24")),
    ("descriptor", image_key(dtype_numpy="<U9999999999")),
    ("descriptor", image_key(dtype_numpy="(1000000000,)f8")),
    ("descriptor", image_key(dtype_numpy="f8,f8,f8")),
    ("descriptor", descriptor(data_keys={"a\x1b]0;": {"shape": []}})),
    ("descriptor", descriptor(data_keys=[1])),
    ("descriptor", descriptor(data_keys={"image": 3})),
    ("descriptor", descriptor(name="x" * 300)),
    ("event", event(seq_num=-1)),
    ("event", event(seq_num=0)),
    ("event", event(seq_num=HUGE)),
    ("event", event(seq_num=True)),
    ("event", event(seq_num="1")),
    ("event", event(data=[1])),
    ("event", event(filled={"image": 3})),
    ("event", event(descriptor=["d"])),
    ("stream_datum", datum(indices={"start": 0, "stop": HUGE})),
    ("stream_datum", datum(indices={"start": 5, "stop": 2})),
    ("stream_datum", datum(indices={"start": -3, "stop": 2})),
    ("stream_datum", datum(indices={"start": 0.5, "stop": 2})),
    ("stream_datum", datum(seq_nums={"start": 9, "stop": 2})),
    ("stream_datum", datum(seq_nums=None)),
    ("stream_resource", resource(uri="file:///" + "a" * 5000)),
    ("stream_resource", resource(uri=["file:///a"])),
    ("stream_resource", resource(mimetype=None)),
    ("stream_resource", {"uid": "r", "mimetype": "application/x-hdf5"}),
    ("stream_resource", resource(parameters={"dataset": 3})),
    ("stream_resource", resource(parameters={"multiplier": HUGE})),
    ("stream_resource", resource(parameters={"multiplier": -1})),
    ("stop", stop(num_events={"primary": -3})),
    ("stop", stop(num_events={"primary": HUGE})),
    ("stop", stop(run_start=None)),
    ("event_page", {"seq_num": [1] * 300_000}),
    ("event_page", {"data": {"a": nested(100)}}),
    ("begin", start()),
    (b"start", start()),
    (None, start()),
    ("start", None),
    ("start", [1]),
    ("\x1b[31mstart", start()),
]


@pytest.mark.parametrize(("name", "doc"), SOUND)
def test_sound_documents_are_let_in(name, doc):
    assert refusal(name, doc) is None


@pytest.mark.parametrize(("name", "doc"), HOSTILE)
def test_hostile_documents_are_refused_without_memory(name, doc):
    tracemalloc.start()
    refused = refusal(name, doc)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused is not None
    assert refused.words.isprintable()
    assert len(refused.words) <= 200
    assert peak < 2**20


def test_pages_are_judged_event_by_event():
    page = {
        "descriptor": "d",
        "uid": ["a", "b", "c"],
        "time": [1.0, 2.0, 3.0],
        "seq_num": [1, -2, 3],
        "data": {"theta": [0.0, 1.0, 2.0]},
        "timestamps": {"theta": [0.0, 1.0, 2.0]},
        "filled": {},
    }
    admission = Admission()
    let_in = [one for one in admission("event_page", page) if isinstance(one, tuple)]
    assert [doc["seq_num"] for _, doc in let_in] == [1, 3]
    assert admission.refused == {"event: malformed": 1}
    (short,) = admission("event_page", {**page, "data": 3})
    assert isinstance(short, Refusal)


def test_a_run_is_told_what_of_it_was_refused(caplog):
    told = []
    sorter = RunSorter(lambda start: lambda name, doc: told.append((name, doc)))
    sorter("start", start())
    sorter("descriptor", descriptor())
    for _ in range(3):
        sorter("event", event(seq_num=-1))
    sorter("event", event(seq_num=-1, descriptor="of nobody"))
    sorter("stop", stop(num_events={}))
    refused = [doc["what"] for name, doc in told if name == "refused"]
    assert refused == ["event: malformed"] * 3
    assert told[-1][0] == "stop"
    # One line, however many there were.
    assert caplog.text.count("refused a document") == 1


def test_floods_of_names_and_uids_stay_small(caplog):
    """Neither counters nor logs nor open runs grow with what an attacker makes up."""
    opened = []

    def factory(start):
        opened.append(start["uid"])
        return lambda name, doc: None

    sorter = RunSorter(factory)
    tracemalloc.start()
    with caplog.at_level(logging.WARNING):
        for n in range(5000):
            sorter(f"unknown-{n}", {"uid": str(n)})
            sorter("event", event(seq_num=-n, uid=f"e{n}"))
        caplog.clear()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 2 * 2**20
    assert len(sorter._admit.refused) == 2
    for n in range(2000):
        sorter("start", start(uid=f"run-{n}"))
    assert len(sorter._runs) <= 64
    sorter.close()


def test_a_run_publishes_what_of_it_was_refused(tmp_path):
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        rng = np.random.default_rng(0)
        file["exchange/data"] = rng.integers(500, 900, (12, 16, 32), np.uint16)
        file["exchange/data_white"] = np.full((2, 16, 32), 1000, np.uint16)
        file["exchange/data_dark"] = np.full((2, 16, 32), 10, np.uint16)
        file["exchange/theta"] = np.linspace(0, 165, 12)
    source = FileSource(tmp_path / "scan.h5", None)
    house = Reconstruction(source.profile, out=tmp_path / "out", roots=source.roots)
    for name, doc in source.documents():
        house(name, doc)
        if name == "stream_datum":
            house(name, {**doc, "indices": {"start": 0, "stop": HUGE}})
            house("event", {"descriptor": doc["descriptor"], "seq_num": -1})
    house.close()
    (result,) = house.results.values()
    assert result.n_projections == 12
    (path,) = (tmp_path / "out").glob("*/metadata.json")
    text = path.read_text()
    assert '"refused_documents"' in text
    assert '"stream_datum: malformed"' in text
    assert '"event: malformed"' in text
