"""``benchmarks/gpu.py``: every case runs, emulated, and none loses another."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_on_cpu.emulator import EmulatedDevice

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="CUDA source runs on the CPU through g++"
)


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench_gpu", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


@needs_compiler
def test_every_case_runs_or_says_what_is_absent(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--emulate", "--out", str(tmp_path)])
    assert bench.main() == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["emulated"]
    cases = report["cases"]
    assert cases["equal to the CPU"]["largest_difference"] <= 1e-5
    skipped = [name for name, result in cases.items() if "skipped" in result]
    assert {name.split(" (")[0] for name in skipped} <= {
        "naive back-projection",
        "tomocupy",
    }
    assert not any("error" in result for result in cases.values())
    table = (tmp_path / "gpu.md").read_text()
    assert all(f"| {name} |" in table for name in cases)


@needs_compiler
def test_one_that_fails_does_not_lose_the_others(bench, tmp_path, monkeypatch):
    def wrong(*_: object) -> float:
        return 2e-5

    monkeypatch.setattr(bench, "relative", wrong)
    kept = bench.plan_of_cases

    def two(*given: object) -> list[object]:
        return kept(*given)[:3:2]

    monkeypatch.setattr(bench, "plan_of_cases", two)
    assert not bench.run(EmulatedDevice(), "emulated", tmp_path, True, 60)
    cases = json.loads((tmp_path / "gpu.json").read_text())["cases"]
    assert "differs from the CPU by 2e-05" in cases["equal to the CPU"]["error"]
    assert cases["kernels (24, 5, 9)"]["ms_per_look"]["blend"] > 0


def test_without_a_gpu_it_says_so_and_exits_with_3(tmp_path):
    done = subprocess.run(
        [sys.executable, PROGRAM, "--out", tmp_path / "none"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("no GPU: ")
    assert len(done.stdout.splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_where_nothing_is_installed_one_sentence_says_what_to_do():
    done = subprocess.run(
        [sys.executable, "-I", "-S", PROGRAM], capture_output=True, text=True
    )
    assert done.returncode == 3
    assert done.stdout == "numpy, scipy, numba not installed: run `make setup` first\n"
    assert done.stderr == ""
