"""Results that somebody tampered with: one clear error, and nothing else is read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from numcodecs.blosc import BITSHUFFLE, Blosc
from test_export import NZ, N, make_run, values, wanted

from ebl_stream.cli.export import export
from ebl_stream.cli.look import find_run
from ebl_stream.errors import InputError
from ebl_stream.publish.attempts import Attempts
from ebl_stream.publish.chunks import ChunkedArray
from ebl_stream.publish.own_zarr import OwnArray
from ebl_stream.publish.record import ArraySpec, read_record

MB = 2**20
SECRET = 7.25
"""A voxel of the folder outside."""
Tamper = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder, and another one outside of the results, which is nobody's."""
    outside = make_run(tmp_path / "outside", names=("recon",))
    secret = np.full((16, N, N), SECRET, np.float32)
    write_chunk(outside / "recon/c/1/0/0", secret)
    return make_run(tmp_path / "out", names=("recon",))


def write_chunk(place: Path, array: np.ndarray) -> None:
    """Write a chunk whose checksum is right, as anybody can."""
    encoded = bytes(Blosc("lz4", 5, BITSHUFFLE, typesize=4).encode(array))
    crc = google_crc32c.value(encoded).to_bytes(4, "little")
    place.write_bytes(encoded + crc)


def in_json(name: str, **changes: Any) -> Tamper:
    """Change members of a JSON file of the run."""

    def tamper(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | changes))

    return tamper


def zarr_json(**changes: Any) -> Tamper:
    return in_json("recon/zarr.json", **changes)


def both(shape: list[int], chunk: list[int]) -> Tamper:
    """Let the run's record and the array lie alike."""

    def tamper(folder: Path) -> None:
        grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
        zarr_json(shape=shape, chunk_grid=grid)(folder)
        record(shape=shape, chunks=chunk)(folder)

    return tamper


def record(**changes: Any) -> Tamper:
    def tamper(folder: Path) -> None:
        content = json.loads((folder / "metadata.json").read_text())
        arrays = content["arrays"]
        arrays["recon"] |= changes
        in_json("metadata.json", arrays=arrays)(folder)

    return tamper


def slab(**changes: Any) -> Tamper:
    def tamper(folder: Path) -> None:
        slabs = json.loads((folder / "metadata.json").read_text())["slabs"]
        slabs["recon"][0] |= changes
        in_json("metadata.json", slabs=slabs)(folder)

    return tamper


def link(inside: str) -> Tamper:
    """Put a symbolic link to the same place of the folder outside."""

    def tamper(folder: Path) -> None:
        place = folder / inside
        place.rename(folder / "before")
        place.symlink_to(folder.parents[1] / "outside" / folder.name / inside)

    return tamper


def pipe(inside: str) -> Tamper:
    def tamper(folder: Path) -> None:
        (folder / inside).unlink()
        os.mkfifo(folder / inside)

    return tamper


def sparse(inside: str, n_bytes: int) -> Tamper:
    """Make a file huge; it takes no space."""
    return lambda folder: os.truncate(folder / inside, n_bytes)


def bomb(folder: Path) -> None:
    """A small chunk that unfolds to 512 MiB, its checksum right."""
    write_chunk(folder / "recon/c/1/0/0", np.zeros(512 * MB, np.uint8))


def liar(folder: Path) -> None:
    """A chunk that says that it is larger than it is."""
    place = folder / "recon/c/1/0/0"
    encoded = bytearray(place.read_bytes()[:-4])
    encoded[4:8] = (2**31 - 1).to_bytes(4, "little")
    crc = google_crc32c.value(bytes(encoded)).to_bytes(4, "little")
    place.write_bytes(bytes(encoded) + crc)


CHUNK = [16, N, N]
ENCODING = {"name": "default", "configuration": {"separator": "/"}}
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
TAMPERED: dict[str, Tamper] = {
    "huge shape": zarr_json(shape=[10**12, 10**12, 10**12]),
    "huge shape, told alike": both([NZ, 10**7, 10**7], CHUNK),
    "huge chunk": both([2**14] * 3, [2**14] * 3),
    "a billion chunks": both([10**9, 10**9, 10**9], [1, 1, 1]),
    "negative shape": both([-NZ, N, N], CHUNK),
    "negative chunk": both([NZ, N, N], [-16, N, N]),
    "chunk of nothing": both([NZ, N, N], [0, N, N]),
    "words for numbers": both(["a", "b", "c"], CHUNK),  # type: ignore[list-item]
    "four dimensions": both([NZ, N, N, N], [*CHUNK, N]),
    "unknown codec": zarr_json(codecs=[BYTES, {"name": "os.system"}]),
    "another codec": zarr_json(codecs=[BYTES, {"name": "gzip"}]),
    "sharding": zarr_json(codecs=[{"name": "sharding_indexed", "configuration": {}}]),
    "storage transformer": zarr_json(storage_transformers=[{"name": "elsewhere"}]),
    "other keys": zarr_json(chunk_key_encoding={"name": "v2", "configuration": {}}),
    "keys that climb": zarr_json(
        chunk_key_encoding=ENCODING | {"configuration": {"separator": "/../"}}
    ),
    "objects": zarr_json(data_type={"name": "null_terminated_bytes"}),
    "huge values": record(dtype="<U99999999"),
    "a group": zarr_json(node_type="group"),
    "zarr 2": zarr_json(zarr_format=2),
    "no codecs": zarr_json(codecs=None),
    "a name that climbs": record(name="../../outside/recon-one/recon"),
    "slab of words": slab(z0="0"),
    "slab beyond": slab(z0=-16),
    "linked chunk": link("recon/c/1/0/0"),
    "linked row of chunks": link("recon/c/1"),
    "linked chunks": link("recon/c"),
    "linked array": link("recon"),
    "linked description": link("recon/zarr.json"),
    "linked record": link("metadata.json"),
    "piped chunk": pipe("recon/c/1/0/0"),
    "piped description": pipe("recon/zarr.json"),
    "piped record": pipe("metadata.json"),
    "piped rows": pipe("quality.jsonl"),
    "huge description": sparse("recon/zarr.json", 2**40),
    "huge record": sparse("metadata.json", 2**40),
    "huge rows": sparse("quality.jsonl", 2**40),
    "huge chunk file": sparse("recon/c/1/0/0", 2**40),
    "a bomb": bomb,
    "a chunk that lies": liar,
}


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", TAMPERED)
def test_export_refuses_in_words_and_reads_nothing_else(
    folder: Path, tmp_path: Path, name: str
) -> None:
    TAMPERED[name](folder)
    forget_peak()
    memory = peak_mb()
    with pytest.raises(InputError) as refused:
        export(folder.parent, str(folder), wanted(tmp_path / "volume.tif"))
    assert peak_mb() - memory < 64
    assert str(folder) in str(refused.value)
    assert len(str(refused.value)) < 600
    assert not (tmp_path / "volume.tif").exists()


def test_what_nobody_tampered_with_is_read(folder: Path, tmp_path: Path) -> None:
    export(folder.parent, str(folder), wanted(tmp_path / "volume.h5"))
    own = OwnArray(folder / "recon", read_record(folder).arrays[0], (16, N, N))
    np.testing.assert_array_equal(own.array[:], values("recon"))
    own.check_slices(0, NZ)


def test_the_secret_can_be_read_where_it_is_ours(folder: Path) -> None:
    """What the links lead to is whole: only the guard keeps it from being read."""
    outside = folder.parents[1] / "outside" / folder.name
    own = OwnArray(outside / "recon", read_record(outside).arrays[0], (16, N, N))
    assert own.check("c/1/0/0")
    assert (own.array[16:32] == SECRET).all()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["piped record", "huge record", "a name that climbs"])
def test_commands_and_the_service_go_on_beside_such_a_folder(
    folder: Path, name: str
) -> None:
    TAMPERED[name](folder)
    good = make_run(folder.parent, "recon-two", state="running", names=("recon",))
    assert find_run(folder.parent, None) == good
    attempts = Attempts(folder.parent, None)
    assert [r.folder for r in attempts._recent(0.0)] == [good]


def test_the_command_says_it_in_one_line(folder: Path, tmp_path: Path) -> None:
    TAMPERED["linked chunk"](folder)
    command = [sys.executable, "-m", "ebl_stream.cli", "export", str(folder)]
    command += ["--tiff", str(tmp_path / "slices")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "c/1/0/0" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_spec_of_ours_fits_whatever_zarr_writes(tmp_path: Path) -> None:
    """Every dtype and shape that the house writes is let through."""
    with ThreadPoolExecutor(1) as pool:
        for k, dtype in enumerate(("<f4", "|u1", "<u2", "float32")):
            spec = ArraySpec(f"a{k}", (17, 300, 5), dtype, "")
            made = ChunkedArray(tmp_path / spec.name, spec, 16, pool)
            OwnArray(tmp_path / spec.name, spec, made.chunks)
