"""`ebl-stream bench` and the peers it compares with: right numbers, honest words."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from ebl_stream.cli import contest
from ebl_stream.cli.bench import as_dict, show
from ebl_stream.cli.commands import cli
from ebl_stream.cli.contest import OURS, Contest, Score, Streaming, Timing
from ebl_stream.cli.peers import PEERS, Accuracy, Judge, Problem, accuracy
from ebl_stream.simulation.phantom import Foam
from ebl_stream.stages.reconstruct import Fourier

ROOT = Path(__file__).parents[1]
N, ANGLES, ROWS = 96, 150, 3
PRESENT = [peer for peer in PEERS if peer.absent is None]


@pytest.fixture(scope="module")
def foam() -> Foam:
    return Foam(N, ROWS, seed=3)


@pytest.fixture(scope="module")
def problem(foam: Foam) -> Problem:
    theta = np.arange(ANGLES) * np.pi / ANGLES
    return Problem(foam.project(theta, N // 2), theta, N // 2, threads=2)


def test_the_peers_of_the_issue_are_there() -> None:
    names = {peer.package for peer in PEERS}
    assert {"astra", "algotom", "tomopy", "tomocupy", "skimage"} <= names
    assert {"astra", "algotom", "skimage"} <= {peer.package for peer in PRESENT}


@pytest.mark.parametrize("peer", PRESENT, ids=lambda peer: peer.name)
def test_a_peer_makes_the_slices_it_is_asked_for(
    peer: contest.Peer, foam: Foam, problem: Problem
) -> None:
    slices = peer.slices(problem)
    assert slices.shape == (ROWS, N, N)
    # In its own geometry a peer is good; a wrong axis or scale would not be.
    least = 22 if peer.name == "algotom DFI" else 25
    for row in range(ROWS):
        assert Judge(foam, row)(slices[row]).psnr_db > least


@pytest.mark.parametrize("name", ["ASTRA FBP", "algotom FBP"])
def test_these_share_our_geometry(name: str, foam: Foam, problem: Problem) -> None:
    (peer,) = [peer for peer in PEERS if peer.name == name]
    assert accuracy(peer.slices(problem), foam.volume()).psnr_db > 25


def test_the_judge_takes_any_mirroring_and_half_pixel(foam: Foam) -> None:
    truth = foam.volume((1, 2))[0]
    judge = Judge(foam, 1)
    for view in (truth, truth.T, truth[::-1], np.rot90(truth, 3)):
        assert judge(view).psnr_db > 100
    assert judge(truth * 0.8).psnr_db < 30
    assert judge(np.roll(truth, 2, axis=0)).psnr_db < 25


def test_streaming_is_the_stage_block_by_block(foam: Foam, problem: Problem) -> None:
    ours = Streaming(problem)
    first = ours.turn()
    once = ours.volume.copy()
    ours.turn()
    np.testing.assert_array_equal(ours.volume, once)
    batch = Fourier()(problem.values, problem.theta, problem.rotation_center)
    np.testing.assert_allclose(once, batch, atol=1e-5 * np.abs(batch).max())
    assert 0 < first.last_to_done_s < first.total_s
    assert ours.accuracy(foam).psnr_db > 25
    ours.close()


def test_the_command_measures_all_and_prints_one_object() -> None:
    sizes = ["--columns", "64", "--angles", "80", "--rows", "4", "--threads", "2"]
    done = CliRunner().invoke(cli, ["bench", *sizes, "--json"], standalone_mode=False)
    assert done.exception is None
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["sizes"] == {"columns": 64, "angles": 80, "rows": 4}
    assert found["machine"]["threads"] == 2
    assert found["machine"]["cpu"]
    assert [m["name"] for m in found["methods"]] == [OURS, *(p.name for p in PRESENT)]
    assert {p["name"] for p in found["absent"]} == {
        peer.name for peer in PEERS if peer not in PRESENT
    }
    ours = found["methods"][0]
    for method in found["methods"]:
        ratio = method["total_s"] / ours["total_s"]
        assert method["total_ratio"] == pytest.approx(ratio)
        assert method["psnr_db"] > 15
    assert "ASTRA FBP" in done.stderr


def test_what_is_absent_is_named_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = dataclasses.replace(PEERS[0], package="no_such_package")
    assert gone.absent == "not installed"
    monkeypatch.setattr(contest, "PEERS", (gone,))
    found = contest.hold(48, 60, 2, 1, lambda words: None)
    assert [score.name for score in found.scores] == [OURS]
    assert found.absent == [
        {"name": gone.name, "why": "not installed", "get": "pip install astra-toolbox"}
    ]


def test_the_table_says_how_many_times_our_time_a_peer_takes() -> None:
    good = Accuracy(30.0, 0.03)
    ours = Score(OURS, "1", Timing(0.5, 0.1), good, 64)
    peer = Score("slow", "2", Timing(60.0, 60.0), good, 2)
    machine = {"cpu": "c", "cores": 2, "threads": 2, "python": "3", "numpy": "2",
               "numba": "0"}  # fmt: skip
    sizes = {"columns": 8, "angles": 9, "rows": 64}
    absent = [{"name": "gone", "why": "not installed", "get": "pip install gone"}]
    found = Contest(machine, sizes, [ours, peer], absent)
    assert found.ratio(peer) == Timing(120.0, pytest.approx(600.0))
    assert as_dict(found)["methods"][1]["last_to_done_ratio"] == pytest.approx(600)
    shown = io.StringIO()
    show(found, Console(file=shown, width=100))
    text = shown.getvalue()
    (row,) = [line for line in text.splitlines() if line.startswith("slow")]
    assert row.split() == ["slow", "2", "60", "120", "60", "600", "30.00", "0.0300"]
    assert "gone: not installed (pip install gone)" in text


def test_the_engine_benchmark_reports_what_the_engine_is_held_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    engine = importlib.import_module("engine")
    targets = {target.key: target for target in engine.TARGETS}
    assert targets.keys() >= {
        "total_vs_astra",
        "total_vs_algotom",
        "last_to_done_ms",
        "halves_ratio",
        "raw_ratio",
        "ingest_gb_s",
        "last_to_memory_s",
        "last_to_first_slab_s",
        "last_to_volume_s",
        "psnr_minus_nufft_db",
        "psnr_minus_astra_db",
        "golden_minus_batch_db",
        "center_error_px",
        "halves_rms_ratio",
        "frc_over_true",
    }
    assert not targets["total_vs_astra"].met(299)
    assert targets["golden_minus_batch_db"].met(-0.01)
    assert not targets["golden_minus_batch_db"].met(float("nan"))
    assert not targets["ingest_gb_s"].met(None)
    figures: dict[str, object] = {}

    def broken(quick: bool, threads: int) -> dict[str, object]:
        raise ValueError("no")

    monkeypatch.setitem(engine.CASES, "speed", broken)
    assert engine.run_case("speed", True, 1, figures)["error"] == "ValueError: no"
    assert figures == {}
    numbers = {"a": np.float32(1.5), "b": [np.nan, np.inf], "c": np.bool_(True)}
    assert engine.plain(numbers) == {"a": 1.5, "b": [None, None], "c": True}
