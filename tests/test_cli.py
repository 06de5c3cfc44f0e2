"""The command line as scripts see it: exit codes, streams, and what is created."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from campaign.forks import ebl_stream
from rich.console import Console

from ebl_stream.cli.messages import answer_errors
from ebl_stream.cli.progress import ProgressView, ledger_words, one_line

N_ANGLES, N_ROWS, N_COLUMNS = 60, 6, 48
CENTER = 24.25
CONTRACT = {
    "run_uid",
    "processed_uid",
    "tiled_uri",
    "volume",
    "shape",
    "rotation_center",
    "rotation_center_source",
    "n_projections",
    "ledger",
    "state",
    "latency_s",
    "wall_s",
}
LEDGER = {
    "announced",
    "used",
    "superseded",
    "duplicate",
    "rejected",
    "dropped",
    "missing",
    "in_flight",
    "orphan",
    "residue",
    "rejected_by",
    "dropped_by",
    "missing_indices",
}

Scan = dict[str, Any]
Change = Callable[[Scan], None]
Run = Callable[..., subprocess.CompletedProcess[str]]


def make_scan() -> Scan:
    """Return the datasets of a disc off the axis: density 0.02/px, radius 12 px."""
    theta = np.arange(N_ANGLES) * np.pi / N_ANGLES
    s = np.arange(N_COLUMNS) - CENTER
    away = s - (5 * np.cos(theta) + 3 * np.sin(theta))[:, None]
    chord = 2 * 0.02 * np.sqrt(np.maximum(0, 144 - away**2))
    transmission = np.repeat(np.exp(-chord)[:, None, :], N_ROWS, axis=1)
    return {
        "theta": np.rad2deg(theta),
        "data_white": np.full((3, N_ROWS, N_COLUMNS), 10_100, np.float32),
        "data_dark": np.full((3, N_ROWS, N_COLUMNS), 100, np.float32),
        "data": (100 + 10_000 * transmission).astype(np.float32),
    }


def write(path: Path, change: Change | None = None) -> Path:
    """Write the scan as APS Data Exchange, after a change."""
    scan = make_scan()
    if change is not None:
        change(scan)
    with h5py.File(path, "w") as file:
        for name, values in scan.items():
            file[f"exchange/{name}"] = values
    return path


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "ebl_stream.cli", *(str(word) for word in words)]


def run(cwd: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a script does, in a fresh interpreter."""
    return subprocess.run(
        command(*words), cwd=cwd, capture_output=True, text=True, timeout=150
    )


def replay(
    cwd: Path, source: object, *words: object, by: Run = ebl_stream
) -> dict[str, Any]:
    """Replay with --json and check the contract of the streams."""
    done = by(cwd, "replay", source, "--tiled", "none", "--json", *words)
    assert done.returncode in (0, 3), done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert set(result) >= CONTRACT
    assert set(result["ledger"]) >= LEDGER
    assert result["ledger"]["residue"] == 0
    return {**result, "exit": done.returncode, "stderr": done.stderr}


def assert_refused(
    folder: Path, *words: object, says: str = "", by: Run = ebl_stream
) -> None:
    """Check that a command ends with 2, one short message and nothing else."""
    before = sorted(folder.rglob("*"))
    done = by(folder, *words)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert 1 <= len(done.stderr.strip().splitlines()) <= 4, done.stderr
    assert "Traceback" not in done.stderr
    assert says in done.stderr
    assert sorted(folder.rglob("*")) == before


# ------------------------------------------------------------------- bad usage

USAGE = {
    "unknown command": (["reply"], "reply"),
    "unknown option": (["replay", "scan.h5", "--jsn"], "--jsn"),
    "no source": (["replay"], "SOURCE"),
    "rows backwards": (["replay", "scan.h5", "--rows", "5:2"], "--rows"),
    "rows not numbers": (["replay", "scan.h5", "--rows", "a:b"], "--rows"),
    "speed zero": (["replay", "scan.h5", "--speed", "0"], "--speed"),
    "speed without end": (["replay", "scan.h5", "--speed", "inf"], "--speed"),
    "speed not a number": (["replay", "scan.h5", "--speed", "nan"], "--speed"),
    "speed negative": (["replay", "scan.h5", "--speed", "-1"], "--speed"),
    "set without =": (["replay", "scan.h5", "--set", "denoise"], "--set"),
    "set not YAML": (["replay", "scan.h5", "--set", "denoise=[1"], "--set"),
    "tiled": (["replay", "scan.h5", "--tiled", "localhost"], "--tiled"),
    "out is a file": (["replay", "scan.h5", "--out", "scan.h5"], "--out"),
    "serve without source": (["serve", "--profile", "demo"], "--source"),
    "demo order": (["demo", "--order", "random"], "--order"),
    "browse nothing": (["browse", "nowhere"], "nowhere"),
    "check shape": (["check", "demo", "--shape", "1,2"], "--shape"),
}


@pytest.mark.parametrize("case", USAGE)
def test_bad_usage_is_refused(case: str, tmp_path: Path) -> None:
    write(tmp_path / "scan.h5")
    words, says = USAGE[case]
    assert_refused(tmp_path, *words, says=says, by=run)


PROFILE = {
    "unknown profile": (["--profile", "data_exchnge"], "did you mean 'data_exchange'"),
    "unknown key": (["--set", "denois=null"], "did you mean 'denoise'"),
    "unknown stage": (["--set", "denoise=weiner"], "did you mean 'wiener'"),
    "wrong value": (["--set", "refresh.every=2"], "refresh.every"),
    "profile file": (["--profile", "bad.yaml"], "bad.yaml"),
}


@pytest.mark.parametrize("case", PROFILE)
def test_bad_profile_is_refused(case: str, tmp_path: Path) -> None:
    write(tmp_path / "scan.h5")
    (tmp_path / "bad.yaml").write_text("name: [unclosed\n")
    words, says = PROFILE[case]
    assert_refused(tmp_path, "replay", "scan.h5", *words, says=says)


# ------------------------------------------------------------------- bad input


def no_projections(scan: Scan) -> None:
    scan["other"] = scan.pop("data")


def angle_too_few(scan: Scan) -> None:
    scan["theta"] = scan["theta"][:-1]


def flats_of_another_shape(scan: Scan) -> None:
    scan["data_white"] = scan["data_white"][:, :, :-1]


def flats_nan(scan: Scan) -> None:
    scan["data_white"][:] = np.nan


def flats_zero(scan: Scan) -> None:
    scan["data_white"][:] = 0


def all_nan(scan: Scan) -> None:
    scan["data"][:] = np.nan


def no_frames(scan: Scan) -> None:
    scan["data"], scan["theta"] = scan["data"][:0], scan["theta"][:0]


def one_column(scan: Scan) -> None:
    for name in ("data", "data_white", "data_dark"):
        scan[name] = scan[name][:, :, :1]


def flat_image(scan: Scan) -> None:
    scan["data"] = scan["data"][:, 0]


BAD: list[Change] = [
    no_projections,
    angle_too_few,
    flats_of_another_shape,
    flats_nan,
    flats_zero,
    all_nan,
    no_frames,
    one_column,
    flat_image,
]


@pytest.mark.parametrize("change", BAD, ids=lambda change: change.__name__)
def test_bad_scan_is_refused(change: Change, tmp_path: Path) -> None:
    write(tmp_path / "scan.h5", change)
    assert_refused(tmp_path, "replay", "scan.h5", "--json", says="scan.h5")


def test_what_is_no_scan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.h5").write_text("not HDF5 at all")
    whole = write(tmp_path / "scan.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[:100])
    assert_refused(tmp_path, "replay", "missing.h5", "--json", by=run)
    for source in ("notes.h5", "cut.h5", "."):
        assert_refused(tmp_path, "replay", source, "--json")


def test_rows_beyond_the_detector_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "scan.h5")
    assert_refused(tmp_path, "replay", "scan.h5", "--rows", f"0:{N_ROWS + 1}")


def test_links_out_of_the_allowed_folders_are_refused(tmp_path: Path) -> None:
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    elsewhere.mkdir()
    here.mkdir()
    write(elsewhere / "frames.h5")
    scan = make_scan()
    del scan["data"]
    with h5py.File(here / "scan.h5", "w") as file:
        for name, values in scan.items():
            file[f"exchange/{name}"] = values
        link = h5py.ExternalLink("../elsewhere/frames.h5", "/exchange/data")
        file["exchange/data"] = link
    assert_refused(here, "replay", "scan.h5", "--json")


def test_allowed_folders_and_names_are_set_without_a_profile(tmp_path: Path) -> None:
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    elsewhere.mkdir()
    here.mkdir()
    with h5py.File(write(elsewhere / "frames.h5"), "r+") as file:
        file.move("exchange", "raw")
    with h5py.File(here / "scan.h5", "w") as file:
        file["raw"] = h5py.ExternalLink("../elsewhere/frames.h5", "/raw")
    roots = ("--set", f"files.roots=[{elsewhere}]")
    names = {"projections": "data", "theta": "theta", "flats": "data_white"}
    words = [
        word
        for role, name in names.items()
        for word in ("--set", f"datasets.{role}=[/raw/{name}]")
    ]
    assert_refused(here, "replay", "scan.h5", *words, says="elsewhere")
    assert_refused(here, "replay", "scan.h5", *roots, says="datasets.projections")
    assert replay(here, "scan.h5", *words, *roots)["exit"] == 0


def test_warnings_do_not_bury_the_one_message(tmp_path: Path) -> None:
    def no_references(scan: Scan) -> None:
        del scan["data_white"], scan["data_dark"]

    write(tmp_path / "scan.h5", no_references)
    words = ("replay", "scan.h5", "--rows", f"0:{N_ROWS + 1}")
    assert_refused(tmp_path, *words)
    done = run(tmp_path, *words)  # not forked: libraries warn when they are imported
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_without_permission_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "scan.h5").chmod(0)
    assert_refused(tmp_path, "replay", "scan.h5")
    (tmp_path / "scan.h5").chmod(0o600)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert_refused(tmp_path, "replay", "scan.h5", "--out", "locked/out")


# -------------------------------------------------------------------- good runs


def test_a_sound_scan_is_complete(tmp_path: Path) -> None:
    write(tmp_path / "scan.h5")
    result = replay(tmp_path, "scan.h5", "--plain", by=run)
    assert (result["exit"], result["state"]) == (0, "complete")
    assert result["ledger"]["used"] == result["n_projections"] == N_ANGLES
    assert result["rotation_center_source"] == "measured"
    assert abs(result["rotation_center"] - CENTER) < 0.25
    assert Path(result["volume"]).is_relative_to(tmp_path / "ebl_stream_out")
    volume = zarr.open_array(result["volume"], mode="r")
    assert list(volume.shape) == result["shape"] == [N_ROWS, N_COLUMNS, N_COLUMNS]
    assert volume.dtype == np.float32
    # Volume pixel (y, x) at (x - (n - 1) / 2, y - (n - 1) / 2) about the axis.
    middle = (N_COLUMNS - 1) / 2
    inside = np.asarray(volume[0])[int(middle + 3) - 4 :, int(middle + 5) - 4 :][:8, :8]
    assert abs(inside.mean() - 0.02) < 0.0004


def test_rows_and_settings_on_top_of_plain(tmp_path: Path) -> None:
    write(tmp_path / "scan.h5")
    given = "geometry.rotation_center=20.5"
    words = ("--plain", "--set", given, "--rows", "2:5", "--out", "a/b")
    result = replay(tmp_path, "scan.h5", *words)
    assert result["exit"] == 0
    assert result["shape"] == [3, N_COLUMNS, N_COLUMNS]
    assert result["rotation_center"] == 20.5
    assert result["rotation_center_source"] == "given"
    folder = Path(result["volume"]).parent
    assert folder.parent == tmp_path / "a" / "b"
    assert not {"denoised", "labels"} & {path.name for path in folder.iterdir()}
    again = replay(tmp_path, "scan.h5", *words)
    assert again["volume"] != result["volume"]


def test_lost_frames_make_it_partial(tmp_path: Path) -> None:
    def lose(scan: Scan) -> None:
        scan["data"][7] = np.nan

    def speckle(scan: Scan) -> None:
        scan["data"][7, 2, 10:12] = np.nan

    write(tmp_path / "lost.h5", lose)
    result = replay(tmp_path, "lost.h5")
    assert (result["exit"], result["state"]) == (3, "partial")
    assert result["ledger"]["rejected_by"] == {"non_finite": 1}
    assert result["ledger"]["used"] == N_ANGLES - 1

    write(tmp_path / "speckled.h5", speckle)
    result = replay(tmp_path, "speckled.h5")
    assert (result["exit"], result["state"]) == (0, "complete")
    metadata = Path(result["volume"]).parent / "metadata.json"
    assert json.loads(metadata.read_text())["repaired_pixels"] == 2


def test_a_truncated_file_gives_what_can_be_read(tmp_path: Path) -> None:
    """Frames come last in the file, chunk by chunk, so the cut takes only those."""
    scan = make_scan()
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        data = scan.pop("data")
        for name, values in scan.items():
            file[f"exchange/{name}"] = values
        chunked = file.create_dataset(
            "exchange/data", data.shape, data.dtype, chunks=(1, N_ROWS, N_COLUMNS)
        )
        file.flush()
        chunked[:] = data
        file.flush()
        last = max(chunked.id.get_chunk_info(k).byte_offset for k in range(N_ANGLES))
    with path.open("r+b") as raw:
        raw.truncate(last)
    result = replay(tmp_path, "scan.h5")
    assert (result["exit"], result["state"]) == (3, "partial")
    assert result["ledger"]["used"] == N_ANGLES - 1


@pytest.mark.parametrize("share", [0.3, 0.95, 0.99])
@pytest.mark.parametrize("file", ["aps_tooth.h5", "dls_k11_stream.h5"])
def test_a_truncated_measured_scan_is_partial_or_refused(
    measured_scan: Callable[[str], Path], tmp_path: Path, file: str, share: float
) -> None:
    """What is cut off last are angles, flats and names: structure, not frames."""
    whole = measured_scan(file).read_bytes()
    (tmp_path / "scan.h5").write_bytes(whole[: int(share * len(whole))])
    words = ("replay", "scan.h5", "--tiled", "none", "--json", "--plain")
    done = ebl_stream(tmp_path, *words)
    if done.returncode == 2:
        assert "scan.h5 is truncated" in done.stderr
        assert len(done.stderr.splitlines()) <= 4
        assert (done.stdout, len(list(tmp_path.iterdir()))) == ("", 1)
        return
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    assert result["ledger"]["residue"] == 0
    assert result["ledger"]["used"] > 0
    assert "truncated" in result["message"]
    assert np.isfinite(np.asarray(zarr.open_array(result["volume"], mode="r"))).all()


def test_ctrl_c_drains(tmp_path: Path) -> None:
    """At a frame per second only Ctrl-C ends it soon; what came is a volume."""

    def paced(scan: Scan) -> None:
        for name in ("data", "theta"):
            scan[name] = np.concatenate([scan[name]] * 4)
        scan["time"] = np.arange(4 * N_ANGLES, dtype=float)

    write(tmp_path / "scan.h5", paced)
    words = ("replay", "scan.h5", "--tiled", "none", "--json", "--speed", "1")
    with subprocess.Popen(
        command(*words),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    result = json.loads(out)
    assert result["state"] == "partial"
    assert 0 < result["n_projections"] < 4 * N_ANGLES
    assert result["ledger"]["residue"] == 0


def test_embedded_tiled_has_the_result(tmp_path: Path) -> None:
    write(tmp_path / "scan.h5")
    done = run(tmp_path, "replay", "scan.h5", "--tiled", "embedded", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["processed_uid"] in result["tiled_uri"]
    assert "WARNING" not in done.stderr


def test_tiled_down_is_no_reason_to_fail(tmp_path: Path) -> None:
    """Nobody listens on the discard port of this machine."""
    write(tmp_path / "scan.h5")
    done = ebl_stream(
        tmp_path, "replay", "scan.h5", "--tiled", "http://127.0.0.1:9", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tiled_uri"] is None
    assert "not in Tiled" in done.stderr


# ---------------------------------------------------------------- small things


def test_check_answers_with_a_code(tmp_path: Path) -> None:
    done = ebl_stream(tmp_path, "check", "demo", "--tiled", "none")
    assert done.returncode == 0, done.stderr
    assert "flat_field" in done.stdout
    huge = ebl_stream(
        tmp_path, "check", "--tiled", "none", "--shape", "3000,90000,90000"
    )
    assert huge.returncode == 2
    assert "stop" in huge.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_comes_without_heavy_imports() -> None:
    code = (
        "import sys; import ebl_stream.cli.commands; "
        "print({'numba', 'h5py', 'zarr', 'tiled', 'bluesky'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_internal_fault_is_one_line_and_code_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("of\nsome kind")

    assert answer_errors(broken, debug=False) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert "ZeroDivisionError: of some kind" in line
    with pytest.raises(ZeroDivisionError):
        answer_errors(broken, debug=True)


def test_progress_without_a_terminal_is_a_few_clean_lines() -> None:
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, record=True, width=200, markup=False)
        with ProgressView(console) as view:
            for n in range(101):
                ledger = {"missing": 2, "rejected": 1, "rejected_by": {"blank": 1}}
                view(
                    {
                        "run_uid": "[red]a\x1b[31m",
                        "state": "running" if n < 100 else "partial",
                        "n_owed": 100,
                        "n_used": n,
                        "coverage": n / 100,
                        "ledger": ledger,
                        "message": "[bold]end\x1b[2J" if n == 100 else "",
                    }
                )
        lines = console.export_text().splitlines()
    assert len(lines) <= 12
    assert "\x1b" not in "".join(lines)
    assert lines[-1].endswith("partial, - [bold]end?[2J")
    assert "2 missing · 1 rejected (blank 1)" in lines[-1]


def test_ledger_words() -> None:
    assert ledger_words({"missing": 0, "rejected": 0}) == "nothing lost"
    assert "UNACCOUNTED" in ledger_words({"residue": 1})
    assert one_line({"n_used": 3, "n_owed": 4, "state": "running"}).startswith("3/4")
