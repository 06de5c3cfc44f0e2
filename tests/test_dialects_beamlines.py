"""Recorded runs of three beamlines, each through its shipped profile alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from dialects import record
from reference import band_limited_fbp, nrmse

from ebl_stream.cli.commands import PLAIN, cli
from ebl_stream.errors import InputError
from ebl_stream.profile_file import load
from ebl_stream.publish.publishing import Publishing
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.service import service
from ebl_stream.service.service import Settings
from ebl_stream.sources import open_source
from ebl_stream.sources.past_runs import journaled_run
from ebl_stream.sources.zmq import DoorSource
from ebl_stream.transport.documents import pack

FIXTURES = Path(__file__).parent / "dialects"


N = {"nsls2_hex": 61, "aps_2bm": 60, "aps_32id": 60}
ROOTS = {
    "nsls2_hex": "/nsls2/data/hex/proposals",
    "aps_2bm": "/local/user2bmb/mona",
    "aps_32id": "/mnt/tomodata1/TXM/2025-11",
}
THETA_DEG = {
    "nsls2_hex": np.linspace(0, 180, 61) + 17.3,
    "aps_2bm": np.arange(60) * 3.0,
    "aps_32id": np.rad2deg(record.interlaced_angles(60, 4)),
}


@pytest.fixture
def beamline(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Copy a beamline's fixture: nothing is written beside the originals."""
    folder = tmp_path / request.param
    shutil.copytree(FIXTURES / request.param, folder)
    return folder


def journals(folder: Path) -> list[Path]:
    """Return the journals in the order of their runs."""
    found = folder.glob("*.ebldocs")
    return sorted(found, key=lambda path: next(iter_docs(path))[1]["time"])


def iter_docs(path: Path) -> Any:
    source, _ = open_source(str(path), load("default"))
    return source.documents()


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        **PLAIN,
        "files.path_map": {ROOTS[folder.name]: str(folder)},
        "geometry.rotation_center": record.CENTER,
        **more,
    }


def replay(
    folder: Path, out: Path, paths: list[Path], find_run: Any = None, **more: Any
) -> Any:
    """Reconstruct the runs of some journals by the profile of their beamline."""
    house = None
    for path in paths:
        source, profile = open_source(
            str(path), load(folder.name, settings(folder, **more))
        )
        house = house or Reconstruction(
            profile, out=out, roots=source.roots, find_run=find_run
        )
        for name, doc in source.documents():
            house(name, doc)
    assert house is not None
    house.close()
    return house


def expected(name: str) -> np.ndarray[Any, Any]:
    """Reconstruct what the camera saw, by another method: all rows, [z, y, x]."""
    theta = THETA_DEG[name]
    raw, model = record.projections(theta).astype(float), record.MODEL
    dark = model.darks(record.N_DARKS).mean(0)
    flat = model.flats(record.N_FLATS).mean(0)
    values = -np.log(np.clip((raw - dark) / (flat - dark), 1e-5, None))
    slices = [
        band_limited_fbp(values[:, row], np.deg2rad(theta), record.CENTER)
        for row in range(record.ROWS)
    ]
    return np.stack(slices)


def check_whole(name: str, result: Any) -> None:
    """The ledger is whole, and the volume is the phantom's."""
    ledger = result.ledger
    assert result.state == "complete"
    assert ledger["announced"] == ledger["used"] == N[name]
    assert (ledger["residue"], ledger["in_flight"], ledger["orphan"]) == (0, 0, 0)
    volume = np.asarray(zarr.open_array(result.volume, mode="r"))
    assert nrmse(volume, expected(name), fit=True) < 0.01


def references(result: Any) -> dict[str, Any]:
    return zarr_metadata(result)["references"]


def zarr_metadata(result: Any) -> dict[str, Any]:
    return json.loads((Path(result.volume).parent / "metadata.json").read_text())


@pytest.mark.parametrize("beamline", sorted(N), indirect=True)
def test_a_recorded_run_through_its_profile_alone(
    beamline: Path, tmp_path: Path
) -> None:
    house = replay(beamline, tmp_path / "out", journals(beamline))
    (result,) = house.results.values()
    check_whole(beamline.name, result)
    told = references(result)
    assert told["source"] == "measured"
    assert told["flats"]["used"] == record.N_FLATS
    assert told["darks"]["used"] == record.N_DARKS
    (found,) = set(zarr_metadata(result)["references_elsewhere"]["found"].values())
    assert found.startswith("run" if beamline.name == "nsls2_hex" else "file")


# ------------------------------------------------- HEX: flats of a run of the past


@pytest.fixture
def hex_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "nsls2_hex"
    shutil.copytree(FIXTURES / "nsls2_hex", folder)
    return folder


def test_darks_and_flats_of_a_run_recorded_beside_it(
    hex_folder: Path, tmp_path: Path
) -> None:
    path = journals(hex_folder)[1]
    house = replay(
        hex_folder, tmp_path / "out", [path], find_run=journaled_run(hex_folder)
    )
    (result,) = house.results.values()
    check_whole("nsls2_hex", result)


def test_darks_and_flats_that_are_not_found_are_missed(
    hex_folder: Path, tmp_path: Path
) -> None:
    first, path = journals(hex_folder)
    first.unlink()
    house = replay(
        hex_folder, tmp_path / "out", [path], find_run=journaled_run(hex_folder)
    )
    (result,) = house.results.values()
    assert (result.state, result.exit_code) == ("partial", 3)
    assert result.ledger["used"] == N["nsls2_hex"]
    assert references(result)["source"] == "assumed"
    assert references(result)["flats"]["missing"] == 1
    (why,) = zarr_metadata(result)["references_elsewhere"]["failed"].values()
    assert "neither among the last runs nor in a journal" in why


def test_a_run_of_darks_and_flats_alone_is_no_failure(
    hex_folder: Path, tmp_path: Path
) -> None:
    house = replay(hex_folder, tmp_path / "out", journals(hex_folder)[:1])
    assert house.results == {}
    assert not (tmp_path / "out").exists()


def test_the_replay_command_finds_them_beside_its_journal(
    hex_folder: Path, tmp_path: Path
) -> None:
    first, path = journals(hex_folder)
    options = settings(hex_folder) | {"publish.tiled": "none"}
    words = [f"--set={key}={json.dumps(value)}" for key, value in options.items()]
    words += ["--profile=nsls2_hex", f"--out={tmp_path / 'out'}", "--json"]
    told = CliRunner().invoke(cli, ["replay", str(path), *words])
    assert told.exit_code == 0, told.output
    result = json.loads(told.stdout.splitlines()[-1])
    assert (result["state"], result["n_projections"]) == ("complete", N["nsls2_hex"])
    alone = CliRunner().invoke(cli, ["replay", str(first), *words])
    assert isinstance(alone.exception, InputError)
    assert "no tomography run" in str(alone.exception)


def test_a_service_that_began_after_the_darks_and_flats(
    hex_folder: Path, tmp_path: Path
) -> None:
    """They are in its predecessor's journal."""
    out = tmp_path / "out"
    profile = load("nsls2_hex", {**settings(hex_folder), "publish.tiled": "none"})
    profile = profile.model_copy(
        update={"files": profile.files.model_copy(update={"roots": (str(hex_folder),)})}
    )
    for path in journals(hex_folder):
        wanted = Settings(profile, "zmq://127.0.0.1:*", out, "none")
        make = service._make_callback(wanted, Publishing("none", out, profile))
        served = service.Service(
            DoorSource(wanted.source), make, out / "journal", owner="hex"
        )
        for name, doc in iter_docs(path):
            served.take(pack(name, doc))
        served.stop()
        for mark in (out / "journal").glob("*.open"):
            mark.unlink()  # ended long ago: nobody goes on with it
    (found,) = out.glob("recon-*/metadata.json")
    told = json.loads(found.read_text())
    assert (told["state"], told["references"]["source"]) == ("complete", "measured")
    assert told["references"]["flats"]["used"] == record.N_FLATS
    assert told["ledger"]["used"] == N["nsls2_hex"]
