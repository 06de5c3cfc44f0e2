"""Angles: where they come from, in which unit, and those that are missing."""

from __future__ import annotations

import math
from typing import Any

import event_model
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scans import assemble, image_key, images, make_profile, scalar, stepped

from ebl_stream.errors import InputError
from ebl_stream.frames import Kind
from ebl_stream.ingest.angles import interpolate
from ebl_stream.simulation.phantom import golden_angles


@pytest.mark.parametrize(
    ("units", "settings", "factor"),
    [
        (None, {}, math.pi / 180),
        ("degrees", {}, math.pi / 180),
        ("°", {}, math.pi / 180),
        ("rad", {}, 1.0),
        ("mrad", {}, 1e-3),
        ("mrad", {"theta_unit": "rad"}, 1.0),
        ("", {"theta_unit": "mrad"}, 1e-3),
        ("counts", {"theta_unit": "deg"}, math.pi / 180),
        (
            "deg",
            {"theta_unit": "counts", "counts_per_turn": 72_000},
            2 * math.pi / 72_000,
        ),
    ],
)
def test_units(units: str | None, settings: dict[str, Any], factor: float) -> None:
    keys = {"image": image_key(), "theta": scalar(units=units)}
    docs = stepped(images(3), [1.0, 20.0, 35.5], keys=keys)
    outcome = assemble(docs, make_profile(keys=settings))
    np.testing.assert_allclose(outcome.theta(), np.array([1, 20, 35.5]) * factor)


@pytest.mark.parametrize(
    ("units", "settings", "said"),
    [
        ("counts", {}, "'counts', which is none of an angle"),
        ("mm", {}, "keys.theta_unit"),
        ("deg", {"theta_unit": "counts"}, "keys.counts_per_turn"),
    ],
)
def test_units_that_are_no_angle_are_refused(
    units: str, settings: dict[str, Any], said: str
) -> None:
    keys = {"image": image_key(), "theta": scalar(units=units)}
    with pytest.raises(InputError, match=said) as asked:
        assemble(stepped(images(1), [1.0], keys=keys), make_profile(keys=settings))
    assert len(str(asked.value).splitlines()) <= 4


# ------------------------------------------------------------ the start document


NO_ANGLE = {"image": image_key(), "theta": scalar() | {"dtype": "string"}}


def listed(
    start: dict[str, Any], settings: dict[str, Any] | None = None, n: int = 4
) -> Any:
    docs = stepped(images(n), [""] * n, start=start, keys=NO_ANGLE)
    return assemble(docs, make_profile(start=settings or {}))


def test_a_list_that_is_too_short_leaves_frames_without_an_angle() -> None:
    outcome = listed({"angles": [0, 10, None]})
    outcome.check_conserved()
    np.testing.assert_allclose(outcome.theta(), np.radians([0, 10]))
    lost = {(Kind.PROJECTION, k): "no_angle" for k in (2, 3)}
    assert outcome.rejected == lost


TURN = {"theta_start": ["a"], "theta_stop": ["b"]}


@pytest.mark.parametrize(("included", "step"), [(True, 60.0), (False, 45.0)])
def test_a_turn_with_and_without_its_end(included: bool, step: float) -> None:
    settings = TURN | {"stop_included": included}
    outcome = listed({"a": 3, "b": 183, "num_points": 4}, settings)
    np.testing.assert_allclose(outcome.theta(), np.radians(3 + step * np.arange(4)))


@pytest.mark.parametrize(
    ("start", "settings", "said"),
    [
        ({"a": 0, "b": 180, "num_points": 4}, TURN, "start.stop_included"),
        ({"a": 0, "b": 180}, TURN | {"stop_included": True}, "nor does the start"),
        ({"angles": "0 10 20"}, {}, "nor does the start document"),
        ({"angles": [[0, 1], [2, 3]]}, {}, "nor does the start document"),
        ({"angles": ["a", "b"]}, {}, "nor does the start document"),
        ({"a": math.nan, "c": 1}, {"theta_start": ["a"], "theta_step": ["c"]}, "nor"),
        ({}, {}, "no angle"),
    ],
)
def test_where_nothing_says_the_angles_the_run_is_refused(
    start: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as asked:
        listed(start, settings)
    assert len(str(asked.value).splitlines()) <= 4


def test_a_step_does_not_say_which_frame_of_many_kinds_is_the_first() -> None:
    keys = {"image": image_key(), "theta": scalar()}
    docs = stepped(images(3), [1, 0, 0], start={"a": 0, "c": 1}, keys=keys)
    settings = {"start": {"theta_start": ["a"], "theta_step": ["c"]}}
    keyed = make_profile(keys={"image_key": "theta", "theta": "angle"}, **settings)
    with pytest.raises(InputError, match="which frame is the first projection"):
        assemble(docs, keyed)


def test_an_event_knows_better_than_the_start_document() -> None:
    docs = stepped(images(3), [7, 8, 9], start={"angles": [0, 1, 2]})
    np.testing.assert_allclose(assemble(docs).theta(), np.radians([7, 8, 9]))


def test_after_a_rewind_the_planned_angle_is_the_event_s() -> None:
    """The angle of an event goes by its number, not by how many came before it."""
    docs = stepped(images(4), [""] * 4, start={"angles": [0, 1, 2, 3]}, keys=NO_ANGLE)
    again = images(1, seed=9)[0]
    rewound = docs[3][1] | {"uid": "again", "data": {"image": again, "theta": ""}}
    docs.insert(5, ("event", rewound))
    outcome = assemble(docs)
    outcome.check_conserved()
    np.testing.assert_allclose(outcome.theta(), np.radians([0, 1, 2, 3]))
    np.testing.assert_array_equal(outcome.stack()[1], again)


# --------------------------------------------------------------- missing angles


def with_gaps(theta: Any, gaps: list[int], policy: str) -> Any:
    angles = [math.nan if k in gaps else a for k, a in enumerate(np.rad2deg(theta))]
    docs = stepped(images(len(theta)), angles)
    return assemble(docs, make_profile(keys={"missing_theta": policy}))


def test_by_default_a_frame_without_an_angle_is_rejected() -> None:
    outcome = with_gaps(np.arange(12) * 0.1, [4, 7], "reject")
    outcome.check_conserved()
    assert set(outcome.rejected.values()) == {"no_angle"}
    assert {k for _, k in outcome.rejected} == {4, 7}
    assert outcome.closed.details == {}


def test_between_known_neighbors_it_is_interpolated_and_said() -> None:
    theta = np.arange(12) * 0.1
    outcome = with_gaps(theta, [0, 4, 7, 8], "interpolate")
    outcome.check_conserved()
    # The first one has no neighbor before it.
    assert outcome.rejected == {(Kind.PROJECTION, 0): "no_angle"}
    np.testing.assert_allclose(outcome.theta(), theta[1:])
    assert outcome.closed.details["interpolated_angles"] == [[4, 5], [7, 9]]


def test_an_event_that_lacks_its_angle_is_treated_alike() -> None:
    theta = np.arange(8) * 10.0
    docs = stepped(images(8), theta)
    del docs[5][1]["data"]["theta"]
    left = assemble([*docs], make_profile(keys={"missing_theta": "interpolate"}))
    np.testing.assert_allclose(left.theta(), np.radians(theta))
    assert len(assemble(docs).frames) == 7


@pytest.mark.parametrize("order", ["golden", "back"])
def test_nothing_is_guessed_where_the_stage_did_not_turn_steadily(order: str) -> None:
    there_and_back = np.concatenate([np.arange(6), np.arange(6)[::-1]]) * 0.1
    theta = golden_angles(12) if order == "golden" else there_and_back
    gaps = [3, 4, 8] if order == "golden" else [5, 6]
    outcome = with_gaps(theta, gaps, "interpolate")
    assert {k for _, k in outcome.rejected} == set(gaps)


@given(
    first=st.floats(-10, 10),
    step=st.floats(0.01, 3.0).flatmap(lambda s: st.sampled_from([s, -s])),
    missing=st.sets(st.integers(0, 39), max_size=20),
    wraps=st.booleans(),
)
def test_what_is_interpolated_is_right(
    first: float, step: float, missing: set[int], wraps: bool
) -> None:
    """Whatever the step, and where an encoder begins again after a turn."""
    theta = first + step * np.arange(40)
    read = np.mod(theta, 2 * math.pi) if wraps else theta
    known = {k: float(read[k]) for k in range(40) if k not in missing}
    filled = interpolate(known, sorted(missing))
    assert filled.keys() <= missing
    for k, angle in filled.items():
        off = (angle - theta[k] + math.pi) % (2 * math.pi) - math.pi
        assert abs(off) < 1e-9
    steady = [k for k in missing if {k - 1, k + 1} <= known.keys()]
    pairs = any({k, k + 1} <= known.keys() for k in range(39))
    assert set(steady) <= filled.keys() or not pairs


# ------------------------------------------------- images that wait for their angle


def angles_last(n: int, first: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """Tell images in events, and only then the angles of those from ``first`` on."""
    run = event_model.compose_run()
    names = {"primary": {"image": image_key()}, "angles": {"theta": scalar()}}
    streams = {
        name: run.compose_descriptor(name=name, data_keys=keys)
        for name, keys in names.items()
    }
    docs = [("start", run.start_doc)]
    docs += [("descriptor", one.descriptor_doc) for one in streams.values()]

    def tell(name: str, seq: int, **data: Any) -> None:
        stamps = dict.fromkeys(data, 0.0)
        event = streams[name].compose_event(
            data=data, timestamps=stamps, seq_num=seq, validate=False
        )
        docs.append(("event", event))

    for seq, image in enumerate(images(n), 1):
        tell("primary", seq, image=image)
    for seq in range(first + 1, n + 1):
        tell("angles", seq, theta=float(seq))
    return [*docs, ("stop", run.compose_stop())]


def waiting_profile(n_frames: int, **sections: Any) -> Any:
    window = {"max_bytes": n_frames * images(1)[0].nbytes}
    return make_profile(window=window, streams={"angles": ["angles"]}, **sections)


def test_images_that_wait_for_their_angle_are_within_a_budget() -> None:
    outcome = assemble(angles_last(9), waiting_profile(4))
    outcome.check_conserved()
    lost = {(Kind.PROJECTION, k): "budget" for k in range(5)}
    assert outcome.rejected == lost
    np.testing.assert_array_equal(outcome.stack(), images(9)[5:])
    np.testing.assert_allclose(outcome.theta(), np.radians([6, 7, 8, 9]))


def test_within_the_budget_all_of_them_wait() -> None:
    outcome = assemble(angles_last(9), waiting_profile(9))
    outcome.check_conserved()
    assert not outcome.rejected
    assert len(outcome.frames) == 9


def test_a_lost_image_that_comes_again_is_used() -> None:
    docs = angles_last(9, first=9)
    image = next(doc for name, doc in docs if name == "event")
    told = angles_last(9)
    angle = next(d for n, d in told if n == "event" and "theta" in d["data"])
    descriptor = docs[2][1]["uid"]
    docs[-1:-1] = [
        ("event", image | {"uid": "again"}),
        ("event", angle | {"descriptor": descriptor}),
    ]
    outcome = assemble(docs, waiting_profile(4))
    assert outcome.frames.keys() == {(Kind.PROJECTION, 0)}
    assert outcome.repeated == {"superseded": 1}
    reasons = sorted(outcome.rejected.values())
    assert reasons == ["budget"] * 5 + ["no_angle"] * 3


def test_lost_images_without_a_kind_are_named_when_it_comes() -> None:
    """Told by the events of the stream itself, once the images are gone."""
    keys = {"image": image_key(), "theta": scalar(), "kind": scalar()}
    docs = stepped(images(6), [0.0] * 6, keys=keys)
    told = [
        dict(doc, data=doc["data"] | {"kind": 0}) for n, doc in docs if n == "event"
    ]
    for doc in told:
        doc["data"].pop("image")
        doc["uid"] += "-kind"
    docs[-1:-1] = [("event", doc) for doc in told]
    outcome = assemble(docs, waiting_profile(2, keys={"image_key": "kind"}))
    outcome.check_conserved()
    lost = {(Kind.PROJECTION, k): "budget" for k in range(4)}
    assert outcome.rejected == lost
    assert len(outcome.frames) == 2
