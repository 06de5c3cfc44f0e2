"""The checker as a program: prints JSON, exits with 1 where something is wrong."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from checker.check import check


def main() -> int:
    """Check one run."""
    parser = argparse.ArgumentParser(prog="python -m checker")
    parser.add_argument(
        "detector", type=Path, help="record of the detector, JSON lines"
    )
    parser.add_argument("run_uid")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--audit", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--planned", type=int, help="projections of the plan")
    given = parser.parse_args()
    report = check(
        given.detector,
        given.run_uid,
        journal=given.journal,
        audit=given.audit,
        results=given.results,
        n_planned=given.planned,
    )
    print(json.dumps(report.as_dict(), indent=2))
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
