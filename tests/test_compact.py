"""What is kept of every frame in a few bytes says the same as plain dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from ebl_stream.engine.center_rows import CHUNK, CenterRows
from ebl_stream.engine.frame_store import FrameStore
from ebl_stream.frames import Frame, FrameRef, Kind
from ebl_stream.ingest.places import Places
from ebl_stream.ingest.ranges import RangeSet
from ebl_stream.ingest.told import SeenUids, Told
from ebl_stream.sources.synthesis import _read_rows

SEQ = st.integers(1, 30)
FILES: Any = ["a", "b"]  # stand for the images of a file


@given(st.lists(st.tuples(SEQ, st.integers(0, 8), st.sampled_from(FILES), SEQ)))
def test_places(puts: list[tuple[int, int, Any, int]]) -> None:
    places, model = Places(), dict[int, tuple[Any, int]]()
    for start, n, file, index in puts:
        if n:
            places.put(start, start + n, file, index)
        else:
            places.remove(start, start + 2)
            model = {k: v for k, v in model.items() if k not in (start, start + 1)}
        model |= {start + k: (file, index + k) for k in range(n)}
        assert sorted(places) == sorted(model)
        assert all(places.get(seq) == model.get(seq) for seq in range(50))


def test_places_in_order_are_one_stretch() -> None:
    places = Places()
    for seq in range(1, 1000):
        places.put(seq, seq + 1, FILES[0], seq + 6)
    assert len(places._stretches) == 1


@given(st.lists(st.tuples(SEQ, st.integers(-1, 6))))
def test_a_set_of_ranges(changes: list[tuple[int, int]]) -> None:
    ranges, model = RangeSet(), set[int]()
    for start, n in changes:
        if n < 1:
            ranges.discard(start)
            model.discard(start)
        else:
            ranges.add(start, start + n)
            model |= set(range(start, start + n))
        assert {k for a, b in ranges for k in range(a, b)} == model
        assert len(ranges) == len(model)


@given(st.lists(st.tuples(SEQ, st.lists(st.floats(allow_nan=False), max_size=3))))
def test_what_events_say(said: list[tuple[int, list[float]]]) -> None:
    told, model = Told("d"), dict[int, tuple[float, ...]]()
    for seq, values in said:
        told[seq] = model[seq] = tuple(values)
        if len(model) % 3 == 0:
            told.pop(seq)
            del model[seq]
        assert {seq: told.get(seq) for seq in told} == model
    other = Told("d")
    other.update(told)
    assert {seq: other.get(seq) for seq in other} == model


def test_uids_are_known_again() -> None:
    seen = SeenUids()
    for k in range(5000):
        assert not seen.add(f"event/{k}")
    assert all(seen.add(f"event/{k}") for k in range(5000))
    assert not seen.add("event/5000\ud800")


def test_frames_come_back_from_memory_file_and_scratch(tmp_path: Path) -> None:
    images = np.arange(12 * 6, dtype="<u2").reshape(12, 2, 3)
    with h5py.File(path := tmp_path / "scan.h5", "w") as file:
        file["flat"], file["paired"] = images, images.reshape(6, 2, 2, 3)
    store = FrameStore(4 * images[0].nbytes)
    for k, image in enumerate(images):
        ref = None
        if k in (5, 6):
            ref = FrameRef(str(path), "flat", (k,), (1, 2))
        if k == 7:
            ref = FrameRef(str(path), "paired", (3, 1))
        store.put(k, Frame(k, Kind.PROJECTION, 0.0, image, ref))
    for k, image in enumerate(images):
        np.testing.assert_array_equal(
            store.image(k), image[1:] if k in (5, 6) else image
        )
    store.put(0, Frame(0, Kind.PROJECTION, 0.0, images[9].astype("<f4")[:1]))
    np.testing.assert_array_equal(store.image(0), images[9][:1])
    store.put(11, Frame(11, Kind.PROJECTION, 0.0, images[1].astype("<f8")))
    np.testing.assert_array_equal(store.image(11), images[1])
    assert store.n_bytes == 4 * images[0].nbytes
    store.close()


def test_center_rows_of_many_projections() -> None:
    kept, n = CenterRows(), CHUNK + 5
    for place in range(n):
        kept.add(place, np.full((2, 3), place, np.float32))
    kept.remove(3)
    kept.remove(n)
    kept.add(3, np.full((2, 3), -3, np.float32))
    expected = [*range(3), *range(4, n), 3]
    assert kept.places == expected
    values = kept.every(7)[:, 1, 2]
    assert values.tolist() == [-3.0 if k == 3 else k for k in expected][::7]


def test_rows_of_a_table_that_are_known_are_not_made_again() -> None:
    class Table:
        def read(self) -> pd.DataFrame:
            return pd.DataFrame({"seq_num": range(1, 6), "theta": np.arange(5.0)})

    assert _read_rows(Table(), 3) == [
        {"seq_num": 4, "theta": 3.0},
        {"seq_num": 5, "theta": 4.0},
    ]
