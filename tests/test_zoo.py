"""Nets as files: what was saved comes back, and nothing else is let in."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from ebl_stream.cli.commands import cli
from ebl_stream.errors import InputError
from ebl_stream.nets import zoo
from ebl_stream.nets.architecture import Architecture

SMALL = Architecture(kind="fast", width=4)


def new_state(architecture: Architecture = SMALL) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return architecture.build().state_dict()


def save(folder: Path, **changes: Any) -> Path:
    """Save a small net; changes are those of the card, or its ``state``."""
    given: dict[str, Any] = {
        "name": "small",
        "kind": "noise2inverse",
        "architecture": SMALL,
        "data": {"generator": "foam", "seed": 1_000_000},
        "steps": 10,
        "metrics": {"loss": 0.5},
        "licence": "BSD-3-Clause",
        "command": "ebl-stream train",
    } | changes
    state = given.pop("state", None)
    return zoo.save(folder, new_state() if state is None else state, **given)


def forge(folder: Path, weights: bytes, **card: Any) -> Path:
    """Put other weights in place, with a card that vouches for them."""
    path = save(folder)
    path.write_bytes(weights)
    place = path.with_suffix(".json")
    found = json.loads(place.read_text())
    found["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    place.write_text(json.dumps(found | card))
    return path


def packed(header: Any, values: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


def parts(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Return the header and the values of a sound file."""
    content = save(folder).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def refused(path: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        zoo.load(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# ------------------------------------------------------------------ there and back


def test_a_net_comes_back_as_it_was(tmp_path: Path) -> None:
    state = new_state()
    path = save(tmp_path / "new", state=state)
    before = torch.random.get_rng_state()
    for there in (path, str(path), path.with_suffix(".json")):
        model = zoo.load(there)
        assert model.path == path
        assert not model.net.training
        found = model.net.state_dict()
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)
        assert model.net(torch.zeros(1, 1, 8, 8)).shape == (1, 1, 8, 8)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.card.architecture == SMALL
    assert model.card.data == {"generator": "foam", "seed": 1_000_000}
    assert model.card.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "small.json",
        "small.safetensors",
    ]


def test_a_net_that_was_loaded_can_be_trained_on(tmp_path: Path) -> None:
    path = save(tmp_path)
    net, other = zoo.load(path).net, zoo.load(path).net
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 1, 8, 8)).square().sum().backward()
    optimizer.step()
    trained, kept = net.state_dict(), other.state_dict()
    assert any(not torch.equal(trained[name], kept[name]) for name in kept)
    assert all(torch.equal(kept[name], value) for name, value in new_state().items())


def test_weights_of_other_types_are_saved_as_float32(tmp_path: Path) -> None:
    half = {name: value.bfloat16() for name, value in new_state().items()}
    found = zoo.load(save(tmp_path, state=half)).net.state_dict()
    assert all(torch.equal(found[name], half[name].float()) for name in half)


@pytest.mark.parametrize("name", ["../evil", "a/b", "A", "", "a\n", "x.json", "-x"])
def test_no_path_hides_in_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValidationError):
        save(tmp_path / "in", name=name)
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    broken = new_state()
    broken["leave.bias"] = torch.full((4,), float("nan"))
    large = new_state()
    large["leave.bias"] = torch.full((4,), 1e300, dtype=torch.float64)
    wide = Architecture(kind="tomogan", width=256)
    hollow = {
        name: torch.zeros(()).expand(value.shape)
        for name, value in zoo._hollow(wide).state_dict().items()
    }
    bad: list[dict[str, Any]] = [
        {"state": broken},
        {"state": large},
        {"state": new_state(Architecture(width=8))},
        {"state": {}},
        {"data": {"notes": "x" * 70_000}},
        {"state": hollow, "architecture": wide},
    ]
    for changes in bad:
        with pytest.raises(InputError):
            save(tmp_path, **changes)
    with pytest.raises(ValidationError):
        save(tmp_path, metrics={"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_net_appears_with_its_card_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.suffix == ".json":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]
    assert "has no card" in refused(tmp_path / "small.safetensors")


# ------------------------------------------------------------------------ attacks


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["pickle", "zip", "legacy"])
def test_nothing_is_unpickled(tmp_path: Path, how: str) -> None:
    canary, evil = tmp_path / "canary", tmp_path / "evil"
    if how == "pickle":
        evil.write_bytes(pickle.dumps({"leave.bias": Canary(canary)}))
    else:
        is_zip = how == "zip"
        torch.save(Canary(canary), evil, _use_new_zipfile_serialization=is_zip)
    path = forge(tmp_path / "in", evil.read_bytes())
    assert ("zip archive" if how == "zip" else "a pickle") in refused(path)
    assert "is no net" in refused(evil)
    assert not canary.exists()
    # The canary would have sung.
    torch.load(evil, weights_only=False) if how != "pickle" else pickle.loads(
        evil.read_bytes()
    )
    assert canary.exists()


def test_hdf5_is_sent_to_the_import(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = 1
    path = forge(tmp_path, (tmp_path / "a.h5").read_bytes())
    assert "HDF5: see `ebl-stream models import`" in refused(path)


def test_a_header_may_be_as_long_as_a_pickle_begins(tmp_path: Path) -> None:
    """The low byte of a length may be 0x80, with which pickles begin."""
    header, values = parts(tmp_path)
    text = json.dumps(header).encode()
    text += b" " * ((0x80 - len(text)) % 256)
    path = forge(tmp_path, packed(text, values))
    assert path.read_bytes()[:1] == b"\x80"
    zoo.load(path)


def test_tensors_that_are_not_the_architecture_s(tmp_path: Path) -> None:
    header, values = parts(tmp_path)
    first = "leave.bias"
    entry = header[first]

    def answer(change: dict[str, Any], content: bytes = values) -> str:
        return refused(forge(tmp_path, packed(header | change, content)))

    lacking = {name: header[name] for name in header if name != first}
    assert "lacks tensor 'leave.bias'" in refused(
        forge(tmp_path, packed(lacking, values))
    )
    more = {"more": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    assert "'more' is unknown" in answer(more)
    assert "is [2, 2], not [4]" in answer({first: entry | {"shape": [2, 2]}})
    huge = entry | {"shape": [2**40], "data_offsets": [0, 2**42]}
    assert "is [1099511627776], not [4]" in answer({first: huge})
    for dtype in ("F16", "F64", "I32", None, ["F32"], 7):
        assert "not 'F32'" in answer({first: entry | {"dtype": dtype}})
    begin, end = entry["data_offsets"]
    elsewhere = [[begin + 4, end + 4], [begin - 10**9, end], ["a", "b"], [], None]
    for offsets in elsewhere:
        assert "not safetensors" in answer({first: entry | {"data_offsets": offsets}})
    for odd in (
        None,
        [],
        {},
        {"dtype": "F32"},
        entry | {"shape": None},
        entry | {"x": 1},
    ):
        answer({first: odd})
    assert "bytes of values" in answer({}, values + b"1234")
    assert "bytes of values" in answer({}, values[:-4])
    twice = json.dumps(header)[:-1] + f', "{first}": {json.dumps(entry)}}}'
    assert "twice" in refused(forge(tmp_path, packed(twice.encode(), values)))
    for text in (b"[]", b"nu", b"\xff\xfe", b"[" * 5000, b'{"a": NaN}'):
        assert "not safetensors" in refused(forge(tmp_path, packed(text, values)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    header, values = parts(tmp_path)
    end = header["leave.bias"]["data_offsets"][1]
    bad = values[: end - 4] + struct.pack("<f", value) + values[end:]
    path = forge(tmp_path, packed(header, bad))
    assert "leave.bias holds NaN or infinity" in refused(path)


def test_a_damaged_file_and_an_exchanged_one(tmp_path: Path) -> None:
    path = save(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "it was damaged or exchanged" in refused(path)
    other = save(tmp_path / "other", name="other", state=new_state())
    other.with_suffix(".json").rename(path.with_suffix(".json"))
    assert "is the card of 'other', not of 'small'" in refused(path)


LIES = """
import resource, sys
from pathlib import Path
from ebl_stream.errors import InputError
from ebl_stream.nets import zoo

zoo.load(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    try:
        zoo.load(path)
    except InputError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_sizes_are_looked_at_before_anything_is_read(tmp_path: Path) -> None:
    """A header, a file, a card and an architecture that lie take no memory."""
    header, values = parts(tmp_path)
    paths = []
    for i, length in enumerate((2**63, 2**40, 60 * 2**20, 0, 1)):
        paths.append(forge(tmp_path / f"h{i}", struct.pack("<Q", length) + values))
    long = forge(tmp_path / "long", b"")
    os.truncate(long, zoo.MAX_WEIGHTS_BYTES + 1)
    card = save(tmp_path / "card")
    os.truncate(card.with_suffix(".json"), 2**30)
    wide = {"kind": "tomogan", "depth": 1, "width": 256}
    wide_net = forge(tmp_path / "wide", packed(header, values), architecture=wide)
    paths += [long, card, wide_net]
    command = [
        sys.executable,
        "-c",
        LIES,
        str(save(tmp_path / "good")),
        *map(str, paths),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *messages, grown_kib = done.stdout.splitlines()
    assert len(messages) == len(paths)
    for message in messages[:5]:
        assert "not safetensors (a header of" in message
    assert "larger than 67108864 bytes" in messages[5]
    assert "larger than 65536 bytes" in messages[6]
    assert "is [4], not [256]" in messages[7]
    assert int(grown_kib) < 40 * 1024


def test_cards_that_are_none(tmp_path: Path) -> None:
    path = save(tmp_path)
    place = path.with_suffix(".json")
    card = json.loads(place.read_text())

    def answer(content: Any) -> str:
        place.write_text(content if isinstance(content, str) else json.dumps(content))
        return refused(path)

    assert "is of format 2, newer than 1: update" in answer(
        card | {"format_version": 2, "novel": 1}
    )
    assert "novel" in answer(card | {"novel": 1})
    assert "architecture.depth" in answer(card | {"architecture": {"depth": 2}})
    assert "architecture.width" in answer(card | {"architecture": {"width": 10**9}})
    assert "kind" in answer(card | {"kind": "magic"})
    assert "steps" in answer(card | {"steps": -1})
    assert "name" in answer(card | {"name": "../small"})
    assert "weights_sha256" in answer(card | {"weights_sha256": "0" * 64 + "\n"})
    assert "NaN is no JSON" in answer(json.dumps(card)[:-1] + ', "metrics": NaN}')
    for junk in ("", "[]", "null", "{", "[" * 2000, '"x"'):
        answer(junk)
    place.unlink()
    assert "has no card: small.json is not beside it" in refused(path)


def test_places_that_hold_no_net(tmp_path: Path) -> None:
    """A pipe would be waited for, for ever."""
    path = save(tmp_path)
    card = path.with_suffix(".json").read_bytes()
    path.unlink()
    assert "cannot read" in refused(path)
    os.mkfifo(path)
    assert "not a regular file" in refused(path)
    path.unlink()
    path.mkdir()
    assert "not a regular file" in refused(path)
    path.rmdir()
    (tmp_path / "small.json").unlink()
    os.mkfifo(tmp_path / "small.json")
    assert "not a regular file" in refused(tmp_path / "small.json")
    secret = tmp_path / "secret.txt"
    secret.write_bytes(card)
    odd = ["../small", "/etc/passwd", str(secret), "", ".", "..", "~nobody-there/x"]
    odd += ["a\0b", "a\0b.json", "x" * 5000, "x" * 5000 + ".json", "/proc/self/mem"]
    for name in odd:
        assert "seed" not in refused(name)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_damage_is_one_clear_error(tmp_path: Path, data: st.DataObject) -> None:
    """The card vouches for the damage: whoever made it wrote both."""
    content = bytearray(save(tmp_path).read_bytes())
    head = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, head + 40))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(content)))
    path = forge(tmp_path, bytes(content[:cut]))
    try:
        found = zoo.load(path).net.state_dict()
    except InputError:
        refused(path)
    else:
        assert all(value.isfinite().all() for value in found.values())


# ------------------------------------------------------------- what is shipped


def test_shipped_nets_are_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "SHIPPED", tmp_path)
    save(tmp_path, name="noise2inverse_fast")
    save(tmp_path, name="another")
    assert [card.name for card in zoo.shipped()] == ["another", "noise2inverse_fast"]
    assert zoo.load("another").path == tmp_path / "another.safetensors"
    message = refused("noise2inverse_fas")
    assert "did you mean 'noise2inverse_fast'?" in message


def test_every_shipped_net_is_what_its_card_says() -> None:
    on_disk = {path.stem for path in zoo.SHIPPED.glob("*.safetensors")}
    assert on_disk == set(zoo.names())
    for card in zoo.shipped():
        assert zoo.load(card.name).card == card


def test_the_command_lists_shows_and_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "SHIPPED", tmp_path)
    run = CliRunner()

    def ask(*words: str) -> tuple[int, str]:
        done = run.invoke(cli, ["models", *words], standalone_mode=False)
        if isinstance(done.exception, InputError):
            return 2, str(done.exception)
        assert done.exception is None, done.exception
        return done.return_value, done.output

    assert ask() == (0, "no nets are shipped\n")
    save(tmp_path, name="sound", licence="BSD\x1b[2J")
    code, table = ask()
    assert code == 0
    assert "verified" in table.splitlines()[1]
    _, card = ask("sound")
    assert "BSD?[2J" in card  # nothing that steers a terminal
    assert json.loads(ask("sound", "--json")[1])["steps"] == 10
    broken = save(tmp_path, name="broken")
    broken.write_bytes(broken.read_bytes()[:-1])
    code, table = ask()
    assert code == 2
    assert "broken" in table.splitlines()[1]
    assert "cannot be used" in table
    assert [("error" in row) for row in json.loads(ask("--json")[1])["models"]] == [
        True,
        False,
    ]
    assert ask(str(broken))[0] == 2


def test_the_command_line_does_without_torch() -> None:
    program = "import sys, ebl_stream.cli.commands; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "False\n"
