"""Documents of a run in, frames out: every dialect, every accident."""

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import event_model
import h5py
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky import plans as bp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ophyd.sim import SynSignal, motor

from ebl_stream.assemble import Assembler
from ebl_stream.errors import InputError
from ebl_stream.frames import (
    Announced,
    Closed,
    Frame,
    Kind,
    Rejected,
    Repeated,
    Scan,
)
from ebl_stream.hdf5 import read_frame
from ebl_stream.profile import Profile
from ebl_stream.router import RunSorter

H, W = 8, 12


def images(n, seed=0):
    return np.random.default_rng(seed).integers(1, 60_000, (n, H, W), np.uint16)


def image_key(shape=(H, W), external=None):
    key = {"dtype": "array", "shape": list(shape), "source": "test"}
    return key | ({"external": external} if external else {})


def scalar(**extra):
    return {"dtype": "number", "shape": [], "source": "test", **extra}


def profile(timeout_s=0.3, **sections):
    files = {"timeout_s": timeout_s, **sections.pop("files", {})}
    return Profile.model_validate({"files": files, **sections})


class Outcome:
    """What came of a run: the last word on every key."""

    def __init__(self, items):
        self.items = items
        self.frames, self.rejected = {}, {}
        self.announced, self.repeated = Counter(), Counter()
        for item in items:
            match item:
                case Announced():
                    for index in range(item.start, item.stop):
                        self.announced[(item.kind, index)] += 1
                case Repeated():
                    self.repeated[item.how] += item.stop - item.start
                case Frame():
                    self.frames[(item.kind, item.index)] = item
                    self.rejected.pop((item.kind, item.index), None)
                case Rejected():
                    self.rejected[(item.kind, item.index)] = item.reason
                    self.frames.pop((item.kind, item.index), None)

    @property
    def scan(self):
        assert [type(item) for item in self.items].count(Scan) == 1
        assert isinstance(self.items[0], Scan)
        return self.items[0]

    @property
    def closed(self):
        assert isinstance(self.items[-1], Closed)
        return self.items[-1]

    def check_conserved(self):
        """Each frame is announced once, and is there or has a reason."""
        assert set(self.announced.values()) <= {1}
        assert self.announced.keys() == self.frames.keys() | self.rejected.keys()

    def stack(self, kind=Kind.PROJECTION):
        keys = sorted(key for key in self.frames if key[0] is kind)
        return np.stack([self.frames[key].image for key in keys])

    def theta(self):
        keys = sorted(key for key in self.frames if key[0] is Kind.PROJECTION)
        return np.array([self.frames[key].theta for key in keys])


def assemble(docs, profile=None, sort=False, **kwargs):
    assembler, items = Assembler(profile or globals()["profile"](), **kwargs), []

    def feed(name, doc):
        items.extend(assembler(name, doc))

    if sort:
        sorter = RunSorter(lambda start: feed)
        for name, doc in docs:
            sorter(name, doc)
        sorter.close()
    else:
        for name, doc in docs:
            feed(name, doc)
    items.extend(assembler.close())
    outcome = Outcome(items)
    return outcome


def stepped(frames, theta, start=None, keys=None, stream="primary"):
    """A step scan with images inside its events."""
    run = event_model.compose_run(metadata=start or {})
    keys = keys or {"image": image_key(), "theta": scalar(units="deg")}
    descriptor = run.compose_descriptor(name=stream, data_keys=keys)
    docs = [("start", run.start_doc), ("descriptor", descriptor.descriptor_doc)]
    for image, angle in zip(frames, theta, strict=True):
        event = descriptor.compose_event(
            data={"image": image, "theta": angle},
            timestamps={"image": 0.0, "theta": 0.0},
            validate=False,
        )
        docs.append(("event", event))
    return [*docs, ("stop", run.compose_stop())]


class Fly:
    """A fly scan: datasets of one file, told by StreamResource and StreamDatum."""

    def __init__(self, path, datasets, shapes, start=None, stream="primary"):
        self.run = event_model.compose_run(metadata=start or {})
        keys = {
            key: image_key(shape, "STREAM:")
            if len(shape) > 1
            else {**scalar(), "shape": list(shape), "external": "STREAM:"}
            for key, shape in shapes.items()
        }
        self.descriptor = self.run.compose_descriptor(name=stream, data_keys=keys)
        self.docs = [
            ("start", self.run.start_doc),
            ("descriptor", self.descriptor.descriptor_doc),
        ]
        self.resources = {}
        self.stream, self.n = stream, 0
        for key, dataset in datasets.items():
            resource = self.run.compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{path}",
                data_key=key,
                parameters={"dataset": dataset},
            )
            self.resources[key] = resource
            self.docs.append(("stream_resource", resource.stream_resource_doc))

    def datum(self, key, start, stop, seq=None):
        seq = start + 1 if seq is None else seq
        self.n = max(self.n, seq + stop - start - 1)
        doc = self.resources[key].compose_stream_datum(
            indices={"start": start, "stop": stop},
            seq_nums={"start": seq, "stop": seq + stop - start},
            descriptor=self.descriptor.descriptor_doc,
            validate=False,
        )
        self.docs.append(("stream_datum", doc))
        return self

    def stop(self):
        stop = self.run.compose_stop() | {"num_events": {self.stream: self.n}}
        return [*self.docs, ("stop", stop)]


@pytest.fixture
def file(tmp_path):
    def write(**datasets) -> Path:
        path = tmp_path / "scan.h5"
        with h5py.File(path, "w") as file:
            for name, values in datasets.items():
                file[name] = values
        return path

    return write


# ------------------------------------------------------------- inside the events


def test_a_run_engine_with_images_in_its_events():
    taken = []

    def expose():
        taken.append(images(1, seed=len(taken))[0])
        return taken[-1]

    camera, docs = SynSignal(expose, name="camera", labels={"detectors"}), []
    engine = RunEngine({}, call_returns_result=False)
    engine.subscribe(lambda name, doc: docs.append((name, doc)))
    engine(bp.scan([camera], motor, 0, 170, 18))
    outcome = assemble(docs, sort=True)
    outcome.check_conserved()
    assert outcome.scan.n_projections == 18
    assert outcome.closed == Closed("success", "", 18, 0)
    np.testing.assert_array_equal(outcome.stack(), taken[-18:])
    np.testing.assert_allclose(outcome.theta(), np.radians(np.arange(0, 180, 10)))


@pytest.mark.parametrize("m", [1, 3])
def test_several_images_in_an_event_are_numbered_on(m):
    data = images(4 * m)
    keys = {"image": image_key((m, H, W)), "rot": scalar(units="rad")}
    docs = stepped(
        data.reshape(4, m, H, W), [0, 0.1, 0.2, 0.3], keys={**keys, "theta": scalar()}
    )
    outcome = assemble(docs, profile(keys={"theta": "theta", "theta_unit": "rad"}))
    outcome.check_conserved()
    np.testing.assert_array_equal(outcome.stack(), data)
    np.testing.assert_allclose(outcome.theta(), np.repeat([0, 0.1, 0.2, 0.3], m))
    assert outcome.closed.n_announced_by_stop == 4 * m


def test_bad_events_get_their_reasons():
    frames = [*images(6)]
    frames[1] = frames[1][:, :-1]
    frames[2] = frames[2].astype(np.float32)
    frames[3] = [["a"], ["b", "c"]]
    theta = [0, 1, 2, 3, math.nan, "x"]
    outcome = assemble(stepped(frames, theta))
    outcome.check_conserved()
    reasons = [outcome.rejected.get((Kind.PROJECTION, k)) for k in range(6)]
    assert reasons == [None, *["wrong_shape"] * 3, *["no_angle"] * 2]


def test_lists_take_the_type_that_the_descriptor_says():
    keys = {"image": image_key() | {"dtype_numpy": "<u2"}, "theta": scalar()}
    data = images(2)
    outcome = assemble(stepped(data.tolist(), [0, 1], keys=keys))
    assert outcome.stack().dtype == np.uint16
    np.testing.assert_array_equal(outcome.stack(), data)


def test_rows_are_cut_and_geometry_is_applied():
    data = images(2)
    geometry = {"reverse_theta": True, "flip_columns": True}
    outcome = assemble(stepped(data, [10, 20]), profile(geometry=geometry), rows=(2, 5))
    np.testing.assert_array_equal(outcome.stack(), data[:, 2:5])
    np.testing.assert_allclose(outcome.theta(), math.pi - np.radians([10, 20]))
    assert outcome.scan.rows == (2, 5)
    with pytest.raises(InputError, match="have 8 rows"):
        assemble(stepped(data, [10, 20]), rows=(2, 9))


def test_a_run_without_images_is_harmless():
    docs = stepped([1.0, 2.0], [0, 1], keys={"image": scalar(), "theta": scalar()})
    assert assemble(docs).items == []


@pytest.mark.parametrize(
    ("keys", "settings", "said"),
    [
        ({"a": image_key(), "b": image_key(), "theta": scalar()}, {}, "a, b"),
        ({"a": image_key(), "x": scalar()}, {}, "no angle.*a, x"),
        ({"a": image_key(), "theta": scalar()}, {"image": "b"}, "'b'"),
        ({"a": image_key(), "theta": scalar()}, {"theta": "tehta"}, "mean 'theta'"),
        ({"a": image_key(), "rot": scalar(), "angle": scalar()}, {}, "angle, rot"),
        ({"a": image_key(), "theta": scalar()}, {"image_key": "k"}, "'k'"),
    ],
)
def test_what_cannot_be_decided_is_asked_for(keys, settings, said):
    run = event_model.compose_run()
    descriptor = run.compose_descriptor(name="primary", data_keys=keys).descriptor_doc
    docs = [("start", run.start_doc), ("descriptor", descriptor)]
    with pytest.raises(InputError, match="(?s)" + said) as asked:
        assemble(docs, profile(keys=settings))
    assert len(str(asked.value).splitlines()) <= 4


@pytest.mark.parametrize(
    ("keys", "start", "theta"),
    [
        (["cam-theta", "x"], {}, "cam-theta"),
        (["m1", "m1_user_setpoint"], {"hints": {"dimensions": [[["m1"], "p"]]}}, "m1"),
        (["m1", "m2"], {"motors": ["m2"]}, "m2"),
        (["x", "theta"], {"motors": ["x", "theta"]}, "theta"),
        (["rectangle", "rot", "rot_setpoint"], {}, "rot"),
    ],
)
def test_the_angle_is_found(keys, start, theta):
    run = event_model.compose_run(metadata=start)
    all_keys = {"image": image_key()} | {key: scalar() for key in keys}
    descriptor = run.compose_descriptor(name="primary", data_keys=all_keys)
    data = {"image": images(1)[0]} | {key: k + 5 for k, key in enumerate(keys)}
    event = descriptor.compose_event(
        data=data, timestamps=dict.fromkeys(data, 0.0), validate=False
    )
    docs = [("start", run.start_doc), ("descriptor", descriptor.descriptor_doc)]
    outcome = assemble([*docs, ("event", event), ("stop", run.compose_stop())])
    assert outcome.theta() == pytest.approx(math.radians(keys.index(theta) + 5))


ACCIDENTS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["again", "anew", "lost"])), max_size=6
)


@settings(max_examples=40, deadline=None)
@given(accidents=ACCIDENTS, data=st.data())
def test_any_order_repetition_and_loss_of_events_is_conserved(accidents, data):
    docs = stepped(images(6), np.arange(6.0))
    head, events, stop = docs[:2], docs[2:-1], docs[-1]
    lost = {k for k, what in accidents if what == "lost"}
    sent = [event for k, event in enumerate(events) if k not in lost]
    for n, (k, what) in enumerate(accidents):
        doc = events[k][1]
        if what == "again" and k not in lost:
            sent.append(events[k])
        if what == "anew":
            image = images(1, seed=n + 1)[0]
            new = {"uid": f"new-{n}", "data": {"image": image, "theta": 100.0 + n}}
            sent.append(("event", doc | new))
    # Repetitions that come after the stop and all it counts are nobody's any more.
    order = [*data.draw(st.permutations([*head, *sent])), stop]
    outcome = assemble(order, sort=True)
    outcome.check_conserved()
    distinct = {doc["uid"]: doc for _, doc in reversed(sent)}
    came = list(dict.fromkeys(d["uid"] for n, d in order if n == "event"))
    last = {distinct[uid]["seq_num"]: distinct[uid] for uid in came}
    assert len(outcome.announced) == len(last)
    assert outcome.repeated["duplicate"] == len(sent) - len(came)
    assert outcome.repeated["superseded"] == len(came) - len(last)
    for seq, doc in last.items():
        frame = outcome.frames[(Kind.PROJECTION, seq - 1)]
        np.testing.assert_array_equal(frame.image, doc["data"]["image"])
        assert frame.theta == pytest.approx(math.radians(doc["data"]["theta"]))


# ----------------------------------------------------------------- in their files


@pytest.mark.parametrize(
    ("shape", "described"),
    [
        ((12, H, W), (H, W)),
        ((12, H, W), (1, H, W)),
        ((12, 1, H, W), (1, H, W)),
        ((12, 1, H, W), (H, W)),
        ((4, 3, H, W), (3, H, W)),
        ((4, 3, H, W), (H, W)),
        ((12, H, W), (3, H, W)),
        ((12, H, W), (0, H, W)),
    ],
)
def test_every_layout_of_a_dataset(file, shape, described):
    data = images(12)
    per_event = 3 if shape[0] == 4 or described[0] == 3 else 1
    n = 12 // per_event
    angles = np.arange(n, dtype=float)
    path = file(image=data.reshape(shape), theta=angles)
    fly = Fly(
        path, {"image": "image", "theta": "/theta"}, {"image": described, "theta": ()}
    )
    docs = fly.datum("theta", 0, n).datum("image", 0, 3).datum("image", 3, n).stop()
    outcome = assemble(docs, roots=[path.parent], rows=(1, 7))
    outcome.check_conserved()
    np.testing.assert_array_equal(outcome.stack(), data[:, 1:7])
    np.testing.assert_allclose(
        outcome.theta(), np.radians(np.repeat(angles, per_event))
    )
    assert outcome.closed == Closed("success", "", 12, 0)
    for frame in outcome.frames.values():
        np.testing.assert_array_equal(read_frame(frame.ref), frame.image)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_image_and_angle_are_joined_in_any_order_after_a_rewind(tmp_path, data):
    path = tmp_path / "rewind.h5"
    stack = images(9)
    if not path.exists():
        with h5py.File(path, "w") as file:
            file["image"], file["theta"] = stack, np.arange(9.0)
    fly = Fly(
        path, {"image": "image", "theta": "theta"}, {"image": (H, W), "theta": (1,)}
    )
    head = list(fly.docs)
    for key in ("image", "theta"):
        # Numbers 4 and 5 are taken twice; their places in the file go on.
        fly.datum(key, 0, 5).datum(key, 5, 7, seq=4).datum(key, 7, 9, seq=6)
    *datums, stop = fly.stop()[len(head) :]
    order = data.draw(st.permutations(datums))
    outcome = assemble([*head, *order, order[0], stop], roots=[tmp_path])
    outcome.check_conserved()
    assert outcome.closed == Closed("success", "", 7, 0)
    place = {seq: seq - 1 for seq in (1, 2, 3)} | {6: 7, 7: 8}
    spots = {"image": dict(place), "theta": dict(place)}
    for _, doc in order:
        key = next(
            k
            for k, r in fly.resources.items()
            if r.stream_resource_doc["uid"] == doc["stream_resource"]
        )
        for i in range(doc["indices"]["start"], doc["indices"]["stop"]):
            spots[key][doc["seq_nums"]["start"] + i - doc["indices"]["start"]] = i
    for seq in range(1, 8):
        frame = outcome.frames[(Kind.PROJECTION, seq - 1)]
        np.testing.assert_array_equal(frame.image, stack[spots["image"][seq]])
        assert frame.theta == pytest.approx(math.radians(spots["theta"][seq]))
    is_image = order[0][1]["stream_resource"] == fly.docs[2][1]["uid"]
    assert outcome.repeated["superseded"] == 2
    first = order[0][1]["indices"]
    again = first["stop"] - first["start"] if is_image else 0
    assert outcome.repeated["duplicate"] == again


def test_the_kinds_of_an_nxtomo_dataset(file):
    data = images(10)
    keys = np.array([2, 1, 1, 0, 0, 3, 0, 0, 1, 2])
    path = file(image=data, theta=np.arange(10.0), key=keys)
    shapes = {"image": (H, W), "theta": (), "key": ()}
    names = {"image": "image", "theta": "theta", "key": "key"}
    for order in (("image", "theta", "key"), ("key", "theta", "image")):
        fly = Fly(path, names, shapes, start={"n_projections": 4})
        for key in order:
            fly.datum(key, 0, 4).datum(key, 4, 10)
        outcome = assemble(
            fly.stop(), profile(keys={"image_key": "key"}), roots=[path.parent]
        )
        outcome.check_conserved()
        assert outcome.closed.n_announced_by_stop == 4
        assert outcome.scan.n_projections == 4
        for kind in (Kind.PROJECTION, Kind.FLAT, Kind.DARK):
            np.testing.assert_array_equal(outcome.stack(kind), data[keys == kind])
        assert outcome.rejected == {(Kind.INVALID, 5): "invalid_kind"}
        assert {i for k, i in outcome.frames if k is Kind.FLAT} == {1, 2, 8}


def test_flats_and_darks_have_streams_of_their_own():
    run = event_model.compose_run()
    docs, data = [("start", run.start_doc)], images(9)
    for k, stream in enumerate(("darks", "flats", "primary")):
        keys = {"image": image_key()} | ({"theta": scalar()} if k == 2 else {})
        descriptor = run.compose_descriptor(name=stream, data_keys=keys)
        docs.append(("descriptor", descriptor.descriptor_doc))
        for image in data[3 * k : 3 * k + 3]:
            values = {"image": image} | ({"theta": 1.0} if k == 2 else {})
            event = descriptor.compose_event(
                data=values, timestamps=dict.fromkeys(values, 0.0), validate=False
            )
            docs.append(("event", event))
    outcome = assemble([*docs, ("stop", run.compose_stop())])
    outcome.check_conserved()
    for kind, first in ((Kind.DARK, 0), (Kind.FLAT, 3), (Kind.PROJECTION, 6)):
        np.testing.assert_array_equal(outcome.stack(kind), data[first : first + 3])
    assert outcome.closed.n_announced_by_stop == 3


def test_what_is_announced_and_not_there_has_a_reason(file):
    path = file(image=images(8), theta=np.arange(4.0))
    fly = Fly(
        path, {"image": "image", "theta": "theta"}, {"image": (H, W), "theta": ()}
    )
    fly.datum("theta", 0, 6).datum("image", 0, 5).datum("image", 7, 9)
    fly.datum("theta", 0, 3, seq=20)
    outcome = assemble(fly.stop(), roots=[path.parent])
    outcome.check_conserved()
    assert outcome.closed.n_orphan == 2
    reasons = {index: why for (_, index), why in outcome.rejected.items()}
    assert reasons == {
        4: "no_angle",
        5: "no_image",
        7: "no_angle",
        8: "no_angle",
        19: "no_image",
        20: "no_image",
        21: "no_image",
    }


@pytest.mark.parametrize(
    ("indices", "seq_nums"),
    [
        ((5, 2), (6, 3)),
        ((-2, 1), (1, 4)),
        ((0, 10**15), (1, 10**15 + 1)),
        ((0, 3), (-3, 0)),
        ((0, 3), (1, 9)),
        ((0, "3"), (1, 4)),
    ],
)
def test_malformed_ranges_are_ignored(file, indices, seq_nums, caplog):
    path = file(image=images(4), theta=np.arange(4.0))
    fly = Fly(
        path, {"image": "image", "theta": "theta"}, {"image": (H, W), "theta": ()}
    )
    for key in ("image", "theta"):
        fly.datum(key, 0, 2)
        fly.docs[-1][1]["indices"] = dict(zip(("start", "stop"), indices, strict=True))
        fly.docs[-1][1]["seq_nums"] = dict(
            zip(("start", "stop"), seq_nums, strict=True)
        )
        fly.datum(key, 0, 4)
    outcome = assemble(fly.stop(), roots=[path.parent])
    outcome.check_conserved()
    assert len(outcome.frames) == 4
    assert "malformed" in caplog.text


def test_frames_outside_the_roots_are_refused(file, tmp_path):
    path = file(image=images(2), theta=np.arange(2.0))
    (tmp_path / "allowed").mkdir()
    fly = Fly(
        path, {"image": "image", "theta": "theta"}, {"image": (H, W), "theta": ()}
    )
    docs = fly.datum("theta", 0, 2).datum("image", 0, 2).stop()
    with pytest.raises(InputError, match="outside the allowed folders"):
        assemble(docs, roots=[tmp_path / "allowed"])


def test_a_truncated_file_yields_what_is_left_of_it(tmp_path):
    data, path = images(20), tmp_path / "cut.h5"
    with h5py.File(path, "w") as file:
        file["theta"] = np.arange(20.0)
        file["image"] = data
    path.write_bytes(path.read_bytes()[: -7 * H * W * 2 - 5])
    fly = Fly(
        path, {"image": "image", "theta": "theta"}, {"image": (H, W), "theta": ()}
    )
    docs = fly.datum("theta", 0, 20).datum("image", 0, 20).stop()
    outcome = assemble(docs, roots=[tmp_path])
    outcome.check_conserved()
    np.testing.assert_array_equal(outcome.stack(), data[:12])
    assert outcome.rejected == {
        (Kind.PROJECTION, k): "unreadable" for k in range(12, 20)
    }


WRITER = """
import sys, time, h5py, numpy as np
path, swmr, n = sys.argv[1], sys.argv[2] == "swmr", 12
data = np.random.default_rng(0).integers(1, 60_000, (n, 8, 12), np.uint16)
with h5py.File(path, "w", libver="latest") as file:
    image = file.create_dataset("image", (0, 8, 12), "u2", maxshape=(None, 8, 12),
                                chunks=(1, 8, 12))
    theta = file.create_dataset("theta", (0,), "f8", maxshape=(None,), chunks=(64,))
    if swmr:
        file.swmr_mode = True
    print("ready", flush=True)
    for k in range(n):
        sys.stdin.readline()
        time.sleep(0.02)
        image.resize(k + 1, 0); theta.resize(k + 1, 0)
        image[k], theta[k] = data[k], k
        image.flush(); theta.flush()
    sys.stdin.readline()
"""


@pytest.fixture
def writer(tmp_path):
    """Another process that writes a frame for every line it is sent."""
    running = []

    def start(mode):
        path = tmp_path / "live.h5"
        command = [sys.executable, "-c", WRITER, str(path), mode]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        running.append(process)
        assert process.stdout.readline() == "ready\n"
        return path, process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def live_scan(path, assembler, process):
    """Tell of every frame before it is written; return how many came at once."""
    fly = Fly(
        path, {"image": "image", "theta": "theta"}, {"image": (H, W), "theta": ()}
    )
    items, at_once = [], []
    for doc in fly.docs:
        items.extend(assembler(*doc))
    for k in range(12):
        process.stdin.write("\n")
        fly.datum("image", k, k + 1).datum("theta", k, k + 1)
        made = [item for doc in fly.docs[-2:] for item in assembler(*doc)]
        at_once.append(sum(isinstance(item, Frame) for item in made))
        items.extend(made)
    process.communicate("\n")
    items.extend(assembler(*fly.stop()[-1]))
    return Outcome(items), at_once


def test_a_growing_file_is_read_while_another_process_writes_it(writer):
    path, process = writer("swmr")
    assembler = Assembler(profile(timeout_s=20), roots=[path.parent])
    outcome, at_once = live_scan(path, assembler, process)
    outcome.check_conserved()
    assert at_once == [1] * 12
    np.testing.assert_array_equal(outcome.stack(), images(12))
    np.testing.assert_allclose(outcome.theta(), np.radians(np.arange(12)))


def test_a_file_that_is_locked_until_its_end_is_read_then(writer):
    path, process = writer("locked")
    assembler = Assembler(profile(), roots=[path.parent])
    outcome, at_once = live_scan(path, assembler, process)
    outcome.check_conserved()
    assert at_once == [0] * 12
    np.testing.assert_array_equal(outcome.stack(), images(12))


def test_a_writer_that_dies_costs_one_timeout_and_its_frames(writer, caplog):
    path, process = writer("swmr")
    fly = Fly(
        path, {"image": "image", "theta": "theta"}, {"image": (H, W), "theta": ()}
    )
    process.stdin.write("\n")
    fly.datum("image", 0, 1).datum("theta", 0, 1)
    assembler = Assembler(profile(timeout_s=1), roots=[path.parent])
    items = [item for doc in fly.docs for item in assembler(*doc)]
    process.kill()
    process.wait()
    fly.docs.clear()
    for k in range(1, 12):
        fly.datum("image", k, k + 1).datum("theta", k, k + 1)
    items += [item for doc in fly.docs for item in assembler(*doc)]
    outcome = Outcome([*items, *assembler.close()])
    outcome.check_conserved()
    assert len(outcome.frames) == 1
    assert len(outcome.rejected) == 11
    # It is the angles that are waited for: images wait for them.
    assert caplog.text.count("after the timeout") == 1
    assert outcome.closed.exit_status == "unknown"


# ----------------------------------------------------------------- as it was once


def test_legacy_datums_keep_the_number_of_their_event(file):
    """After a rewind the place in the file goes on, and the event's number does not."""
    data = images(5)
    path = file(**{"entry": data})
    run = event_model.compose_run()
    keys = {"image": image_key((1, H, W), "FILESTORE:"), "theta": scalar()}
    descriptor = run.compose_descriptor(name="primary", data_keys=keys)
    resource = run.compose_resource(
        spec="AD_HDF5",
        root="/",
        resource_path=str(path)[1:],
        resource_kwargs={"dataset": "entry", "frame_per_point": 1},
    )
    docs = [
        ("start", run.start_doc),
        ("descriptor", descriptor.descriptor_doc),
        ("resource", resource.resource_doc),
    ]
    for point, seq in enumerate((1, 2, 3, 2, 3)):
        datum = resource.compose_datum(datum_kwargs={"point_number": point})
        event = descriptor.compose_event(
            data={"image": datum["datum_id"], "theta": float(seq)},
            timestamps={"image": 0.0, "theta": 0.0},
            filled={"image": False},
            seq_num=seq,
        )
        docs += [("datum", datum), ("event", event)]
    docs.append(("stop", run.compose_stop() | {"num_events": {"primary": 3}}))
    for order in (docs, [*docs[:2], *docs[3:5], docs[2], *docs[5:]]):
        outcome = assemble(order, sort=True, roots=[path.parent])
        outcome.check_conserved()
        np.testing.assert_array_equal(outcome.stack(), data[[0, 3, 4]])
        assert outcome.repeated == {"superseded": 2}
        assert outcome.closed == Closed("success", "", 3, 0)


def test_an_abort_and_a_missing_stop_are_told_apart():
    docs = stepped(images(2), [0, 1])
    docs[-1][1].update(exit_status="abort", reason="beam lost")
    assert assemble(docs).closed == Closed("abort", "beam lost", 2, 0)
    assert assemble(docs[:-1]).closed == Closed("unknown", "", None, 0)


def test_thousands_of_small_frames_stay_linear():
    """Each frame is looked at a bounded number of times, however many there are."""
    docs = stepped(images(5000), np.linspace(0, 180, 5000))
    outcome = assemble(docs)
    outcome.check_conserved()
    assert len(outcome.frames) == 5000
