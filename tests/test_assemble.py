"""Images inside events: every dialect, every accident."""

import math

import event_model
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky import plans as bp
from hypothesis import given, settings
from hypothesis import strategies as st
from ophyd.sim import SynSignal, motor
from scans import (
    H,
    W,
    assemble,
    image_key,
    images,
    make_profile,
    scalar,
    stepped,
)

from ebl_stream.errors import InputError
from ebl_stream.frames import (
    Closed,
    Kind,
)


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
    outcome = assemble(docs, make_profile(keys={"theta": "theta", "theta_unit": "rad"}))
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
    outcome = assemble(
        stepped(data, [10, 20]), make_profile(geometry=geometry), rows=(2, 5)
    )
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
        assemble(docs, make_profile(keys=settings))
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
