"""Documents from Kafka: at least once, in both encodings, and never unpickled."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import msgpack
import msgpack_numpy
import numpy as np
import pytest
import zarr
from confluent_kafka import Producer
from kafka_broker import Broker
from listening import Listening, event, until
from reference import nrmse

from ebl_stream.errors import InputError
from ebl_stream.profile import Profile
from ebl_stream.profile_file import load, parse_yaml
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.simulation.faults import LostProjections
from ebl_stream.simulation.phantom import Foam, angles_of
from ebl_stream.sources import kafka as kafka_source
from ebl_stream.sources import open_listener, open_source
from ebl_stream.sources.kafka_codec import MAX_VALUES, repack
from ebl_stream.transport.documents import DocumentError, unpack
from ebl_stream.transport.journal import read_journal

TOPIC = "tla.bluesky.runengine.documents"
Send = Callable[..., None]


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    broker.create(TOPIC, 3)
    yield broker
    broker.close()


@pytest.fixture
def send(broker: Broker) -> Iterator[Send]:
    producer = Producer(
        {"bootstrap.servers": broker.address, "message.max.bytes": 64 * 2**20},
        logger=logging.getLogger("producer"),
    )

    def send(*values: bytes, partition: int | None = None, topic: str = TOPIC) -> None:
        for i, value in enumerate(values):
            where = i % 3 if partition is None else partition
            producer.produce(topic, value, partition=where)
        assert producer.flush(20) == 0

    yield send
    producer.purge()


@pytest.fixture
def listening(broker: Broker) -> Iterator[Callable[..., Listening]]:
    begun: list[Listening] = []

    def begin(options: str = "group=g&start=earliest") -> Listening:
        listener = open_listener(f"kafka://{broker.address}/{TOPIC}?{options}")
        begun.append(Listening(listener))
        return begun[-1]

    yield begin
    for one in begun:
        one.end()


def packed(number: int, values: Any = 1.0) -> bytes:
    """One event, as bluesky_kafka sends it."""
    document = ["event", event(number, values)]
    return msgpack.Packer(default=msgpack_numpy.encode).pack(document)


def numbers(one: Listening) -> set[int]:
    return set(one.shelf.numbers)


# ------------------------------------------------------------------- encodings


@pytest.mark.parametrize(
    "values",
    [
        3,
        [[1.5, 2.5]],
        np.arange(12, dtype="u2").reshape(3, 4),
        np.array([True, False]),
        np.array(["foam", "a"]),
        np.arange(6, dtype=">f4").reshape(1, 3, 2)[:, ::-1],
        np.array(2.5),
        np.zeros((2, 0)),
        np.float32(1.25),
    ],
)
def test_what_bluesky_producers_send_is_read(values: Any) -> None:
    sent = ["event", event(1, values)]
    for encoded in (
        msgpack.packb(sent, default=msgpack_numpy.encode),
        json.dumps(sent, default=lambda array: array.tolist()).encode(),
        json.dumps(
            {"name": "event", "doc": event(1, values)}, default=lambda a: a.tolist()
        ).encode(),
    ):
        name, doc = unpack(repack(encoded))
        back = doc["data"]["image"]
        assert (name, doc["seq_num"]) == ("event", 1)
        np.testing.assert_array_equal(back, values)
        if isinstance(values, np.ndarray) and encoded[:1] == b"\x92":
            assert (back.dtype, back.shape) == (values.dtype, values.shape)


def array(**changes: Any) -> bytes:
    """An event with an array as msgpack-numpy makes it, some of it changed."""
    fields = {"nd": True, "type": "<u2", "kind": b"", "shape": [2], "data": b"abcd"}
    fields = {key.encode(): value for key, value in (fields | changes).items()}
    return msgpack.packb(["event", event(1, fields)])


class Canary:
    """Makes a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def poison(path: str) -> dict[str, bytes]:
    """Messages that are no documents, by what is wrong with them."""
    canary = pickle.dumps(Canary(path))
    return {
        "no msgpack": b"\xc1" * 9,
        "cut short": packed(1)[:-2],
        "no pair": msgpack.packb(["event"]),
        "a number": msgpack.packb(7),
        "no document of Bluesky": msgpack.packb(["bang", {}]),
        "keys that are no strings": msgpack.packb(["event", {1: 2}]),
        "an extension": msgpack.packb(["event", {"a": msgpack.ExtType(1, b"x" * 16)}]),
        "an object array": array(type="|O", kind=b"O", data=canary),
        "an object array in disguise": array(kind=b"O", data=canary),
        "a structured array": array(type=[["a", "<u2"]], kind=b"V"),
        "a shape of gigabytes": array(shape=[2**40, 2**40]),
        "a negative shape": array(shape=[-1, -2]),
        "a shape that is none": array(shape="ab"),
        "a dtype of gigabytes": array(type="<U999999999"),
        "an array without data": msgpack.packb(["event", {"data": {b"nd": True}}]),
        "maps without end": b"\x92\xa5event" + b"\x81\xa1a" * 9000 + b"\xc0",
        "lists without end": b"[" * 200_000,
        "no JSON": b'["event", {]',
        "an integer that is too long": b'["event", {"a": 1' + b"0" * 5000 + b"}]",
        "an integer that is too wide": b'["event", {"a": 123456789012345678901}]',
        "a key twice": b'["event", {"uid": "a", "uid": "b"}]',
        "no number": b'["event", {"a": NaN}]',
        "nested too deep": b'["event", ' + b'{"a":' * 100 + b"1" + b"}" * 100 + b"]",
        "no UTF-8": b'["event", {"a": "\xff"}]',
        "too many values": msgpack.packb(["event", {"a": [0] * MAX_VALUES}]),
    }


@pytest.mark.parametrize("what", poison(""))
def test_what_is_no_document_is_refused(what: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    message = poison(str(canary))[what]
    with pytest.raises(DocumentError):
        repack(message)
    assert not canary.exists()


def test_the_canary_sings() -> None:
    """The attack that the refusals stop is a real one."""
    path = Path("/tmp") / f"canary-{time.monotonic_ns()}"
    attack = array(type="|O", kind=b"O", data=pickle.dumps(Canary(str(path))))
    msgpack.unpackb(attack, object_hook=msgpack_numpy.decode)
    assert path.exists()
    path.unlink()


def test_poison_is_counted_skipped_and_never_comes_again(
    send: Send, listening: Callable[..., Listening], tmp_path: Path, caplog
) -> None:
    canary = tmp_path / "canary"
    bad = poison(str(canary))
    first = listening()
    send(packed(0), *bad.values(), packed(1), partition=0)
    until(lambda: first.shelf.numbers == [0, 1])
    send(b"", b"x" * (kafka_source.MAX_MESSAGE_BYTES + 1), partition=0)
    send(pickle.dumps(Canary(str(canary))), packed(2), partition=0)
    until(lambda: first.shelf.numbers == [0, 1, 2])
    counted = first.listener.problems
    assert counted["malformed"] == len(bad)
    assert (counted["not ours"], counted["too large"], counted["pickled"]) == (1, 1, 1)
    assert len([r for r in caplog.records if "refused a message" in r.message]) == 4
    assert not canary.exists()
    first.end()
    second = listening()
    send(packed(3), partition=0)
    until(lambda: second.shelf.numbers == [3])
    assert not second.listener.problems


# ------------------------------------------------------------------ redelivery


def test_what_was_not_committed_comes_again(
    send: Send, listening: Callable[..., Listening]
) -> None:
    first = listening()
    send(*map(packed, range(60)))
    until(lambda: numbers(first) == set(range(60)))
    until(lambda: first.shelf.n_committed == 60)
    first.shelf.fail_commit = True  # the disk is full: nothing more is owed less
    send(*map(packed, range(60, 90)))
    until(lambda: numbers(first) == set(range(90)))
    until(lambda: first.listener.problems["not committed"] > 0)
    first.end()
    second = listening()
    until(lambda: numbers(second) == set(range(60, 90)))
    assert len(second.shelf.numbers) == 30
    until(lambda: second.shelf.n_committed == 30)
    second.end()
    third = listening()
    send(packed(90))
    until(lambda: third.shelf.numbers == [90])


def test_what_the_sink_refuses_waits_in_its_order(
    send: Send, listening: Callable[..., Listening]
) -> None:
    service = listening()
    service.shelf.refuse = 7
    send(*map(packed, range(300)), partition=1)
    until(lambda: len(service.shelf.numbers) >= 300)
    assert service.shelf.refuse == 0
    assert service.shelf.numbers == list(range(300))


def test_a_service_that_ends_leaves_the_rest_to_the_next(
    send: Send, listening: Callable[..., Listening]
) -> None:
    first = listening()
    send(*map(packed, range(10)))
    until(lambda: len(first.shelf.numbers) == 10)
    first.listener.stop_taking()
    send(*map(packed, range(10, 20)))
    time.sleep(0.5)
    first.end()
    assert numbers(first) == set(range(10))
    second = listening()
    until(lambda: numbers(second) == set(range(10, 20)))
    assert len(second.shelf.numbers) == 10


def test_a_second_of_the_same_group_takes_nothing_away(
    send: Send, listening: Callable[..., Listening]
) -> None:
    """In a consumer group its coming would tear the runs apart."""
    first = listening()
    send(*map(packed, range(30)))
    until(lambda: numbers(first) == set(range(30)))
    until(lambda: first.shelf.n_committed == 30)
    second = listening()
    time.sleep(1.0)
    send(*map(packed, range(30, 90)))
    until(lambda: numbers(first) == set(range(90)))
    until(lambda: set(range(30, 90)) <= numbers(second))
    assert len(first.shelf.numbers) == 90


# -------------------------------------------------------------- where it begins


def test_a_new_group_begins_now_and_is_noted_at_once(
    send: Send, listening: Callable[..., Listening]
) -> None:
    send(*map(packed, range(5)))
    first = listening("group=new")
    until(lambda: len(first.listener._next) == 3)  # type: ignore[attr-defined]
    first.end()
    assert first.shelf.numbers == []
    send(*map(packed, range(5, 10)))  # while nobody listens
    second = listening("group=new")
    until(lambda: numbers(second) == set(range(5, 10)))
    assert len(second.shelf.numbers) == 5


def test_a_topic_that_comes_later_is_read_from_its_beginning(
    broker: Broker, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_source, "LOOK_EVERY_S", 0.3)
    late = Listening(open_listener(f"kafka://{broker.address}/late?group=g"))
    try:
        until(lambda: late.listener.problems["UNKNOWN_TOPIC_OR_PART"] > 0)
        broker.create("late", 2)
        send(*map(packed, range(8)), partition=1, topic="late")
        until(lambda: late.shelf.numbers == list(range(8)))
    finally:
        late.end()


def test_what_the_broker_no_longer_has_is_counted(
    send: Send, listening: Callable[..., Listening]
) -> None:
    first = listening()
    send(packed(0), partition=0)
    until(lambda: first.shelf.n_committed == 1)
    first.end()
    n = 40
    send(*(packed(k, np.zeros(2**18, "u1")) for k in range(1, n)), partition=0)
    second = listening()
    until(lambda: n - 1 in numbers(second))
    lost = second.listener.problems["lost by retention"]
    assert lost > 0
    assert second.shelf.numbers == list(range(1 + lost, n))
    second.shelf.refuse = 10**9  # for now it takes nothing, and Kafka goes on
    values = [packed(k, np.zeros(2**18, "u1")) for k in range(n, 2 * n)]
    send(*values, partition=0)
    time.sleep(0.5)
    send(*values, partition=0)
    second.shelf.refuse = 0
    until(lambda: second.shelf.numbers[-1] == 2 * n - 1)
    n_taken = len(second.shelf.numbers)
    assert second.listener.problems["lost by retention"] == 3 * n - 1 - n_taken


# ---------------------------------------------------------------------- brokers


def test_brokers_go_and_come_back(
    broker: Broker, send: Send, listening: Callable[..., Listening], caplog
) -> None:
    caplog.set_level(logging.INFO, "ebl_stream")
    service = listening()
    send(packed(0))
    until(lambda: service.shelf.numbers == [0])
    broker.go_down()
    until(lambda: service.listener.problems["brokers down"] == 1)
    time.sleep(1.5)
    broker.come_up()
    until(lambda: "answers again" in caplog.text)
    send(*map(packed, range(1, 30)))
    until(lambda: numbers(service) == set(range(30)))
    ours = [r for r in caplog.records if r.name.startswith("ebl_stream.sources")]
    assert [r.message.partition(": ")[2] for r in ours] == [
        "no broker answers; trying again",
        "a broker answers again",
    ]


def test_a_service_may_be_first_and_ends_at_once(caplog) -> None:
    alone = Listening(open_listener("kafka://127.0.0.1:1/topic?group=g"))
    until(lambda: alone.listener.problems["brokers down"] == 1)
    began = time.monotonic()
    alone.end()
    assert time.monotonic() - began < 15


# -------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("kafka://", "expected kafka://host:9092"),
        ("kafka://h:9092/", "expected kafka://host:9092"),
        ("kafka://h:9092/a/b?group=g", "expected kafka://host:9092"),
        ("kafka://h:9092,/t?group=g", "expected kafka://host:9092"),
        ("kafka://user:word@h:9092/t?group=g", "expected kafka://host:9092"),
        ("kafka://h:9092/^t?group=g", "expected kafka://host:9092"),
        ("kafka://h:9092/t", r"give \?group=NAME"),
        ("kafka://h:9092/t?group=", r"give \?group=NAME"),
        ("kafka://h:9092/t?group=g&start=1", "start is latest or earliest"),
        ("kafka://h:9092/t?group=g&offset=1", "unknown option 'offset'"),
        ("kafka://h/t?group=g&config=/nowhere", "No such file"),
    ],
)
def test_a_wrong_address_is_refused(address: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_listener(address)


def test_settings_of_a_login_are_read_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "kafka.properties"
    address = f"kafka://h:9092/t?group=g&config={path}"
    path.write_text(
        "# NSLS-II\nsecurity.protocol=SASL_SSL\nsasl.mechanisms = PLAIN\n\n"
        "sasl.username=2bm\nsasl.password=pass=word\n"
    )
    source = open_listener(address)
    assert source._where.login["sasl.password"] == "pass=word"  # type: ignore[attr-defined]
    source._consumer.close()  # type: ignore[attr-defined]
    for line, message in [
        ("enable.auto.commit=true", "line 1: expected name=value"),
        ("sasl.password", "line 1: expected name=value"),
        ("ssl.nonsense=secret", "ssl.nonsense"),
    ]:
        path.write_text(line)
        with pytest.raises(InputError, match=message) as error:
            open_listener(address)
        assert "secret" not in str(error.value)


# ------------------------------------------------------- a scan, service and all

ANGLES, ROWS, COLUMNS = 120, 4, 64
SETTINGS = ["preprocess=[flat_field,minus_log]", "geometry.rotation_center=32.7"]
SETTINGS += ["denoise=null", "segment=null", "quantify=null"]


def write_scan(path: Path) -> Path:
    """Write a phantom's projections, in golden order, as Data Exchange."""
    theta = angles_of("golden", ANGLES)
    exact = Foam(COLUMNS, ROWS, seed=4).project(theta, rotation_center=32.7)
    counts = np.random.default_rng(0).poisson(9000 * np.exp(-exact)) + 90
    with h5py.File(path, "w") as file:
        file["exchange/data"] = counts.astype("u2")
        file["exchange/data_white"] = np.full((4, ROWS, COLUMNS), 9090, "u2")
        file["exchange/data_dark"] = np.full((4, ROWS, COLUMNS), 90, "u2")
        file["exchange/theta"] = np.rad2deg(theta)
    return path


def profile_of(folder: Path) -> Profile:
    words = dict(one.split("=") for one in SETTINGS)
    values = {key: parse_yaml(value) for key, value in words.items()}
    roots = {"files.roots": [str(folder)], "publish.tiled": "none"}
    return load("data_exchange", values | roots)


def one_by_one(name: str, doc: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Cut a StreamDatum into one frame each, as a detector tells them."""
    if name != "stream_datum":
        yield name, doc
        return
    shift = doc["seq_nums"]["start"] - doc["indices"]["start"]
    for k in range(doc["indices"]["start"], doc["indices"]["stop"]):
        indices = {"start": k, "stop": k + 1}
        numbers = {"start": k + shift, "stop": k + shift + 1}
        new = {"uid": f"{doc['uid']}-{k}", "indices": indices, "seq_nums": numbers}
        yield name, doc | new


def start_service(address: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ebl_stream.cli", "serve", "--source", address]
    command += ["--profile", "data_exchange", "--out", str(folder / "out")]
    for setting in [*SETTINGS, f"files.roots=[{folder}]"]:
        command += ["--set", setting]
    command += ["--tiled", "none"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "ready" in process.stdout.readline()
    return process


def journaled(folder: Path) -> list[Any]:
    """Return the uids of the documents in all journals."""
    journals = (folder / "out" / "journal").glob("*.ebldocs")
    return [doc["uid"] for path in journals for _, _, doc in read_journal(path)]


def outcome(folder: Path) -> dict[str, Any]:
    """Return the metadata of the one run that ended."""
    said = [json.loads(p.read_text()) for p in folder.glob("out/recon-*/metadata.json")]
    ended = [one for one in said if one["state"] in ("complete", "partial")]
    return ended[0] if ended else {}


def test_a_killed_service_goes_on_from_its_last_commit(
    broker: Broker, send: Send, tmp_path: Path
) -> None:
    """One run in three partitions, repeated, with a gap; the service dies in it."""
    profile = profile_of(tmp_path)
    source, profile = open_source(str(write_scan(tmp_path / "scan.h5")), profile)
    documents = [d for pair in source.documents() for d in one_by_one(*pair)]
    lost = {30, 31, 90}
    cut: list[tuple[str, dict[str, Any]]] = []
    losing = LostProjections(lambda name, doc: cut.append((name, doc)), lost)
    for name, doc in documents:
        losing(name, doc)
    clean = Reconstruction(profile, out=tmp_path / "clean", roots=(tmp_path,))
    for name, doc in cut:
        clean(name, doc)
    clean.close()
    (expected,) = clean.results.values()

    address = f"kafka://{broker.address}/{TOPIC}?group=g&start=earliest"
    messages = [msgpack.Packer(default=msgpack_numpy.encode).pack(d) for d in cut]
    half = len(messages) // 2
    service = start_service(address, tmp_path)
    try:
        send(*messages[:half], *messages[half - 20 : half])
        until(lambda: len(set(journaled(tmp_path))) == half)
        service.kill()
        service.wait()
        send(*messages[half:])
        service = start_service(address, tmp_path)
        until(lambda: bool(outcome(tmp_path)))
    finally:
        service.terminate()
        assert service.wait(20) == 0
    metadata = outcome(tmp_path)
    assert metadata["state"] == expected.state == "partial"
    ledger = metadata["ledger"]
    assert ledger["missing_indices"] == [[30, 32], [90, 91]]
    assert (ledger["used"], ledger["residue"]) == (ANGLES - 3, 0)
    assert ledger["duplicate"] >= 1
    volume = zarr.open_array(next(tmp_path.glob("out/recon-*/recon")), mode="r")
    assert nrmse(np.asarray(volume), zarr.open_array(expected.volume)[:]) < 1e-5
