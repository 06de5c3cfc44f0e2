"""`ebl-stream train` as a user sees it: kills, cards, errors, what is left on disk."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from blobs import discs

from ebl_stream.cli.commands import cli
from ebl_stream.cli.messages import answer_errors
from ebl_stream.cli.training import command_of
from ebl_stream.nets import zoo
from ebl_stream.nets.architecture import Architecture


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.h5"
    with h5py.File(path, "w") as file:
        for part, seed in (("train", 0), ("test", 1)):
            truth = discs(seed)
            noise = np.random.default_rng(seed).standard_normal(truth.shape)
            file[f"{part}_gt"] = truth
            file[f"{part}_ns"] = (truth + 0.5 * noise).astype(np.float32)
    return path


def words(pairs: Path, out: Path, *more: str, kind: str = "tomogan") -> list[str]:
    return [
        *("train", kind, str(pairs), "--out", str(out), "--name", "net"),
        *("--width", "4", "--depth", "3", "--crop", "32", "--batch", "2"),
        *more,
    ]


def run(arguments: list[str], capsys) -> tuple[int, str, str]:
    code = answer_errors(lambda: cli(arguments, standalone_mode=False), False)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_killed_training_goes_on_to_the_same_bits(pairs, tmp_path: Path, capsys):
    """SIGKILL between two checkpoints, the same command again; adversary and all."""
    more = ("--steps", "60", "--check-every", "6", "--features", "0.1")
    broken = tmp_path / "broken"
    checkpoint = broken / "net.checkpoint.safetensors"
    program = [sys.executable, "-m", "ebl_stream.cli", *words(pairs, broken, *more)]
    child = subprocess.Popen(program, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < until:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (broken / "net.safetensors").exists()
    code, out, err = run(words(pairs, broken, *more), capsys)
    assert code == 0, err
    assert "goes on after step" in err
    assert not checkpoint.exists()
    whole = tmp_path / "whole"
    assert run(words(pairs, whole, *more), capsys)[0] == 0
    one, other = (zoo.load(folder / "net.safetensors") for folder in (broken, whole))
    assert one.card == other.card
    assert one.card.weights_sha256 == other.card.weights_sha256
    assert (broken / "net.png").read_bytes().startswith(b"\x89PNG")
    # Without a terminal: a line per look, no codes; the result alone on stdout.
    assert "step 60/60: held_out" in err
    assert "\x1b" not in err + out
    assert out.startswith(f"{broken / 'net.safetensors'}: 60 steps")


def test_the_card_says_how_to_make_the_net_again(pairs, tmp_path: Path, capsys):
    more = ("--steps", "4", "--pixel", "l1", "--gan", "hinge", "--seed", "5", "--json")
    code, out, _ = run(words(pairs, tmp_path / "a", *more), capsys)
    assert code == 0
    made = json.loads(out)
    card = zoo.load(made["weights"]).card
    assert card.kind == "tomogan"
    assert card.steps == 4
    assert card.architecture == Architecture(kind="fast", depth=3, width=4)
    assert "gain_db pairs" in card.metrics
    (source,) = card.data["sources"]  # type: ignore[misc]
    assert source["file"] == "pairs.h5"  # type: ignore[index,call-overload]
    program, *again = card.command.split()
    assert program == "ebl-stream"
    assert "--json" not in again
    assert "--out" not in again
    code, out, _ = run([*again, "--out", str(tmp_path / "b"), "--json"], capsys)
    assert code == 0
    assert zoo.load(json.loads(out)["weights"]).card == card


def test_a_command_keeps_every_choice():
    given = ["x.h5", "--target", "y.h5", "--rotate-deg", "3.9", "--rows", "0:8"]
    given += ["--set", "reconstruct={fourier: {window: cosine}}", "--steps", "7"]
    command = cli.commands["train"].commands["noise2inverse"]  # type: ignore[attr-defined]
    context = command.make_context("noise2inverse", list(given))
    told = command_of(context)
    again = command.make_context("noise2inverse", shlex.split(told)[3:])
    assert again.params == context.params


def test_the_commands_of_the_page_are_understood():
    page = Path(__file__).parents[1] / "docs" / "training.md"
    found = re.findall(r"ebl-stream train (.+?)(?:`|$)", page.read_text(), re.M)
    assert len(found) > 5
    for line in found:
        name, *given = shlex.split(line)
        command = cli.commands["train"].commands[name]  # type: ignore[attr-defined]
        assert command.make_context(name, given).params


def test_a_net_can_begin_with_another(pairs, tmp_path: Path, capsys):
    first = words(pairs, tmp_path / "a", "--steps", "4")
    assert run(first, capsys)[0] == 0
    warm = tmp_path / "a" / "net.safetensors"
    more = ("--steps", "1", "--rate", "1e-9", "--warm", str(warm))
    assert run(words(pairs, tmp_path / "b", *more), capsys)[0] == 0
    old, new = (zoo.load(tmp_path / k / "net.safetensors") for k in "ab")
    assert new.card.data["warm_start"] == old.card.weights_sha256
    for name, value in old.net.state_dict().items():
        torch.testing.assert_close(new.net.state_dict()[name], value, atol=1e-6, rtol=0)
    wide = words(pairs, tmp_path / "c", *more, "--width", "8")
    code, _, err = run(wide, capsys)
    assert code == 2
    assert "--width" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "tomogan"], "what is to be learned from"),
        (["train", "noise2inverse", "absent.h5"], "no file absent.h5"),
        (["train", "noise2inverse", "--library", "foams"], "no family"),
        (["train", "noise2inverse", "a", "--target", "b", "--repeat", "c"], "exclude"),
        (["train", "noise2inverse", "a", "b", "--target", "c"], "one run"),
        (["train", "noise2inverse", "--library", "foam", "--depth", "4"], "odd"),
        (["train", "tomogan", "a", "--name", "../x"], "name"),
        (["train", "tomogan", "a", "--warm", "nobody"], "no net is called"),
        (["train", "noise2inverse", "a", "--rate", "nan"], "rate"),
    ],
)
def test_bad_wishes_are_one_clear_error_and_leave_nothing(
    tmp_path: Path, monkeypatch, capsys, arguments, says
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(arguments, capsys)
    assert code == 2, err
    assert says in err
    assert out == ""
    assert len(err.splitlines()) <= 4
    assert not list(tmp_path.iterdir())


def test_a_library_is_written_as_pairs(tmp_path: Path, capsys):
    path = tmp_path / "library.h5"
    small = ["--scans", "2", "--columns", "64", "--rows", "4", "--families", "foam"]
    code, out, _ = run(["train", "library", str(path), *small], capsys)
    assert (code, out) == (0, f"{path}: 12 pairs\n")
    with h5py.File(path) as file:
        assert {name: value.shape for name, value in file.items()} == {
            "train_ns": (8, 64, 64),
            "train_gt": (8, 64, 64),
            "test_ns": (4, 64, 64),
            "test_gt": (4, 64, 64),
        }
