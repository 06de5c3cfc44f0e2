"""The campaign's short form: the same program, small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from campaign.report import Row, Table

TESTS = Path(__file__).parent


def test_a_small_campaign_writes_its_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "campaign", "--mutations", "0", "--files", "0"]
    command += ["--kills", "3", "--points", "queued", "--minutes", "0.05"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "campaign.json").read_text())
    rows = {row["part"]: row for row in content["rows"]}
    assert {part: row["n_failed"] for part, row in rows.items()} == {
        "fail-points": 0,
        "random kills": 0,
        "soak": 0,
    }
    assert (rows["fail-points"]["n"], rows["random kills"]["n"]) == (1, 3)
    assert "seed 1002" in done.stdout
    table = (tmp_path / "campaign.md").read_text()
    assert "| random kills | 3 | 0 |" in table
    print(table)


def test_what_failed_is_kept_in_the_table(tmp_path: Path) -> None:
    table = Table(tmp_path, {"seed": 7})
    table.add(Row("random kills", 2, 1, 3.0, {}, ["seed 8: another volume"]))
    assert not table.is_good
    assert (
        "- random kills: seed 8: another volume"
        in (tmp_path / "campaign.md").read_text()
    )
