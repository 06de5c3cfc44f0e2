"""The folder of a run: what is on disk, and that it is the truth."""

import json
import os
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import zarr

from ebl_stream.publish.output import ArraySpec, RunOutput, chunk_shape
from ebl_stream.publish.record import Slab, plain, read_record

RECON = ArraySpec("recon", (40, 48, 48), "float32", "1/px")
LABELS = ArraySpec("labels", (40, 48, 48), "uint8", "")


@pytest.fixture
def output(tmp_path):
    out = RunOutput(tmp_path, "p1")
    metadata = {"start": {"uid": "p1", "original_run_uid": "raw"}, "ledger": {}}
    out.create([RECON, LABELS], metadata, slab_rows=16)
    return out


def slab(value, height=16, dtype="float32"):
    return np.full((height, 48, 48), value, dtype)


def on_disk(output):
    return json.loads((output.folder / "metadata.json").read_text())


@contextmanager
def small_disk(limit):
    """No file may grow beyond ``limit`` bytes: the kernel's own error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_constructor_creates_nothing(tmp_path):
    RunOutput(tmp_path, "p1")
    assert list(tmp_path.iterdir()) == []


def test_arrays_are_allocated_at_full_shape_and_filled_with_zero(output):
    array = zarr.open_array(output.path("recon"), mode="r")
    assert array.shape == RECON.shape
    assert array.metadata.zarr_format == 3
    assert array.metadata.dimension_names == ("z", "y", "x")
    assert array.attrs["unit"] == "1/px"
    assert array.fill_value == 0
    codec = array.compressors[0]
    assert (codec.cname.value, codec.shuffle.value) == ("lz4", "bitshuffle")
    assert not np.asarray(array).any()
    assert on_disk(output)["state"] == "running"


@pytest.mark.parametrize(
    ("shape", "slab_rows", "expected"),
    [
        ((2048, 2048, 2048), 32, (16, 256, 256)),
        ((40, 48, 48), 24, (8, 48, 48)),
        ((128, 256, 256), 2, (2, 256, 256)),
        ((5, 300, 300), 32, (5, 256, 256)),
    ],
)
def test_no_two_slabs_share_a_chunk(shape, slab_rows, expected):
    chunk = chunk_shape(shape, slab_rows)
    assert chunk == expected
    for z in range(slab_rows, shape[0], slab_rows):
        assert z % chunk[0] == 0


def test_write_records_the_version_of_a_slab(output):
    output.write("recon", 0, slab(1.5), version=0, n_used=10, coverage=0.1)
    output.write("recon", 0, slab(2.5), version=1, n_used=20, coverage=0.2)
    output.write("recon", 32, slab(3.5, 8), version=1, n_used=20, coverage=0.2)
    array = np.asarray(zarr.open_array(output.path("recon"), mode="r"))
    assert array[:16].min() == array[:16].max() == 2.5
    assert not array[16:32].any()
    assert array[32:].min() == array[32:].max() == 3.5
    assert on_disk(output)["slabs"]["recon"] == [
        {"z0": 0, "z1": 16, "version": 1, "n_used": 20, "coverage": 0.2},
        {"z0": 32, "z1": 40, "version": 1, "n_used": 20, "coverage": 0.2},
    ]
    assert on_disk(output)["slabs"]["labels"] == []


@pytest.mark.parametrize(
    ("z0", "values"),
    [
        (8, slab(1)),
        (0, slab(1, 8)),
        (32, slab(1, 16)),
        (-16, slab(1)),
        (0, slab(1, dtype="float64")),
    ],
)
def test_write_refuses_what_does_not_fit(output, z0, values):
    with pytest.raises(ValueError, match="recon: slab"):
        output.write("recon", z0, values, version=0, n_used=1, coverage=0.1)


def test_metadata_merge_section_by_section(output):
    output.update({"ledger": {"used": 3, "rejected_by": {"blank": 1}}, "analysis": {}})
    output.update({"ledger": {"used": 4, "rejected_by": {}}})
    output.finish("partial", {"analysis": {"n": np.int64(7), "bad": float("nan")}})
    content = on_disk(output)
    assert content["ledger"] == {"used": 4, "rejected_by": {}}
    assert content["analysis"] == {"n": 7, "bad": None}
    assert content["start"]["original_run_uid"] == "raw"
    assert content["state"] == "partial"


def test_quality_rows_are_appended(output):
    output.quality([{"version": 0, "resolution_px": np.float32(3.5), "why": "x"}])
    output.quality([{"version": 1, "resolution_px": float("inf"), "why": "y"}])
    lines = (output.folder / "quality.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"version": 0, "resolution_px": 3.5, "why": "x"},
        {"version": 1, "resolution_px": None, "why": "y"},
    ]


def test_an_existing_result_is_never_overwritten(output, tmp_path):
    output.write("recon", 0, slab(1.5), version=0, n_used=10, coverage=0.1)
    before = on_disk(output)
    with pytest.raises(FileExistsError, match=str(output.folder)):
        RunOutput(tmp_path, "p1").create([RECON], {}, 16)
    assert on_disk(output) == before


@pytest.mark.parametrize("uid", ["", "..", "a/b", "/etc"])
def test_uid_cannot_leave_the_folder(tmp_path, uid):
    with pytest.raises(ValueError, match="plain name"):
        RunOutput(tmp_path, uid)


def test_full_disk_is_said_clearly_and_spoils_nothing(output):
    output.write("recon", 0, slab(1.5), version=0, n_used=10, coverage=0.1)
    noise = np.random.default_rng(0).random((16, 48, 48), dtype="float32")
    with small_disk(2048), pytest.raises(OSError, match=r"slices 0:16 of .*recon"):
        output.write("recon", 0, noise, version=1, n_used=20, coverage=0.2)
    assert on_disk(output)["slabs"]["recon"][0]["version"] == 0
    array = np.asarray(zarr.open_array(output.path("recon"), mode="r"))
    assert array[:16].min() == array[:16].max() == 1.5


def test_folder_that_cannot_be_made_is_said(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(OSError, match="cannot create the result in"):
        RunOutput(blocker, "p1").create([RECON], {}, 16)


def test_a_reader_never_sees_half_a_metadata_file(output):
    draft = output.folder / "metadata.json.part"
    output.update({"ledger": {"used": 1}})
    assert not draft.exists()
    assert sorted(os.listdir(output.folder)) == ["labels", "metadata.json", "recon"]


def test_record_is_read_back_from_the_folder(output):
    output.write("recon", 16, slab(1), version=2, n_used=9, coverage=0.5)
    output.quality([{"version": 2, "noise": 0.25}])
    output.finish("complete", {"analysis": {"center": 23.5}})
    record = read_record(output.folder)
    assert record.as_json() == output.record.as_json() == on_disk(output)
    assert record.slabs("recon") == [Slab(16, 32, 2, 9, 0.5)]
    assert record.rows() == [{"version": 2, "noise": 0.25}]
    assert record.arrays == (RECON, LABELS)
    assert (record.processed_uid, record.state) == ("p1", "complete")


def test_read_record_refuses_a_stranger(tmp_path):
    (tmp_path / "metadata.json").write_text("{}")
    with pytest.raises(ValueError, match="not of the format"):
        read_record(tmp_path)


def test_plain_values():
    class Odd:
        def __str__(self):
            return "odd"

    given = {1: np.float64(2), "a": (np.arange(2), {"b": True}), "c": Odd()}
    assert plain(given) == {"1": 2.0, "a": [[0, 1], {"b": True}], "c": "odd"}
