"""Frames in HDF5 files: layouts, joins, legacy datums, what is not there."""

import math
from pathlib import Path

import event_model
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scans import (
    Fly,
    H,
    W,
    assemble,
    image_key,
    images,
    make_profile,
    scalar,
)

from ebl_stream.errors import InputError
from ebl_stream.frames import (
    Closed,
    Kind,
)
from ebl_stream.ingest.hdf5 import read_frame


@pytest.fixture
def file(tmp_path):
    def write(**datasets) -> Path:
        path = tmp_path / "scan.h5"
        with h5py.File(path, "w") as file:
            for name, values in datasets.items():
                file[name] = values
        return path

    return write


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
            fly.stop(), make_profile(keys={"image_key": "key"}), roots=[path.parent]
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
