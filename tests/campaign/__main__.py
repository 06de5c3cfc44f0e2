"""The campaign as a program: shows progress, writes a table, exits with 1 on failures.

Further hands for a failure: ``--points`` and ``--seeds`` kill again where it failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from campaign.house import House
from campaign.kills import Killer, Outcome, plain_points
from campaign.report import Row, Table
from campaign.soak import soak

TESTS = Path(__file__).parents[1]
COUNTED = re.compile(r"(\d+) (passed|failed|error)")
OUTCOMES = ("FAILED tests", "ERROR tests")
"""How pytest names what failed; the log of a failed test has lines of its own."""

ALL_STREAMS = 20_000
"""Mutated streams for which their test wants a share of 1."""

ALL_FILES = 2000
"""Fuzzed files for which the fuzz tests want a share of 1."""


@contextmanager
def fresh_house() -> Iterator[House]:
    """Make a house in a folder of its own."""
    # Short: it holds a socket.
    folder = Path(tempfile.mkdtemp(prefix="ebl-campaign-"))
    house = House(folder)
    try:
        yield house
    finally:
        house.close()
        shutil.rmtree(folder, ignore_errors=True)


def say(words: str) -> None:
    """Say how far it is."""
    print(f"{time.strftime('%H:%M:%S')} {words}", flush=True)


def tests(part: str, what: list[str], n: int, log: Path, **variables: str) -> Row:
    """Run tests at another size."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "--timeout=0", "-rf", *what]
    done = subprocess.run(
        command,
        cwd=TESTS.parent,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    log.write_text(done.stdout + done.stderr)
    lines = done.stdout.splitlines()
    failures = [line for line in lines if line.startswith(OUTCOMES)]
    if done.returncode and not failures:
        failures = [lines[-1] if lines else done.stderr[-200:]]
    counts = dict(
        reversed(pair) for pair in COUNTED.findall(lines[-1] if lines else "")
    )
    figures = {"tests passed": counts.get("passed", "0"), "log": log.name}
    return Row(part, n, len(failures), time.monotonic() - begun, figures, failures)


def kills(part: str, outcomes: Iterator[Outcome]) -> Row:
    """Sum up what kills came to."""
    begun, done = time.monotonic(), list[Outcome]()
    for outcome in outcomes:
        done.append(outcome)
        say(f"{part} {len(done)}: {outcome.name} {'ok' if outcome.good else 'FAILED'}")
    l2 = [o.l2 for o in done if np.isfinite(o.l2)] or [0.0]
    figures = {
        "bit-equal": sum(o.bit_equal for o in done),
        "largest L2": f"{max(l2):.1e}",
        "restart to first update, s, median and max": (
            f"{np.median([o.restart_s for o in done]):.2f} "
            f"{max(o.restart_s for o in done):.2f}"
        ),
        "door p99, max, ms": (
            f"{np.percentile([o.door['p99_ms'] for o in done], 99):.2f} "
            f"{max(o.door['max_ms'] for o in done):.2f}"
        ),
    }
    failures = [f"{o.name}: {o.problem}" for o in done if not o.good]
    wall_s = time.monotonic() - begun
    return Row(part, len(done), len(failures), wall_s, figures, failures)


def long_soak(minutes: float) -> Row:
    """Scan for a long time."""
    begun = time.monotonic()
    with fresh_house() as house:
        soaked = soak(house, minutes, say)
    figures = {k: v for k, v in soaked.as_dict().items() if k != "problems"}
    wall_s = time.monotonic() - begun
    failures = list(soaked.problems)
    if soaked.slope() >= 1.0 and minutes >= 5:
        failures.append(f"memory grows: {soaked.slope():.2f} MiB per 1000 projections")
    return Row("soak", soaked.n_runs, len(failures), wall_s, figures, failures)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="make campaign CAMPAIGN=...")
    parser.add_argument("--mutations", type=int, default=20_000, help="streams")
    parser.add_argument("--kills", type=int, default=200, help="at random")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak")
    parser.add_argument(
        "--files", type=int, default=ALL_FILES, help="fuzzed HDF5 files"
    )
    parser.add_argument("--seed", type=int, default=1000, help="of the first kill")
    parser.add_argument("--points", nargs="*", help="fail-points [all of them]")
    parser.add_argument("--out", type=Path, default=Path("campaign"))
    return parser.parse_args()


def main() -> int:
    """Run the whole matrix."""
    given = options()
    settings = {k: v for k, v in vars(given).items() if k not in ("out", "points")}
    table = Table(given.out, settings)
    if given.mutations:
        say(f"{given.mutations} mutated streams of documents")
        what, log = [str(TESTS / "test_mutations.py")], given.out / "mutations.log"
        share = str(given.mutations / ALL_STREAMS)
        row = tests("mutations", what, given.mutations, log, EBL_STREAM_CAMPAIGN=share)
        table.add(row)
    if given.files:
        say(f"{given.files} fuzzed files, and documents in proportion")
        share = str(given.files / ALL_FILES)
        log = given.out / "fuzz.log"
        what = [str(TESTS / "fuzz")]
        table.add(tests("fuzz", what, given.files, log, EBL_STREAM_CAMPAIGN=share))
    with fresh_house() as house:
        killer = Killer(house)
        points = plain_points() if given.points is None else given.points
        if points:
            table.add(kills("fail-points", (killer.at_point(p) for p in points)))
        seeds = range(given.seed, given.seed + given.kills)
        if given.kills:
            table.add(kills("random kills", (killer.at_random(s) for s in seeds)))
    if given.minutes:
        table.add(long_soak(given.minutes))
    print(table.as_markdown())
    say(f"the table is in {given.out}/campaign.md and .json")
    return 0 if table.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
