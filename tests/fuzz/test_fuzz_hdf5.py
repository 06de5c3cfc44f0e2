"""Damaged HDF5 files: each is read, refused or unreadable; nothing dies or hangs."""

from __future__ import annotations

import random
import select
import subprocess
import sys
from collections import Counter
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from fuzz_sizes import scaled

N_FILES = scaled(150, 2000)
PATIENCE_S = 30
METADATA_BYTES = 6000
"""Damage does most near the beginning, where HDF5 keeps what describes the rest."""

READER = Path(__file__).with_name("hdf5_reader.py")
REGRESSIONS = sorted(Path(__file__).with_name("regressions").glob("*.h5"))
VARIANTS = {
    "contiguous": {},
    "gzip": {"chunks": (1, 16, 32), "compression": "gzip", "shuffle": True},
    "checked": {"chunks": (1, 32, 64), "compression": "gzip", "fletcher32": True},
    "plugin": {"chunks": (2, 32, 64), **hdf5plugin.Bitshuffle(cname="lz4")},
}


class Reader:
    """A reading process, started again where a file brings it down."""

    def __init__(self) -> None:
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen([sys.executable, READER], text=True, bufsize=1, **pipes)

    def __call__(self, path: Path) -> tuple[str, int]:
        """Return what became of a file, and the most memory so far (MiB)."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        print(path, file=process.stdin, flush=True)
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
        line = process.stdout.readline() if ready else ""
        if not line:
            self.close()
            self._process = self._start()
            return ("died" if ready else "hung"), 0
        what, mib = line.split()
        return what, int(mib)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def reader():
    reader = Reader()
    yield reader
    reader.close()


def make_scan(path: Path, libver: str, variant: str) -> bytes:
    noise = np.random.default_rng(1).integers(100, 4000, (24, 32, 64), np.uint16)
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("exchange/data", data=noise, **VARIANTS[variant])
        file["exchange/data_white"] = noise[:4]
        file["exchange/data_dark"] = noise[:4] // 50
        file["exchange/theta"] = np.linspace(0, 180, 24)
        file["exchange/theta"].attrs["units"] = "deg"
        file["measurement/sample/name"] = "phantom"
    return path.read_bytes()


def damage(whole: bytes, seed: int) -> bytes:
    """Change 1 to 64 bytes or bits."""
    dice, raw = random.Random(seed), bytearray(whole)
    for _ in range(dice.choice([1, 1, 2, 4, 16, 64])):
        end = len(raw) if dice.random() < 0.3 else METADATA_BYTES
        at = dice.randrange(end)
        flipped = raw[at] ^ (1 << dice.randrange(8))
        raw[at] = dice.choice([flipped, flipped, 0, 127, 128, 255, dice.randrange(256)])
    return bytes(raw)


@pytest.mark.timeout(1800)
def test_damaged_files_are_read_refused_or_unreadable(tmp_path, reader):
    path = tmp_path / "scan.h5"
    wholes = [
        make_scan(path, libver, variant)
        for libver in ("earliest", "latest")
        for variant in VARIANTS
    ]
    assert reader(path)[0] == "read"
    fates: Counter[str] = Counter()
    for seed in range(N_FILES):
        path.write_bytes(damage(wholes[seed % len(wholes)], seed))
        fate, mib = reader(path)
        fates[fate] += 1
        assert fate in ("read", "refused", "unreadable"), f"seed {seed}"
        assert mib < 700, f"seed {seed}"
    print(f"{N_FILES} damaged files: {dict(fates)}")
    assert fates["read"] > 0.1 * N_FILES
    assert fates["refused"] > 0.1 * N_FILES


@pytest.mark.timeout(600)
def test_damaged_measured_scans(tmp_path, reader, measured_scan):
    whole = measured_scan("aps_tooth.h5").read_bytes()
    path = tmp_path / "tooth.h5"
    for seed in range(scaled(20, 300)):
        path.write_bytes(damage(whole, seed))
        assert reader(path)[0] in ("read", "refused", "unreadable"), f"seed {seed}"


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_files_that_once_did_harm(path, reader):
    assert reader(path)[0] in ("refused", "unreadable")
