"""Documents lost, reordered, repeated and rewound: what becomes of the volume."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import h5py
import numpy as np
import pytest
import zarr
from bluesky import RunEngine
from bluesky.utils import Msg, RunEngineInterrupted
from numpy.typing import NDArray
from ophyd.sim import SynAxis
from reference import nrmse, nufft_fbp

from ebl_stream.callbacks import DocumentRecorder
from ebl_stream.cli.commands import PLAIN
from ebl_stream.errors import InputError
from ebl_stream.profile import Profile
from ebl_stream.profile_file import load
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.result import Result
from ebl_stream.simulation.classic import SimulatedCamera, classic_scan
from ebl_stream.simulation.faults import LostProjections
from ebl_stream.simulation.phantom import Foam, angles_of
from ebl_stream.sources import open_source
from ebl_stream.stages.reconstruct import Fourier

Document: TypeAlias = tuple[str, dict[str, Any]]
Documents: TypeAlias = list[Document]

COLUMNS, ROWS, ANGLES, CENTER = 64, 4, 120, 32.7
FAR = 16
"""Places by which a document may come too early or too late."""


@dataclass
class Scan:
    """A scan in a file, told as documents of one frame each."""

    path: Path
    center: float
    """px."""

    def __post_init__(self) -> None:
        settings = PLAIN | {"geometry.rotation_center": self.center}
        self.profile = load("data_exchange", settings)
        self.documents, self.roots = tell(self.path, self.profile)

    def reconstruct(
        self, documents: Iterable[Document], out: Path
    ) -> tuple[Result, NDArray[np.float32]]:
        source, profile = open_source(str(self.path), self.profile)
        house = Reconstruction(profile, out=out, roots=source.roots)
        for name, doc in documents:
            house(name, doc)
        house.close()
        (result,) = house.results.values()
        return result, np.asarray(zarr.open_array(result.volume, mode="r"))

    def line_integrals(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Read ``[angle, row, column]`` and theta (rad) by plain means."""
        with h5py.File(self.path) as file:
            stacks = {
                name: np.asarray(file[f"exchange/{name}"], np.float64)
                for name in ("data", "data_white", "data_dark", "theta")
            }
        dark, flat = stacks["data_dark"].mean(0), stacks["data_white"].mean(0)
        transmission = (stacks["data"] - dark) / (flat - dark)
        return -np.log(np.clip(transmission, 1e-5, None)), np.deg2rad(stacks["theta"])

    def check(self, volume: NDArray[np.float32], used: NDArray[np.intp]) -> None:
        """Compare a volume with our batch, and with somebody else's, of the used."""
        values, theta = self.line_integrals()
        batch = Fourier()(values[used].astype(np.float32), theta[used], self.center)
        assert nrmse(volume, batch) < 1e-3
        row = volume.shape[0] // 2
        independent = nufft_fbp(values[used, row], theta[used], self.center)
        assert nrmse(volume[row], independent) < 0.01
        # The check has teeth: equal weights do not pass it.
        uniform = np.full(len(used), np.pi / len(used))
        mutant = nufft_fbp(values[used, row], theta[used], self.center, uniform)
        assert nrmse(mutant, independent) > 0.01


def tell(path: Path, profile: Profile) -> tuple[Documents, tuple[Path, ...]]:
    source, _ = open_source(str(path), profile)
    return list(one_by_one(source.documents())), source.roots


def one_by_one(documents: Iterable[Document]) -> Iterator[Document]:
    """Cut StreamDatums into one frame each, as a detector tells them."""
    for name, doc in documents:
        if name != "stream_datum":
            yield name, doc
            continue
        shift = doc["seq_nums"]["start"] - doc["indices"]["start"]
        for k in range(doc["indices"]["start"], doc["indices"]["stop"]):
            yield (
                name,
                doc
                | {
                    "uid": f"{doc['uid']}-{k}",
                    "indices": {"start": k, "stop": k + 1},
                    "seq_nums": {"start": k + shift, "stop": k + shift + 1},
                },
            )


_U = np.arange(ANGLES) / ANGLES
ORDERS = {
    "golden": angles_of("golden", ANGLES),
    "interlaced": angles_of("interlaced", ANGLES),
    "variable speed": np.pi * (_U + 0.5 * np.sin(2 * np.pi * _U) / (2 * np.pi)),
    "random": np.random.default_rng(3).random(ANGLES) * np.pi,
}


def write_foam(path: Path, order: str = "golden") -> Path:
    """Write projections of a foam in some order, with noise, as Data Exchange."""
    theta = ORDERS[order]
    exact = Foam(COLUMNS, ROWS, seed=4).project(theta, rotation_center=CENTER)
    rng = np.random.default_rng(0)
    shape = (8, ROWS, COLUMNS)
    with h5py.File(path, "w") as file:
        file["exchange/data"] = (rng.poisson(9000 * np.exp(-exact)) + 90).astype("u2")
        file["exchange/data_white"] = (rng.poisson(9000, shape) + 90).astype("u2")
        file["exchange/data_dark"] = np.full(shape, 90, "u2")
        file["exchange/theta"] = np.rad2deg(theta)
    return path


@pytest.fixture(scope="module")
def foam(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    return Scan(write_foam(tmp_path_factory.mktemp("scan") / "foam.h5"), CENTER)


@pytest.fixture(scope="module", params=[*ORDERS, "tooth"])
def scan(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Scan:
    if request.param in ORDERS:
        path = tmp_path_factory.mktemp("scan") / "foam.h5"
        return Scan(write_foam(path, request.param), CENTER)
    find = request.getfixturevalue("measured_scan")
    return Scan(find("aps_tooth.h5"), 295.6)


# -------------------------------------------------------------- frames are lost


def bruise(documents: Documents, lost: Iterable[int], seed: int) -> Documents:
    """Lose frames, shuffle within a window, and repeat some documents."""
    rng = np.random.default_rng(seed)
    kept: Documents = []
    cut = LostProjections(lambda name, doc: kept.append((name, doc)), set(lost))
    for name, doc in documents:
        cut(name, doc)
    again = rng.choice(len(kept), len(kept) // 20, replace=False)
    doubled = [pair for k, pair in enumerate(kept) for _ in range(1 + (k in again))]
    early = np.arange(len(doubled)) + rng.uniform(0, FAR, len(doubled))
    return [doubled[k] for k in np.argsort(early)]


@pytest.mark.parametrize("seed", [1, 2])
def test_losses_a_gap_disorder_and_repeats(
    scan: Scan, tmp_path: Path, seed: int
) -> None:
    n = len(scan.line_integrals()[1])
    rng = np.random.default_rng(seed)
    gap = int(rng.integers(n - 10))
    lost = {*rng.choice(n, n // 20, replace=False).tolist(), *range(gap, gap + 10)}
    documents = bruise(scan.documents, lost, seed)
    result, volume = scan.reconstruct(documents, tmp_path)
    ledger = result.ledger
    named = [k for a, b in ledger["missing_indices"] for k in range(a, b)]
    assert named == sorted(lost)
    assert (result.state, ledger["residue"], ledger["in_flight"]) == ("partial", 0, 0)
    assert ledger["missing"] == len(lost)
    assert ledger["duplicate"] == count_repeated_frames(documents)
    assert result.n_projections == ledger["used"] == n - len(lost)
    scan.check(volume, np.setdiff1d(np.arange(n), list(lost)))


def count_repeated_frames(documents: Documents) -> int:
    """Count projections that were told of again, by their images."""
    (stream,) = (
        doc["uid"]
        for name, doc in {repr(pair): pair for pair in documents}.values()
        if name == "descriptor" and doc["name"] == "primary"
    )
    images = {
        doc["uid"]
        for name, doc in documents
        if name == "stream_resource" and doc["data_key"] == "image"
    }
    told = [
        doc["uid"]
        for name, doc in documents
        if name == "stream_datum"
        and doc["descriptor"] == stream
        and doc["stream_resource"] in images
    ]
    return len(told) - len(set(told))


def test_a_late_end_of_the_scan_is_owed_too(foam: Scan, tmp_path: Path) -> None:
    """The stop document says how many there were: the tail is named."""
    lost = range(ANGLES - 7, ANGLES)
    result, volume = foam.reconstruct(bruise(foam.documents, lost, 3), tmp_path)
    assert result.ledger["missing_indices"] == [[ANGLES - 7, ANGLES]]
    foam.check(volume, np.arange(ANGLES - 7))


# ------------------------------------------------- documents of a kind are lost


def without(documents: Documents, lost: Callable[[str, dict[str, Any]], bool]) -> Any:
    left = [(name, doc) for name, doc in documents if not lost(name, doc)]
    assert len(left) < len(documents)
    return left


def of_key(documents: Documents, key: str) -> set[str]:
    """Return the uids of the projections' resources of a data key."""
    stream = [doc["uid"] for name, doc in documents if name == "descriptor"][-1]
    named = {
        d["stream_resource"] for _, d in documents if d.get("descriptor") == stream
    }
    return {
        doc["uid"]
        for name, doc in documents
        if name == "stream_resource" and doc["data_key"] == key and doc["uid"] in named
    }


@pytest.mark.parametrize(
    ("key", "reason"), [("theta", "no_angle"), ("image", "no_image")]
)
def test_half_a_frame_is_rejected_with_its_reason(
    foam: Scan, tmp_path: Path, key: str, reason: str
) -> None:
    lost = [3, 40, 41, ANGLES - 1]
    resources = of_key(foam.documents, key)
    documents = without(
        foam.documents,
        lambda name, doc: (
            name == "stream_datum"
            and doc["stream_resource"] in resources
            and doc["indices"]["start"] in lost
        ),
    )
    result, volume = foam.reconstruct(documents, tmp_path)
    assert result.state == "partial"
    assert result.ledger["rejected_by"] == {reason: len(lost)}
    assert result.ledger["residue"] == 0
    foam.check(volume, np.setdiff1d(np.arange(ANGLES), lost))


def test_without_a_stop_it_is_partial_and_all_there(foam: Scan, tmp_path: Path) -> None:
    documents = without(foam.documents, lambda name, _: name == "stop")
    result, volume = foam.reconstruct(documents, tmp_path)
    assert (result.state, result.exit_code) == ("partial", 3)
    assert (result.n_projections, result.ledger["residue"]) == (ANGLES, 0)
    foam.check(volume, np.arange(ANGLES))


@pytest.mark.parametrize("key", ["theta", "image", "descriptor"])
def test_without_a_referent_nothing_is_made_up(
    foam: Scan, tmp_path: Path, key: str
) -> None:
    lost = of_key(foam.documents, key)
    documents = without(
        foam.documents,
        lambda name, doc: (
            doc["uid"] in lost or (name, doc.get("name")) == (key, "primary")
        ),
    )
    with pytest.raises(InputError, match="no projection can be used"):
        foam.reconstruct(documents, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------- recorded, told again


def content(folder: Path) -> dict[str, bytes]:
    """Return the files of a zarr array."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_two_replays_and_the_record_give_the_same_bytes(
    foam: Scan, tmp_path: Path
) -> None:
    door = DocumentRecorder(tmp_path)
    direct, _ = foam.reconstruct(foam.documents, tmp_path / "direct")
    again, _ = foam.reconstruct(foam.documents, tmp_path / "again")
    for name, doc in foam.documents:
        door(name, doc)
    door.close()
    (journal,) = tmp_path.glob("*.ebldocs")
    source, profile = open_source(str(journal), foam.profile)
    house = Reconstruction(profile, out=tmp_path / "recorded", roots=source.roots)
    for name, doc in source.documents():
        house(name, doc)
    house.close()
    (recorded,) = house.results.values()
    assert direct.state == recorded.state == "complete"
    bytes_ = content(Path(direct.volume))
    assert len(bytes_) > 1
    assert bytes_ == content(Path(again.volume)) == content(Path(recorded.volume))


# ------------------------------------------------------------ a rewound scan


EVERY = 5
"""Events between two checkpoints."""


class Listener:
    """What the RunEngine told: the last data of each event, by stream."""

    def __init__(self) -> None:
        self.streams: dict[str, str] = {}
        self.last: dict[str, dict[int, dict[str, Any]]] = {}
        self.n_again = 0

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        if name == "descriptor":
            self.streams[doc["uid"]] = doc["name"]
        if name == "event":
            events = self.last.setdefault(self.streams[doc["descriptor"]], {})
            self.n_again += doc["seq_num"] in events
            events[doc["seq_num"]] = doc["data"]

    def batch(self) -> NDArray[np.float32]:
        """Reconstruct all last frames at once."""
        stacks = {
            stream: np.stack([events[k]["camera_image"] for k in sorted(events)])
            for stream, events in self.last.items()
        }
        dark, flat = stacks["darks"].mean(0), stacks["flats"].mean(0)
        values = -np.log(
            np.clip((stacks["primary"] - dark) / (flat - dark), 1e-5, None)
        )
        events = self.last["primary"]
        theta = np.deg2rad([events[k]["theta"] for k in sorted(events)])
        return Fourier()(values.astype(np.float32), theta, CENTER)


def pausing(at: tuple[int, ...]) -> Callable[[Msg], Any]:
    """Pause after some events of a stream, long after the last checkpoint."""
    n = {"save": 0, "checkpoint": 0}

    def mutate(message: Msg) -> Any:
        if message.command == "checkpoint":
            n["checkpoint"] += 1
            return (bps.null() if n["checkpoint"] % EVERY != 1 else None), None
        if message.command == "save":
            n["save"] += 1
            return None, (bps.pause() if n["save"] in at else None)
        return None, None

    return mutate


def run_through(engine: RunEngine, plan: Any) -> int:
    """Run a plan to its end; return how often it was resumed."""
    n, go_on = 0, partial(engine, plan)
    while True:
        try:
            go_on()
            return n
        except RunEngineInterrupted:
            n, go_on = n + 1, partial(engine.resume)


@pytest.mark.parametrize("pauses", [(), (38, 83, 120)])
def test_a_paused_scan_keeps_the_last_frame_of_each_event(
    tmp_path: Path, pauses: tuple[int, ...]
) -> None:
    """The RunEngine rewinds to its last checkpoint and takes frames again.

    Every frame has noise of its own, so those taken first must be gone.
    """
    engine, axis, listener = RunEngine(), SynAxis(name="theta"), Listener()
    foam = Foam(COLUMNS, ROWS, seed=4)
    camera = SimulatedCamera(axis, foam, rotation_center=CENTER)
    settings = PLAIN | {"geometry.rotation_center": CENTER}
    house = Reconstruction(load("demo", settings), out=tmp_path)
    engine.subscribe(house)
    engine.subscribe(listener)
    plan = classic_scan(camera, axis, ANGLES, "golden")
    assert run_through(engine, bpp.plan_mutator(plan, pausing(pauses))) == len(pauses)
    house.close()
    (result,) = house.results.values()
    assert (result.state, result.ledger["residue"]) == ("complete", 0)
    assert result.ledger["used"] == ANGLES
    assert result.ledger["superseded"] == listener.n_again
    assert (listener.n_again > len(pauses)) == bool(pauses)
    volume = np.asarray(zarr.open_array(result.volume, mode="r"))
    assert nrmse(volume, listener.batch()) < 1e-5
