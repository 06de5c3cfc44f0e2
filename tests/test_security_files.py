"""Files that somebody else named or wrote: what is not read, and at what cost."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from ebl_stream.engine.viewer import MAX_ROW, NAME, Wishes, read_wishes
from ebl_stream.errors import InputError
from ebl_stream.ingest import opening
from ebl_stream.ingest.hdf5 import (
    MissingFileError,
    open_dataset,
    open_hdf5,
    resolve_uri,
)
from ebl_stream.ingest.regular import open_regular

IMAGES = np.arange(6 * 16 * 24, dtype=np.uint16).reshape(6, 16, 24)


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder that may be read, with every way out of it that we know."""
    folder = (tmp_path / "allowed").resolve()
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for path in (folder / "a.h5", tmp_path / "outside" / "secret.h5"):
        with h5py.File(path, "w") as file:
            file["x"] = IMAGES
    shutil.copy(tmp_path / "outside" / "secret.h5", f"{folder}-beside.h5")
    (folder / "link.h5").symlink_to(tmp_path / "outside" / "secret.h5")
    (folder / "up").symlink_to(tmp_path / "outside")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "inner.h5").symlink_to(folder / "a.h5")
    os.mkfifo(folder / "pipe.h5")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(folder)  # a path longer than a socket's may be
        listener.bind("socket.h5")
    return folder


REFUSED = [
    "file://localhost{root}/../outside/secret.h5",
    "file://localhost{root}/sub/../../outside/secret.h5",
    "file://localhost{root}/%2e%2e/outside/secret.h5",
    "file://localhost{root}/%2E%2E/outside/secret.h5",
    "file://localhost{root}/.%2e/outside/secret.h5",
    "file://localhost{root}/..%2foutside%2fsecret.h5",
    "file://localhost{root}/link.h5",
    "file://localhost{root}/up/secret.h5",
    "file://localhost{root}/sub/../up/secret.h5",
    "file://localhost{root}-beside.h5",
    "{root}/../outside/secret.h5",
    "file://localhost{root}",
    "file://localhost{root}/sub",
    "file://localhost{root}/pipe.h5",
    "file://localhost{root}/socket.h5",
    "file:///dev/zero",
    "file:///dev/stdin",
    "file:///dev/mem",
    "file:///proc/self/environ",
    "file:///proc/self/fd/0",
    "file:///proc/self/root{root}/../outside/secret.h5",
    "file:///sys/kernel/notes",
    "file:///etc/passwd",
    "/etc/passwd",
    "file:////server/share/a.h5",
    "//server/share/a.h5",
    "\\\\server\\share\\a.h5",
    "file:\\\\server\\a.h5",
    "file:///C:/a.h5",
    "C:\\a.h5",
    "file://elsewhere{root}/a.h5",
    "file://localhost.evil{root}/a.h5",
    "file://localhost@evil{root}/a.h5",
    "file://evil@localhost{root}/a.h5",
    "file://localhost:80{root}/a.h5",
    "file://127.0.0.1{root}/a.h5",
    "file://169.254.169.254/latest/meta-data",
    "http://169.254.169.254/latest/meta-data",
    "http://localhost{root}/a.h5",
    "https://localhost{root}/a.h5",
    "ftp://localhost{root}/a.h5",
    "s3://bucket/a.h5",
    "gopher://localhost{root}/a.h5",
    "data:application/x-hdf5;base64,iUhERg0KGgo=",
    "javascript:alert(1)",
    "pva://localhost{root}/a.h5",
    "file+ssh://localhost{root}/a.h5",
    "file://localhost{root}/a.h5?x=1",
    "file://localhost{root}/a.h5#x",
    "file://localhost{root}/a.h5%00",
    "file://localhost{root}/%00../outside/secret.h5",
    "{root}/a.h5\0",
    "file://localhost{root}/a.h5%0aforged",
    "file://localhost{root}/%1b[2J.h5",
    "file://localhost{root}/%zz.h5",
    "file://localhost{root}/%",
    "file://[::1{root}/a.h5",
    "file:a.h5",
    "file:../outside/secret.h5",
    "../outside/secret.h5",
    "a.h5",
    "~/a.h5",
    "$HOME/a.h5",
    "",
    " ",
    "file://localhost{root}/" + "a" * 300,
    "file://localhost{root}/" + "a/" * 5000,
    "file://" + "../" * 2000 + "etc/passwd",
]

MISSING = [
    # Decoded once: it names a folder called '%2e%2e', which is not there.
    "file://localhost{root}/%252e%252e/outside/secret.h5",
    "file://localhost{root}/..%252foutside/secret.h5",
    "file://localhost{root}/none.h5",
    "file://localhost{root}/a.h5/b",
    "file://localhost{root}/loop",
    "file://localhost{root}/\u2025/secret.h5",
]

ALLOWED = [
    "file://localhost{root}/a.h5",
    "file://{root}/a.h5",
    "FILE://LocalHost{root}/a.h5",
    "file:{root}/a.h5",
    "{root}/a.h5",
    "file://localhost{root}/%61.h5",
    "file://localhost{root}/sub/../a.h5",
    "file://localhost{root}//a.h5",
    "file://localhost{root}/inner.h5",
]


@pytest.mark.parametrize("uri", REFUSED)
@pytest.mark.timeout(20)
def test_addresses_that_are_refused_unread(uri, root, monkeypatch):
    monkeypatch.setattr(os, "open", _never)
    with pytest.raises(InputError) as refused:
        resolve_uri(uri.format(root=root), [root])
    assert not isinstance(refused.value, MissingFileError)


def _never(path, *_args, **_options):
    raise AssertionError(f"{path} was opened")


@pytest.mark.parametrize("uri", MISSING)
def test_addresses_of_nothing(uri, root):
    with pytest.raises(MissingFileError):
        resolve_uri(uri.format(root=root), [root])


@pytest.mark.parametrize("uri", ALLOWED)
def test_addresses_of_an_allowed_file(uri, root):
    assert resolve_uri(uri.format(root=root), [root]) == root / "a.h5"


@pytest.mark.parametrize("uri", ["/proc/self/environ", "file:///sys/kernel/notes"])
def test_what_only_looks_like_a_file_is_refused_everywhere(uri):
    with pytest.raises(InputError, match="outside"):
        resolve_uri(uri, [Path("/")])


def test_a_file_that_is_exchanged_before_it_is_opened(root):
    path = resolve_uri(f"file://{root}/a.h5", [root])
    path.rename(root / "moved.h5")
    path.symlink_to(root.parent / "outside" / "secret.h5")
    with pytest.raises(InputError, match="symbolic link"):
        open_hdf5(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="regular"):
        open_hdf5(path)


def test_a_folder_that_is_exchanged_before_a_file_is_opened(root):
    shutil.copy(root / "a.h5", root / "sub" / "secret.h5")
    path = resolve_uri(f"file://{root}/sub/secret.h5", [root])
    (root / "sub").rename(root / "was")
    (root / "sub").symlink_to(root.parent / "outside")
    with pytest.raises(InputError, match="not where"):
        open_hdf5(path)


def test_a_file_that_is_exchanged_while_it_is_opened(root, monkeypatch):
    """Between our look and HDF5's own opening by name."""
    honest = opening._open

    def late(path, size):
        path.rename(root / "moved.h5")
        shutil.copy(root.parent / "outside" / "secret.h5", path)
        return honest(path, size)

    monkeypatch.setattr(opening, "_open", late)
    with pytest.raises(InputError, match="exchanged"):
        open_hdf5(root / "a.h5")


@pytest.mark.timeout(60)
def test_a_race_never_opens_what_lies_outside(root):
    """One thread swaps file and link as fast as it can, another one opens."""
    secret = root.parent / "outside" / "secret.h5"
    identity = (os.stat(secret).st_dev, os.stat(secret).st_ino)
    over = threading.Event()

    def swap():
        spare, link = root / "spare", root / "spare-link"
        while not over.is_set():
            link.symlink_to(secret)
            shutil.copy(root / "moved.h5", spare)
            os.replace(link, root / "a.h5")
            os.replace(spare, root / "a.h5")

    shutil.copy(root / "a.h5", root / "moved.h5")
    thread = threading.Thread(target=swap)
    thread.start()
    opened = refused = 0
    until = time.monotonic() + 2
    try:
        while time.monotonic() < until:
            try:
                number = open_regular(root / "a.h5")
            except (InputError, OSError):
                refused += 1
                continue
            status = os.fstat(number)
            os.close(number)
            assert (status.st_dev, status.st_ino) != identity
            opened += 1
    finally:
        over.set()
        thread.join()
    assert opened
    assert refused


CHILD = """
import resource, sys, time
from pathlib import Path
from ebl_stream.errors import InputError
from ebl_stream.ingest.hdf5 import open_dataset, open_hdf5
from ebl_stream.sources.files import FileSource
path = Path(sys.argv[1])
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
with open_hdf5(path.with_name("sound.h5")) as file:
    open_dataset(file, "exchange/data", [path.parent])[0]
before, begun = peak(), time.perf_counter()
try:
    with open_hdf5(path) as file:
        open_dataset(file, "exchange/data", [path.parent])[0, :8, :8]
    print("read", end=" ")
except InputError:
    print("refused", end=" ")
took = time.perf_counter() - begun
try:
    FileSource(path, None)
    print("taken", end=" ")
except InputError:
    print("refused", end=" ")
print(peak() - before, 1000 * took)
"""


def bomb_shape(file):
    """1.4 kB that declare 34 TB."""
    shape = (1, 2_000_000, 17_000_000)
    file.create_dataset("exchange/data", shape, "u1", chunks=(1, 8, 8))


def bomb_chunk(file):
    """0.5 MB whose only chunk is 512 MiB."""
    shape = (1, 16384, 32768)
    options = {"chunks": shape, "compression": "gzip", "fillvalue": 0}
    dataset = file.create_dataset("exchange/data", shape, "u1", **options)
    dataset.id.write_direct_chunk((0, 0, 0), ZEROS)


def bomb_inflating(file):
    """0.5 MB in a chunk that says it is 4 KiB, and unpacks to 512 MiB."""
    shape = (4, 64, 64)
    options = {"chunks": (1, 64, 64), "compression": "gzip"}
    dataset = file.create_dataset("exchange/data", shape, "u1", **options)
    dataset.id.write_direct_chunk((0, 0, 0), ZEROS)


def bomb_text(file):
    """One text of 200 MiB that was never written."""
    file.create_dataset("exchange/data", (1,), f"S{200 * 2**20}")


def squeezed_zeros(n_mib: int) -> bytes:
    packer, zeros = zlib.compressobj(9), bytes(2**20)
    return b"".join(packer.compress(zeros) for _ in range(n_mib)) + packer.flush()


ZEROS = squeezed_zeros(512)


@pytest.mark.parametrize("bomb", [bomb_shape, bomb_chunk, bomb_inflating, bomb_text])
def test_bombs_are_refused_unread(bomb, tmp_path):
    for path, content in (("sound.h5", None), ("bomb.h5", bomb)):
        with h5py.File(tmp_path / path, "w") as file:
            if content is None:
                file["exchange/data"] = IMAGES
            else:
                content(file)
            file["exchange/theta"] = np.zeros(1)
    assert (tmp_path / "bomb.h5").stat().st_size < 1_000_000
    command = [sys.executable, "-c", CHILD, tmp_path / "bomb.h5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    opened, replayed, grown_mib, took_ms = done.stdout.split()
    assert (opened, replayed) == ("refused", "refused"), done.stderr
    assert float(grown_mib) <= 64
    assert float(took_ms) <= 1000


PLUGIN = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void loaded(void) {
    FILE *file = fopen(getenv("CANARY"), "w");
    if (file) fclose(file);
}
"""
READ = """
import sys
from pathlib import Path
from ebl_stream.errors import InputError
from ebl_stream.ingest.hdf5 import open_dataset, open_hdf5
path = Path(sys.argv[1])
with open_hdf5(path) as file:
    try:
        open_dataset(file, "x", [path.parent])[0]
    except InputError as error:
        print(error)
    print(open_dataset(file, "y", [path.parent])[0].sum())
"""


@pytest.mark.parametrize(
    "filters", [hdf5plugin.Bitshuffle(cname="lz4"), hdf5plugin.LZ4()]
)
def test_a_chunk_that_lies_of_its_size_is_refused(tmp_path, filters):
    """The filter would write 8 MiB into 8 KiB: that ends the process."""
    path = tmp_path / "scan.h5"
    values = np.random.default_rng(0).integers(0, 4000, (6, 32, 64), np.uint16)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", data=values, chunks=(2, 32, 64), **filters)
        places = [dataset.id.get_chunk_info(i).byte_offset for i in range(3)]
    with open_hdf5(path) as file:
        np.testing.assert_array_equal(open_dataset(file, "x", [tmp_path])[:], values)
    with path.open("r+b") as raw:
        raw.seek(places[1])
        assert int.from_bytes(raw.read(8), "big") == 8192
        raw.seek(places[1] + 5)
        raw.write(bytes([128]))
    with (
        open_hdf5(path) as file,
        pytest.raises(InputError, match=r"says it has 8396800 bytes, not 8192"),
    ):
        open_dataset(file, "x", [tmp_path])


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler for the attack")
def test_no_filter_is_loaded_from_a_folder(tmp_path):
    """A library in HDF5's plugin folder would be loaded with the first such file."""
    (tmp_path / "evil.c").write_text(PLUGIN)
    build = [
        "gcc",
        "-shared",
        "-fPIC",
        "-o",
        tmp_path / "libevil.so",
        tmp_path / "evil.c",
    ]
    subprocess.run(build, check=True)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("y", data=IMAGES, chunks=(1, 16, 24), **hdf5plugin.LZ4())
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((1, 16, 24))
        properties.set_filter(31_999, h5py.h5z.FLAG_OPTIONAL, (0,))
        space = h5py.h5s.create_simple((6, 16, 24))
        kind = h5py.h5t.STD_U16LE
        h5py.h5d.create(file.id, b"x", kind, space, properties)
    canary = tmp_path / "canary"
    where = {"HDF5_PLUGIN_PATH": str(tmp_path), "CANARY": str(canary)}
    command = [sys.executable, "-c", READ, tmp_path / "a.h5"]
    environment = {**os.environ, **where}
    environment.pop("HDF5_PLUGIN_PRELOAD", None)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    assert "unknown HDF5 filters [31999]" in done.stdout, done.stderr
    assert done.stdout.split()[-1] == str(IMAGES[0].sum())
    assert not canary.exists()


@pytest.mark.parametrize("name", ["HDF5_VDS_PREFIX", "HDF5_EXTFILE_PREFIX"])
def test_prefixes_of_the_environment_lead_nowhere(root, name):
    """HDF5 would look for the files of a dataset there first."""
    layout = h5py.VirtualLayout((6, 16, 24), np.uint16)
    layout[:] = h5py.VirtualSource("a.h5", "x", (6, 16, 24))
    with h5py.File(root / "scan.h5", "w") as file:
        file.create_virtual_dataset("y", layout)
    with h5py.File(root.parent / "outside" / "a.h5", "w") as file:
        file["x"] = IMAGES + 1
    done = subprocess.run(
        [sys.executable, "-c", READ, root / "scan.h5"],
        env={**os.environ, name: str(root.parent / "outside")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{name} would send HDF5 elsewhere" in done.stderr
    assert str((IMAGES + 1)[0].sum()) not in done.stdout


@pytest.mark.timeout(20)
def test_raw_storage_in_a_pipe_is_refused(root):
    with h5py.File(root / "scan.h5", "w") as file:
        pieces = [(str(root / "raw"), 0, IMAGES.nbytes)]
        file.create_dataset("x", IMAGES.shape, np.uint16, external=pieces)
    os.mkfifo(root / "raw")
    with (
        open_hdf5(root / "scan.h5") as file,
        pytest.raises(InputError, match="regular"),
    ):
        open_dataset(file, "x", [root])


@pytest.mark.parametrize(
    "text",
    [
        '{"rows": [0, 1], "rows": [5, 9]}',
        '{"rows": [0, 1000000000000000]}',
        f'{{"rows": [0, {MAX_ROW + 1}]}}',
        '{"rows": [0, 1e999]}',
        '{"plane": {"point": [1e300, 0, 0], "normal": [1, 0, 0]}}',
        "[" * 2000 + "]" * 2000,
        '{"rows": [0, ' + "1" * 3000 + "]}",
        "\x1b[2J",
    ],
)
def test_hostile_wishes_are_ignored(tmp_path, text, caplog):
    (tmp_path / NAME).write_text(text)
    assert read_wishes(tmp_path) == Wishes()
    assert NAME in caplog.text


def test_wishes_are_not_read_through_a_link(tmp_path, caplog):
    (tmp_path / "secret").write_text('{"rows": [3, 4]}')
    (tmp_path / NAME).symlink_to(tmp_path / "secret")
    assert read_wishes(tmp_path) == Wishes()
