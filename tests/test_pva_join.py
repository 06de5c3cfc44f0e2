"""Frames and the events that name them, without a network: any order, any loss."""

from __future__ import annotations

import time
from typing import Any

import event_model
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import H, Outcome, W, images, scalar

from ebl_stream.errors import InputError
from ebl_stream.frames import Kind
from ebl_stream.ingest.assemble import Assembler
from ebl_stream.ingest.feed import FedFrame, FeedError, FrameBuffer
from ebl_stream.ingest.router import RunSorter
from ebl_stream.profile import Profile

P, F, D = Kind.PROJECTION, Kind.FLAT, Kind.DARK


def profile(**feed: Any) -> Profile:
    return Profile.model_validate(
        {
            "keys": {"theta": "theta", "unique_id": "unique_id"},
            "feed": {"timeout_s": 0.2, **feed},
        }
    )


class Bench:
    """A run, a buffer, and a clock that only goes forward."""

    def __init__(self, max_bytes: int = 2**30, **feed: Any) -> None:
        self.buffer = FrameBuffer(max_bytes)
        self.now = time.time()
        self.buffer.disturbed(self.now - 60)  # connected, and well ever since
        self.profile = profile(**feed)
        self.assembler: Assembler | None = None
        self.items: list[Any] = []
        self.descriptors: dict[str, Any] = {}

    def start(self, **metadata: Any) -> None:
        self.run = event_model.compose_run(metadata=metadata)
        self.run.start_doc["time"] = self.now
        self.assembler = Assembler(self.profile, feed=self.buffer)
        self.tell("start", self.run.start_doc)

    def tell(self, name: str, doc: dict[str, Any]) -> None:
        assert self.assembler is not None
        self.items.extend(self.assembler(name, doc))

    def stream(self, name: str = "primary", n: int = 1, **more: Any) -> None:
        shape = [n] if n > 1 else []
        keys: dict[str, Any] = {"unique_id": {**scalar(), "shape": shape}}
        if name == "primary":
            keys["theta"] = {**scalar(units="deg"), "shape": shape}
        made = self.run.compose_descriptor(name=name, data_keys=keys | more)
        self.descriptors[name] = made
        self.tell("descriptor", made.descriptor_doc)

    def event(
        self, unique_id: Any, theta: Any = None, name: str = "primary", seq: int = 0
    ) -> dict[str, Any]:
        data = {"unique_id": unique_id}
        data |= {} if theta is None else {"theta": theta}
        doc = self.descriptors[name].compose_event(
            data=data,
            timestamps=dict.fromkeys(data, 0.0),
            validate=False,
            **({"seq_num": seq} if seq else {}),
        )
        self.tell("event", doc)
        return doc

    def frame(
        self, unique_id: int, image: Any = None, kind: Kind | None = None, **more: Any
    ) -> None:
        self.now += 0.01
        image = (
            np.full((H, W), unique_id % 60_000, np.uint16) if image is None else image
        )
        stamp = more.get("stamp", self.now)
        received = more.get("received", self.now)

        def decode() -> Any:
            if isinstance(image, FeedError):
                raise image
            return image

        n_bytes = getattr(image, "nbytes", 1)
        self.buffer.receive(FedFrame(unique_id, stamp, received, kind, n_bytes, decode))

    def stop(self, **num_events: int) -> Outcome:
        self.tell("stop", self.run.compose_stop() | {"num_events": num_events})
        return Outcome(self.items)


def ids_at(outcome: Outcome, kind: Kind = P) -> dict[int, int]:
    """Return the id that stands in the pixels of every frame."""
    return {
        index: int(frame.image[0, 0])
        for (of, index), frame in outcome.frames.items()
        if of is kind
    }


# -------------------------------------------------------------- any order, any loss


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 25), per_event=st.sampled_from([1, 5]))
def test_any_interleaving_gives_each_angle_its_own_frame(
    data: Any, n: int, per_event: int
) -> None:
    """Documents late or early, frames lost, twice, and a little out of order."""
    bench, n = Bench(timeout_s=0.01), n * per_event
    first = data.draw(st.integers(0, 10**6))
    lost = data.draw(st.sets(st.integers(0, n - 1)))
    order = data.draw(st.permutations(range(n)))
    order = np.argsort(np.arange(n) + np.array(order) % 4, kind="stable").tolist()
    steps = [("frame", i) for i in order if i not in lost]
    for i in range(n // per_event):
        at = data.draw(st.integers(0, len(steps)))
        steps.insert(at, ("event", i))
    events = iter(range(n // per_event))
    bench.start()
    bench.stream(n=per_event)
    begun = bench.now
    for what, i in steps:
        if what == "event":
            i = next(events)
            which = np.arange(i * per_event, (i + 1) * per_event)
            if per_event == 1:
                bench.event(first + i, float(i))
            else:
                bench.event(first + which, which.astype(float))
        else:
            stamp = begun + 0.01 * i
            bench.frame(first + i, np.full((H, W), i, np.uint16), stamp=stamp)
            if data.draw(st.booleans()):
                bench.frame(first + i, np.full((H, W), i, np.uint16), stamp=stamp)
    outcome = bench.stop(primary=n // per_event)
    assert ids_at(outcome) == {i: i for i in range(n) if i not in lost}
    for (_, index), frame in outcome.frames.items():
        assert frame.theta == pytest.approx(np.deg2rad(index))
    outcome.check_conserved()
    assert outcome.rejected == {}
    assert outcome.closed.n_announced_by_stop == n
    told = outcome.closed.feed
    assert told is not None
    missing = {first + i for i in lost}
    listed = told["lost_unique_ids"].get("primary", [])
    assert {i for a, b in listed for i in range(a, b)} == missing


def test_frames_before_the_start_of_the_run_are_not_of_it() -> None:
    """The camera ran freely, for the eye, with the same counts."""
    bench = Bench()
    for i in range(8):
        bench.frame(i, np.full((H, W), 999, np.uint16))
    bench.now += 5
    bench.start()
    bench.stream()
    for i in range(6):
        bench.frame(i)
        bench.event(i, float(i))
    assert ids_at(bench.stop(primary=6)) == {i: i for i in range(6)}


def test_the_last_frame_of_the_scan_before_is_delivered_at_subscription() -> None:
    bench = Bench()
    bench.frame(3, np.full((H, W), 999, np.uint16))
    bench.now += 5
    bench.start()
    bench.stream()
    for i in range(6):
        bench.frame(i)
        bench.event(i, float(i))
    assert ids_at(bench.stop(primary=6)) == {i: i for i in range(6)}


def test_a_late_feed_misses_by_id_what_it_did_not_hear() -> None:
    bench = Bench()
    bench.start()
    bench.stream()
    for i in range(4):
        bench.event(100 + i, float(i))
    bench.buffer.disturbed(bench.now)  # connected only now
    for i in range(4, 9):
        bench.frame(100 + i)
        bench.event(100 + i, float(i))
    outcome = bench.stop(primary=9)
    assert ids_at(outcome) == {i: 100 + i for i in range(4, 9)}
    assert outcome.closed.feed["lost_unique_ids"] == {"primary": [[100, 104]]}
    assert outcome.closed.n_announced_by_stop == 9


# ----------------------------------------------------------- the counter begins again


def test_three_acquisitions_that_each_count_from_zero() -> None:
    """As a GigE camera does; the order of the acquisitions is all there is."""
    bench = Bench()
    bench.start()
    for name, n, level in (("darks", 3, 100), ("flats", 4, 200), ("primary", 9, 300)):
        bench.stream(name)
        for i in range(n):
            if (name, i) in (("darks", 2), ("flats", 1), ("primary", 0)):
                bench.now += 0.01  # lost: the last, one inside, the first
            else:
                bench.frame(i, np.full((H, W), level + i, np.uint16))
            bench.event(i, float(i) if name == "primary" else None, name)
    outcome = bench.stop(darks=3, flats=4, primary=9)
    assert ids_at(outcome, D) == {0: 100, 1: 101}
    assert ids_at(outcome, F) == {0: 200, 2: 202, 3: 203}
    assert ids_at(outcome) == {i: 300 + i for i in range(1, 9)}
    assert outcome.closed.n_references == {F: 4, D: 3}
    assert outcome.closed.feed["restarts"] == 2


@settings(max_examples=40, deadline=None)
@given(
    crash=st.integers(2, 18),
    lost=st.sets(st.integers(0, 39)),
    lag=st.integers(0, 12),
    stamped=st.booleans(),
)
def test_a_camera_that_restarts_within_the_scan(
    crash: int, lost: set[int], lag: int, stamped: bool
) -> None:
    """Ids begin again at 0; no frame may reach an angle of the turn before."""
    n = 40
    bench = Bench(timeout_s=0.01)
    bench.start()
    bench.stream()
    count = [i if i < crash else i - crash for i in range(n)]
    # The first frame of each turn shows it; without stamps, that it is not the last.
    lost = lost - ({0, crash} if stamped else {0, crash - 1, crash})
    for i in range(n + lag):
        if i < n and i not in lost:
            more = {} if stamped else {"stamp": 0.0}
            bench.frame(count[i], np.full((H, W), 1000 + i, np.uint16), **more)
        if i >= lag:
            bench.event(count[i - lag], float(i - lag))
    joined = ids_at(bench.stop(primary=n))
    # What is there is right, always.
    assert {i: 1000 + i for i in joined} == joined
    assert set(joined) == set(range(n)) - lost


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(3, 9),
    lost=st.sets(st.integers(0, 26)),
    ahead=st.integers(0, 27),
    poll_every=st.integers(1, 12),
)
def test_documents_ahead_of_a_counter_that_begins_again(
    n: int, lost: set[int], ahead: int, poll_every: int
) -> None:
    """Three turns of n frames; the events are up to all of it ahead of the frames."""
    bench = Bench(timeout_s=0.01)
    bench.start()
    bench.stream()
    lost = {i for i in lost if i < 3 * n and i % n}  # a first frame shows the turn
    for i in range(3 * n + ahead):
        if i < 3 * n:
            bench.event(i % n, float(i))
        if i >= ahead and i - ahead not in lost:
            k = i - ahead
            bench.frame(k % n, np.full((H, W), 1000 + k, np.uint16))
        if i % poll_every == 0 and bench.assembler is not None:
            bench.items.extend(bench.assembler.poll())
    assert ids_at(bench.stop(primary=3 * n)) == {
        k: 1000 + k for k in range(3 * n) if k not in lost
    }


def test_kinds_keep_streams_apart_though_a_whole_acquisition_was_missed() -> None:
    bench = Bench(kind_attribute="FrameType")
    bench.start()
    for name, kind, level in (
        ("darks", D, 100),
        ("flats", F, 200),
        ("primary", P, 300),
    ):
        bench.stream(name)
        for i in range(5):
            if name == "darks":
                bench.buffer.disturbed(bench.now)
            else:
                bench.frame(i, np.full((H, W), level + i, np.uint16), kind)
            bench.event(i, float(i) if name == "primary" else None, name)
    outcome = bench.stop(darks=5, flats=5, primary=5)
    assert ids_at(outcome, D) == {}
    assert ids_at(outcome, F) == {i: 200 + i for i in range(5)}
    assert ids_at(outcome) == {i: 300 + i for i in range(5)}
    assert outcome.closed.n_references[D] == 5


def test_without_kinds_a_missed_acquisition_is_refused_not_guessed() -> None:
    bench = Bench()
    bench.start()
    bench.stream("darks")
    for i in range(5):
        bench.event(i, None, "darks")
    bench.buffer.disturbed(bench.now)
    bench.stream("flats")
    bench.frame(0)
    with pytest.raises(InputError, match=r"feed\.kind_attribute"):
        bench.event(0, None, "flats")


def test_a_frame_that_says_another_kind_is_not_taken() -> None:
    bench = Bench(kind_attribute="FrameType")
    bench.start()
    bench.stream()
    for i in range(5):
        bench.frame(i, None, F if i == 2 else Kind.INVALID if i == 3 else P)
        bench.event(i, float(i))
    outcome = bench.stop(primary=5)
    assert ids_at(outcome) == {0: 0, 1: 1, 4: 4}
    assert outcome.closed.feed["lost_unique_ids"] == {"primary": [[2, 4]]}


# ---------------------------------------------------------------- events of all sorts


def test_a_rewound_event_takes_its_new_frame() -> None:
    bench = Bench()
    bench.start()
    bench.stream()
    for seq, unique_id in ((1, 10), (2, 11), (3, 12), (2, 13), (3, 14), (4, 15)):
        bench.frame(unique_id)
        bench.event(unique_id, float(seq), seq=seq)
    outcome = bench.stop(primary=4)
    assert ids_at(outcome) == {0: 10, 1: 13, 2: 14, 3: 15}
    assert outcome.repeated == {"superseded": 2}


def test_a_counter_that_did_not_move_gives_its_frame_once() -> None:
    bench = Bench()
    bench.start()
    bench.stream()
    for seq, unique_id in ((1, 10), (2, 10), (3, 11)):
        if seq != 2:
            bench.frame(unique_id)
        bench.event(unique_id, float(seq))
    outcome = bench.stop(primary=3)
    assert ids_at(outcome) == {0: 10, 2: 11}
    assert outcome.closed.feed["restarts"] == 0


def test_the_same_document_twice_changes_nothing() -> None:
    bench = Bench()
    bench.start()
    bench.stream()
    bench.frame(5)
    doc = bench.event(5, 1.0)
    bench.tell("event", doc)
    outcome = bench.stop(primary=1)
    assert ids_at(outcome) == {0: 5}
    assert outcome.closed.n_announced_by_stop == 1


@pytest.mark.parametrize("bad", [None, "x", float("nan"), 1.5, [], [1, 2], 1e300])
def test_an_id_that_is_none_is_a_missing_frame(bad: Any) -> None:
    bench = Bench()
    bench.start()
    bench.stream()
    bench.event(bad, 0.0)
    bench.frame(7)
    bench.event(7, 1.0)
    outcome = bench.stop(primary=2)
    assert ids_at(outcome) == {1: 7}


def test_ids_may_follow_from_the_event_numbers() -> None:
    bench = Bench(first_unique_id=1)
    bench.start()
    made = bench.run.compose_descriptor(
        name="primary", data_keys={"theta": {**scalar(units="deg"), "shape": [6]}}
    )
    bench.tell("descriptor", made.descriptor_doc)
    theta = np.arange(6.0)
    doc = made.compose_event(data={"theta": theta}, timestamps={"theta": 0.0})
    bench.tell("event", doc)  # the planned angles come before any frame
    for unique_id in (1, 2, 4, 5, 6):
        bench.frame(unique_id)
    outcome = bench.stop(primary=1)
    assert ids_at(outcome) == {0: 1, 1: 2, 3: 4, 4: 5, 5: 6}
    np.testing.assert_allclose(outcome.theta(), np.deg2rad([0, 1, 3, 4, 5]))


def test_image_keys_in_the_events_sort_one_stream() -> None:
    bench = Bench()
    bench.profile = Profile.model_validate(
        {
            "keys": {"theta": "theta", "unique_id": "unique_id", "image_key": "what"},
            "feed": {"timeout_s": 0.2},
        }
    )
    bench.start()
    bench.stream(what=scalar())
    for i, kind in enumerate((2, 2, 1, 1, 0, 0, 0)):
        bench.frame(i)
        doc = bench.descriptors["primary"].compose_event(
            data={"unique_id": i, "theta": float(i), "what": kind},
            timestamps=dict.fromkeys(("unique_id", "theta", "what"), 0.0),
        )
        bench.tell("event", doc)
    outcome = bench.stop(primary=7)
    assert ids_at(outcome, D) == {0: 0, 1: 1}
    assert ids_at(outcome, F) == {2: 2, 3: 3}
    assert ids_at(outcome) == {4: 4, 5: 5, 6: 6}
    assert outcome.closed.n_announced_by_stop == 3


def test_frames_keep_a_run_alive_that_sends_no_documents() -> None:
    now = [0.0]
    ended: list[str] = []

    def consumer(name: str, doc: dict[str, Any]) -> None:
        if name == "stop":
            ended.append(doc["exit_status"])

    sorter = RunSorter(lambda start: consumer, silence_s=10, clock=lambda: now[0])
    sorter("start", {"uid": "a", "time": 0.0})
    for _ in range(5):
        now[0] += 8
        sorter.heard("a")
        sorter.tick()
    assert ended == []
    sorter.heard("unknown")
    now[0] += 11
    sorter.tick()
    assert ended == ["unknown"]


# ------------------------------------------------------------------- reasons, bounds


def test_a_frame_that_cannot_be_decoded_is_unreadable() -> None:
    bench = Bench()
    bench.start()
    bench.stream()
    for i in range(3):
        bench.frame(i, FeedError("codec 'jpeg' is not read here") if i == 1 else None)
        bench.event(i, float(i))
    outcome = bench.stop(primary=3)
    assert outcome.rejected == {(P, 1): "unreadable"}
    assert outcome.closed.feed["unreadable"] == {"codec 'jpeg' is not read here": 1}
    outcome.check_conserved()


def test_a_frame_of_another_shape_is_refused() -> None:
    bench = Bench()
    bench.start()
    bench.stream()
    for i in range(3):
        bench.frame(i, np.zeros((H, W + 1), np.uint16) if i == 1 else None)
        bench.event(i, float(i))
    assert bench.stop(primary=3).rejected == {(P, 1): "wrong_shape"}


def test_beyond_the_budget_the_oldest_goes_and_is_named() -> None:
    bench = Bench(max_bytes=10 * 2 * H * W)
    bench.start()
    bench.stream()
    for i in range(25):
        bench.frame(i)
    assert bench.buffer.n_bytes <= 10 * 2 * H * W
    for i in range(25):
        bench.event(i, float(i))
    outcome = bench.stop(primary=25)
    assert ids_at(outcome) == {i: i for i in range(15, 25)}
    assert outcome.rejected == {(P, i): "budget" for i in range(15)}
    outcome.check_conserved()


def test_what_the_counter_jumped_over_is_listed() -> None:
    bench = Bench()
    bench.start()
    bench.stream()
    for i in (0, 1, 5, 6, 8):
        bench.frame(i)
    assert bench.stop().closed.feed["skipped_unique_ids"] == [[2, 5], [7, 8]]


def test_images_inside_events_need_no_feed() -> None:
    """A profile with a feed takes other dialects as ever."""
    from scans import stepped

    frames = images(4)
    bench = Bench()
    bench.assembler = Assembler(bench.profile, feed=bench.buffer)
    for name, doc in stepped(frames, range(4)):
        bench.tell(name, doc)
    np.testing.assert_array_equal(Outcome(bench.items).stack(), frames)
