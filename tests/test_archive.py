"""Archived runs on a real Tiled server, told again with and without its exporter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import h5py
import numpy as np
import pytest
import tiled.profiles
from event_model import DocumentNames, schema_validators
from tiled.client import from_uri

from ebl_stream.errors import InputError
from ebl_stream.profile import Profile
from ebl_stream.profile_file import load
from ebl_stream.publish.tiled_server import TiledServer
from ebl_stream.sources import open_source
from ebl_stream.transport.documents import pack, unpack

N, ROWS, COLUMNS = 70, 4, 6
Document = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Archive:
    """A Tiled server and the uids of the runs on it."""

    url: str
    folder: Path
    exports: bool
    runs: dict[str, str]

    def documents(self, run: str, roots: tuple[Path, ...] = ()) -> list[Document]:
        source, _ = open_source(f"tiled:{self.url}#{self.runs[run]}", profile(*roots))
        try:
            return list(source.documents())
        finally:
            source.close()


def profile(*roots: Path) -> Profile:
    return load("default", {"files.roots": [str(root) for root in roots]})


def image(i: int) -> np.ndarray[Any, Any]:
    return np.full((ROWS, COLUMNS), 100 + i, "u2")


def in_event_run(client: Any) -> str:
    """Let a RunEngine write a scan of classic devices: arrays inside the events."""
    from bluesky import RunEngine
    from bluesky.plans import scan
    from bluesky_tiled_plugins import TiledWriter
    from ophyd.sim import SynAxis, SynSignal

    class Camera(SynSignal):
        def describe(self) -> dict[str, Any]:
            described = super().describe()
            described[self.name].update(
                dtype="array", shape=[ROWS, COLUMNS], dtype_numpy="<u2"
            )
            return described

    numbers = iter(range(10_000))
    camera = Camera(name="cam", func=lambda: image(0) * 0 + next(numbers))
    run_engine = RunEngine(call_returns_result=False)
    run_engine.subscribe(TiledWriter(client))
    (uid,) = run_engine(scan([camera], SynAxis(name="theta"), 0, 180, 5))
    return uid


def external_run(
    client: Any, path: Path, shape: list[int], per_event: int, join: str
) -> str:
    """Write what a fly scan emits: frames and angles in an HDF5 file."""
    from bluesky_tiled_plugins import TiledWriter
    from event_model import compose_run

    frames = np.stack([image(i) for i in range(N * per_event)])
    with h5py.File(path, "w", libver="latest") as file:
        file["/data"] = frames
        file["/theta"] = np.linspace(0, 180, N)
    run = compose_run(metadata={"plan_name": "fly", "num_projections": N})
    keys = {"cam": ("/data", "<u2", shape), "theta": ("/theta", "<f8", [1])}
    described = run.compose_descriptor(
        name="primary",
        data_keys={
            key: {
                "source": "sim",
                "dtype": "array" if len(size) > 1 else "number",
                "dtype_numpy": dtype,
                "shape": size,
                "external": "STREAM:",
            }
            for key, (_, dtype, size) in keys.items()
        },
    )
    writer = TiledWriter(client)
    writer("start", run.start_doc)
    writer("descriptor", described.descriptor_doc)
    for key, (dataset, _, size) in keys.items():
        compose = run.compose_stream_resource
        assert compose is not None
        resource, compose_datum = compose(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{quote(str(path))}",
            data_key=key,
            parameters={
                "dataset": dataset,
                "chunk_shape": [1, ROWS, COLUMNS][: max(1, len(size))],
                "join_method": join if len(size) > 1 else "concat",
            },
        )
        writer("stream_resource", resource)
        datum = compose_datum(
            indices={"start": 0, "stop": N},
            seq_nums={"start": 1, "stop": N + 1},
            descriptor=described.descriptor_doc,
        )
        writer("stream_datum", datum)
    writer("stop", run.compose_stop())
    return run.start_doc["uid"]


EXTERNAL = {
    "one": ([1, ROWS, COLUMNS], 1, "stack"),
    "joined": ([1, ROWS, COLUMNS], 1, "concat"),
    "two": ([2, ROWS, COLUMNS], 2, "stack"),
    "two_joined": ([2, ROWS, COLUMNS], 2, "concat"),
}
"""Name of the run: shape of the data key, frames per event, how Tiled joins them."""


def fill(client: Any, folder: Path) -> dict[str, str]:
    """Write every kind of run."""
    runs = {"in-event": in_event_run(client)}
    for name, (shape, per_event, join) in EXTERNAL.items():
        path = folder / f"{name}.h5"
        runs[name] = external_run(client, path, shape, per_event, join)
    return runs


@pytest.fixture(scope="module", params=["plain", "exporting"])
def archive(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Archive]:
    """Serve runs from a server without the exporter, then from one that has it."""
    folder = tmp_path_factory.mktemp("archive").resolve()
    serve = plain_server if request.param == "plain" else exporting_server
    with serve(folder) as (url, key), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TILED_API_KEY", key)
        runs = fill(from_uri(url, api_key=key), folder)
        yield Archive(url, folder, request.param == "exporting", runs)


@contextmanager
def plain_server(folder: Path) -> Iterator[tuple[str, str]]:
    from tiled.server import SimpleTiledServer

    server = SimpleTiledServer(
        folder / "tiled", api_key="secret", readable_storage=[folder]
    )
    try:
        yield server.uri.partition("/api")[0], "secret"
    finally:
        server.close()


@contextmanager
def exporting_server(folder: Path) -> Iterator[tuple[str, str]]:
    server = TiledServer(folder)
    server.start()
    try:
        assert server.wait_ready(60)
        yield str(server.uri), str(server.api_key)
    finally:
        server.stop()


def check(documents: list[Document]) -> None:
    for name, doc in documents:
        schema_validators[DocumentNames[name]].validate(doc)
        assert unpack(pack(name, doc))[0] == name
    names = [name for name, _ in documents]
    assert (names[0], names[-1]) == ("start", "stop")
    uids = [doc["uid"] for _, doc in documents]
    assert len(set(uids)) == len(uids)


def by_number(documents: list[Document], key: str) -> dict[int, Any]:
    return {
        doc["seq_num"]: doc["data"][key]
        for name, doc in documents
        if name == "event" and key in doc["data"]
    }


def test_arrays_inside_events_come_back(archive: Archive) -> None:
    documents = archive.documents("in-event")
    check(documents)
    assert documents[0][1]["uid"] == archive.runs["in-event"]
    theta, images = by_number(documents, "theta"), by_number(documents, "cam")
    assert theta == {1: 0, 2: 45, 3: 90, 4: 135, 5: 180}
    assert list(images) == [1, 2, 3, 4, 5]
    first = images[1][0, 0]
    for i, image_back in enumerate(images.values()):
        assert image_back.dtype == np.uint16
        np.testing.assert_array_equal(image_back, np.full((ROWS, COLUMNS), first + i))


@pytest.mark.parametrize("run", EXTERNAL)
def test_files_that_can_be_read_here_are_named(archive: Archive, run: str) -> None:
    documents = archive.documents(run, roots=(archive.folder,))
    check(documents)
    assert "event" not in [name for name, _ in documents]
    resources = {d["uid"]: d for name, d in documents if name == "stream_resource"}
    assert {d["data_key"] for d in resources.values()} == {"cam", "theta"}
    # The exporter's own uids: its documents were taken where it is there.
    assert all(uid.startswith("sr-") == archive.exports for uid in resources)
    expected = f"file://localhost{archive.folder}"
    assert all(unquote(d["uri"]).startswith(expected) for d in resources.values())
    told: dict[str, list[int]] = {"cam": [], "theta": []}
    for name, doc in documents:
        if name == "stream_datum":
            indices, numbers = doc["indices"], doc["seq_nums"]
            assert numbers == {key: value + 1 for key, value in indices.items()}
            assert indices["stop"] - indices["start"] <= 64
            key = resources[doc["stream_resource"]]["data_key"]
            told[key].extend(range(indices["start"], indices["stop"]))
    assert told == {"cam": list(range(N)), "theta": list(range(N))}


@pytest.mark.parametrize("run", EXTERNAL)
def test_other_files_are_read_through_tiled(archive: Archive, run: str) -> None:
    shape, per_event, _ = EXTERNAL[run]
    documents = archive.documents(run)
    check(documents)
    assert "stream_resource" not in [name for name, _ in documents]
    keys = next(d["data_keys"] for name, d in documents if name == "descriptor")
    expected = (ROWS, COLUMNS) if per_event == 1 else tuple(shape)
    assert tuple(keys["cam"]["shape"]) == expected
    assert not any("external" in key for key in keys.values())
    images, theta = by_number(documents, "cam"), by_number(documents, "theta")
    assert list(images) == list(range(1, N + 1))
    assert theta[N] == 180
    for i in range(N):
        frames = images[i + 1].reshape(per_event, ROWS, COLUMNS)
        numbers = [100 + i * per_event + j for j in range(per_event)]
        assert frames[:, 0, 0].tolist() == numbers


def test_a_catalog_of_databroker_is_a_tiled_profile(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beamline.yml").write_text(f"mybeamline:\n  uri: {archive.url}\n")
    monkeypatch.setattr(tiled.profiles, "paths", [tmp_path])
    tiled.profiles.load_profiles.cache_clear()
    uid = archive.runs["in-event"]
    source, _ = open_source(f"databroker:mybeamline/{uid}", profile())
    assert next(source.documents())[1]["uid"] == uid
    source.close()
    with pytest.raises(InputError, match=r"no Tiled profile 'other'.*mybeamline"):
        open_source(f"databroker:other/{uid}", None)
    tiled.profiles.load_profiles.cache_clear()


def test_wrong_addresses_are_refused_with_one_message(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_runs = len(archive.runs)
    uid = archive.runs["in-event"]
    for address, message in [
        (f"tiled:{archive.url}#nonsense", f"no run 'nonsense'.*{n_runs} entries"),
        (f"tiled:{archive.url}/api/v1/metadata/absent#{uid}", "absent"),
        (f"tiled:{archive.url}/api/v1/metadata/{uid}#primary", "no Bluesky run"),
        (f"tiled:{archive.url}", "expected tiled:URL#uid"),
        (f"tiled:{archive.url}?api_key=x#{uid}", "export TILED_API_KEY"),
        ("tiled:http://127.0.0.1:1#x", "http://127.0.0.1:1"),
        ("tiled:nonsense#x", "nonsense"),
        ("databroker:x", "expected databroker:CATALOG/uid"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            open_source(address, None)
        assert len(str(error.value).splitlines()) <= 4, error.value
    monkeypatch.setenv("TILED_API_KEY", "wrong")
    with pytest.raises(InputError, match="401"):
        open_source(f"tiled:{archive.url}#{uid}", None)
    monkeypatch.delenv("TILED_API_KEY")
    with pytest.raises(InputError, match="export TILED_API_KEY"):
        open_source(f"tiled:{archive.url}#{uid}", None)
    other = load("default", {"publish.api_key_env": "OTHER_KEY"})
    with pytest.raises(InputError, match="export OTHER_KEY"):
        open_source(f"tiled:{archive.url}#{uid}", other)


def test_another_run_of_the_catalog_is_found_by_its_uid(archive: Archive) -> None:
    """Where a run says that its flats are in another one."""
    source, _ = open_source(
        f"tiled:{archive.url}#{archive.runs['one']}", profile(archive.folder)
    )
    found = source.find_run(archive.runs["two"])  # type: ignore[attr-defined]
    assert [doc["uid"] for _, doc in found] == [
        doc["uid"] for _, doc in archive.documents("two", (archive.folder,))
    ]
    nobody = source.find_run("00000000-0000-0000-0000-000000000000")  # type: ignore[attr-defined]
    assert nobody is None
    source.close()
