"""Runs that arrive on a real Tiled server, told as documents while they grow."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from listening import Listening, until
from scans import Fly, Outcome, assemble, images, make_profile, stepped
from tiled.client import from_uri

from ebl_stream.errors import InputError
from ebl_stream.profile_file import load
from ebl_stream.publish.tiled_server import TiledServer
from ebl_stream.sources import open_listener
from ebl_stream.sources import tiled_subscription as subscription
from ebl_stream.sources.tiled_hints import Hints

Document = tuple[str, dict[str, Any]]
N = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiled").resolve()


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[TiledServer]:
    server = TiledServer(folder)
    server.start()
    assert server.wait_ready(60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TILED_API_KEY", str(server.api_key))
        yield server
    server.stop()


@pytest.fixture
def write(server: TiledServer) -> Callable[..., None]:
    """Return a writer of documents, as a beamline has it."""
    from bluesky_tiled_plugins import TiledWriter

    client = from_uri(str(server.uri), api_key=server.api_key)
    writers: dict[str, TiledWriter] = {}

    def write(documents: list[Document], writer: str = "") -> None:
        # What it changes in a document must not change ours.
        tell = writers.setdefault(writer, TiledWriter(client, batch_size=1))
        for name, doc in documents:
            tell(name, {**doc})

    return write


@pytest.fixture
def listening(server: TiledServer, folder: Path) -> Iterator[Callable[..., Listening]]:
    begun: list[Listening] = []

    def begin(
        out: Path | None = None, *, local: bool = True, refuse: int = 0
    ) -> Listening:
        roots = [str(folder)] if local else []
        profile = load("default", {"files.roots": roots})
        source = open_listener(f"tiled:{server.uri}", profile, out)
        begun.append(Listening(source, refuse))
        until(lambda: not begun[-1].listener._told.is_first)  # type: ignore[attr-defined]
        return begun[-1]

    yield begin
    for one in begun:
        one.end()


def fly(path: Path, seed: int = 0) -> Iterator[list[Document]]:
    """A detector that writes a file and tells of it, three frames at a time."""
    values = images(N, seed)
    with h5py.File(path, "w", libver="latest") as file:
        shape = (None, *values.shape[1:])
        chunks = (1, *values.shape[1:])
        data = file.create_dataset(
            "image", (0, *shape[1:]), "u2", maxshape=shape, chunks=chunks
        )
        file["theta"] = np.linspace(0, 180, N)
        file.swmr_mode = True
        datasets = {"image": "image", "theta": "theta"}
        scan = Fly(path, datasets, {"image": chunks, "theta": ()})
        keys = scan.descriptor.descriptor_doc["data_keys"]
        keys["image"]["dtype_numpy"] = "<u2"
        for key, chunk in (("image", chunks), ("theta", (N,))):
            doc = scan.resources[key].stream_resource_doc
            doc["parameters"] |= {"chunk_shape": list(chunk)}
        told = 0
        for k in range(0, N, 3):
            data.resize(k + 3, axis=0)
            data[k:] = values[k : k + 3]
            data.flush()
            scan.datum("image", k, k + 3).datum("theta", k, k + 3)
            yield scan.docs[told:]
            told = len(scan.docs)
        yield scan.stop()[told:]


def step(seed: int = 0, n: int = N) -> list[Document]:
    return stepped(images(n, seed), np.linspace(0, 180, n))


def of_run(one: Listening, uid: str) -> list[Document]:
    """Return the documents of a run, in the order in which they were told."""
    documents, known = [], {uid}
    for name, doc in one.shelf.taken:
        refers = {doc.get(key) for key in ("run_start", "descriptor")}
        if doc["uid"] == uid or refers & known:
            known.add(doc["uid"])
            documents.append((name, doc))
    return documents


def n_frames(one: Listening, uid: str) -> int:
    """Return how many images of a run were told, each counted once."""
    told = of_run(one, uid)
    resources = {doc["uid"] for _, doc in told if doc.get("data_key") == "image"}
    frames = {doc["uid"] for name, doc in told if name == "event"}
    for name, doc in told:
        if name == "stream_datum" and doc["stream_resource"] in resources:
            frames |= set(range(doc["indices"]["start"], doc["indices"]["stop"]))
    return len(frames)


def is_over(one: Listening, uid: str) -> bool:
    return "stop" in [name for name, _ in of_run(one, uid)]


def check(one: Listening, uid: str, folder: Path, seed: int = 0) -> Outcome:
    """Hold what came of a run to what the detector saw."""
    profile = make_profile(files={"roots": [str(folder)]})
    result = assemble(of_run(one, uid), profile, sort=True)
    result.check_conserved()
    np.testing.assert_array_equal(result.stack(), images(N, seed))
    np.testing.assert_allclose(result.theta(), np.linspace(0, np.pi, N))
    assert result.closed.exit_status == "success"
    return result


def test_a_run_is_told_while_it_grows(listening, write, folder: Path) -> None:
    service = listening()
    detector = fly(folder / "grows.h5")
    first = next(detector)
    uid = first[0][1]["uid"]
    for k, documents in enumerate(chain([first], detector)):
        write(documents)
        expected = min(3 * k + 3, N)
        until(lambda n=expected: n_frames(service, uid) == n)
        assert k == N // 3 or not is_over(service, uid)
    until(lambda: is_over(service, uid))
    names = [name for name, _ in of_run(service, uid)]
    # The file can be read here: no pixel came through the server.
    assert "event" not in names
    assert names.count("stream_resource") == 2
    assert names.count("stream_datum") >= 4
    check(service, uid, folder)
    assert not service.listener.problems


def test_other_files_and_arrays_in_events_come_through_the_server(
    listening, write, folder: Path
) -> None:
    service = listening(local=False)
    uids = []
    steps = step(seed=1)
    for k, documents in enumerate(fly(folder / "elsewhere.h5", seed=2)):
        write(documents, "fly")
        write(steps[3 * k : 3 * k + 3], "step")
        uids = uids or [documents[0][1]["uid"], steps[0][1]["uid"]]
    for uid, seed in zip(uids, (2, 1), strict=True):
        until(lambda uid=uid: is_over(service, uid))
        told = of_run(service, uid)
        assert [n for n, _ in told] == ["start", "descriptor", *["event"] * N, "stop"]
        check(service, uid, folder, seed)


def test_a_growing_event_is_told_when_it_is_whole(
    listening, write, server: TiledServer
) -> None:
    """An event's image and its row are written one after the other."""
    service = listening()
    documents = step(seed=3)
    uid = documents[0][1]["uid"]
    write(documents[:5])
    until(lambda: n_frames(service, uid) == 3)
    client = from_uri(str(server.uri), api_key=server.api_key)
    image = client[uid]["primary"].base["image"]
    image.patch(images(1).astype(image.dtype), offset=(3,), extend=True)
    other = step(n=1)
    write(other, "other")
    until(lambda: is_over(service, other[0][1]["uid"]))  # so it has looked since
    assert n_frames(service, uid) == 3
    write(documents[-1:])  # now it will get no row any more
    until(lambda: is_over(service, uid))
    events = [doc for name, doc in of_run(service, uid) if name == "event"]
    assert [doc["data"].keys() for doc in events] == [
        *[{"image", "theta"}] * 3,
        {"image"},
    ]


def test_only_what_is_new_is_told_and_a_restart_misses_nothing(
    listening, write, folder: Path, tmp_path: Path
) -> None:
    old, during, open_ = step(4), step(5), step(6)
    write(old)
    first = listening(tmp_path)
    write(open_[:5])
    until(lambda: n_frames(first, open_[0][1]["uid"]) >= 1)
    first.end()
    write(during, "other")  # while nobody listens
    write(open_[5:])
    second = listening(tmp_path)
    for documents, seed in ((during, 5), (open_, 6)):
        uid = documents[0][1]["uid"]
        until(lambda uid=uid: is_over(second, uid))
        check(second, uid, folder, seed)
    second.end()
    # Told again from its beginning: the same documents, or the same frames.
    again = Listening.__new__(Listening)
    again.shelf = first.shelf
    again.shelf.taken += second.shelf.taken
    result = check(again, open_[0][1]["uid"], folder, 6)
    assert result.repeated["duplicate"] >= 1
    assert not of_run(again, old[0][1]["uid"])
    third = listening(tmp_path)
    time.sleep(1.5)
    assert third.shelf.taken == []


def test_a_run_counts_as_told_when_it_is_on_disk(
    listening, write, folder, tmp_path
) -> None:
    first = listening(tmp_path)
    first.shelf.fail_commit = True
    documents = step(8)
    uid = documents[0][1]["uid"]
    write(documents)
    until(lambda: is_over(first, uid))
    until(lambda: first.listener.problems["not committed"] > 0)
    first.end()
    second = listening(tmp_path, refuse=5)  # and what it refuses comes later
    until(lambda: is_over(second, uid))
    assert second.shelf.refuse == 0
    assert len(of_run(second, uid)) == len(documents)
    check(second, uid, folder, 8)


def test_a_server_that_dies_and_comes_back(
    listening, write, server: TiledServer, folder: Path, caplog
) -> None:
    service = listening()
    documents = step(9)
    uid = documents[0][1]["uid"]
    write(documents[:5])
    until(lambda: n_frames(service, uid) == 3)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: "does not answer" in caplog.text)
    until(lambda: server.is_ready)
    until(lambda: "answers again" in caplog.text)
    write(documents[5:])
    until(lambda: is_over(service, uid))
    check(service, uid, folder, 9)
    assert len(of_run(service, uid)) == len(documents)
    ours = [r for r in caplog.records if "tiled_subscription" in r.name]
    assert len(ours) == 2


def test_without_notifications_it_looks_at_a_bounded_rate(
    listening, write, folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    look = subscription.TiledSource._look

    def counted(source: Any, sink: Any) -> bool:
        looks.append(time.monotonic())
        return look(source, sink)

    monkeypatch.setattr(Hints, "watch", lambda self, node: None)
    monkeypatch.setattr(subscription.TiledSource, "_look", counted)
    service = listening()
    documents = step(10)
    write(documents)
    until(lambda: is_over(service, documents[0][1]["uid"]))
    check(service, documents[0][1]["uid"], folder, 10)
    assert np.diff(looks).min() >= subscription.LOOK_EVERY_S


def test_notifications_wake_it(listening, write, monkeypatch) -> None:
    monkeypatch.setattr(subscription, "LOOK_EVERY_S", 3600.0)
    service = listening()
    time.sleep(1.0)  # subscribed by then
    documents = step(11)
    write(documents)
    until(lambda: is_over(service, documents[0][1]["uid"]))
    assert not service.listener.problems["no notifications"]


def test_what_cannot_be_read_hinders_no_other(
    listening, write, server: TiledServer, folder: Path, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(subscription, "MAX_ATTEMPTS", 2)
    client = from_uri(str(server.uri), api_key=server.api_key)
    service = listening()
    path = folder / "gone.h5"
    documents = [d for some in fly(path, 12) for d in some]
    path.rename(folder / "moved.h5")
    write(documents)
    client.create_container("no-run", metadata={"start": 7})
    client.create_container("processed")
    good = step(13)
    write(good, "other")
    until(lambda: is_over(service, good[0][1]["uid"]))
    check(service, good[0][1]["uid"], folder, 13)
    until(lambda: is_over(service, documents[0][1]["uid"]))
    assert service.listener.problems["unreadable"] >= subscription.MAX_ATTEMPTS
    assert n_frames(service, documents[0][1]["uid"]) == 0
    warned = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len([r for r in warned if "unreadable" in r.message]) == 1


def test_an_aborted_stream_of_a_run_without_a_stop_is_left(
    listening, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = listening()
    documents = step(14)
    write(documents[:-1])
    until(lambda: n_frames(service, documents[0][1]["uid"]) == N)
    source: Any = service.listener
    assert documents[0][1]["uid"] in source._runs
    run = source._profile.run
    monkeypatch.setattr(
        source,
        "_profile",
        source._profile.model_copy(
            update={"run": run.model_copy(update={"silence_s": 0.1})}
        ),
    )
    until(lambda: documents[0][1]["uid"] not in source._runs)


def test_wrong_addresses_and_keys_are_refused(server: TiledServer, monkeypatch) -> None:
    for address, message in [
        ("tiled:nonsense", "expected tiled:http"),
        (f"tiled:{server.uri}#uid", "expected tiled:http"),
        (f"tiled:{server.uri}/api/v1/metadata/absent", "absent"),
        (f"tiled:{server.uri}?api_key=x", "export TILED_API_KEY"),
    ]:
        with pytest.raises(InputError, match=message):
            open_listener(address)
    monkeypatch.setenv("TILED_API_KEY", "wrong")
    with pytest.raises(InputError, match="401"):
        open_listener(f"tiled:{server.uri}")


def test_a_server_may_come_later(caplog) -> None:
    alone = Listening(open_listener("tiled:http://127.0.0.1:1"))
    until(lambda: "does not answer" in caplog.text)
    began = time.monotonic()
    alone.end()
    assert time.monotonic() - began < 10
