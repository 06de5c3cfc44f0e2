"""No document, file or setting runs code."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import pytest
import yaml
import zmq

from ebl_stream import strict_json
from ebl_stream.errors import InputError
from ebl_stream.profile_file import load, parse_yaml
from ebl_stream.service.service import Service
from ebl_stream.sources import open_source
from ebl_stream.sources.kafka_codec import repack
from ebl_stream.sources.proxy import ProxySource
from ebl_stream.sources.zmq import DoorSource
from ebl_stream.transport import wire
from ebl_stream.transport.documents import DocumentError, pack
from ebl_stream.transport.journal import JournalWriter, read_journal

ROOT = Path(__file__).parents[1]
CODE = sorted(
    [*(ROOT / "ebl_stream").rglob("*.py"), *(ROOT / "callbacks").glob("*.py")]
)
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve"}
UNPICKLERS |= {"marshal", "joblib", "jsonpickle", "msgpack_numpy", "bluesky_kafka"}
CALLS = {"eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load"}
CALLS |= {"yaml.full_load", "torch.load", "pd.read_pickle", "os.system", "os.popen"}
MSGPACK_USERS = {"documents.py", "packable.py"}
"""Who may import msgpack itself; all others have the codec."""

TIMEOUT_S = 20.0


def imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def forbidden_calls(tree: ast.Module) -> list[str]:
    found = []
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        called = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        is_plain = called == "yaml.load" and options.get("Loader") == "_PlainLoader"
        if called in CALLS and not is_plain:
            found.append(called)
        if options.get("allow_pickle", "False") != "False":
            found.append(f"{called}(allow_pickle)")
        if options.get("shell", "False") != "False":
            found.append(f"{called}(shell)")
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.stem)
def test_no_code_unpickles_or_evaluates(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not imported(tree) & UNPICKLERS
    assert forbidden_calls(tree) == []
    assert "msgpack" not in imported(tree) or path.name in MSGPACK_USERS


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import bluesky_kafka.consume",
        "eval('1')",
        "yaml.load(text, Loader=yaml.UnsafeLoader)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path, weights_only=True)",
        "subprocess.run('ls', shell=True)",
    ],
)
def test_the_ban_sees_what_is_banned(text):
    tree = ast.parse(text)
    assert imported(tree) & UNPICKLERS or forbidden_calls(tree)


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return open, (str(self.canary), "w")


@pytest.fixture
def canary(tmp_path) -> Path:
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Trap(path)))
    path.unlink()  # raises where the trap does not work
    return path


def payloads(canary: Path) -> list[bytes]:
    """The same trap: pickled, as msgpack_numpy has it, as an extension."""
    trap = pickle.dumps(Trap(canary))
    array = {b"nd": True, b"type": b"|O", b"kind": b"O", b"shape": (1,), b"data": trap}
    inside = {"uid": "x", "data": {"image": array}}
    extension = {"uid": "x", "data": msgpack.ExtType(78, trap)}
    return [
        pickle.dumps(("start", {"uid": "x", "trap": Trap(canary)})),
        pickle.dumps({"uid": "x", "trap": Trap(canary)}),
        msgpack.packb(["event", inside]),
        msgpack.packb(["event", extension]),
        msgpack.packb(["start", {"uid": "x", "trap": trap}]),
    ]


class Seen:
    """A callback that writes down the names of what it gets."""

    results: dict[str, Any] = {}  # noqa: RUF012
    put_off = ()
    tick_s = 1.0

    def __init__(self) -> None:
        self.uids: list[str] = []
        self.came = threading.Event()

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        self.uids.append(str(doc.get("uid")))
        if doc.get("uid") == "sound":
            self.came.set()

    def heard(self, run_uid: str) -> None:
        pass

    def abandon(self) -> None:
        pass

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass


def send_to_door(endpoint: str, messages: list[bytes]) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(endpoint)
        for number, message in enumerate(messages):
            head = wire.Head(wire.DOCUMENT, b"c" * wire.CLIENT_BYTES, number, 0)
            socket.send_multipart([head.pack(), message])
        socket.close(linger=1000)


def test_traps_at_a_door_are_refused_and_counted(tmp_path, canary):
    source, seen = DoorSource("zmq://:*"), Seen()
    service = Service(source, lambda *_: seen, tmp_path / "journal")
    try:
        sound = pack("start", {"uid": "sound"})
        endpoint = source.address.replace("zmq://", "tcp://")
        send_to_door(endpoint, [*payloads(canary), sound])
        assert seen.came.wait(TIMEOUT_S)
    finally:
        service.stop()
    assert not canary.exists()
    assert source.problems["malformed"] == 4
    # The last one is bytes in a start document: data, and nothing but that.
    assert seen.uids == ["x", "sound"]
    for journal in (tmp_path / "journal").glob("*.ebldocs"):
        list(read_journal(journal))
    assert not canary.exists()


def test_traps_on_the_bus_are_refused_and_counted(tmp_path, canary):
    with zmq.Context() as context, context.socket(zmq.PUB) as publisher:
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        source, seen = ProxySource(f"zmq+sub://127.0.0.1:{port}"), Seen()
        service = Service(source, lambda *_: seen, tmp_path / "journal")
        sound = b"prefix start " + msgpack.packb({"uid": "sound"})
        traps = [b"prefix start " + payload for payload in payloads(canary)]
        until = time.monotonic() + TIMEOUT_S
        try:
            # Who subscribes misses what was sent before: it is told until it hears.
            while not seen.came.wait(0.05) and time.monotonic() < until:
                for message in (*traps, sound):
                    publisher.send(message)
        finally:
            service.stop()
    assert seen.came.is_set()
    assert not canary.exists()
    assert source.problems["pickled"] >= 1
    assert source.problems["malformed"] >= 1


def test_traps_in_a_journal_are_left_out(tmp_path, canary):
    path = tmp_path / "scan.ebldocs"
    writer = JournalWriter(path)
    writer.append(pack("start", {"uid": "sound"}), 0.0)
    for payload in payloads(canary):
        writer.append(payload, 1.0)
    writer.close()
    source, _ = open_source(str(path), None)
    assert [name for name, _ in source.documents()] == ["start", "start"]
    (tmp_path / "pickled.ebldocs").write_bytes(payloads(canary)[0])
    with pytest.raises(InputError):
        open_source(str(tmp_path / "pickled.ebldocs"), None)
    assert not canary.exists()


def test_traps_in_kafka_are_plain_data_or_refused(canary):
    for payload in payloads(canary):
        with suppress(DocumentError):
            repack(payload)
    assert not canary.exists()


PATCHED = """
import msgpack, msgpack._cmsgpack as inner
def unpackb(packed, **options):
    return "an object"
{what}.unpackb = unpackb
import ebl_stream.transport.documents as documents
print(documents.unpack(documents.pack("start", {{"uid": "a"}}))[0])
"""


@pytest.mark.parametrize(
    ("what", "said"), [("msgpack", "start"), ("inner", "msgpack was changed")]
)
def test_a_changed_msgpack_is_not_used_or_stops_the_import(what, said):
    command = [sys.executable, "-c", PATCHED.format(what=what)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said in done.stdout + done.stderr


def test_nothing_of_ours_changes_msgpack():
    code = (
        "import ebl_stream.service.service, ebl_stream.reconstruction\n"
        "import ebl_stream.sources, ebl_stream.sources.archive, msgpack, sys\n"
        "print(msgpack.unpackb.__module__, 'msgpack_numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["msgpack._cmsgpack", "False"]


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefgh")
)


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch {canary}']",
        "name: !!python/name:os.system",
        "name: !!python/module:os",
        "name: !custom x",
        "name: !!set {a, b}",
        "name: !!binary aGVsbG8=",
        "!!map {name: a}",
        BOMB,
        "a: &a [*a]",
        "base: &b {name: x}\nname: *b",
        "name: a\nname: b",
        "keys: {image: a, image: b}",
        "a: " + "[" * 5000 + "]" * 5000,
        "a: " + "{a: " * 100 + "}" * 100,
        "name: 2026-13-45",
        "x: " + "9" * 60_000,
        "x: 0x" + "f" * 60_000,
        "\x1b[2J",
        "- a\n- b",
        "? [a]\n: b",
        "1: 2",
        "name: a\0b",
        "x: " + "a" * 70_000,
        "keys: " + "'\\ud800'",
    ],
)
def test_hostile_profiles_are_answered_in_one_message(tmp_path, text, canary):
    path = tmp_path / "beamline.yaml"
    path.write_text(text.replace("{canary}", str(canary)))
    before = time.monotonic()
    with pytest.raises(InputError) as refused:
        load(str(path))
    assert time.monotonic() - before < 5
    assert len(str(refused.value)) < 2000
    assert not canary.exists()


def test_plain_yaml_is_read():
    assert parse_yaml("a: [1, 2.5, x]\nb: {c: null, d: true}") == {
        "a": [1, 2.5, "x"],
        "b": {"c": None, "d": True},
    }
    for text, why in (("a: &b x\nc: *b", "aliases"), ("a: !!str x", "tags")):
        with pytest.raises(yaml.YAMLError, match=why):
            parse_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 70 + "1" + "}" * 70,
        '{"a": 1, "a": 2}',
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": ' + "9" * 5000 + "}",
        '{"a": 18446744073709551616}',
        '"' + "x" * 70_000_000 + '"',
        "{'a': 1}",
        '{"a": 1} x',
        "",
        b"\xff\xfe",
        b'{"a": "\xed\xa0\x80"}',
    ],
)
def test_hostile_json_is_refused(text):
    with pytest.raises(strict_json.JsonError) as refused:
        strict_json.loads(text)
    assert len(str(refused.value)) < 200


def test_sound_json_is_read():
    assert strict_json.loads(b'{"a": [1, 2.5, null, "\xc3\xa4"]}') == {
        "a": [1, 2.5, None, "\u00e4"]
    }
    assert strict_json.loads(str(2**64 - 1)) == 2**64 - 1
