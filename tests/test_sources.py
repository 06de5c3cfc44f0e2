"""Files and journals become documents; what is no scan is refused with one message."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from event_model import DocumentNames, schema_validators
from scans import Outcome, assemble

from ebl_stream.errors import InputError
from ebl_stream.ingest.hdf5 import open_dataset, open_hdf5, resolve_uri
from ebl_stream.profile import Profile
from ebl_stream.profile_file import load
from ebl_stream.sources import open_source
from ebl_stream.sources.files import FileSource
from ebl_stream.transport.documents import pack, unpack
from ebl_stream.transport.journal import JournalWriter

N, ROWS, COLUMNS = 70, 3, 8
Document = tuple[str, dict[str, Any]]
Documents = list[Document]


def frames(n: int = N, value: int = 100) -> np.ndarray[Any, Any]:
    """Frames that tell which one they are."""
    return np.full((n, ROWS, COLUMNS), value, "u2") + np.arange(n, dtype="u2").reshape(
        -1, 1, 1
    )


def data_exchange(path: Path, **changes: Any) -> Path:
    """Write a sound Data Exchange file, some datasets changed or left out (None)."""
    datasets = {
        "/exchange/data": frames(),
        "/exchange/data_white": frames(4, 500),
        "/exchange/data_dark": frames(2, 1),
        "/exchange/theta": np.linspace(0, 180, N, endpoint=False),
        "/process/rotation_center_px": 3.25,
        "/measurement/sample/name": "foam",
        "/measurement/instrument/detector/pixel_size": 0.65,
    }
    short = {name.rpartition("/")[2]: name for name in datasets}
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name] = value
        for key, value in changes.items():
            name = short.get(key, "/" + key.replace("__", "/"))
            if name in file:
                del file[name]
            if value is not None:
                file[name] = value
        pixel_size = file.get("/measurement/instrument/detector/pixel_size")
        if pixel_size is not None:
            pixel_size.attrs["units"] = "microns"
        if "/exchange/theta" in file:
            file["/exchange/theta"].attrs["units"] = "degrees"
    return path


KINDS = np.array([2, 2, 1, 1, 1, *[0] * N, 3, 1, 2])


def nxtomo(path: Path, entry: str = "entry", **changes: Any) -> Path:
    """Write a sound NXtomo file as ESRF and SOLEIL do."""
    datasets = {
        "definition": "NXtomo",
        "instrument/detector/data": frames(len(KINDS)),
        "instrument/detector/image_key": KINDS,
        "instrument/detector/image_key_control": KINDS,
        "sample/rotation_angle": np.deg2rad(np.linspace(0, 180, len(KINDS))),
        "sample/name": "bone",
        "sample/x_pixel_size": 1.1e-6,
    }
    with h5py.File(path, "w") as file:
        group = file.create_group(entry)
        for name, value in (datasets | changes).items():
            if value is not None:
                group[name] = value
        if "instrument/detector/data" in group:
            group["data/data"] = h5py.SoftLink(f"/{entry}/instrument/detector/data")
        if "sample/rotation_angle" in group:
            group["sample/rotation_angle"].attrs["units"] = "rad"
        group["sample/x_pixel_size"].attrs["units"] = "m"
    return path


def diamond(path: Path, raw: Path) -> Path:
    """Write a Diamond-like .nxs: a sub-entry whose frames lie in an .h5 beside it."""
    with h5py.File(raw, "w") as file:
        file["/entry/data"] = frames(len(KINDS))
    with h5py.File(path, "w") as file:
        entry = file.create_group("/entry1/tomo_entry")
        entry["definition"] = "NXtomo"
        entry["instrument/detector/image_key"] = KINDS
        target = raw.name if raw.parent == path.parent else str(raw)
        file["/entry1/instrument/pco/data"] = h5py.ExternalLink(target, "/entry/data")
        link = h5py.SoftLink("/entry1/instrument/pco/data")
        entry["instrument/detector/data"] = link
        entry["data/data"] = link
        entry["sample/rotation_angle"] = np.linspace(0, 180, len(KINDS))
    return path


def replay(address: Path | str, profile: Profile | None = None) -> list[Document]:
    source, _ = open_source(str(address), profile)
    documents = list(source.documents())
    source.close()
    return documents


def validate(documents: list[Document]) -> None:
    """Hold documents to event-model's schemas, and to travelling unchanged."""
    for name, doc in documents:
        schema_validators[DocumentNames[name]].validate(doc)
        back = unpack(pack(name, doc))[1]
        assert back.keys() == doc.keys()
        if name != "event":
            assert back == doc
    uids = [doc["uid"] for name, doc in documents]
    assert len(set(uids)) == len(uids)
    assert documents[0][0] == "start"
    assert documents[-1][0] == "stop"


def read_back(
    documents: list[Document], stream: str, key: str, roots: tuple[Path, ...]
) -> dict[int, Any]:
    """Read what the documents point at: sequence number -> value."""
    descriptors = {
        doc["uid"]
        for name, doc in documents
        if name == "descriptor" and doc["name"] == stream
    }
    resources = {d["uid"]: d for name, d in documents if name == "stream_resource"}
    found: dict[int, Any] = {}
    for name, doc in documents:
        if name == "event" and doc["descriptor"] in descriptors and key in doc["data"]:
            found[doc["seq_num"]] = doc["data"][key]
        if name != "stream_datum" or doc["descriptor"] not in descriptors:
            continue
        resource = resources[doc["stream_resource"]]
        if resource["data_key"] == key:
            with open_hdf5(resolve_uri(resource["uri"], roots)) as file:
                dataset = open_dataset(file, resource["parameters"]["dataset"], roots)
                values = dataset[doc["indices"]["start"] : doc["indices"]["stop"]]
            numbers = range(doc["seq_nums"]["start"], doc["seq_nums"]["stop"])
            found.update(zip(numbers, values, strict=True))
    return found


def streams_in_order(documents: list[Document]) -> list[str]:
    return [doc["name"] for name, doc in documents if name == "descriptor"]


def test_data_exchange_is_told_as_a_run(tmp_path: Path) -> None:
    path = data_exchange(tmp_path / "a scan #1%.h5")
    source, profile = open_source(str(path), None)
    documents = list(source.documents())
    validate(documents)
    assert profile.name == "data_exchange"
    assert streams_in_order(documents) == ["darks", "flats", "primary"]
    start, stop = documents[0][1], documents[-1][1]
    told = {"n_projections": N, "rotation_center": 3.25, "voxel_size_um": 0.65}
    assert start == start | told | {"sample": "foam", "plan_name": "replay"}
    assert stop["num_events"] == {"darks": 2, "flats": 4, "primary": N}
    images = read_back(documents, "primary", "image", source.roots)
    assert [images[i + 1][0, 0] for i in range(N)] == [100 + i for i in range(N)]
    theta = read_back(documents, "primary", "theta", source.roots)
    assert theta[2] == pytest.approx(180 / N)
    flats = read_back(documents, "flats", "image", source.roots)
    assert [flat[0, 0] for flat in flats.values()] == [500, 501, 502, 503]
    keys = next(d for n, d in documents if n == "descriptor" and d["name"] == "primary")
    assert keys["data_keys"]["theta"]["units"] == "deg"
    assert keys["data_keys"]["image"]["shape"] == [1, ROWS, COLUMNS]


def test_blocks_are_bounded(tmp_path: Path) -> None:
    documents = replay(data_exchange(tmp_path / "scan.h5"))
    sizes = [
        doc["indices"]["stop"] - doc["indices"]["start"]
        for name, doc in documents
        if name == "stream_datum"
    ]
    assert max(sizes) == 64
    large = data_exchange(
        tmp_path / "large.h5",
        data=np.ones((3, 1024, 1024), "f4"),
        theta=np.arange(3.0),
        data_white=None,
        data_dark=None,
    )
    blocks = [doc for name, doc in replay(large) if name == "stream_datum"]
    assert {doc["indices"]["stop"] - doc["indices"]["start"] for doc in blocks} == {1}


def test_two_replays_tell_the_same_run(tmp_path: Path) -> None:
    path = data_exchange(tmp_path / "scan.h5")
    once = replay(path)
    assert replay(path) == once
    os.utime(path, (1, 1))
    assert replay(path)[0][1]["uid"] != once[0][1]["uid"]


def test_a_single_flat_travels_inside_an_event(tmp_path: Path) -> None:
    path = data_exchange(tmp_path / "scan.h5", data_white=frames(1, 500)[0])
    documents = replay(path)
    validate(documents)
    flats = read_back(documents, "flats", "image", (tmp_path,))
    assert list(flats) == [1]
    np.testing.assert_array_equal(flats[1], frames(1, 500)[0])


@pytest.mark.parametrize("missing", [None, np.empty((0, ROWS, COLUMNS))])
def test_a_scan_without_references_is_told_without(
    tmp_path: Path, missing: Any
) -> None:
    path = data_exchange(tmp_path / "scan.h5", data_white=missing, data_dark=missing)
    documents = replay(path)
    validate(documents)
    assert streams_in_order(documents) == ["primary"]


@pytest.mark.parametrize("entry", ["entry", "entry0000", "entry1/tomo_entry"])
def test_nxtomo_is_told_as_a_run(tmp_path: Path, entry: str) -> None:
    path = nxtomo(tmp_path / "scan.nx", entry)
    source, profile = open_source(str(path), None)
    documents = list(source.documents())
    validate(documents)
    assert profile.name == "nxtomo"
    assert profile.keys.image_key == "image_key"
    start = documents[0][1]
    assert (start["n_projections"], start["sample"]) == (N, "bone")
    assert start["voxel_size_um"] == pytest.approx(1.1)
    keys = read_back(documents, "primary", "image_key", source.roots)
    assert [keys[i + 1] for i in range(len(KINDS))] == KINDS.tolist()
    # Darks, then flats, wherever they are stored; the rest in its order.
    assert [int(key) for key in keys.values()] == [2] * 3 + [1] * 4 + [0] * N + [3]
    images = read_back(documents, "primary", "image", source.roots)
    assert all(images[i + 1][0, 0] == 100 + i for i in range(len(KINDS)))
    descriptor = next(doc for name, doc in documents if name == "descriptor")
    assert descriptor["data_keys"]["theta"]["units"] == "rad"


def test_nxtomo_needs_no_definition(tmp_path: Path) -> None:
    documents = replay(nxtomo(tmp_path / "scan.h5", definition=None))
    assert documents[0][1]["source_layout"] == "nxtomo"


def test_diamond_links_to_the_file_beside(tmp_path: Path) -> None:
    path = diamond(tmp_path / "scan.nxs", tmp_path / "frames.h5")
    source, _ = open_source(str(path), None)
    documents = list(source.documents())
    validate(documents)
    images = read_back(documents, "primary", "image", source.roots)
    assert images[len(KINDS)][0, 0] == 100 + len(KINDS) - 1


def test_links_out_of_the_roots_need_leave(tmp_path: Path) -> None:
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
    path = diamond(tmp_path / "here/scan.nxs", tmp_path / "elsewhere/frames.h5")
    with pytest.raises(InputError, match=r"elsewhere.*outside"):
        open_source(str(path), None)
    roots = [str(tmp_path / "elsewhere")]
    profile = load("nxtomo", {"files.roots": roots})
    validate(replay(path, profile))


def test_names_in_the_profile_win(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["/mine/views"] = frames()
        file["/mine/angles"] = np.linspace(0, np.pi, N)
    with pytest.raises(
        InputError, match=r"(?s)/mine/views.*datasets\.projections"
    ) as bad:
        open_source(str(path), None)
    assert "\n" in str(bad.value)
    names = {
        "datasets.projections": ["/mine/views"],
        "datasets.theta": ["/mine/angles"],
        "datasets.theta_unit": "rad",
        "keys.image": "cam",
        "streams.projections": ["tomo"],
    }
    source, profile = open_source(str(path), load("default", names))
    documents = list(source.documents())
    validate(documents)
    assert profile.keys.image == "cam"
    assert len(read_back(documents, "tomo", "cam", source.roots)) == N
    descriptor = documents[1][1]
    assert descriptor["data_keys"]["theta"]["units"] == "rad"
    other = data_exchange(tmp_path / "other.h5", exchange__more=frames(N, 7000))
    named = load("data_exchange", {"datasets.projections": ["/exchange/more"]})
    images = read_back(replay(other, named), "primary", "image", (tmp_path,))
    assert images[1][0, 0] == 7000


def test_the_file_s_center_can_be_ignored(tmp_path: Path) -> None:
    path = data_exchange(tmp_path / "scan.h5")
    profile = load("data_exchange", {"geometry.use_file_center": False})
    assert "rotation_center" not in replay(path, profile)[0][1]
    far = data_exchange(tmp_path / "far.h5", rotation_center_px=1e9)
    assert "rotation_center" not in replay(far)[0][1]


def test_recorded_cadence_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    path = data_exchange(tmp_path / "scan.h5", exchange__time=np.arange(N) * 2.0)
    source = FileSource(path, None, speed=4.0)
    told = [clock[0] for name, _ in source.documents() if name == "stream_datum"]
    # Blocks end with frames 63 and 69, taken 12 s apart, four times as fast.
    assert told[-1] - told[-4] == pytest.approx(3.0)
    assert told[-1] == 53.0


def bad(**changes: Any) -> Callable[[Path], Path]:
    return lambda path: data_exchange(path, **changes)


def bad_nxtomo(**changes: Any) -> Callable[[Path], Path]:
    named = {name.replace("__", "/"): value for name, value in changes.items()}
    return lambda path: nxtomo(path, **named)


NO_FRAME = np.full((N, ROWS, COLUMNS), np.nan, "f4")
BAD_FILES: list[tuple[Callable[[Path], Path], str]] = [
    (bad(theta=np.zeros(N - 1)), f"{N - 1} angles in /exchange/theta, but {N} frames"),
    (bad(theta=None), r"no angles.*\n.*\n.*--set datasets\.theta="),
    (bad(theta=np.full(N, np.nan)), "all angles in /exchange/theta are NaN"),
    (bad(theta=np.zeros((N, 2))), "expected one angle per frame"),
    (bad(theta=np.array([b"x"] * N)), "/exchange/theta"),
    (bad(data=frames()[0]), r"expected \(angle, row, column\)"),
    (bad(data=np.zeros((N, 0, COLUMNS))), "nothing to reconstruct"),
    (bad(data=np.zeros((0, ROWS, COLUMNS))), "nothing to reconstruct"),
    (bad(data=frames()[:, :, :1]), "two columns at least"),
    (bad(data=np.array([b"text"] * N)), "not numbers"),
    (bad(data=frames().astype("c8")), "not numbers"),
    (bad(data=NO_FRAME), "projections in /exchange/data are all NaN or zero"),
    (bad(data_white=frames(4)[:, :2]), r"flats.*\(4, 2, 8\).*\(3, 8\)"),
    (bad(data_dark=frames(4)[:, :, :2]), r"darks.*\(4, 3, 2\).*\(3, 8\)"),
    (
        bad(data_white=frames(4) * 0),
        "flats in /exchange/data_white are all NaN or zero",
    ),
    (bad(data_white=NO_FRAME[:3]), "flats in /exchange/data_white are all NaN"),
    (bad(data_white=NO_FRAME[0]), "flats in /exchange/data_white are all NaN"),
    (bad(data_dark=NO_FRAME[:3]), "darks in /exchange/data_dark are all NaN"),
    (bad(data_white=np.zeros(3)), "flats"),
    (
        bad_nxtomo(instrument__detector__image_key=KINDS[1:]),
        f"{len(KINDS) - 1} image keys.*{len(KINDS)} frames",
    ),
    (
        bad_nxtomo(instrument__detector__image_key=np.ones(len(KINDS), int)),
        "no projection among the image keys",
    ),
    (
        bad_nxtomo(instrument__detector__image_key=KINDS.astype("S1")),
        "not numbers",
    ),
    (bad_nxtomo(instrument__detector__data=None), r"neither APS .* nor NXtomo"),
    (bad_nxtomo(sample__rotation_angle=None), "no angles"),
]


@pytest.mark.parametrize(("make", "message"), BAD_FILES)
def test_bad_files_are_refused_with_one_message(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    path = make(tmp_path / "bad.h5")
    with pytest.raises(InputError, match=message) as error:
        open_source(str(path), None)
    text = str(error.value)
    assert str(path) in text
    assert len(text.splitlines()) <= 4


def test_all_zero_flats_among_keyed_frames_are_refused(tmp_path: Path) -> None:
    data = frames(len(KINDS))
    data[KINDS == 1] = 0
    path = nxtomo(tmp_path / "bad.nx", **{"instrument/detector/data": data})
    with pytest.raises(InputError, match=r"flats \(image key 1\).*NaN or zero"):
        open_source(str(path), None)


def test_limits_of_the_profile_are_kept(tmp_path: Path) -> None:
    path = data_exchange(tmp_path / "scan.h5")
    with pytest.raises(InputError, match=r"files\.max_projections"):
        open_source(str(path), load("data_exchange", {"files.max_projections": 69}))
    with pytest.raises(InputError, match=r"files\.max_frame_bytes"):
        open_source(str(path), load("data_exchange", {"files.max_frame_bytes": 47}))


def test_wrong_names_of_datasets_are_refused(tmp_path: Path) -> None:
    path = data_exchange(tmp_path / "scan.h5")
    for role in ("projections", "flats", "darks", "theta"):
        profile = load("data_exchange", {f"datasets.{role}": ["/exchange/dat"]})
        with pytest.raises(InputError, match=f"/exchange/dat .datasets.{role}"):
            open_source(str(path), profile)
    group = load("data_exchange", {"datasets.projections": ["/exchange"]})
    with pytest.raises(InputError, match="group"):
        open_source(str(path), group)


def test_what_is_no_scan_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no scan\n" * 100)
    empty = tmp_path / "empty.h5"
    empty.touch()
    with h5py.File(tmp_path / "nothing.h5", "w"):
        pass
    for address, message in [
        (tmp_path / "absent.h5", "there is no file"),
        (tmp_path, "is a folder"),
        (text, "not an HDF5 file"),
        (empty, "not an HDF5 file"),
        (tmp_path / "nothing.h5", "neither APS"),
        (Path("/dev/null"), "not a regular file"),
    ]:
        with pytest.raises(InputError, match=message):
            open_source(str(address), None)
    if os.geteuid() != 0:
        text.chmod(0)
        with pytest.raises(InputError, match="Permission denied"):
            open_source(str(text), None)


def test_a_truncated_file_is_told_where_frames_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["/exchange/theta"] = np.linspace(0, 180, N, endpoint=False)
        file["/exchange/data"] = np.ones((N, 64, 64), "u2")
    whole = path.stat().st_size
    os.truncate(path, whole // 2)
    documents = replay(path)
    assert documents[-1][1]["num_events"] == {"primary": N}
    os.truncate(path, whole - N * 64 * 64 * 2)
    with pytest.raises(InputError, match=str(path)):
        open_source(str(path), None)


def test_a_truncated_file_says_so_at_its_end(tmp_path: Path) -> None:
    path = data_exchange(tmp_path / "scan.h5")
    assert replay(path)[-1][1]["exit_status"] == "success"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    stop = replay(path)[-1][1]
    assert stop["exit_status"] == "fail"
    assert f"scan.h5 is truncated: {size - 1} of {size} bytes" in stop["reason"]


def test_what_a_truncated_file_has_lost_is_not_read_as_zeros(tmp_path: Path) -> None:
    """Flats and a center behind the end are assumed, angles behind it are missed."""
    names = ("data", "theta", "data_dark", "data_white")
    values = (frames(), np.linspace(0, 180, N, endpoint=False), frames(2, 1), frames(4))
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for name in names:  # headers first, then values in this order
            shape = values[names.index(name)].shape
            file.create_dataset(f"exchange/{name}", shape, values[0].dtype)
        center = file.create_dataset("process/rotation_center_px", (), "f8")
        file.flush()
        for name, value in zip(names, values, strict=True):
            file[f"exchange/{name}"][...] = value
        center[...] = 3.25
        file.flush()
        starts = {name: file[f"exchange/{name}"].id.get_offset() for name in names} | {
            "center": center.id.get_offset()
        }
    whole = path.read_bytes()
    assert sorted(starts, key=lambda name: starts[name]) == [*names, "center"]

    def cut(at: str) -> Documents:
        path.write_bytes(whole[: starts[at]])
        return replay(path)

    def streams(documents: Documents) -> list[str]:
        return [doc["name"] for name, doc in documents if name == "descriptor"]

    assert "rotation_center" not in cut("center")[0][1]
    assert streams(cut("center")) == ["darks", "flats", "primary"]
    assert streams(cut("data_white")) == ["darks", "primary"]
    assert streams(cut("data_dark")) == ["primary"]
    with pytest.raises(
        InputError, match=r"angles in /exchange/theta are NaN(.|\n)*trun"
    ):
        cut("theta")


@pytest.mark.parametrize("share", [0.3, 0.6])
@pytest.mark.parametrize("make", [data_exchange, nxtomo])
def test_a_file_without_its_structure_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], share: float
) -> None:
    path = make(tmp_path / "scan.h5")
    size = path.stat().st_size
    os.truncate(path, int(share * size))
    with pytest.raises(InputError, match=r"scan\.h5 is truncated") as error:
        open_source(str(path), None)
    assert len(str(error.value).splitlines()) <= 4


def test_settings_without_a_profile_count_before_the_first_look(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["raw/images"], file["raw/angles"] = frames(), np.arange(N)
    names = {"datasets.projections": ["/raw/images"], "datasets.theta": ["/raw/angles"]}
    source, profile = open_source(str(path), None, overrides=names)
    (last,) = [d for n, d in source.documents() if n == "descriptor"]
    assert set(last["data_keys"]) == {"image", "theta"}
    sound = data_exchange(tmp_path / "sound.h5")
    _, profile = open_source(str(sound), None, overrides={"denoise": None})
    assert (profile.name, profile.denoise) == ("data_exchange", None)


def outcome(path: Path) -> Outcome:
    source, profile = open_source(str(path), None)
    return assemble(source.documents(), profile, roots=source.roots)


def test_angles_and_kinds_in_other_dress(tmp_path: Path) -> None:
    """(N, 1) angles, image keys as floats, and unknown ones, which are invalid."""
    column = np.linspace(0, 180, N, endpoint=False)[:, None]
    told = outcome(data_exchange(tmp_path / "column.h5", theta=column))
    np.testing.assert_allclose(told.theta(), np.deg2rad(column[:, 0]))
    odd = KINDS.astype(float)
    odd[odd == 3] = -1
    usual = outcome(nxtomo(tmp_path / "usual.nx"))
    path = nxtomo(tmp_path / "float.nx", **{"instrument/detector/image_key": odd})
    told = outcome(path)
    assert len(told.theta()) == N
    assert told.frames.keys() == usual.frames.keys()
    assert told.rejected == usual.rejected


@pytest.mark.parametrize(
    ("theta", "unit"),
    [
        (np.arange(N) * np.pi / N, "rad"),
        (np.linspace(0, np.pi, N), "rad"),
        (np.mod(np.arange(N) * 1.9416, 2 * np.pi) - np.pi, "rad"),
        (np.linspace(0, 180, N), "deg"),
        (np.linspace(0, 10, N), "deg"),
        (np.linspace(0, np.pi, 9), "deg"),
    ],
)
def test_angles_that_name_no_unit(
    tmp_path: Path, theta: np.ndarray[Any, Any], unit: str
) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["exchange/data"], file["exchange/theta"] = frames(len(theta)), theta

    def told(**settings: Any) -> str:
        source, _ = open_source(str(path), None, overrides=settings)
        documents = list(source.documents())
        (last,) = [doc for name, doc in documents if name == "descriptor"]
        return last["data_keys"]["theta"]["units"]

    assert told() == unit
    assert told(**{"datasets.theta_unit": "deg"}) == "deg"
    with h5py.File(path, "r+") as file:
        file["exchange/theta"].attrs["units"] = "degrees"
    assert told() == "deg"


def test_soft_links_in_circles_are_refused(tmp_path: Path) -> None:
    path = data_exchange(tmp_path / "scan.h5", data=h5py.SoftLink("/exchange/more"))
    with h5py.File(path, "a") as file:
        file["/exchange/more"] = h5py.SoftLink("/exchange/data")
    with pytest.raises(InputError):
        open_source(str(path), None)


def record(path: Path, documents: list[Document]) -> Path:
    writer = JournalWriter(path)
    for i, (name, doc) in enumerate(documents):
        writer.append(pack(name, doc), 1000.0 + 0.5 * i)
    writer.close()
    return path


@pytest.mark.parametrize("make", [data_exchange, nxtomo])
def test_a_recorded_replay_tells_the_same(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    (tmp_path / "frames").mkdir()
    scan = make(tmp_path / "frames" / "scan.h5")
    documents = replay(scan)
    path = record(tmp_path / "scan.ebldocs", documents)
    source, profile = open_source(str(path), None)
    assert list(source.documents()) == documents
    assert profile.keys.image_key == ("image_key" if make is nxtomo else None)
    assert set(source.roots) == {tmp_path, tmp_path / "frames"}
    images = read_back(documents, "primary", "image", source.roots)
    assert images[1][0, 0] == 100


def test_a_journal_opens_no_folder_without_leave(tmp_path: Path) -> None:
    for name in ("frames", "given", "text"):
        (tmp_path / name).mkdir()
    (tmp_path / "text" / "secret.h5").write_text("not HDF5")
    documents = replay(data_exchange(tmp_path / "frames" / "scan.h5"))
    resource = next(doc for name, doc in documents if name == "stream_resource")
    secret = {
        **resource,
        "uid": "x",
        "uri": f"file://localhost{tmp_path}/text/secret.h5",
    }
    web = {**resource, "uid": "y", "uri": "https://example.org/scan.h5"}
    documents[2:2] = [("stream_resource", secret), ("stream_resource", web)]
    path = record(tmp_path / "scan.ebldocs", documents)
    source, _ = open_source(str(path), None)
    assert set(source.roots) == {tmp_path, tmp_path / "frames"}
    given = load("default", {"files.roots": [str(tmp_path / "given")]})
    source, _ = open_source(str(path), given)
    assert set(source.roots) == {tmp_path, tmp_path / "given"}


def test_a_journal_of_several_runs_tells_them_all(tmp_path: Path) -> None:
    one = replay(data_exchange(tmp_path / "one.h5"))
    two = replay(data_exchange(tmp_path / "two.h5"))
    both = [doc for pair in zip(one, two, strict=True) for doc in pair]
    path = record(tmp_path / "both.ebldocs", both)
    assert replay(path) == both


def test_a_journal_keeps_its_cadence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    path = record(
        tmp_path / "scan.ebldocs", replay(data_exchange(tmp_path / "scan.h5"))
    )
    source, _ = open_source(str(path), None, speed=2.0)
    told = [clock[0] for _ in source.documents()]
    np.testing.assert_allclose(np.diff(told), 0.25)


def test_a_journal_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run"):
        open_source(str(record(tmp_path / "empty.ebldocs", [])), None)


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("aps_tooth.h5", 181),
        ("itb_bone.h5", 900),
        ("ssrl_txm_tomo77.h5", 451),
        ("helsinki_pepper_normal.h5", 360),
        ("dls_k11_stream.h5", 3001),
    ],
)
def test_measured_scans_are_told_as_runs(
    measured_scan: Callable[[str], Path], name: str, n: int
) -> None:
    path = measured_scan(name)
    source, profile = open_source(str(path), None)
    documents = list(source.documents())
    validate(documents)
    assert profile.name == "data_exchange"
    assert documents[-1][1]["num_events"]["primary"] == n
    images = read_back(documents, "primary", "image", source.roots)
    with h5py.File(path) as file:
        expected = file["/exchange/data"]
        assert isinstance(expected, h5py.Dataset)
        np.testing.assert_array_equal(
            np.stack([images[i + 1] for i in range(n)]), expected[()]
        )
