"""How good, how fast and how honest is the denoiser that learns in the scan?

Prints a table, and one JSON object at the end (``--json``: that alone). Predicted:
foam +11 dB over FBP and 2 dB over tuned TV; half of the angles +8 dB over FBP of all;
the pepper pair +5.6 dB and +0.26 SSIM over FBP (cosine window), 0.1 dB below or above
TV tuned on the reference; warm start 2 dB over a cold one; ensemble 0.86 and split 0.79
rank correlation with the true error.

Run: ``python benchmarks/denoise.py [--quick] [--json] [--data FOLDER] [--only ...]``
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import denoise_cases as cases
import denoise_speed

ROOT = Path(__file__).parents[1]
REPORTED = {
    "n2i_gain_db": ("foam", "n2i_gain_db", ">= 6"),
    "n2i_half_angles_gain_db": ("foam", "n2i_half_angles_gain_db", ">= 3"),
    "n2i_minus_tv_db": ("foam", "n2i_minus_tv_db", "> 0"),
    "pepper_psnr_gain_db": ("pepper", "cosine.psnr_gain_db", ">= 5.3"),
    "pepper_ssim_gain": ("pepper", "cosine.ssim_gain", ">= 0.25"),
    "pepper_ramp_psnr_gain_db": ("pepper", "ramp.psnr_gain_db", ">= 7.0"),
    "pepper_edge_ratio": ("pepper", "cosine.edge_ratio", "<= 1.1"),
    "pepper_minus_tv3d_db": ("pepper", "cosine.minus_tv3d_db", "> 0"),
    "warm_minus_cold_db": ("warm", "warm_minus_cold_db", ">= 2"),
    "fast_vs_published_speed": ("speed", "fast_vs_published_speed", ">= 20"),
    "slices_per_s_512": ("speed", "slices_per_s_512", ">= 50"),
    "recon_latency_growth": ("latency", "recon_latency_growth", "< 0.10"),
    "watched_s": ("latency", "watched_s", "<= 0.5"),
    "uncertainty_rank_ensemble": ("uncertainty", "uncertainty_rank_ensemble", ">= 0.7"),
    "uncertainty_rank_split": ("uncertainty", "uncertainty_rank_split", ">= 0.6"),
}
"""Key of the JSON object: case, place in it, target."""


def main() -> None:
    """Run the cases."""
    given = options()
    known = all_cases(given.data, quick=given.quick)
    found: dict[str, Any] = {}
    for name in given.only or known:
        begun = time.perf_counter()
        found[name] = known[name]()
        say(f"{name}: {time.perf_counter() - begun:.0f} s", given.json)
        say(json.dumps(found[name], indent=1), given.json)
    summary = {
        key: place(found, case, path) for key, (case, path, _) in REPORTED.items()
    }
    for key, (_, _, target) in REPORTED.items():
        value = "-" if summary[key] is None else f"{summary[key]:.4g}"
        say(f"{key:28} {value:>10}   {target}", given.json)
    packages = ("ebl-stream", "torch", "numpy", "numba")
    versions = {name: version(name) for name in packages}
    versions["python"] = platform.python_version()
    print(
        json.dumps(
            {"cases": found, "versions": versions, "quick": given.quick, **summary}
        )
    )


def say(words: str, quiet: bool) -> None:
    """Tell a person; with --json, beside the result."""
    print(words, file=sys.stderr if quiet else sys.stdout, flush=True)


def all_cases(data: Path, *, quick: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the cases by name; without the measured pair there is no pepper."""
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "foam": lambda: cases.foam_case(quick=quick),
        "warm": lambda: cases.warm_case(quick=quick),
        "uncertainty": lambda: cases.uncertainty_case(quick=quick),
        "latency": lambda: cases.latency_case(quick=quick),
        "speed": lambda: speed_case(quick=quick),
    }
    if (data / "helsinki_pepper_lowdose.h5").is_file():
        found["pepper"] = lambda: cases.pepper_case(data, quick=quick)
    return found


def speed_case(*, quick: bool) -> dict[str, Any]:
    """Frozen nets: the fast one against the published one, and a whole volume."""
    one = denoise_speed.fast_vs_published_speed(quick)
    return one | denoise_speed.slices_per_s_512(quick)


def place(found: dict[str, Any], case: str, path: str) -> float | None:
    """Return a figure, where it was measured."""
    value: Any = found.get(case)
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes; says so")
    parser.add_argument("--json", action="store_true", help="JSON alone on stdout")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--only", nargs="*", help="cases")
    return parser.parse_args()


if __name__ == "__main__":
    main()
