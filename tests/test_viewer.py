"""A viewer's wishes: anybody may ask, nobody can stop a scan."""

from __future__ import annotations

import json
import logging
import os

import pytest

from ebl_stream.engine.viewer import NAME, Plane, Wishes, read_wishes, write_wishes


def test_what_is_written_is_read(tmp_path):
    plane = Plane(point=(1.0, 2.0, 3.0), normal=(0.0, 1.0, 1.0))
    wishes = Wishes(rows=(10, 20), window="hann", plane=plane)
    write_wishes(tmp_path, wishes)
    assert read_wishes(tmp_path) == wishes


def test_nobody_asks(tmp_path):
    assert read_wishes(tmp_path) == Wishes()
    assert read_wishes(tmp_path / "gone") == Wishes()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"rows": [5, 5]}',
        '{"rows": [-1, 5]}',
        '{"window": "boxcar"}',
        '{"colour": "red"}',
        '{"plane": {"point": [0, 0, 0], "normal": [0, 0, 0]}}',
        json.dumps({"rows": [0, 1]}) + " " * 5000,
        b"\xff\xfe".decode("latin1"),
    ],
)
def test_nonsense_is_logged_and_ignored(tmp_path, text, caplog):
    (tmp_path / NAME).write_text(text)
    with caplog.at_level(logging.WARNING):
        assert read_wishes(tmp_path) == Wishes()
    assert NAME in caplog.text


@pytest.mark.parametrize(
    "normal", ["[1e-200, 0, 0]", "[NaN, 1, 0]", "[Infinity, 0, 0]"]
)
def test_a_plane_without_direction_is_ignored(tmp_path, normal):
    text = f'{{"plane": {{"point": [1, 2, 3], "normal": {normal}}}}}'
    (tmp_path / NAME).write_text(text)
    assert read_wishes(tmp_path) == Wishes()


@pytest.mark.timeout(10)
def test_a_pipe_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / NAME)
    assert read_wishes(tmp_path) == Wishes()
