"""Files without SWMR, and flats and darks that lie elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from dialect_runs import CENTER, Scan, frames
from scans import Fly, H, Outcome, W, images, make_profile

from ebl_stream.cli.commands import PLAIN
from ebl_stream.errors import InputError
from ebl_stream.frames import Announced, Frame, Kind, Rejected
from ebl_stream.ingest.assemble import Assembler
from ebl_stream.ingest.recent_runs import MAX_RUNS, RecentRuns
from ebl_stream.profile import Streams
from ebl_stream.profile_file import load
from ebl_stream.reconstruction import Reconstruction

WRITER = """
import sys, h5py, numpy as np
path, n = sys.argv[1], 12
data = np.random.default_rng(0).integers(1, 60_000, (n, 8, 12), np.uint16)
for line in sys.stdin:
    word = line.split()
    if word[0] == "open":
        file = h5py.File(path, "w")
        print("done", flush=True)
    if word[0] == "datasets":
        image = file.create_dataset("image", (0, 8, 12), "u2", maxshape=(None, 8, 12),
                                    chunks=(1, 8, 12))
        theta = file.create_dataset("theta", (0,), "f8", maxshape=(None,), chunks=(64,))
    if word[0] == "write":
        start, stop = int(word[1]), int(word[2])
        image.resize(stop, 0); theta.resize(stop, 0)
        image[start:stop], theta[start:stop] = data[start:stop], range(start, stop)
    if word[0] == "flush":
        file.flush()
        print("done", flush=True)
    if word[0] == "close":
        file.close()
        print("done", flush=True)
"""


class Writer:
    """A detector in a process of its own that writes HDF5 without SWMR."""

    def __init__(self, path: Path, *, locks: bool) -> None:
        self.path = path
        env = os.environ | {"HDF5_USE_FILE_LOCKING": "TRUE" if locks else "FALSE"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=env,
        )

    def __call__(self, words: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(words + "\n")
        if words in ("open", "flush", "close"):
            assert self._process.stdout.readline() == "done\n"

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Callable[..., Writer]]:
    running: list[Writer] = []

    def start(*, locks: bool = True, name: str = "live.h5") -> Writer:
        running.append(Writer(tmp_path / name, locks=locks))
        return running[-1]

    yield start
    for one in running:
        one.end()


def fly(path: Path) -> Fly:
    datasets = {"image": "image", "theta": "theta"}
    return Fly(path, datasets, {"image": (H, W), "theta": ()})


def in_flight(items: list[Any]) -> int:
    """Count announced projections that are neither there nor refused."""
    announced = sum(i.stop - i.start for i in items if isinstance(i, Announced))
    return announced - sum(isinstance(item, Frame | Rejected) for item in items)


# ------------------------------------------------------------------- without SWMR


@pytest.mark.parametrize("closes", ["before the stop", "after the stop"])
def test_a_locked_file_is_in_flight_until_its_writer_is_done(
    writer: Callable[..., Writer], closes: str
) -> None:
    camera = writer()
    camera("open")
    camera("datasets")
    run = fly(camera.path)
    assembler = Assembler(make_profile(timeout_s=10), roots=[camera.path.parent])
    items: list[Any] = []
    for k in range(0, 12, 4):
        camera(f"write {k} {k + 4}")
        camera("flush")
        run.datum("theta", k, k + 4).datum("image", k, k + 4)
    for doc in run.docs:
        items.extend(assembler(*doc))
    assert in_flight(items) == 12
    # The second one lets go while the assembler already waits for it.
    closing = threading.Timer(1.0, camera, ["close"])
    closing.start()
    if closes == "before the stop":
        closing.join()
    stopping = list(assembler(*run.stop()[-1]))
    closing.join()
    outcome = Outcome([*items, *stopping])
    outcome.check_conserved()
    assert outcome.rejected == {}
    np.testing.assert_array_equal(outcome.stack(), images(12))


def test_writers_that_never_let_go_cost_one_timeout_together(
    writer: Callable[..., Writer],
) -> None:
    cameras = [writer(name=f"{k}.h5") for k in range(4)]
    run = fly(cameras[0].path)
    resources = run.resources
    for k, camera in enumerate(cameras):
        camera("open")
        again = fly(camera.path)
        run.docs += [doc for doc in again.docs if doc[0] == "stream_resource"]
        run.resources = again.resources
        run.datum("theta", 3 * k, 3 * k + 3).datum("image", 3 * k, 3 * k + 3)
    run.resources = resources
    timeout_s = 1.0
    assembler = Assembler(
        make_profile(timeout_s=timeout_s), roots=[cameras[0].path.parent]
    )
    *docs, stop = run.stop()
    began = time.monotonic()
    items = [item for doc in docs for item in assembler(*doc)]
    assert in_flight(items) == 12
    assert time.monotonic() - began < 3 * timeout_s
    began = time.monotonic()
    items.extend(assembler(*stop))
    assert time.monotonic() - began < 3 * timeout_s
    outcome = Outcome(items)
    outcome.check_conserved()
    assert set(outcome.rejected.values()) == {"unreadable"}
    assert len(outcome.rejected) == 12


def test_without_locks_a_half_written_file_is_read_when_it_is_whole(
    writer: Callable[..., Writer],
) -> None:
    """Where HDF5 does not lock, one can look, and sees too little."""
    camera = writer(locks=False)
    camera("open")
    camera("flush")
    run = fly(camera.path)
    assembler = Assembler(make_profile(timeout_s=5), roots=[camera.path.parent])
    run.datum("theta", 0, 4).datum("image", 0, 4)
    # There is no dataset yet: that is no reason to end the run.
    items = [item for doc in run.docs for item in assembler(*doc)]
    assert in_flight(items) == 4
    camera("datasets")
    camera("write 0 4")
    camera("flush")
    run.docs.clear()
    run.datum("theta", 4, 12).datum("image", 4, 12)
    items += [item for doc in run.docs for item in assembler(*doc)]
    camera("write 4 12")
    camera("close")
    items += list(assembler(*run.stop()[-1]))
    outcome = Outcome(items)
    outcome.check_conserved()
    assert outcome.rejected == {}
    np.testing.assert_array_equal(outcome.stack(), images(12))
    np.testing.assert_allclose(outcome.theta(), np.radians(np.arange(12)))


def test_a_file_that_is_whole_and_short_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "short.h5"
    with h5py.File(path, "w") as file:
        file["image"], file["theta"] = images(8), np.arange(12.0)
    os.utime(path, (0, 0))
    run = fly(path).datum("theta", 0, 12).datum("image", 0, 12)
    assembler = Assembler(make_profile(timeout_s=30), roots=[tmp_path])
    began = time.monotonic()
    *docs, stop = run.stop()
    items = [item for doc in docs for item in assembler(*doc)]
    assert in_flight(items) == 4
    outcome = Outcome([*items, *assembler(*stop)])
    assert time.monotonic() - began < 10
    outcome.check_conserved()
    lost = {(Kind.PROJECTION, k): "unreadable" for k in range(8, 12)}
    assert outcome.rejected == lost


# ------------------------------------------------------------- flats from elsewhere


def assembled(scan: Scan, documents: list[Any], roots: list[Path]) -> Outcome:
    profile = load("default", {**scan.settings, "files.timeout_s": 0.5})
    assembler = Assembler(profile, roots=roots, find_run=scan.others.get)
    return Outcome([item for doc in documents for item in assembler(*doc)])


def test_own_flats_after_those_of_another_run_are_numbered_on(tmp_path: Path) -> None:
    """Both are used: the beam may have drifted in between."""
    scan = Scan(tmp_path, references="other_run_later")
    scan.documents()
    own = Scan(tmp_path, references="after")
    (uid,) = scan.others
    documents = own.documents()
    documents[0] = ("start", documents[0][1] | {"flats_are_in": uid})
    outcome = assembled(scan, documents, [tmp_path])
    outcome.check_conserved()
    _, flats, darks = frames()
    np.testing.assert_array_equal(outcome.stack(Kind.FLAT), np.concatenate([flats] * 2))
    assert outcome.closed.n_references == {Kind.FLAT: 8, Kind.DARK: 6}
    assert len(darks) == 3


def test_flats_of_its_own_suffice(tmp_path: Path) -> None:
    scan = Scan(tmp_path, references="before")
    documents = scan.documents()
    documents[0] = ("start", documents[0][1] | {"flats_are_in": "nowhere-to-be-found"})
    scan.settings["start.references_run"] = ["flats_are_in"]
    outcome = assembled(scan, documents, [tmp_path])
    assert outcome.closed.n_references == {Kind.FLAT: 4, Kind.DARK: 3}
    assert len(outcome.stack(Kind.FLAT)) == 4


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("file:///etc/passwd", "outside the allowed folders"),
        ("file://elsewhere/references.h5", "file://localhost"),
        ("{folder}/../secret/references.h5", "outside the allowed folders"),
        ("{folder}/gone.h5", "there is no file"),
        ("{folder}/not.h5", "not an HDF5 file"),
        ("{folder}/empty.h5", "no flats"),
    ],
)
def test_a_file_of_flats_that_cannot_be_is_said_and_missed(
    tmp_path: Path, uri: str, why: str
) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    scan = Scan(folder, references="file_of_start")
    (tmp_path / "secret").mkdir()
    (folder / "references.h5").rename(tmp_path / "secret" / "references.h5")
    (folder / "not.h5").write_text("x" * 100)
    h5py.File(folder / "empty.h5", "w").close()
    documents = scan.documents()
    start = documents[0][1] | {"flat_file": uri.format(folder=folder)}
    outcome = assembled(scan, [("start", start), *documents[1:]], [folder])
    outcome.check_conserved()
    assert outcome.closed.n_references == {Kind.FLAT: 1}
    (told,) = outcome.closed.details["references_elsewhere"]["failed"].values()
    assert why in told
    assert not any(kind is not Kind.PROJECTION for kind, _ in outcome.frames)


APPEND = """
import sys, h5py, numpy as np
with h5py.File(sys.argv[1], "a") as file:
    del file["entry/white"]
    file["entry/white"] = np.load(sys.argv[2])
"""


def test_flats_on_their_way_into_the_file_of_the_projections(tmp_path: Path) -> None:
    """A file is asked for its flats once more when the run is over.

    And nobody keeps it locked: beamlines add to it (tomoscan its angles).
    """
    scan = Scan(tmp_path, references="same_file")
    documents = scan.documents()
    with h5py.File(scan.path, "a") as file:
        del file["entry/white"]
        file["entry/white"] = scan.flats[:1]
    profile = load("default", {**scan.settings, "files.timeout_s": 0.5})
    assembler = Assembler(profile, roots=[tmp_path])
    items = [item for doc in documents[:-1] for item in assembler(*doc)]
    assert sum(isinstance(item, Frame) for item in items) > 40
    np.save(tmp_path / "flats.npy", scan.flats)
    command = [
        sys.executable,
        "-c",
        APPEND,
        str(scan.path),
        str(tmp_path / "flats.npy"),
    ]
    subprocess.run(command, check=True)
    outcome = Outcome([*items, *assembler(*documents[-1])])
    np.testing.assert_array_equal(outcome.stack(Kind.FLAT), scan.flats)


def test_references_of_another_shape_end_the_run_in_words(tmp_path: Path) -> None:
    scan = Scan(tmp_path, references="file_of_profile")
    with h5py.File(tmp_path / "references.h5", "w") as file:
        file["entry/white"] = np.ones((2, 5, 7), np.uint16)
    settings = {**PLAIN, "geometry.rotation_center": CENTER}
    documents = scan.documents()
    profile = load("default", {**settings, **scan.settings})
    house = Reconstruction(profile, out=tmp_path / "out", roots=[tmp_path])

    def run() -> None:
        for name, doc in documents:
            house(name, doc)

    with pytest.raises(InputError, match="flats have shape"):
        run()
    house.close()


def test_what_is_remembered_of_runs_stays_bounded() -> None:
    recent = RecentRuns(Streams())
    for k in range(1000):
        uid, big = f"run-{k}", np.zeros(2**20, np.uint16)
        recent.note(uid, "start", {"uid": uid})
        recent.note(uid, "descriptor", {"uid": f"d{k}", "name": "flats"})
        recent.note(uid, "descriptor", {"uid": f"p{k}", "name": "primary"})
        for stream in ("d", "p"):
            for _ in range(4):
                event = {"descriptor": f"{stream}{k}", "data": {"image": big}}
                recent.note(uid, "event", event)
        if k % 2:
            recent.note(uid, "stop", {})
    assert len(recent._runs) <= MAX_RUNS
    assert sum(run.n_bytes for run in recent._runs.values()) <= 256 * 2**20
    names = [name for name, _ in recent.find("run-999") or ()]
    assert names == ["start", "descriptor", *["event"] * 4, "stop"]
    # One that is not over is not taken for whole; nor is an old one made up.
    assert recent.find("run-998") is None
    assert recent.find("run-1") is None
