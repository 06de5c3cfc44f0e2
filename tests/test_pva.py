"""Frames over a real pvAccess server, joined to documents, up to the volume."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import event_model
import numpy as np
import pytest
import zarr
from pva_camera import CODECS, PV, Camera, ntndarray
from scans import image_key, scalar

from ebl_stream.cli.check import Finding, _check_feed
from ebl_stream.errors import InputError
from ebl_stream.frames import Kind
from ebl_stream.ingest.pva import PvaFeed, probe, pv_name
from ebl_stream.profile import Feed, Profile
from ebl_stream.profile_file import load
from ebl_stream.publish.record import read_record
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.service.worker import Worker

ROWS, COLUMNS, N, CENTER = 4, 48, 40, 24.3
PATIENCE_S = 30
PLAIN: dict[str, Any] = {
    "preprocess": ["flat_field", {"minus_log": {"clip": 1e-5}}],
    "geometry.rotation_center": CENTER,
    "denoise": None,
    "segment": None,
    "quantify": None,
}
FED: dict[str, Any] = {
    "keys.theta": "theta",
    "keys.unique_id": "unique_id",
    "feed.address": f"pva://{PV}",
    "feed.timeout_s": 3.0,
}
LOCATION = {
    "primary": "/exchange/data",
    "flats": "/exchange/data_white",
    "darks": "/exchange/data_dark",
}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[Camera]:
    """A server on ports of its own, and an environment that finds nothing else."""
    camera = Camera()
    for name, value in camera.conf.items():
        monkeypatch.setenv(name, value)
    yield camera
    camera.stop()


@pytest.fixture
def feed(camera: Camera) -> Iterator[PvaFeed]:
    feed = PvaFeed(Feed(address=f"pva://{PV}"))
    until(lambda: feed.buffer.counts["empty"] > 0)
    yield feed
    feed.close()


def heard(feed: PvaFeed) -> list[tuple[int, int]]:
    return [(turn, frame.unique_id) for turn, frame in feed.buffer.fresh(0)[0]]


# ----------------------------------------------------------------- the subscription


def test_every_frame_of_a_burst_is_heard_in_order(
    camera: Camera, feed: PvaFeed
) -> None:
    rng = np.random.default_rng(0)
    sent = rng.integers(0, 60_000, (300, 64, 80), np.uint16)
    for unique_id, image in enumerate(sent):
        camera.post(image, unique_id)
        if unique_id % 20 == 19:  # no burst larger than the queue
            until(lambda n=unique_id: feed.buffer.counts["received"] > n)
    assert heard(feed) == [(0, i) for i in range(300)]
    for unique_id, image in enumerate(sent):
        frame = feed.buffer.take(0, unique_id)
        assert frame is not None
        np.testing.assert_array_equal(frame.decode(), image)
    assert feed.buffer.n_bytes == 0


def test_what_the_queues_could_not_hold_shows_as_skipped_ids(camera: Camera) -> None:
    """A reader that stands still: the server drops, and the ids say which."""
    feed = PvaFeed(Feed(address=f"pva://{PV}", queue_size=4))
    until(lambda: feed.buffer.counts["empty"] > 0)
    stand, go_on = threading.Event(), threading.Event()
    receive = feed.buffer.receive

    def slow(frame: Any) -> None:
        receive(frame)
        stand.set()
        go_on.wait(PATIENCE_S)

    feed.buffer.receive = slow  # type: ignore[method-assign]
    image = np.zeros((512, 512), np.uint16)
    camera.post(image, 0)
    assert stand.wait(PATIENCE_S)
    for unique_id in range(1, 200):
        camera.post(image, unique_id)
    go_on.set()
    until(lambda: (heard(feed) or [(0, 0)])[-1][1] == 199)
    ids = [unique_id for _, unique_id in heard(feed)]
    holes = feed.buffer.skipped_since(0)
    assert len(ids) < 200
    assert sorted({*ids, *(i for a, b in holes for i in range(a, b))}) == [*range(200)]
    feed.close()


def test_an_ioc_that_restarts_is_found_again(camera: Camera, feed: PvaFeed) -> None:
    image = np.zeros((8, 9), np.uint16)
    for unique_id in range(3):
        camera.post(image, unique_id)
    until(lambda: feed.buffer.counts["received"] == 3)
    before = time.time()
    camera.stop()
    until(lambda: feed.buffer.counts["interruptions"] == 1)
    camera.restart()
    until(lambda: feed.buffer.counts["empty"] > 1)
    for unique_id in range(2):
        camera.post(image, unique_id)
    until(lambda: feed.buffer.counts["received"] == 5)
    assert heard(feed) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert feed.buffer.counts["restarts"] == 1
    assert feed.buffer.is_disturbed_since(before)
    assert not feed.buffer.is_disturbed_since(time.time())


def test_a_frame_that_comes_twice_counts_once(camera: Camera, feed: PvaFeed) -> None:
    image = np.zeros((8, 9), np.uint16)
    for unique_id, stamp in ((5, 10.0), (6, 11.0), (6, 11.0), (5, 10.0), (7, 12.0)):
        camera.post(image, unique_id, stamp=stamp)
    until(lambda: feed.buffer.counts["received"] == 5)
    assert heard(feed) == [(0, 5), (0, 6), (0, 7)]
    assert feed.buffer.counts["duplicate"] == 2


def test_an_update_without_a_new_image_is_no_frame(
    camera: Camera, feed: PvaFeed
) -> None:
    value = ntndarray(np.zeros((8, 9), np.uint16), 1)
    camera.post_value(value)
    until(lambda: feed.buffer.counts["received"] == 1)
    n_empty = feed.buffer.counts["empty"]
    alarm = type(value)(value.type(), {"uniqueId": 2})
    camera.post_value(alarm)
    until(lambda: feed.buffer.counts["empty"] > n_empty)
    assert heard(feed) == [(0, 1)]


def test_kinds_come_from_the_attribute(camera: Camera) -> None:
    settings = Feed(address=f"pva://{PV}", kind_attribute="HDF5FrameLocation")
    feed = PvaFeed(settings)
    until(lambda: feed.buffer.counts["empty"] > 0)
    image = np.zeros((8, 9), np.uint16)
    said = [*LOCATION.values(), "PROJECTION", "/exchange/other", None]
    for unique_id, location in enumerate(said):
        camera.post(image, unique_id, location=location)
    until(lambda: feed.buffer.counts["received"] == len(said))
    kinds = [frame.kind for _, frame in feed.buffer.fresh(0)[0]]
    assert kinds == [
        *(Kind.PROJECTION, Kind.FLAT, Kind.DARK, Kind.PROJECTION),
        *(Kind.INVALID, Kind.INVALID),
    ]
    feed.close()


@pytest.mark.parametrize(
    "address", ["", "2bm:Pva1:Image", "pva://", "ca://x", "pva://a b"]
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=r"expected pva://PV"):
        pv_name(address)


# ------------------------------------------------------------------------- the scan


class Scan:
    """Flats, darks and projections of two rods, with the ids of one counter."""

    def __init__(self, dtype: str = "u2", first: int = 700) -> None:
        self.theta = np.linspace(0, 180, N, endpoint=False)
        s = np.arange(COLUMNS) - CENTER
        frames = []
        for theta in np.deg2rad(self.theta):
            lines = np.zeros(COLUMNS)
            for x, y, r, mu in ((8, 3, 6, 0.05), (-6, 9, 4, 0.1)):
                d = s - (x * np.cos(theta) + y * np.sin(theta))
                lines += 2 * mu * np.sqrt(np.maximum(r * r - d * d, 0))
            frames.append(np.tile(100 + 20_000 * np.exp(-lines), (ROWS, 1)))
        self.images = {
            "darks": np.full((3, ROWS, COLUMNS), 100).astype(dtype),
            "flats": np.full((4, ROWS, COLUMNS), 20_100).astype(dtype),
            "primary": np.array(frames).astype(dtype),
        }
        self.ids, at = {}, first
        for name, images in self.images.items():
            self.ids[name] = list(range(at, at + len(images)))
            at += len(images)

    def documents(self, fed: bool, lost: set[int] = frozenset()) -> Iterator[Any]:  # type: ignore[assignment]
        """Yield (name, document, the frames that are taken before it is told)."""
        run = event_model.compose_run(metadata={"n_projections": N})
        yield "start", run.start_doc, []
        for name, images in self.images.items():
            key = (
                {"unique_id": scalar()}
                if fed
                else {"image": image_key((ROWS, COLUMNS))}
            )
            keys = key | ({"theta": scalar(units="deg")} if name == "primary" else {})
            made = run.compose_descriptor(name=name, data_keys=keys)
            yield "descriptor", made.descriptor_doc, []
            for i, (image, unique_id) in enumerate(
                zip(images, self.ids[name], strict=True)
            ):
                if not fed and unique_id in lost:
                    continue
                data: dict[str, Any] = (
                    {"unique_id": unique_id} if fed else {"image": image}
                )
                if name == "primary":
                    data["theta"] = self.theta[i]
                event = made.compose_event(
                    data=data,
                    timestamps=dict.fromkeys(data, 0.0),
                    validate=False,
                    seq_num=i + 1,
                )
                taken = (
                    [] if unique_id in lost else [(image, unique_id, LOCATION[name])]
                )
                yield "event", event, taken
        num_events = {name: len(images) for name, images in self.images.items()}
        yield "stop", run.compose_stop() | {"num_events": num_events}, []


def in_events(scan: Scan, out: Path, lost: set[int] = frozenset()) -> np.ndarray:  # type: ignore[assignment]
    house = Reconstruction(load("default", PLAIN), out=out)
    for name, doc, _ in scan.documents(False, lost):
        house(name, doc)
    house.close()
    (result,) = house.results.values()
    return volume(result)


def volume(result: Any) -> np.ndarray:
    return np.asarray(zarr.open_array(result.volume, mode="r")[:])


def live(profile: Profile, out: Path) -> Reconstruction:
    house = Reconstruction(profile, out=out, live=True)
    assert house.feed is not None
    until(lambda: house.feed.buffer.counts["empty"] > 0)  # type: ignore[union-attr]
    return house


def send(camera: Camera, house: Reconstruction, taken: list[Any], **how: Any) -> None:
    """Post frames and wait until they were heard, so that their order is one."""
    assert house.feed is not None
    counts = house.feed.buffer.counts
    for image, unique_id, location in taken:
        n = counts["received"]
        camera.post(image, unique_id, location=location, **how)
        until(lambda n=n: counts["received"] > n)


def same(a: np.ndarray, b: np.ndarray, within: float = 1e-6) -> None:
    """Compare volumes; frames in another order of arrival are added up otherwise."""
    assert np.abs(a).max() > 0.02
    np.testing.assert_allclose(a, b, rtol=0, atol=within * np.abs(b).max())


@pytest.mark.parametrize("codec", ["", *CODECS])
def test_the_volume_is_that_of_images_inside_events(
    camera: Camera, tmp_path: Path, codec: str
) -> None:
    scan = Scan("u2" if codec else "f4")
    house = live(load("default", PLAIN | FED), tmp_path / "fed")
    for name, doc, taken in scan.documents(True):
        send(camera, house, taken, codec=codec)
        house(name, doc)
    house.close()
    (result,) = house.results.values()
    assert result.state == "complete"
    assert result.ledger["used"] == N
    same(volume(result), in_events(scan, tmp_path / "plain"))


def test_lost_frames_are_named_and_the_rest_is_right(
    camera: Camera, tmp_path: Path
) -> None:
    """Lost inside, at the begin, at the end; and among flats and darks."""
    scan = Scan()
    at = scan.ids["primary"][0]
    gone = {0, 7, 8, 9, 30, N - 1}
    lost = {at + i for i in gone} | {scan.ids["flats"][1], scan.ids["darks"][2]}
    house = live(load("default", PLAIN | FED), tmp_path / "fed")
    for name, doc, taken in scan.documents(True, lost):
        send(camera, house, taken)
        house(name, doc)
    house.close()
    (result,) = house.results.values()
    assert result.state == "partial"
    ledger = result.ledger
    assert ledger["missing_indices"] == [[0, 1], [7, 10], [30, 31], [N - 1, N]]
    assert (ledger["used"], ledger["missing"], ledger["residue"]) == (N - 6, 6, 0)
    told = read_record(Path(result.volume).parent).metadata()["feed"]
    assert told["lost_unique_ids"]["primary"] == [
        *([at, at + 1], [at + 7, at + 10]),
        *([at + 30, at + 31], [at + N - 1, at + N]),
    ]
    assert told["lost_unique_ids"]["flats"] == [[at - 3, at - 2]]
    same(volume(result), in_events(scan, tmp_path / "plain", lost))


def test_frames_that_come_after_all_documents_but_the_last(
    camera: Camera, tmp_path: Path
) -> None:
    scan = Scan()
    house = live(load("default", PLAIN | FED), tmp_path / "fed")
    *documents, (_, stop, _) = scan.documents(True)
    for name, doc, _ in documents:
        house(name, doc)
    everything = [frame for *_, taken in documents for frame in taken]

    def post() -> None:
        for image, unique_id, _ in everything:
            time.sleep(0.002)
            camera.post(image, unique_id)

    poster = threading.Thread(target=post)
    poster.start()
    house("stop", stop)  # waits for what is owed
    poster.join()
    house.close()
    (result,) = house.results.values()
    assert result.state == "complete"
    same(volume(result), in_events(scan, tmp_path / "plain"), within=1e-5)


def test_an_ioc_that_dies_within_the_scan(camera: Camera, tmp_path: Path) -> None:
    """Its counter begins again; what was posted while it was away is missing."""
    scan = Scan()
    scan.ids["primary"] = [*range(20), *range(20)]
    lost = {13, 14, 15, 16, 17, 18, 19}
    house = live(load("default", PLAIN | FED), tmp_path / "fed")
    assert house.feed is not None
    counts, n_projections = house.feed.buffer.counts, 0
    for name, doc, taken in scan.documents(True):
        for image, unique_id, location in taken:
            if location == LOCATION["primary"]:
                n_projections += 1
                if n_projections - 1 in lost:
                    continue
                if n_projections == 21:
                    camera.stop()
                    until(lambda: counts["interruptions"] == 1)
                    n_empty = counts["empty"]
                    camera.restart()
                    until(lambda n=n_empty: counts["empty"] > n)
            send(camera, house, [(image, unique_id, location)])
        house(name, doc)
    house.close()
    (result,) = house.results.values()
    assert result.ledger["missing_indices"] == [[13, 20]]
    assert result.ledger["residue"] == 0
    # Darks at 700, then projections from 0, then from 0 again.
    told = read_record(Path(result.volume).parent).metadata()["feed"]
    assert (told["restarts"], told["interruptions"]) == (2, 1)
    plain = Scan()
    first = plain.ids["primary"][0]
    expected = in_events(plain, tmp_path / "plain", {first + i for i in lost})
    same(volume(result), expected)


def test_the_worker_takes_frames_while_no_document_comes(
    camera: Camera, tmp_path: Path
) -> None:
    """Planned angles in one event, long before the frames: the live way."""
    scan = Scan()
    profile = load("default", PLAIN | FED | {"refresh.every": 0.25})
    told: list[dict[str, Any]] = []
    houses: list[Reconstruction] = []

    def make(on_progress: Any, is_behind: Any = None) -> Reconstruction:
        house = Reconstruction(
            profile, out=tmp_path, live=True, on_progress=on_progress
        )
        houses.append(house)
        return house

    worker = Worker(
        make, lambda uid, status: told.append(status), max_queue_bytes=2**20
    )
    house = houses[0]
    assert house.feed is not None
    until(lambda: house.feed.buffer.counts["empty"] > 0)  # type: ignore[union-attr]
    run = event_model.compose_run(metadata={"n_projections": N})
    uid = run.start_doc["uid"]

    def tell(name: str, doc: Any) -> None:
        worker.put(uid, name, doc, 100, None)

    tell("start", run.start_doc)
    for name, ids in scan.ids.items():
        n = [len(ids)]
        keys = {"unique_id": {**scalar(), "shape": n}}
        data: dict[str, Any] = {"unique_id": np.array(ids)}
        if name == "primary":
            keys["theta"] = {**scalar(units="deg"), "shape": n}
            data["theta"] = scan.theta
        made = run.compose_descriptor(name=name, data_keys=keys)
        tell("descriptor", made.descriptor_doc)
        stamps = dict.fromkeys(data, 0.0)
        tell("event", made.compose_event(data=data, timestamps=stamps, validate=False))
    for name, images in scan.images.items():
        for image, unique_id in zip(images, scan.ids[name], strict=True):
            camera.post(image, unique_id)
    until(lambda: any(status.get("n_received", 0) >= N // 2 for status in told))
    tell("stop", run.compose_stop())
    until(lambda: bool(told) and bool(told[-1].get("final")))
    worker.stop()
    assert told[-1]["state"] == "complete"
    assert told[-1]["n_projections"] == N
    result = house.results[uid]
    same(volume(result), in_events(scan, tmp_path / "plain"), within=1e-5)


# --------------------------------------------------------------- profile and command


def test_the_profile_of_2bm_reconstructs_a_scan(camera: Camera, tmp_path: Path) -> None:
    """The camera runs free before and after, and its frames say what they said last."""
    overrides = {"feed.address": f"pva://{PV}", **PLAIN}
    scan = Scan()
    house = live(load("aps_2bm", overrides), tmp_path / "fed")
    junk = np.full((ROWS, COLUMNS), 5, np.uint16)
    for name, doc, taken in scan.documents(True):
        if name == "start":
            camera.post(junk, 690, location=LOCATION["flats"])
        send(camera, house, taken)
        if name == "stop":
            camera.post(junk, 900, location=LOCATION["primary"])
        house(name, doc)
    house.close()
    (result,) = house.results.values()
    assert result.state == "complete"
    same(volume(result), in_events(scan, tmp_path / "plain"))


def test_the_profile_of_2bm_is_whole() -> None:
    profile = load("aps_2bm")
    assert pv_name(profile.feed.address or "").endswith(":Pva1:Image")
    assert profile.keys.unique_id == "unique_id"
    assert profile.feed.kind_attribute == "HDF5FrameLocation"


def test_check_says_whether_the_feed_answers(camera: Camera) -> None:
    def look(address: str | None) -> list[Finding]:
        return list(_check_feed(Profile(feed=Feed(address=address))))

    assert look(None) == []
    (empty,) = look(f"pva://{PV}")
    assert empty.verdict == "ok"
    assert "no frame yet" in empty.words
    camera.post(np.zeros((8, 9), np.uint16), 41, codec="lz4")
    (found,) = look(f"pva://{PV}")
    assert found.verdict == "ok"
    assert "9 x 8 uint16, codec lz4, unique id 41" in found.words
    (absent,) = look("pva://EBLTEST:Nobody")
    assert absent.verdict == "note"
    (wrong,) = look("tcp://x")
    assert wrong.verdict == "stop"


def test_a_codec_that_is_not_read_is_said_before_the_scan(camera: Camera) -> None:
    value = ntndarray(np.zeros((8, 9), np.uint16), 1, codec="lz4")
    value.codec = {"name": "jpeg", "parameters": 3}
    camera.post_value(value)
    with pytest.raises(InputError, match="jpeg"):
        probe(f"pva://{PV}")
