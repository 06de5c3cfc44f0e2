"""The folder of a run: what is on disk, and that it is the truth."""

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import zarr
from disks import small_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from tiled.client import from_uri
from zarr.codecs import BloscCodec, Crc32cCodec

from ebl_stream.publish import chunks
from ebl_stream.publish.chunks import chunk_shape
from ebl_stream.publish.output import ArraySpec, RunOutput
from ebl_stream.publish.record import Slab, plain, read_record
from ebl_stream.publish.tiled_link import TiledLink
from ebl_stream.publish.tiled_server import TiledServer

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


# ------------------------------------------------------- chunks, and who reads them

BIG = ArraySpec("recon", (32, 512, 512), "<f4", "1/px")
"""Eight chunks of 4 MB."""
STEP = 2**18
"""How far versions of a voxel are apart: exact in float32, as is the pattern."""


def pattern():
    """Noise that no codec makes much smaller: writing a chunk takes a while."""
    values = np.random.default_rng(3).integers(0, STEP, BIG.shape)
    return values.astype(np.float32)


def tiles():
    return product((0, 16), (0, 256), (0, 256))


def version_of(chunk, z, y, x, noise):
    """Return the one version that a chunk is of; AssertionError if it is of two."""
    left = chunk - noise[z : z + 16, y : y + 256, x : x + 256]
    assert left.min() == left.max(), "a chunk of two versions"
    return int(left.flat[0]) // STEP


def write_versions(folder, link=None):
    """Write versions 1 to 60, yield after each; what a killed child runs, too."""
    out = RunOutput(folder, "p1", link)
    out.create([BIG], {"start": {"uid": "p1"}}, slab_rows=16)
    noise = pattern()
    for version in range(1, 61):
        stamp = {"version": version, "n_used": version, "coverage": 1.0}
        values = noise + np.float32(version * STEP)
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(out.write, "recon", z, values[z : z + 16], **stamp)
                for z in (0, 16)
            ]
        assert [job.result() for job in jobs] == [None, None]
        yield out


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 21)] * 3),
    slab_rows=st.sampled_from([2, 3, 4, 8, 12]),
    dtype=st.sampled_from(["<f4", "|u1", "<u2"]),
)
def test_any_shape_is_read_back_by_zarr(tmp_path_factory, shape, slab_rows, dtype):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK", (4, 6, 5))
        out = RunOutput(tmp_path_factory.mktemp("shape"), "p1")
        out.create([ArraySpec("recon", shape, dtype, "")], {}, slab_rows)
        values = np.random.default_rng(1).integers(0, 255, shape).astype(dtype)
        for z in reversed(range(0, shape[0], slab_rows)):
            part = values[z : z + slab_rows]
            out.write("recon", z, part, version=1, n_used=1, coverage=1.0)
        array = zarr.open_array(out.path("recon"), mode="r")
        assert np.array_equal(np.asarray(array), values)
        assert array.nchunks_initialized == array.nchunks


def test_the_files_are_those_that_zarr_writes(tmp_path):
    """Byte by byte: nothing in them is of our own making."""
    out = RunOutput(tmp_path, "p1")
    spec = ArraySpec("recon", (20, 300, 270), "<f4", "1/px")
    out.create([spec], {}, slab_rows=16)
    values = np.random.default_rng(2).random(spec.shape, np.float32)
    for z in (0, 16):
        part = values[z : z + 16]
        out.write("recon", z, part, version=1, n_used=1, coverage=1.0)
    blosc = BloscCodec(typesize=4, cname="lz4", clevel=5, shuffle="bitshuffle")
    theirs = zarr.create_array(
        tmp_path / "zarr",
        shape=spec.shape,
        chunks=(16, 256, 256),
        dtype="<f4",
        fill_value=0,
        compressors=(blosc, Crc32cCodec()),
        dimension_names=("z", "y", "x"),
        attributes={"unit": "1/px"},
    )
    theirs[:] = values

    def files(folder):
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    assert files(out.path("recon")) == files(tmp_path / "zarr")


READER = """
import sys
import zarr
from test_output import pattern, tiles, version_of

array, noise, seen = zarr.open_array(sys.argv[1], mode="r"), pattern(), {}
print("ready", flush=True)
while min(len(found) for found in seen.values() or [()]) < 4:
    for z, y, x in tiles():
        chunk = array[z : z + 16, y : y + 256, x : x + 256]
        version = version_of(chunk, z, y, x, noise) if chunk.any() else 0
        found = seen.setdefault((z, y, x), [version])
        assert version >= found[-1], "a version came back"
        if version > found[-1]:
            found.append(version)
"""
"""Ends well when it has seen four versions of each chunk and nothing else."""


def child(program, *arguments):
    place = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": place},
    )


def test_reader_in_another_process_never_sees_a_torn_chunk(tmp_path):
    versions = write_versions(tmp_path)
    out = next(versions)
    reader = child(READER, out.path("recon"))
    assert reader.stdout.readline() == "ready\n", reader.stderr.read()
    for _ in versions:
        if reader.poll() is not None:
            break
    _, errors = reader.communicate(timeout=60)
    assert reader.returncode == 0, errors


WRITER = """
import sys
from pathlib import Path
from test_output import write_versions

for out in write_versions(Path(sys.argv[1])):
    print(out.record.slabs("recon")[0].version, flush=True)
"""


@pytest.mark.parametrize("kill_at", [2, 3, 5])
def test_killed_in_the_middle_of_a_write(tmp_path, kill_at):
    writer = child(WRITER, tmp_path)
    for line in writer.stdout:
        if int(line) == kill_at:
            break
    writer.send_signal(signal.SIGKILL)
    writer.wait(60)
    writer.stdout.close()
    writer.stderr.close()
    record = read_record(tmp_path / "p1")
    told = {slab.z0: slab.version for slab in record.slabs("recon")}
    assert min(told.values()) >= kill_at
    array, noise = zarr.open_array(tmp_path / "p1" / "recon", mode="r"), pattern()
    for z, y, x in tiles():
        chunk = array[z : z + 16, y : y + 256, x : x + 256]
        assert version_of(chunk, z, y, x, noise) >= told[z]


def test_reader_through_tiled_never_sees_a_torn_chunk(tmp_path):
    server = TiledServer(tmp_path)
    server.start()
    try:
        assert server.wait_ready(60), (tmp_path / ".tiled/log").read_text()
        link = TiledLink(server)
        versions = write_versions(tmp_path, link)
        next(versions)
        assert link.wait_until_caught_up(60)
        ended = threading.Event()

        def write_on():
            for _ in versions:
                if ended.is_set():
                    return

        client = from_uri(server.uri, api_key=server.api_key)
        node, noise, seen = client["processed"]["p1"]["recon"], pattern(), set()
        writer = threading.Thread(target=write_on)
        writer.start()
        while len(seen) < 4 and writer.is_alive():
            for z, y, x in ((0, 0, 0), (16, 256, 0)):
                chunk = node[z : z + 16, y : y + 256, x : x + 256]
                seen.add(version_of(chunk, z, y, x, noise))
        ended.set()
        writer.join()
        link.close(0)
        assert len(seen) >= 4
    finally:
        server.stop()


def cut(data):
    return data[:-5]


def emptied(data):
    return b""


def zeroed(data):
    return bytes(len(data))


def one_bit_flipped(data):
    return data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]


@pytest.mark.parametrize("damage", [cut, emptied, zeroed, one_bit_flipped])
def test_damaged_chunk_is_refused_not_shown(tmp_path, damage):
    """What a power failure, a full quota or a broken copy leaves."""
    out = next(write_versions(tmp_path))
    file = out.path("recon") / "c" / "0" / "1" / "0"
    file.write_bytes(damage(file.read_bytes()))
    array = zarr.open_array(out.path("recon"), mode="r")
    assert array[:16, :256, :256].any()
    with pytest.raises((ValueError, RuntimeError)):
        array[:16, 256:, :256]


def test_disk_that_fills_up_leaves_the_whole_slab_as_it_was(tmp_path):
    out = RunOutput(tmp_path, "p1")
    out.create([BIG], {}, slab_rows=32)
    stamp = {"n_used": 1, "coverage": 1.0}
    first = np.full(BIG.shape, 1.5, np.float32)
    out.write("recon", 0, first, version=0, **stamp)
    # Only the last chunk is too large for what is left.
    second = np.full(BIG.shape, 2.5, np.float32)
    second[16:, 256:, 256:] = pattern()[16:, 256:, 256:]
    with small_disk(2**20), pytest.raises(OSError, match=r"slices 0:32 of .*recon"):
        out.write("recon", 0, second, version=1, **stamp)
    assert (np.asarray(zarr.open_array(out.path("recon"), mode="r")) == 1.5).all()
    assert not list(out.folder.rglob("*.part"))
    assert on_disk(out)["slabs"]["recon"][0]["version"] == 0
    out.write("recon", 0, second, version=2, **stamp)
    assert np.array_equal(np.asarray(zarr.open_array(out.path("recon"))), second)


def test_each_slab_is_readable_when_its_write_returns(tmp_path):
    """Slabs of two arrays and the quality rows come from eight threads at a time."""
    shape = (64, 40, 40)
    specs = [ArraySpec(name, shape, "<f4", "") for name in ("recon", "denoised")]
    out = RunOutput(tmp_path, "p1")
    out.create(specs, {}, slab_rows=2)

    def write(job):
        version, name, z0 = job
        stamp = {"version": version, "n_used": version, "coverage": 0.5}
        values = np.full((2, 40, 40), 100 * version + z0, np.float32)
        out.write(name, z0, values, **stamp)
        out.quality([{"version": version, "z0": z0}])
        told = {slab["z0"]: slab["version"] for slab in on_disk(out)["slabs"][name]}
        assert told[z0] == version
        array = zarr.open_array(out.path(name), mode="r")
        assert np.array_equal(array[z0 : z0 + 2], values)

    for version in (1, 2):
        jobs = product([version], ["recon", "denoised"], range(0, 64, 2))
        with ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(write, jobs))) == 64
    lines = (out.folder / "quality.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == out.record.rows()
    assert len(lines) == 128
