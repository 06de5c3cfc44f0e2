"""The engine's figures, against its targets, its peers, and what was predicted.

``python benchmarks/engine.py [--quick] [--real] [--only CASE ...] [--json [PATH]]``

Methods take turns in one process with the same threads, so that ratios hold on a busy
machine; times do not. The full run takes up to 20 minutes and 14 GB, ``--quick`` up to
three minutes on small sizes, whose figures say less. It ends with one JSON object; a
figure is null where its case failed, and the case then says why.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engine_quality import any_order, center, exactness, halves, zingers
from engine_service import service
from engine_speed import speed
from rich.console import Console
from rich.table import Table

from ebl_stream.cli.contest import machine

CASES: dict[str, Callable[[bool, int], dict[str, Any]]] = {
    "speed": speed,
    "exactness": exactness,
    "any order": any_order,
    "center": center,
    "zingers": zingers,
    "halves": halves,
    "service": service,
}
PACKAGES = (
    "ebl-stream",
    "numpy",
    "scipy",
    "numba",
    "zarr",
    "astra-toolbox",
    "algotom",
    "finufft",
    "scikit-image",
)


@dataclass(frozen=True)
class Target:
    """What a figure should be, and what was predicted before it was measured."""

    key: str
    low: float
    high: float
    predicted: str

    def words(self) -> str:
        """Return the target for people."""
        if math.isinf(self.high):
            return f"≥ {self.low:g}"
        if math.isinf(self.low):
            return f"≤ {self.high:g}"
        return f"{self.low:g} … {self.high:g}"

    def met(self, value: Any) -> bool:
        """Whether a figure is what it should be."""
        return value is not None and self.low <= value <= self.high


REAL_HEADINGS = (
    "scan",
    "replay s",
    "batch s",
    "last→memory s",
    "peer",
    "total s",
    "x replay",
    "x batch",
)

INF = math.inf
TARGETS = (
    Target("total_vs_astra", 300, INF, "480"),
    Target("total_vs_algotom", 100, INF, "250"),
    Target("last_to_done_ms", -INF, 80, "56"),
    Target("halves_ratio", -INF, 1.2, "1.05"),
    Target("both_delivered_ratio", -INF, 1.5, "1.35"),
    Target("raw_ratio", -INF, 1.25, "1.13"),
    Target("psnr_minus_nufft_db", -0.05, 0.05, "-0.01"),
    Target("psnr_minus_astra_db", 1, INF, "1.2"),
    Target("golden_minus_batch_db", -0.02, 0.02, "0.01"),
    Target("center_error_px", -INF, 0.05, "0.01"),
    Target("center_error_noisy_px", -INF, 0.1, "0.02"),
    Target("center_error_truncated_px", -INF, 0.1, "0.05"),
    Target("zinger_detection", 0.99, INF, "0.995"),
    Target("zinger_false", -INF, 1e-5, "5e-6"),
    Target("halves_rms_ratio", 0.9, 1.15, "1.02"),
    Target("frc_over_true", 0.95, 1.05, "0.97"),
    Target("ingest_gb_s", 1, INF, "1.6"),
    Target("last_to_memory_s", -INF, 0.6, "0.45"),
    Target("last_to_first_slab_s", -INF, 0.3, "0.15"),
    Target("last_to_volume_s", -INF, 3.5, "2.8"),
    Target("first_over_later_block", -INF, 1.5, "1.2"),
)


def main() -> None:
    """Run the cases, print the table, and one JSON object at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, three minutes")
    parser.add_argument("--real", action="store_true", help="measured scans, pictures")
    parser.add_argument("--only", nargs="+", choices=[*CASES, "real"], metavar="CASE")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", nargs="?", const="", metavar="PATH")
    options = parser.parse_args()
    console = Console(markup=False, highlight=False)
    figures: dict[str, Any] = {target.key: None for target in TARGETS}
    cases: dict[str, Any] = {}
    wanted = options.only or [*CASES, *(["real"] if options.real else [])]
    for name in wanted:
        if name == "real":
            continue
        begun = time.perf_counter()
        cases[name] = run_case(name, options.quick, options.threads, figures)
        console.print(f"{name}: {time.perf_counter() - begun:.0f} s")
    if "real" in wanted:
        from engine_real import real

        cases["real"] = real(options.threads)
        show_real(cases["real"], console)
    show(figures, console)
    if options.quick:
        console.print("quick: true (small sizes: the targets are for the full run)")
    whole = {
        "quick": options.quick,
        **figures,
        "machine": machine(options.threads),
        "versions": versions(),
        "cases": cases,
    }
    line = json.dumps(plain(whole))
    if options.json:
        Path(options.json).write_text(line + "\n")
    print(line)


def run_case(
    name: str, quick: bool, threads: int, figures: dict[str, Any]
) -> dict[str, Any]:
    """Run one case; what goes wrong there leaves the others alone."""
    try:
        found = CASES[name](quick, threads)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    case = found.pop("case")
    figures |= found
    return {"case": case} | found


def show(figures: dict[str, Any], console: Console) -> None:
    """Print every figure with its target and what was predicted."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("figure", "measured", "target", "predicted", ""):
        table.add_column(heading)
    for target in TARGETS:
        value = figures[target.key]
        if value is None:
            table.add_row(target.key, "not measured", target.words(), target.predicted)
            continue
        verdict = "" if target.met(value) else "MISSED"
        cells = (f"{value:.4g}", target.words(), target.predicted, verdict)
        table.add_row(target.key, *cells)
    console.print(table)


def show_real(found: dict[str, Any], console: Console) -> None:
    """Print the measured scans."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in REAL_HEADINGS:
        table.add_column(heading)
    for name, scan in found.items():
        if isinstance(scan, str):
            table.add_row(name, scan)
            continue
        last = scan["latency_s"]["last_projection_to_recon"]
        for peer, figures in scan["peers"].items():
            ours = (scan["replay_s"], scan["batch_s"], last)
            ratios = (figures["total_over_our_replay"], figures["total_over_our_batch"])
            cells = (f"{x:.3g}" for x in (figures["total_s"], *ratios))
            table.add_row(name, *(f"{x:.3g}" for x in ours), peer, *cells)
    console.print(table)


def versions() -> dict[str, str]:
    """Return the version of everything that the figures depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def plain(value: Any) -> Any:
    """Return what strict JSON can hold: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


if __name__ == "__main__":
    main()
