"""`ebl-stream look`: asking a run that is under way."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from ebl_stream.cli.commands import cli
from ebl_stream.cli.look import ask, find_run
from ebl_stream.engine.viewer import Plane, Wishes, read_wishes
from ebl_stream.errors import InputError


@pytest.fixture
def out(tmp_path):
    """Three runs, one of them under way."""
    for uid, state in (
        ("recon-aa1", "complete"),
        ("recon-bb2", "running"),
        ("recon-aa3", "partial"),
    ):
        (tmp_path / uid).mkdir()
        (tmp_path / uid / "metadata.json").write_text(json.dumps({"state": state}))
    return tmp_path


def test_the_run_under_way_is_found(out):
    assert find_run(out, None).name == "recon-bb2"


def test_a_run_is_named_by_its_beginning(out):
    assert find_run(out, "recon-aa1").name == "recon-aa1"
    with pytest.raises(InputError, match="fits 2 runs"):
        find_run(out, "recon-aa")
    with pytest.raises(InputError, match="fits 0 runs"):
        find_run(out, "recon-zz")


def test_nothing_is_under_way(tmp_path):
    with pytest.raises(InputError, match="no run is under way"):
        find_run(tmp_path, None)


def test_what_is_asked_is_what_the_engine_reads(out):
    arguments = ["--rows", "4:9", "--window", "hann", "--plane", *"123011"]
    done = CliRunner().invoke(
        cli, ["look", str(out), *arguments], standalone_mode=False
    )
    assert done.return_value == 0, done.output
    plane = Plane(point=(1, 2, 3), normal=(0, 1, 1))
    expected = Wishes(rows=(4, 9), window="hann", plane=plane)
    assert read_wishes(out / "recon-bb2") == expected


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"window": "boxcar"}, "Input should be"),
        ({"plane": (0, 0, 0, 0, 0, 0)}, "normal must not be"),
        ({"rows": (5, 5)}, "rows must be"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(out, wish, message):
    wish = {"rows": None, "window": None, "plane": ()} | wish
    with pytest.raises(InputError, match=message):
        ask(out / "recon-bb2", **wish)
    assert not (out / "recon-bb2" / "viewer.json").exists()
