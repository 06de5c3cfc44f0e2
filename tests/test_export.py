"""What `ebl-stream export` writes: every voxel, and where it comes from."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from disks import small_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import replay, run, write

from ebl_stream.cli.commands import cli
from ebl_stream.cli.export import Wanted, export, find_run
from ebl_stream.errors import InputError
from ebl_stream.publish import export_place
from ebl_stream.publish.export import Scale
from ebl_stream.publish.export_place import check_space
from ebl_stream.publish.export_tiff import PROVENANCE_TAG
from ebl_stream.publish.output import ArraySpec, RunOutput

NZ, N = 40, 48
VOXEL_UM = 0.65
METADATA = {
    "start": {
        "uid": "recon-one",
        "original_run_uid": "raw-1234",
        "time": 1.75e9,
        "sample_name": "tooth",
    },
    "analysis": {
        "version": "0.1.0",
        "profile": {"name": "beamline", "window": {"max_bytes": 7}},
        "stages": {"preprocess": [{"flat_field": {}}]},
        "voxel_size_um": VOXEL_UM,
        "geometry": "x cos(theta) + y sin(theta) = column - rotation_center",
    },
    "ledger": {"announced": 6, "used": 5, "missing": 1, "missing_indices": [[3, 4]]},
    "rotation_center": {"column": 24.25, "source": "measured"},
}
ANGLES = {
    "index": [0, 1, 2, 4, 5],
    "theta_rad": [0.0, 0.5, 1.0, 2.0, 2.5],
    "half": "ABABA",
}
ROWS = [
    {"version": 1, "slab": 0, "resolution_px": 3.5, "noise": None, "why": "x"},
    {"version": 1, "slab": 1, "resolution_px": None, "noise": 0.1, "why": "y"},
]


def values(name: str) -> np.ndarray:
    rng = np.random.default_rng(len(name))
    if name == "labels":
        return rng.integers(0, 4, (NZ, N, N), dtype=np.uint8)
    return rng.normal(0.01, 0.02, (NZ, N, N)).astype(np.float32)


def make_run(
    out: Path,
    uid: str = "recon-one",
    *,
    state: str = "complete",
    written: int = NZ,
    names: tuple[str, ...] = ("recon", "denoised", "labels"),
    metadata: dict = METADATA,
) -> Path:
    """Publish a run as a session does, and return its folder."""
    output = RunOutput(out, uid)
    shape = (NZ, N, N)
    specs = [
        ArraySpec(name, shape, "|u1" if name == "labels" else "<f4", "1/px")
        for name in names
    ]
    output.create(specs, metadata, slab_rows=16)
    for name in names:
        for z in range(0, written, 16):
            slab = values(name)[z : z + 16]
            output.write(name, z, slab, version=1, n_used=5, coverage=1.0)
    output.quality(ROWS)
    if state != "running":
        output.finish(state, {"angles": ANGLES})  # type: ignore[arg-type]
    output.close()
    return output.folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    make_run(tmp_path / "out")
    return tmp_path / "out"


def wanted(target: Path, **changes) -> Wanted:
    is_hdf5 = target.suffix == ".h5"
    given = {"arrays": (), "rows": None, "dtype": None, "limits": None, "force": False}
    place = {"hdf5" if is_hdf5 else "tiff": target}
    return Wanted(**{"tiff": None, "hdf5": None} | given | place | changes)


def read_back(target: Path, array: str = "data") -> np.ndarray:
    if target.is_dir():
        files = sorted(target.glob("*.tif"))
        return np.stack([tifffile.imread(file) for file in files])
    if target.suffix == ".h5":
        with h5py.File(target) as file:
            return file[f"entry/{array}/{array}"][()]
    return tifffile.imread(target).reshape(-1, N, N)


TARGETS = ("slices", "volume.tif", "volume.h5")


# ------------------------------------------------------------------- voxel by voxel


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("rows", [None, (0, 1), (7, 33), (15, 17), (39, 40)])
def test_every_voxel_is_there(out, tmp_path, name, rows):
    done = export(out, "recon-one", wanted(tmp_path / name, rows=rows))
    z0, z1 = rows or (0, NZ)
    found = read_back(tmp_path / name)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values("recon")[z0:z1])
    assert done["shape"] == [z1 - z0, N, N]
    files = [f for f in (tmp_path / name, *tmp_path.glob(f"{name}/*")) if f.is_file()]
    assert done["bytes"] >= sum(file.stat().st_size for file in files)
    if name == "slices":
        names = sorted(file.name for file in files)
        tiffs = [f"recon_{z:05}.tif" for z in range(z0, z1)]
        assert names == ["provenance.json", *tiffs]


def test_hdf5_holds_all_arrays_unless_some_are_named(out, tmp_path):
    export(out, "recon-one", wanted(tmp_path / "all.h5"))
    with h5py.File(tmp_path / "all.h5") as file:
        for name in ("denoised", "labels"):
            np.testing.assert_array_equal(file[f"entry/{name}/{name}"], values(name))
            assert file[f"entry/{name}/z"] == file["entry/data/z"]
    some = wanted(tmp_path / "some.h5", arrays=("labels", "denoised"))
    assert export(out, "recon-one", some)["arrays"] == ["denoised", "labels"]
    with h5py.File(tmp_path / "some.h5") as file:
        assert set(file["entry"]) & {"recon", "labels", "denoised"} == {"labels"}
        np.testing.assert_array_equal(file["entry/data/data"], values("denoised"))
        assert file["entry/data/data"].attrs["long_name"] == "denoised"


@pytest.mark.parametrize("array", ["denoised", "labels"])
def test_tiff_of_other_arrays(out, tmp_path, array):
    export(out, "recon-one", wanted(tmp_path / "t", arrays=(array,)))
    found = read_back(tmp_path / "t")
    np.testing.assert_array_equal(found, values(array))
    assert found.dtype == values(array).dtype


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["uint8", "uint16"]),
    st.floats(-1e4, 1e4),
    st.floats(1e-6, 1e4),
    st.integers(0, 2**32 - 1),
)
def test_scaled_integers_give_the_values_back(dtype, low, span, seed):
    low, high = float(np.float32(low)), float(np.float32(low + span))
    rng = np.random.default_rng(seed)
    given_values = rng.uniform(low - span, high + span, 50).astype(np.float32)
    scale = Scale.between(dtype, low, high)
    stored = scale(given_values)
    assert stored.dtype == dtype
    back = scale.offset + scale.slope * stored.astype(float)
    clipped = np.clip(given_values.astype(float), low, max(low, high))
    # Half a step, and what float32 cannot tell apart.
    slack = scale.slope * 0.51 + 4e-7 * max(abs(low), abs(high))
    if high > low:
        assert np.abs(back - clipped).max() <= slack
    assert scale(np.float32([low])).item() == 0


@pytest.mark.parametrize("name", ["slices", "volume.tif"])
def test_tiff_says_how_integers_become_values(out, tmp_path, name):
    truth = values("recon")
    export(out, "recon-one", wanted(tmp_path / name, dtype="uint16"))
    path = tmp_path / name
    path = path / "recon_00007.tif" if path.is_dir() else path
    with tifffile.TiffFile(path) as file:
        known = file.imagej_metadata or {}
    assert known["cf"] == 0  # ImageJ's straight line: c0 + c1 * pixel
    stored = read_back(tmp_path / name)
    assert stored.dtype == np.uint16
    assert (stored.min(), stored.max()) == (0, 65535)
    back = known["c0"] + known["c1"] * stored.astype(float)
    assert np.abs(back - truth).max() <= 0.51 * known["c1"]
    limits = (0.0, 0.02)
    export(out, "recon-one", wanted(tmp_path / "8", dtype="uint8", limits=limits))
    stored = read_back(tmp_path / "8")
    np.testing.assert_array_equal(stored == 255, truth >= 0.02 * (1 - 0.5 / 255))
    about = json.loads((tmp_path / "8" / "provenance.json").read_text())
    assert about["stored"]["offset"] == 0.0
    assert about["stored"]["slope"] == pytest.approx(0.02 / 255)


# --------------------------------------------------------------------- what it says


@pytest.mark.parametrize("name", ["slices", "volume.tif"])
def test_imagej_finds_voxel_size_and_unit(out, tmp_path, name):
    export(out, "recon-one", wanted(tmp_path / name))
    path = tmp_path / name
    n_pages = 1 if path.is_dir() else NZ
    path = path / "recon_00007.tif" if path.is_dir() else path
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff is (name == "volume.tif")
        assert len(file.pages) == n_pages
        known, tags = file.imagej_metadata, file.pages[0].tags
        assert known["unit"] == "um"
        assert known["spacing"] == VOXEL_UM
        assert known["slices"] == n_pages
        assert tags["ResolutionUnit"].value == 3  # per centimeter
        for tag in ("XResolution", "YResolution"):
            over, under = tags[tag].value
            assert 1e4 / (over / under) == pytest.approx(VOXEL_UM, rel=1e-6)


def test_without_a_voxel_size_nothing_is_made_up(tmp_path):
    bare = {k: v for k, v in METADATA.items() if k != "analysis"}
    make_run(tmp_path / "out", metadata=bare)
    export(tmp_path / "out", "latest", wanted(tmp_path / "t"))
    with tifffile.TiffFile(tmp_path / "t" / "recon_00000.tif") as file:
        assert file.imagej_metadata["unit"] == "pixel"
        assert file.pages[0].tags["ResolutionUnit"].value == 1
    export(tmp_path / "out", "latest", wanted(tmp_path / "v.h5"))
    with h5py.File(tmp_path / "v.h5") as file:
        assert file["entry/data/x"].attrs["units"] == "px"
        assert "voxel_size" not in file["entry/reconstruction/parameters"]


# Required items of the application definition NXtomoproc, by the NXDL file of
# https://github.com/nexusformat/definitions/blob/main/applications/NXtomoproc.nxdl.xml
# (whatever it names without minOccurs=0 or optional is required).
GROUPS = {
    "entry": "NXentry",
    "entry/instrument": "NXinstrument",
    "entry/instrument/source": "NXsource",
    "entry/sample": "NXsample",
    "entry/reconstruction": "NXprocess",
    "entry/reconstruction/parameters": "NXparameters",
    "entry/data": "NXdata",
}
TEXTS = {
    "entry/title": None,
    "entry/definition": {"NXtomoproc"},
    "entry/instrument/source/type": None,
    "entry/instrument/source/name": None,
    "entry/instrument/source/probe": {"neutron", "x-ray", "electron"},
    "entry/sample/name": None,
    "entry/reconstruction/program": None,
    "entry/reconstruction/version": None,
    "entry/reconstruction/date": None,
    "entry/reconstruction/parameters/raw_file": None,
}


def test_hdf5_has_what_nxtomoproc_demands(out, tmp_path):
    export(out, "recon-one", wanted(tmp_path / "v.h5", rows=(8, 40)))
    with h5py.File(tmp_path / "v.h5") as file:
        for path, nx_class in GROUPS.items():
            assert file[path].attrs["NX_class"] == nx_class
        for path, allowed in TEXTS.items():
            text = file[path].asstr()[()]
            assert text
            assert allowed is None or text in allowed
        data = file["entry/data/data"]
        assert data.ndim == 3
        assert data.dtype.kind == "f"
        assert {"units", "transform", "offset", "scaling"} <= set(data.attrs)
        for place, axis in enumerate("zyx"):
            values_of = file[f"entry/data/{axis}"]
            assert values_of.dtype.kind == "f"
            assert values_of.shape == (data.shape[place],)
            assert values_of.attrs["units"] == "um"
        assert file["entry/data/z"][0] == pytest.approx(8 * VOXEL_UM)
        assert file["entry/data/x"][()].mean() == pytest.approx(0)
        date = file["entry/reconstruction/date"].asstr()[()]
        assert date == "2025-06-15T15:06:40Z"


def test_viewers_find_the_volume_by_its_attributes(out, tmp_path):
    """Walk as silx and nexusformat do: default, default, signal, axes."""
    export(out, "recon-one", wanted(tmp_path / "v.h5"))
    with h5py.File(tmp_path / "v.h5") as file:
        group = file
        while "default" in group.attrs:
            group = group[group.attrs["default"]]
        assert group.attrs["NX_class"] == "NXdata"
        assert group[group.attrs["signal"]].shape == (NZ, N, N)
        for name in ("data", "denoised", "labels", "quality"):
            group = file["entry"][name]
            signal, axes = group[group.attrs["signal"]], list(group.attrs["axes"])
            assert len(axes) == signal.ndim
            assert tuple(len(group[axis]) for axis in axes) == signal.shape
        quality = file["entry/quality"]
        assert quality.attrs["signal"] == "resolution_px"
        np.testing.assert_array_equal(quality["resolution_px"], [3.5, np.nan])
        assert list(quality["why"].asstr()) == ["x", "y"]


def test_the_file_tells_the_whole_story(out, tmp_path):
    export(out, "recon-one", wanted(tmp_path / "v.h5"))
    with h5py.File(tmp_path / "v.h5") as file:
        process = file["entry/reconstruction"]
        facts = process["parameters"]
        assert facts["original_run_uid"].asstr()[()] == "raw-1234"
        assert "raw-1234" in facts["raw_file"].asstr()[()]
        assert facts["rotation_center"][()] == 24.25
        assert json.loads(facts["profile"].asstr()[()])["name"] == "beamline"
        assert "flat_field" in facts["stages"].asstr()[()]
        assert facts["warnings"].asstr()[()] == "none"
        np.testing.assert_array_equal(process["projections/theta"], ANGLES["theta_rad"])
        np.testing.assert_array_equal(process["projections/index"], ANGLES["index"])
        np.testing.assert_array_equal(process["projections/half"], [0, 1, 0, 1, 0])
        np.testing.assert_array_equal(process["ledger/missing_indices"], [[3, 4]])
        assert process["ledger/used"][()] == 5
        assert file["entry/sample/name"].asstr()[()] == "tooth"
        note = json.loads(process["provenance/data"].asstr()[()])
    on_disk = json.loads((out / "recon-one" / "metadata.json").read_text())
    assert note["run"] == on_disk
    assert note["quality"] == ROWS
    export(out, "recon-one", wanted(tmp_path / "v.tif"))
    with tifffile.TiffFile(tmp_path / "v.tif") as file:
        tagged = json.loads(file.pages[0].tags[PROVENANCE_TAG].value)
    assert tagged["run"] == on_disk
    assert tagged["original_run_uid"] == "raw-1234"


@pytest.mark.parametrize("state", ["partial", "failed", "running"])
@pytest.mark.parametrize("name", TARGETS)
def test_what_is_not_whole_says_so(tmp_path, capsys, state, name):
    make_run(tmp_path / "out", state=state, written=32)
    export(tmp_path / "out", "recon-one", wanted(tmp_path / name))
    said = capsys.readouterr().err
    assert "5 of 6 projections" in said
    assert "8 slices of recon are 0" in said
    target = tmp_path / name
    if name == "volume.h5":
        with h5py.File(target) as file:
            assert "5 of 6" in file["entry/title"].asstr()[()]
            parameters = file["entry/reconstruction/parameters"]
            assert parameters["state"].asstr()[()] == state
            assert "8 slices" in parameters["warnings"].asstr()[()]
        return
    target = target / "recon_00000.tif" if target.is_dir() else target
    with tifffile.TiffFile(target) as file:
        assert file.imagej_metadata["complete"] is False
        assert "5 of 6" in file.imagej_metadata["warnings"]


def test_labels_that_are_older_than_the_volume_say_so(tmp_path, capsys):
    output = RunOutput(tmp_path / "out", "recon-one")
    shape = (16, N, N)
    labels = ArraySpec("labels", shape, "|u1", "label")
    recon = ArraySpec("recon", shape, "<f4", "1/px")
    output.create([recon, labels], METADATA, slab_rows=16)
    flat = np.ones(shape)
    output.write("labels", 0, flat.astype("u1"), version=1, n_used=3, coverage=0.6)
    output.write("recon", 0, flat.astype("f4"), version=2, n_used=5, coverage=1)
    output.finish("complete", {})
    output.close()
    one = wanted(tmp_path / "t", arrays=("labels",))
    export(tmp_path / "out", "latest", one)
    assert "labels are of 3 projections, others of 5" in capsys.readouterr().err


# -------------------------------------------------------------------- wrong inputs


BAD = {
    "no such run": ("nothing", {}, "no result in"),
    "several fit": ("recon-", {}, "fits 2 results"),
    "no slices": ("recon-one", {"rows": (0, NZ + 1)}, "slices 0:40"),
    "no place": ("recon-one", {"tiff": None}, "--tiff DIR or --hdf5"),
    "two places": ("recon-one", {"hdf5": Path("x.h5")}, "--tiff DIR or --hdf5"),
    "two arrays": ("recon-one", {"arrays": ("recon", "labels")}, "one --array"),
    "scaled labels": (
        "recon-one",
        {"arrays": ("labels",), "dtype": "uint16"},
        "numbers of phases",
    ),
    "range of floats": ("recon-one", {"limits": (0.0, 1.0)}, "--range is for"),
    "range backwards": (
        "recon-one",
        {"dtype": "uint8", "limits": (1.0, 0.0)},
        "LOW <= HIGH",
    ),
    "range of nothing": (
        "recon-one",
        {"dtype": "uint8", "limits": (float("nan"), 1.0)},
        "LOW <= HIGH",
    ),
    "no folder": ("recon-one", {"tiff": Path("no/where")}, "there is no folder"),
    "inside the result": (
        "recon-one",
        {"tiff": Path("out/recon-one/t")},
        "inside of a result",
    ),
    "array that is not there": ("recon-two", {"arrays": ("labels",)}, "no array"),
    "a path that is no run": ("./out", {}, "no metadata.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_answered_clearly_and_leaves_nothing(
    out, tmp_path, monkeypatch, case
):
    make_run(out, "recon-two", names=("recon",))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    run_name, changes, says = BAD[case]
    with pytest.raises(InputError, match=says):
        export(Path("out"), run_name, wanted(Path("t"), **changes))
    assert sorted(tmp_path.rglob("*")) == before


def test_hdf5_refuses_a_scale(out, tmp_path):
    with pytest.raises(InputError, match="--dtype is for --tiff"):
        export(out, "recon-one", wanted(tmp_path / "v.h5", dtype="uint8"))


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": "ebl_stream.output/1"}', '{"format": "other"}', "\0"],
)
def test_a_damaged_record_is_answered_clearly(out, tmp_path, content):
    (out / "recon-one" / "metadata.json").write_text(content)
    with pytest.raises(InputError, match="no result"):
        export(out, "recon-one", wanted(tmp_path / "t"))
    assert not (tmp_path / "t").exists()


def test_arrays_that_metadata_promise_and_zarr_does_not_hold(out, tmp_path):
    (out / "recon-one" / "recon" / "zarr.json").write_text("{")
    with pytest.raises(InputError, match="cannot be opened"):
        export(out, "recon-one", wanted(tmp_path / "t"))
    path = out / "recon-one" / "metadata.json"
    path.write_text(path.read_text().replace('"shape": [40', '"shape": [48'))
    with pytest.raises(InputError, match="is not what metadata"):
        export(out, "recon-one", wanted(tmp_path / "t.h5", arrays=("labels",)))


def test_a_run_is_found_by_any_of_its_names(out, tmp_path):
    folder = make_run(out, "recon-two", names=("recon",))
    path = folder / "metadata.json"
    path.write_text(path.read_text().replace("raw-1234", "raw-5678"))
    assert find_run(out, "latest") == folder
    assert find_run(out, "recon-t") == folder
    assert find_run(out, "raw-5678") == find_run(out, "raw-5") == folder
    assert find_run(out, "raw-1234") == out / "recon-one"
    assert find_run(Path("nowhere"), str(folder)) == folder
    with pytest.raises(InputError, match="fits 2"):
        find_run(out, "raw-")
    with pytest.raises(InputError, match="no result"):
        find_run(out, "")
    make_run(out, "recon-three", state="running", names=("recon",))
    assert find_run(out, "latest") == folder
    # An attempt that another one superseded is asked for by its own name only.
    again = make_run(out, "recon-four", state="superseded", names=("recon",))
    assert find_run(out, "latest") == folder
    (out / "recon-three" / "metadata.json").unlink()
    assert find_run(out, "raw-1234") == out / "recon-one"
    assert find_run(out, "recon-four") == again


# ------------------------------------------------------- a place is never half full


@pytest.mark.parametrize("name", TARGETS)
def test_an_export_is_replaced_only_with_force(out, tmp_path, name):
    target = tmp_path / name
    export(out, "recon-one", wanted(target))
    with pytest.raises(InputError, match="--force replaces it"):
        export(out, "recon-one", wanted(target, rows=(0, 3)))
    assert len(read_back(target)) == NZ
    export(out, "recon-one", wanted(target, rows=(0, 3), force=True))
    assert len(read_back(target)) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["out", name])


def test_force_does_not_remove_what_is_not_an_export(out, tmp_path):
    target = tmp_path / "thesis"
    target.mkdir()
    export(out, "recon-one", wanted(target, rows=(0, 1)))  # empty: nothing is lost
    (target / "provenance.json").unlink()
    with pytest.raises(InputError, match="something else than an export"):
        export(out, "recon-one", wanted(target, force=True))
    with pytest.raises(InputError, match="is a folder"):
        export(out, "recon-one", wanted(tmp_path, hdf5=target, tiff=None, force=True))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="not a folder"):
        export(out, "recon-one", wanted(tmp_path / "file", force=True))
    assert (tmp_path / "file").read_text() == "mine"


KILLED = """
import os, signal, sys
from pathlib import Path
from ebl_stream.cli import export as cli_export
from ebl_stream.cli.export import Wanted, export
out, folder, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
kept = cli_export._progress
from contextlib import contextmanager
for name in ("slices", "volume.tif", "volume.h5"):
    for after in (16, 32, 40):
        if os.fork():
            os.wait()
            continue
        @contextmanager
        def killing(target):
            def progress(done, total):
                if done >= after:
                    os.kill(os.getpid(), getattr(signal, how))
            yield progress
        cli_export._progress = killing
        place = folder / f"{after}-{name}"
        is_hdf5 = name.endswith("h5")
        try:
            export(out, "recon-one", Wanted(
                None if is_hdf5 else place, place if is_hdf5 else None,
                ("recon",), None, None, None, False))
        except KeyboardInterrupt:
            os._exit(0)
        os._exit(1)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_a_killed_export_leaves_nothing_that_looks_whole(out, tmp_path, how):
    folder = tmp_path / "exports"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", KILLED, out, folder, how], check=True)
    left = list(folder.iterdir())
    if how == "SIGTERM":
        assert left == []
        return
    assert len(left) == 9  # they were under way indeed
    for path in left:
        assert path.name.startswith(".")
        assert path.name.endswith(".part")
    for name in TARGETS:
        for after in (16, 32, 40):
            export(out, "recon-one", wanted(folder / f"{after}-{name}"))
    # The next export to a place removes what was left there.
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_two_exports_to_one_place_do_not_remove_each_other(out, tmp_path):
    target = tmp_path / "t"
    with export_place.draft(target) as place:
        place.mkdir()
        (place / "half").touch()
        export(out, "recon-one", wanted(target, rows=(0, 1)))
        assert (place / "half").exists()
        (target / "provenance.json").unlink()
        for file in target.iterdir():
            file.unlink()


@pytest.mark.parametrize("name", TARGETS)
def test_a_disk_that_fills_up_is_said_and_nothing_is_left(out, tmp_path, name):
    limit = 4096 if name == "slices" else 100_000
    with small_disk(limit), pytest.raises(InputError, match="the disk is full"):
        export(out, "recon-one", wanted(tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_space_is_looked_at_before(out, tmp_path, monkeypatch):
    need = []

    def full(target, n_bytes):
        need.append(n_bytes)
        monkeypatch.setattr(export_place, "free_bytes", lambda folder: n_bytes - 1)
        check_space(target, n_bytes)

    monkeypatch.setattr("ebl_stream.cli.export.check_space", full)
    for name in TARGETS:
        with pytest.raises(InputError, match=r"needs .* GB, .* GB are free"):
            export(out, "recon-one", wanted(tmp_path / name))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    monkeypatch.undo()
    for name, bound in zip(TARGETS, need, strict=True):
        # What was asked for suffices, and is not far from what it takes.
        done = export(out, "recon-one", wanted(tmp_path / name))
        assert done["bytes"] <= bound <= 3.5 * done["bytes"]


# ------------------------------------------------------------------------- damage


def spoil(chunk: Path, how: str) -> None:
    raw = bytearray(chunk.read_bytes())
    if how == "lost":
        chunk.unlink()
        return
    if how == "flipped":
        raw[len(raw) // 2] ^= 4
    chunk.write_bytes(b"" if how == "empty" else raw[: -7 if how == "cut" else None])


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "lost"])
@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_slab_is_named_and_never_exported(out, tmp_path, how, name):
    spoil(out / "recon-one" / "recon" / "c" / "1" / "0" / "0", how)
    says = r"slices 16:32 of .*recon are damaged: c/1/0/0"
    with pytest.raises(InputError, match=says):
        export(out, "recon-one", wanted(tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    export(out, "recon-one", wanted(tmp_path / name, rows=(32, 40)))
    np.testing.assert_array_equal(read_back(tmp_path / name), values("recon")[32:])


def test_a_run_that_goes_on_is_not_exported_as_a_mixture(tmp_path, monkeypatch):
    output = RunOutput(tmp_path / "out", "recon-one")
    spec = ArraySpec("recon", (16, N, N), "<f4", "1/px")
    output.create([spec], METADATA, slab_rows=16)
    slab = np.ones((16, N, N), "f4")
    output.write("recon", 0, slab, version=1, n_used=3, coverage=0.5)

    @contextmanager
    def goes_on(target):
        yield lambda done, total: output.write(
            "recon", 0, 2 * slab, version=2, n_used=5, coverage=1
        )

    monkeypatch.setattr("ebl_stream.cli.export._progress", goes_on)
    with pytest.raises(InputError, match="went on meanwhile"):
        export(tmp_path / "out", "recon-one", wanted(tmp_path / "v.h5"))
    assert not (tmp_path / "v.h5").exists()
    output.close()


# ----------------------------------------------------------------- the command line


PEAK = """
import resource, sys
from ebl_stream.cli.commands import cli
cli(sys.argv[1:], standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_volume(tmp_path):
    """A volume eight times as large takes no more than a few of its slabs besides."""
    n, slab_mib = 512, 16 * 512**2 * 4 / 2**20
    peaks = {}
    for nz in (32, 256):
        output = RunOutput(tmp_path / "out", f"run-{nz}")
        spec = ArraySpec("recon", (nz, n, n), "<f4", "1/px")
        output.create([spec], METADATA, slab_rows=16)
        slab = np.arange(16 * n * n, dtype="f4").reshape(16, n, n)
        for z in range(0, nz, 16):
            output.write("recon", z, slab, version=1, n_used=5, coverage=1)
        output.finish("complete", {})
        output.close()
        words = ["export", f"run-{nz}", "--out", tmp_path / "out"]
        place = ["--hdf5", tmp_path / f"{nz}.h5"]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *words, *place],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[nz] = int(done.stdout.split()[-1]) / 1024
    volume_mib = 256 * n * n * 4 / 2**20
    assert peaks[256] - peaks[32] < 4 * slab_mib <= volume_mib / 4, peaks


def test_from_a_scan_to_a_file_by_the_command_line(tmp_path):
    result = replay(tmp_path, write(tmp_path / "scan.h5"))
    words = ["export", "latest", "--hdf5", "volume.h5", "--json"]
    done = run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["processed_uid"] == result["processed_uid"]
    assert told["bytes"] == (tmp_path / "volume.h5").stat().st_size
    with h5py.File(tmp_path / "volume.h5") as file:
        assert file["entry/data/data"].shape == tuple(result["shape"])
        theta = file["entry/reconstruction/projections/theta"][()]
        np.testing.assert_allclose(theta, np.arange(60) * np.pi / 60, atol=1e-6)
        center = file["entry/reconstruction/parameters/rotation_center"][()]
        assert center == result["rotation_center"]
    again = run(tmp_path, *words)
    assert again.returncode == 2
    assert again.stderr == "ebl-stream: volume.h5 exists; --force replaces it\n"


def test_the_options_are_understood(out, tmp_path):
    words = ["export", "recon-one", "--out", out, "--tiff", tmp_path / "t", "--rows"]
    words += ["3:9", "--dtype", "uint8", "--range", "-0.01", "0.05"]
    words += ["--array", "denoised"]
    runner = CliRunner()
    done = runner.invoke(cli, [str(word) for word in words], standalone_mode=False)
    assert done.exception is None
    assert "denoised, 6 x 48 x 48 uint8" in done.output
    assert len(list((tmp_path / "t").glob("denoised_*.tif"))) == 6
