"""Opening files that somebody else named: links, addresses, truncation."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from ebl_stream.errors import InputError
from ebl_stream.frames import FrameRef
from ebl_stream.ingest.hdf5 import (
    MissingFileError,
    open_dataset,
    open_hdf5,
    read_frame,
    resolve_uri,
)
from ebl_stream.ingest.truncated import Reach, is_truncated

IMAGES = np.arange(20 * 16 * 24, dtype=np.uint16).reshape(20, 16, 24)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "allowed"
    folder.mkdir()
    return folder


@pytest.fixture
def secret(tmp_path):
    """A file outside the allowed folder that everything below tries to reach."""
    path = tmp_path / "secret.h5"
    with h5py.File(path, "w") as file:
        file["data"] = IMAGES
    return path


def write(path: Path, **kwargs) -> Path:
    with h5py.File(path, "w", **kwargs) as file:
        file["entry/data"] = IMAGES
    return path


def test_uri_names_a_file_with_percent_and_spaces(root):
    path = write(root / "scan 1%20.h5")
    for host in ("", "localhost"):
        uri = f"file://{host}{root}/scan%201%2520.h5"
        assert resolve_uri(uri, [root]) == path


def test_path_map_takes_the_longest_prefix_at_a_folder(root):
    path = write(root / "a.h5")
    maps = {"/there": "/nowhere", "/there/data": str(root), "/ther": "/wrong"}
    assert resolve_uri("file://localhost/there/data/a.h5", [root], maps) == path


@pytest.mark.parametrize(
    "uri",
    [
        "http://localhost{root}/a.h5",
        "file://elsewhere{root}/a.h5",
        "file://localhost{root}/../secret.h5",
        "file://localhost{root}/%2e%2e/secret.h5",
        "file://localhost{root}/link.h5",
        "file://localhost{root}/linked/secret.h5",
        "file://localhost{root}",
        "file://localhost{root}/pipe",
        "file://localhost{root}/a.h5?x=1",
        "file://localhost{root}/a.h5%00",
        "file://localhost{root}/%zz.h5",
        "file:a.h5",
        "file://[::1{root}/a.h5",
        "../secret.h5",
        "",
    ],
)
def test_addresses_that_are_refused(uri, root, secret):
    write(root / "a.h5")
    (root / "link.h5").symlink_to(secret)
    (root / "linked").symlink_to(secret.parent)
    os.mkfifo(root / "pipe")
    with pytest.raises(InputError) as refused:
        resolve_uri(uri.format(root=root), [root])
    assert len(str(refused.value).splitlines()) <= 4
    assert not isinstance(refused.value, MissingFileError)


def test_an_absent_file_is_told_from_a_forbidden_one(root, tmp_path):
    with pytest.raises(MissingFileError):
        resolve_uri(f"file://{root}/none.h5", [root])
    with pytest.raises(InputError, match="outside"):
        resolve_uri(f"file://{tmp_path}/none.h5", [root])


def test_links_inside_the_roots_are_followed(root):
    write(root / "frames.h5")
    with h5py.File(root / "scan.nxs", "w") as file:
        file["soft"] = h5py.SoftLink("/there/it/data")
        file["there/it"] = h5py.ExternalLink("frames.h5", "/entry")
        layout = h5py.VirtualLayout((20, 16, 24), np.uint16)
        source = h5py.VirtualSource("frames.h5", "entry/data", (20, 16, 24))
        layout[:] = source
        file.create_virtual_dataset("virtual", layout)
    with open_hdf5(root / "scan.nxs") as file:
        for name in ("soft", "there/it/data", "/virtual"):
            np.testing.assert_array_equal(open_dataset(file, name, [root])[:], IMAGES)
        linked = open_dataset(file, "soft", [root])
        assert linked.file.filename == str(root / "frames.h5")


def attack_external(file, secret):
    file["x"] = h5py.ExternalLink(str(secret), "/data")


def attack_relative(file, secret):
    file["x"] = h5py.ExternalLink("../secret.h5", "/data")


def attack_soft_to_external(file, secret):
    file["hop"] = h5py.ExternalLink(str(secret), "/")
    file["x"] = h5py.SoftLink("/hop/data")


def attack_circle(file, secret):
    file["x"] = h5py.SoftLink("/y")
    file["y"] = h5py.SoftLink("/x")


def attack_virtual(file, secret):
    layout = h5py.VirtualLayout((20, 16, 24), np.uint16)
    layout[:] = h5py.VirtualSource(str(secret), "data", (20, 16, 24))
    file.create_virtual_dataset("x", layout)


def attack_virtual_through_a_link(file, secret):
    beside = Path(file.filename).parent / "beside.h5"
    with h5py.File(beside, "w") as other:
        other["data"] = h5py.ExternalLink(str(secret), "/data")
    layout = h5py.VirtualLayout((20, 16, 24), np.uint16)
    layout[:] = h5py.VirtualSource("beside.h5", "data", (20, 16, 24))
    file.create_virtual_dataset("x", layout)


def attack_virtual_pattern(file, secret):
    layout = h5py.VirtualLayout((20, 16, 24), np.uint16)
    layout[:] = h5py.VirtualSource("part%%.h5", "data", (20, 16, 24))
    file.create_virtual_dataset("x", layout)


def attack_raw_storage(file, secret):
    file.create_dataset(
        "x", (20, 16, 24), np.uint16, external=[(str(secret), 0, 15360)]
    )


@pytest.mark.parametrize(
    "attack",
    [
        attack_external,
        attack_relative,
        attack_soft_to_external,
        attack_circle,
        attack_virtual,
        attack_virtual_through_a_link,
        attack_virtual_pattern,
        attack_raw_storage,
    ],
)
def test_links_that_leave_the_roots_are_refused(attack, root, secret):
    with h5py.File(root / "scan.h5", "w") as file:
        attack(file, secret)
    with (
        open_hdf5(root / "scan.h5") as file,
        pytest.raises(InputError) as refused,
    ):
        open_dataset(file, "x", [root])
    assert len(str(refused.value).splitlines()) <= 4


def test_what_is_no_dataset_of_numbers_is_refused(root):
    with h5py.File(root / "a.h5", "w") as file:
        file["text"] = ["a", "b"]
        file["group/x"] = 1
        file["pair"] = np.zeros(3, [("a", "f4"), ("b", "f4")])
        file.create_dataset("wide", (10, 4096, 4096), "u1", chunks=(1, 64, 64))
        file.create_dataset("lump", (1 << 25,), "u1", chunks=(1 << 24,))
    limit = 2**20
    with open_hdf5(root / "a.h5") as file:
        for name in ("text", "group", "pair", "wide", "lump", "none", "group/x/y"):
            with pytest.raises(InputError):
                open_dataset(file, name, [root], max_frame_bytes=limit)


def test_plugin_compression_is_read(root):
    with h5py.File(root / "a.h5", "w") as file:
        file.create_dataset("x", data=IMAGES, chunks=(1, 16, 24), **hdf5plugin.LZ4())
    with open_hdf5(root / "a.h5") as file:
        np.testing.assert_array_equal(open_dataset(file, "x", [root])[:], IMAGES)


def test_a_file_that_is_not_hdf5(root):
    (root / "a.h5").write_bytes(b"no" * 100)
    with pytest.raises(InputError, match="not an HDF5 file"):
        open_hdf5(root / "a.h5")
    (root / "b.h5").touch()
    with pytest.raises(OSError, match="yet"):
        open_hdf5(root / "b.h5")


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("layout", [{}, {"chunks": (2, 8, 24), "compression": "gzip"}])
@pytest.mark.parametrize("share", [0.55, 0.75, 0.95])
def test_a_truncated_file_gives_its_whole_frames(root, libver, layout, share):
    noise = np.random.default_rng(0).integers(0, 2**16, IMAGES.shape, np.uint16)
    with h5py.File(root / "whole.h5", "w", libver=libver) as file:
        # Its header comes first, so that there is something to open.
        file.create_dataset("x", IMAGES.shape, np.uint16, **layout)
        file.flush()
        file["x"][:] = noise
    raw = (root / "whole.h5").read_bytes()
    path = root / "cut.h5"
    path.write_bytes(raw[: int(len(raw) * share)])
    assert is_truncated(path)
    with open_hdf5(path) as file:
        dataset = open_dataset(file, "x", [root])
        inside = Reach(dataset, path.stat().st_size)(0, len(noise))
        assert 0 < inside.sum() < len(noise)
        for index in np.flatnonzero(inside):
            np.testing.assert_array_equal(dataset[index], noise[index])
        for index in np.flatnonzero(~inside):
            try:
                assert not np.array_equal(dataset[index], noise[index])
            except OSError:
                continue  # a broken chunk says so itself
    assert not is_truncated(root / "whole.h5")


STILL_OPEN = """
import sys, threading
from pathlib import Path
from ebl_stream.ingest.hdf5 import open_hdf5

is_open = threading.Event()

def hold():
    try:
        kept = open_hdf5(Path(sys.argv[1]))
    except OSError as error:
        kept = error
    print(type(kept).__name__)
    is_open.set()
    threading.Event().wait()

threading.Thread(target=hold, daemon=True).start()
assert is_open.wait(60)
"""


@pytest.mark.parametrize(("end", "kept"), [(-100, "File"), (112, "OSError")])
def test_a_process_that_ends_amid_a_truncated_file_does_not_crash(root, end, kept):
    whole = write(root / "whole.h5").read_bytes()
    (root / "cut.h5").write_bytes(whole[:end])
    command = [sys.executable, "-c", STILL_OPEN, str(root / "cut.h5")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{kept}\n"), done.stderr


def test_a_frame_is_read_again_by_its_reference(root):
    path = write(root / "a.h5")
    ref = FrameRef(str(path), "/entry/data", (3,), (4, 9))
    np.testing.assert_array_equal(read_frame(ref), IMAGES[3, 4:9])
    path.unlink()
    with pytest.raises(OSError, match=r"a\.h5"):
        read_frame(ref)
