"""Documents over real sockets: in order, once, acknowledged, and never unpickled."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from bad_network import BadNetwork
from listening import TIMEOUT_S, Listening, event, until

from ebl_stream.errors import InputError
from ebl_stream.sources import open_listener
from ebl_stream.sources.proxy import ProxySource
from ebl_stream.sources.zmq import DoorSource, _Client
from ebl_stream.transport import wire
from ebl_stream.transport.link import Link


@pytest.fixture
def listening() -> Iterator[Callable[[str], Listening]]:
    begun: list[Listening] = []

    def begin(address: str) -> Listening:
        begun.append(Listening(open_listener(address)))
        return begun[-1]

    yield begin
    for one in begun:
        one.end()


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Callable[..., Link]]:
    links: list[Link] = []

    def connect(address: str, **options: Any) -> Link:
        links.append(Link(address, folder=tmp_path, **options))
        return links[-1]

    yield connect
    for one in links:
        one.close(linger_s=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_is_lost_on_a_bad_network(listening, link, seed: int) -> None:
    service = listening("zmq://localhost:*")
    network = BadNetwork(service.listener.address, seed)
    door = link(network.address)
    try:
        door.send("start", {"uid": "run-1"})
        for number in range(300):
            door.send("event", event(number, np.full((16, 16), number)))
        assert door.flush(TIMEOUT_S)
        service.listener.tell("run-1", {"run_uid": "run-1", "final": True, "n": 300})
        assert door.wait(TIMEOUT_S) == {"run_uid": "run-1", "n": 300}
    finally:
        network.close()
    assert network.n_harmed > 10
    assert service.shelf.numbers == list(range(300))
    assert [doc["data"]["image"][0, 0] for _, doc in service.shelf.taken[1:]] == list(
        range(300)
    )


def test_a_late_service_gets_everything_in_order(listening, link, tmp_path) -> None:
    address = f"ipc://{tmp_path}/s"
    door = link(address, max_bytes=4 * 2**20)
    for number in range(200):
        door.send("event", event(number, np.zeros((128, 128), "f4")))
    assert "on disk" in repr(door)  # 13 MB do not fit into 4
    service = listening(address)
    assert door.flush(TIMEOUT_S)
    assert service.shelf.numbers == list(range(200))
    assert not door.errors


def test_a_service_that_comes_back_gets_the_rest(link, tmp_path) -> None:
    address = f"ipc://{tmp_path}/s"
    door = link(address)
    first = Listening(DoorSource(address))
    for number in range(50):
        door.send("event", event(number))
    assert door.flush(TIMEOUT_S)
    first.end()
    for number in range(50, 100):
        door.send("event", event(number))
    second = Listening(DoorSource(address))
    try:
        assert door.flush(TIMEOUT_S)
    finally:
        second.end()
    assert first.shelf.numbers + second.shelf.numbers == list(range(100))


def test_several_doors_at_once(listening, link) -> None:
    service = listening("zmq://localhost:*")
    doors = [link(service.listener.address) for _ in range(3)]
    for number in range(100):
        for n, door in enumerate(doors):
            door.send("event", event(number, n))
    assert all(door.flush(TIMEOUT_S) for door in doors)
    for n in range(3):
        mine = [d for _, d in service.shelf.taken if d["data"]["image"] == n]
        assert [d["seq_num"] for d in mine] == list(range(100))


def test_what_the_sink_refuses_comes_again(listening, link) -> None:
    service = listening("zmq://localhost:*")
    service.shelf.refuse = 5
    door = link(service.listener.address)
    for number in range(20):
        door.send("event", event(number))
    assert door.flush(TIMEOUT_S)
    assert service.shelf.numbers == list(range(20))
    assert service.shelf.refuse == 0


def test_nothing_is_acknowledged_before_it_is_on_disk(listening, link) -> None:
    service = listening("zmq://localhost:*")
    service.shelf.fail_commit = True
    door = link(service.listener.address)
    door.send("event", event(0))
    until(lambda: service.listener.problems["not committed"] > 0)
    assert not door.flush(0)
    service.shelf.fail_commit = False
    assert door.flush(TIMEOUT_S)
    assert service.shelf.n_committed == 1


def test_the_service_takes_no_more_while_it_ends(listening, link) -> None:
    service = listening("zmq://localhost:*")
    door = link(service.listener.address)
    door.send("start", {"uid": "r"})
    assert door.flush(TIMEOUT_S)
    service.listener.stop_taking()
    door.send("event", event(1))
    service.listener.tell("r", {"run_uid": "r", "final": True})
    assert door.wait(TIMEOUT_S) == {"run_uid": "r"}
    assert not door.flush(0)
    assert service.shelf.numbers == []


def test_malformed_messages_are_counted_and_survived(listening, link, caplog) -> None:
    service = listening("zmq://localhost:*")
    client = b"c" * wire.CLIENT_BYTES
    documents = [b"", b"\x80", b"\xc1" * 9, msgpack.packb(["event", 3])]
    context = zmq.Context()
    with context.socket(zmq.DEALER) as stranger:
        stranger.connect(wire.endpoint(service.listener.address))
        for parts in ([b""], [b"x" * 41, b""], [b"a", b"b", b"c"], [b"q" * 41] * 2):
            stranger.send_multipart(parts)
        ping = wire.Head(wire.PING, client).pack()
        stranger.send_multipart([ping, b"\xc1"])
        stranger.send_multipart([ping, msgpack.packb([["a"], 3, {}])])
        for n, packed in enumerate(documents):
            stranger.send_multipart(
                [wire.Head(wire.DOCUMENT, client, n).pack(), packed]
            )
        until(lambda: service.listener.problems["malformed"] == len(documents))
    context.term()
    assert service.listener.problems["not ours"] == 5
    assert len([r for r in caplog.records if "malformed" in r.message]) == 1
    door = link(service.listener.address)
    door.send("event", event(7))
    assert door.flush(TIMEOUT_S)
    assert service.shelf.numbers == [7]


@pytest.mark.parametrize(
    "address",
    ["", "nonsense", "zmq://host", "zmq://:99999", "http://host:80", "ipc://", "5577x"],
)
def test_a_wrong_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=r"expected zmq://host:port|1 to 100 bytes"):
        open_listener(address)


def test_an_address_that_is_taken_is_refused(listening) -> None:
    service = listening("zmq://localhost:*")
    with pytest.raises(InputError, match="Address already in use"):
        open_listener(service.listener.address)


def test_only_an_explicit_address_is_open_to_others(listening, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert listening("zmq://:*").listener.address.startswith("zmq://127.0.0.1:")
        assert not caplog.records
        assert listening("zmq://0.0.0.0:*").listener.address.startswith("zmq://0.0.0.0")
    assert "other machines" in caplog.text


PROXY = """
from bluesky.callbacks.zmq import Proxy
proxy = Proxy("127.0.0.1", "127.0.0.1")
print(proxy.in_port, proxy.out_port, flush=True)
proxy.start()
"""


@pytest.fixture
def bluesky_proxy() -> Iterator[tuple[str, str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROXY], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        into, out = process.stdout.readline().split()
        yield into, out.replace("tcp://", "zmq+sub://")
    finally:
        process.kill()
        process.communicate()


class Canary:
    """Makes a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")

    def __deepcopy__(self, memo: Any) -> Canary:
        return self


def test_the_stock_publisher_is_heard_and_pickle_refused(
    listening, bluesky_proxy, tmp_path
) -> None:
    from bluesky.callbacks.zmq import Publisher

    into, out = bluesky_proxy
    service = listening(out)
    assert isinstance(service.listener, ProxySource)
    plain = Publisher(into, serializer=msgpack.packb, prefix=b"2bm")
    pickled = Publisher(into)

    def hear(publisher: Publisher, what: dict[str, Any], counted: Any) -> None:
        before = counted()
        while counted() == before:  # a PUB socket loses what it sends too early
            publisher("event", what)
            time.sleep(0.05)

    hear(plain, event(1), lambda: len(service.shelf.taken))
    canary = {"data": Canary(str(tmp_path / "canary"))}
    pickle.loads(pickle.dumps(canary))
    assert (tmp_path / "canary").exists()
    (tmp_path / "canary").unlink()
    hear(pickled, canary, lambda: service.listener.problems["pickled"])
    n_heard = len(service.shelf.taken)
    hear(plain, event(2), lambda: len(service.shelf.taken))
    assert not (tmp_path / "canary").exists()
    names = {name for name, _ in service.shelf.taken}
    assert names == {"event"}
    assert service.shelf.taken[n_heard][1] in (event(1), event(2))
    assert service.shelf.numbers[-1] == 2
    plain.close()
    pickled.close()


def test_nonsense_on_the_bus_is_counted(listening) -> None:
    context = zmq.Context()
    with context.socket(zmq.PUB) as bus:
        port = bus.bind_to_random_port("tcp://127.0.0.1")
        service = listening(f"zmq+sub://127.0.0.1:{port}")
        good = b" event " + msgpack.packb(event(1))
        while not service.shelf.taken:
            bus.send(good)
            time.sleep(0.02)
        for message in (
            b"",
            b"a b",
            b" event ",
            b" event \xc1",
            b" bang \x81\xa1a\x01",
        ):
            bus.send(message)
        until(lambda: sum(service.listener.problems.values()) == 5)
    context.term()
    assert service.listener.problems == {"not ours": 3, "malformed": 2}


@pytest.mark.parametrize("n_lost", [10, 100, 1000])
def test_a_burst_that_the_bus_loses_is_named_within_a_second(
    listening, n_lost: int, caplog
) -> None:
    documents = [("start", {"uid": "r"})]
    documents += [("descriptor", {"uid": "d", "run_start": "r", "name": "primary"})]
    documents += [("event", {**event(k), "uid": f"e{k}"}) for k in range(1, 1201)]
    rng = np.random.default_rng(n_lost)
    lost = set(range(100, 100 + n_lost))
    kept = [d for d in documents if d[1].get("seq_num") not in lost]
    early = np.argsort(np.arange(len(kept)) + rng.uniform(0, 16, len(kept)))
    kept[2:] = [kept[k] for k in early if k >= 2]  # late ones are not lost
    kept += kept[5:25]
    context = zmq.Context()
    with context.socket(zmq.PUB) as bus:
        bus.set_hwm(0)
        port = bus.bind_to_random_port("tcp://127.0.0.1")
        service = listening(f"zmq+sub://127.0.0.1:{port}")
        until(lambda: _hears(bus, service))
        for name, doc in kept:
            bus.send(b" " + name.encode() + b" " + msgpack.packb(doc))
        until(lambda: service.shelf.taken[-1] == kept[-1])
        began = time.monotonic()
        until(lambda: service.listener.problems["gap"] == n_lost)
        assert time.monotonic() - began < 1.5
        until(lambda: "did not come" in caplog.text)  # said after it is counted
        (record,) = [r for r in caplog.records if "did not come" in r.message]
        assert f"primary: events 100 to {99 + n_lost} did" in record.message
        stop = {"uid": "s", "run_start": "r", "num_events": {"primary": 1203}}
        bus.send(b" stop " + msgpack.packb(stop))
        until(lambda: service.listener.problems["gap"] == n_lost + 3)
    context.term()


def _hears(bus: Any, service: Listening) -> bool:
    bus.send(b" event " + msgpack.packb(event(0)))
    return bool(service.shelf.taken)


def test_a_ping_does_not_bring_an_old_status_back() -> None:
    source = DoorSource("zmq://127.0.0.1:*")
    try:
        source.tell("run", {"run_uid": "run", "final": False})
        source._tell_all()
        source.tell("run", {"run_uid": "run", "final": True})  # the worker says,
        source._pinged(_Client(b"door"), ["run"])  # and a ping is heard after it
        source._tell_all()
        assert wire.unpack_small(source._statuses["run"], dict)["final"]
    finally:
        source.close()
