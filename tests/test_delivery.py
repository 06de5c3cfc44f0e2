"""However documents are delivered: the same volume, or the ids of what is lost."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import event_model
import h5py
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from reference import nrmse
from scans import Fly, image_key, make_profile

from ebl_stream.cli.commands import PLAIN
from ebl_stream.engine.ledger import Ledgers
from ebl_stream.frames import Announced, Closed, Frame, Kind, Rejected, Repeated
from ebl_stream.ingest.assemble import Assembler
from ebl_stream.ingest.router import RunSorter
from ebl_stream.profile_file import load
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.result import Result
from ebl_stream.simulation.phantom import Foam, angles_of
from ebl_stream.sources import open_source
from ebl_stream.transport.documents import pack
from ebl_stream.transport.journal import JournalWriter

ANGLES, ROWS, COLUMNS, CENTER = 36, 2, 32, 16.2
Document = tuple[str, dict[str, Any]]
SETTINGS = PLAIN | {"geometry.rotation_center": CENTER, "publish.tiled": "none"}
# Shrinking takes minutes, and a seed says as much.
PROPERTY = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def projections() -> tuple[Any, Any]:
    theta = angles_of("golden", ANGLES)
    exact = Foam(COLUMNS, ROWS, seed=2).project(theta, rotation_center=CENTER)
    counts = np.random.default_rng(1).poisson(9000 * np.exp(-exact))
    return counts.astype("u2"), np.rad2deg(theta)


def flats(run: Any) -> list[Document]:
    """Two flats of a run: without them the air is that of whatever came first."""
    keys = {"image": image_key((ROWS, COLUMNS))}
    descriptor = run.compose_descriptor(name="flats", data_keys=keys)
    flat = np.full((ROWS, COLUMNS), 9000, "u2")
    return [
        ("descriptor", descriptor.descriptor_doc),
        *(("event", event(descriptor, image=flat)) for _ in range(2)),
    ]


def event(descriptor: Any, **data: Any) -> dict[str, Any]:
    stamps = dict.fromkeys(data, 0.0)
    return descriptor.compose_event(data=data, timestamps=stamps, validate=False)


def in_events() -> list[Document]:
    run = event_model.compose_run(metadata={"num_projections": ANGLES})
    theta = {"dtype": "number", "shape": [], "source": "t", "units": "deg"}
    keys = {"image": image_key((ROWS, COLUMNS)), "theta": theta}
    primary = run.compose_descriptor(name="primary", data_keys=keys)
    told = zip(*projections(), strict=True)
    return [
        ("start", run.start_doc),
        *flats(run),
        ("descriptor", primary.descriptor_doc),
        *(("event", event(primary, image=image, theta=angle)) for image, angle in told),
        ("stop", run.compose_stop()),
    ]


def in_file(path: Path) -> list[Document]:
    images, theta = projections()
    with h5py.File(path, "w") as file:
        file["image"], file["theta"] = images, theta
    shapes = {"image": (1, ROWS, COLUMNS), "theta": ()}
    scan = Fly(path, {"image": "image", "theta": "theta"}, shapes)
    scan.docs[1][1]["data_keys"]["theta"]["units"] = "deg"
    for k in range(ANGLES):
        scan.datum("image", k, k + 1).datum("theta", k, k + 1)
    start, *rest, (_, stop) = scan.stop()
    counted = stop | {"num_events": {"primary": ANGLES, "flats": 2}}
    return [start, *flats(scan.run), *rest, ("stop", counted)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("delivery").resolve()


@pytest.fixture(scope="module")
def tell(folder: Path) -> Callable[[str], list[Document]]:
    told = {"in events": in_events(), "in a file": in_file(folder / "scan.h5")}
    return lambda how: told[how]


def reconstruct(documents: Iterable[Document], folder: Path) -> tuple[Result, Any]:
    out = Path(tempfile.mkdtemp(dir=folder))
    try:
        house = Reconstruction(load("demo", SETTINGS), out=out, roots=(folder,))
        for name, doc in documents:
            house(name, doc)
        house.close()
        (result,) = house.results.values()
        return result, zarr.open_array(result.volume, mode="r")[:]
    finally:
        shutil.rmtree(out)


def harm(
    documents: list[Document], window: int, chance: random.Random
) -> list[Document]:
    """Deliver again and out of order, each at most ``window`` places away."""
    again = [d for d in documents if chance.random() < 0.2]
    places = [(k + chance.uniform(0, window), d) for k, d in enumerate(documents)]
    at = {id(d): k for k, d in enumerate(documents)}
    places += [(at[id(d)] + chance.uniform(0, window), d) for d in again]
    return [d for _, d in sorted(places, key=lambda place: place[0])]


@pytest.fixture(scope="module")
def clean(tell: Any, folder: Path) -> dict[str, tuple[Result, Any]]:
    return {how: reconstruct(tell(how), folder) for how in ("in events", "in a file")}


@pytest.mark.parametrize("how", ["in events", "in a file"])
@pytest.mark.parametrize("window", [2, 16, 64])
def test_disorder_and_repeats_within_a_window_change_nothing(
    how: str, window: int, tell: Any, clean: Any, folder: Path
) -> None:
    expected, volume = clean[how]

    @settings(PROPERTY, max_examples=5)
    @given(chance=st.randoms(use_true_random=False))
    def hold(chance: random.Random) -> None:
        documents = harm(tell(how), window, chance)
        result, harmed = reconstruct(documents, folder)
        assert result.state == "complete"
        left_out = ("announced", "duplicate")
        assert {k: v for k, v in result.ledger.items() if k not in left_out} == {
            k: v for k, v in expected.ledger.items() if k not in left_out
        }
        assert nrmse(harmed, volume) < 5e-6  # the order of adding, in float32

    hold()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def account(documents: list[Document], folder: Path, **bounds: Any) -> Iterator[Any]:
    """Tell documents through a sorter with these bounds; None lets time pass."""
    assembler = Assembler(make_profile(), roots=(folder,))
    items: list[Any] = []
    clock = Clock()
    sorter = RunSorter(
        lambda start: lambda name, doc: items.extend(assembler(name, doc)),
        clock=clock,
        **bounds,
    )
    for document in documents:
        if document is None:
            clock.now += 3.0
            sorter.tick()
        else:
            sorter(*document)
    sorter.close()
    items.extend(assembler.close())
    yield from items


def ledger_of(items: Iterator[Any]) -> dict[str, Any]:
    ledgers, used = Ledgers(shared_index=False), set()
    for item in items:
        match item:
            case Announced() | Repeated() | Rejected():
                ledgers.note(item)
            case Frame() if item.kind is Kind.PROJECTION:
                used.add(item.index)
            case Closed():
                ledgers[Kind.PROJECTION].promise(item.n_announced_by_stop)
    ledgers.close()
    return ledgers[Kind.PROJECTION].report(used)


def projections_of(documents: list[Document]) -> list[Document]:
    """Return the events of the stream that is not of flats."""
    return [pair for pair in documents if "theta" in pair[1].get("data", ())]


def named(ledger: dict[str, Any], what: str) -> list[int]:
    return [k for a, b in ledger[f"{what}_indices"] for k in range(a, b)]


@pytest.mark.parametrize("window", [2, 16, 64])
@given(data=st.data())
@settings(PROPERTY, max_examples=40)
def test_what_comes_too_late_is_listed_by_its_id(
    window: int, data: st.DataObject, tell: Any, folder: Path
) -> None:
    """The stop document waits for its grace and no longer."""
    documents = tell("in events")
    late = data.draw(st.sets(st.integers(0, ANGLES - 1), max_size=ANGLES - 1))
    events = {d["seq_num"] - 1: (n, d) for n, d in projections_of(documents)}
    gone = {id(events[k][1]) for k in late}
    kept = [pair for pair in documents if id(pair[1]) not in gone]
    chance = data.draw(st.randoms(use_true_random=False))
    harmed = harm(kept, window, chance)
    delivered = [*harmed, None, *(events[k] for k in late)]
    ledger = ledger_of(account(delivered, folder))
    assert named(ledger, "missing") == sorted(late)
    assert (ledger["used"], ledger["residue"]) == (ANGLES - len(late), 0)


@given(data=st.data())
@settings(PROPERTY, max_examples=60)
def test_what_the_sorter_has_no_room_for_is_listed_by_its_id(
    data: st.DataObject, tell: Any, folder: Path
) -> None:
    """So many events before their descriptor that not all can be held."""
    documents = tell("in events")
    events = projections_of(documents)
    room = data.draw(st.integers(1, ANGLES + 5))
    n_early = data.draw(st.integers(0, ANGLES))
    head, stop = documents[: -len(events) - 1], documents[-1]
    order = [head[0], *events[:n_early], *head[1:], *events[n_early:], stop]
    ledger = ledger_of(account(order, folder, max_held=room))
    assert named(ledger, "missing") == list(range(max(0, n_early - room)))
    assert ledger["residue"] == 0


# ------------------------------------------------------------------- the cadence


def test_the_speed_of_a_replay_changes_no_bit(tell: Any, folder: Path) -> None:
    """Replayed as recorded, 100 times as fast, at once, and with pauses."""
    path = folder / "recorded.ebldocs"
    journal = JournalWriter(path)
    for k, (name, doc) in enumerate(tell("in a file")):
        journal.append(pack(name, doc), 1000.0 + 0.01 * k)
    journal.close()
    profile = load("demo", SETTINGS | {"files.roots": [str(folder)]})
    chance, took, volumes = random.Random(7), {}, {}
    for speed in (1.0, 100.0, None, "pauses"):
        source, _ = open_source(
            str(path), profile, speed=speed if isinstance(speed, float) else None
        )
        documents = source.documents()
        if speed == "pauses":
            documents = _with_pauses(documents, chance)
        began = time.monotonic()
        _, volumes[speed] = reconstruct(documents, folder)
        took[speed] = time.monotonic() - began
    for volume in volumes.values():
        np.testing.assert_array_equal(volume, volumes[1.0])
    assert took[1.0] > 0.01 * 2 * ANGLES
    assert took[100.0] < took[1.0]


def _with_pauses(documents: Iterator[Document], chance: random.Random) -> Any:
    for document in documents:
        time.sleep(chance.choice([0, 0, 0, 0.01, 0.05]))
        yield document
