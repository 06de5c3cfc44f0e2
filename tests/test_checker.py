"""The checker finds what is planted, at each of the four places, and nothing else."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest
from campaign.house import PATIENCE_S, House
from campaign.scan import N
from checker.check import Report, check

PLACES = ("detector", "journal", "accumulator", "read-back")
LOST, TWICE, STRANGE = 7, 11, 99


@dataclass
class Clean:
    """A run that nothing happened to, and its files."""

    folder: Path
    uid: str
    processed_uid: str

    @property
    def journal(self) -> Path:
        (path,) = (self.folder / "out" / "journal").glob("*.ebldocs")
        return path

    @property
    def audit(self) -> Path:
        return self.folder / f"{self.processed_uid}.audit.jsonl"

    @property
    def detector(self) -> Path:
        return self.folder / "detector.jsonl"

    @property
    def metadata(self) -> Path:
        return self.folder / "out" / self.processed_uid / "metadata.json"

    def check(self) -> Report:
        return check(
            self.detector,
            self.uid,
            journal=self.journal.parent,
            audit=self.folder,
            results=self.folder / "out",
            n_planned=N,
        )


@pytest.fixture(scope="module")
def scanned() -> Iterator[Clean]:
    folder = Path(tempfile.mkdtemp(prefix="ebl-check-"))
    house = House(folder)
    house.start()
    try:
        uid, documents = house.detector.scan()
        for name, doc in documents:
            house.door.send(name, doc)
        result = house.door.wait(PATIENCE_S, uid)
        assert house.end() == 0
        yield Clean(folder, uid, result["processed_uid"])
    finally:
        house.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def clean(scanned: Clean, tmp_path: Path) -> Clean:
    for path in scanned.folder.iterdir():
        if path.is_dir():
            shutil.copytree(path, tmp_path / path.name)
        elif path.is_file():
            shutil.copy(path, tmp_path)
    return Clean(tmp_path, scanned.uid, scanned.processed_uid)


def plant_in_lines(path: Path, is_of: Any) -> None:
    """Lose one line and write another one twice."""
    planted: list[str] = []
    for line in path.read_text().splitlines(keepends=True):
        which = is_of(json.loads(line))
        planted += [] if which == LOST else [line, line] if which == TWICE else [line]
    path.write_text("".join(planted))


def plant_in_detector(clean: Clean) -> None:
    plant_in_lines(clean.detector, lambda line: line["id"])


def plant_in_journal(clean: Clean) -> None:
    with clean.journal.open("rb") as file:
        header, *records = msgpack.Unpacker(file)
    kept, primary = [msgpack.packb(header)], None
    for received, packed in records:
        name, doc = msgpack.unpackb(packed)
        if name == "descriptor" and doc["name"] == "primary":
            primary = doc["uid"]
        is_mine = name == "event" and doc["descriptor"] == primary
        which = doc["seq_num"] - 1 if is_mine else -1
        times = {LOST: 0, TWICE: 2}.get(which, 1)
        kept += [msgpack.packb([received, packed])] * times
    clean.journal.write_bytes(b"".join(kept))


def plant_in_audit(clean: Clean) -> None:
    """As a service would leave it that adds one frame twice, and one never."""
    lines = [json.loads(line) for line in clean.audit.read_text().splitlines()]
    for line in lines:
        added = [row for row in line.get("added", ()) if row[0] != LOST]
        twice = [row for row in added if row[0] == TWICE]
        if added:
            line["added"] = added + twice
    clean.audit.write_text("".join(json.dumps(line) + "\n" for line in lines))


def plant_in_read_back(clean: Clean) -> None:
    metadata = json.loads(clean.metadata.read_text())
    angles = metadata["angles"]
    pairs = list(zip(angles["index"], angles["theta_rad"], strict=True))
    pairs = [pair for pair in pairs if pair[0] != LOST]
    pairs += [pair for pair in pairs if pair[0] == TWICE]
    angles["index"], angles["theta_rad"] = map(list, zip(*pairs, strict=True))
    clean.metadata.write_text(json.dumps(metadata))


PLANT = dict(
    zip(
        PLACES,
        (plant_in_detector, plant_in_journal, plant_in_audit, plant_in_read_back),
        strict=True,
    )
)


def test_a_clean_run_is_clean_at_every_place(clean: Clean) -> None:
    report = clean.check().as_dict()
    assert report["good"]
    assert report["states"] == {"complete": 1}
    ok = {"lost": 0, "duplicated": 0, "unexpected": 0, "superseded": 0, "named": 0}
    assert report["places"] == {place: {"ok": N, **ok} for place in PLACES}


@pytest.mark.parametrize("place", PLACES)
def test_one_lost_and_one_duplicated_id_are_found_where_they_are(
    clean: Clean, place: str
) -> None:
    PLANT[place](clean)
    report = clean.check()
    assert not report.is_good
    faults = {v.place: v.faults for v in report.verdicts if v.faults}
    assert faults.pop(place) == {LOST: "lost", TWICE: "duplicated"}
    # What the detector does not own up to is a stranger everywhere else.
    strangers = {LOST: "unexpected"} if place == "detector" else None
    rest = dict.fromkeys(PLACES[1:], strangers) if strangers else {}
    assert faults == rest


def test_another_image_and_a_stranger_are_unexpected(clean: Clean) -> None:
    lines = [json.loads(line) for line in clean.audit.read_text().splitlines()]
    for line in lines:
        for row in line.get("added", ()):
            row[1] += row[0] == LOST  # its pixels changed on the way
    lines.append({"added": [[STRANGE, 1, 0.1, 0.1]]})
    clean.audit.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (verdict,) = [v for v in clean.check().verdicts if v.place == "accumulator"]
    assert verdict.faults == {LOST: "unexpected", STRANGE: "unexpected"}


def test_a_rewound_id_is_superseded_and_its_old_image_must_not_stay(
    clean: Clean,
) -> None:
    first = json.loads(clean.detector.read_text().splitlines()[TWICE])
    assert first["id"] == TWICE
    again = clean.detector.read_text() + json.dumps({**first, "crc": 5}) + "\n"
    clean.detector.write_text(again)
    report = clean.check()
    found = {v.place: (v.n_superseded, v.faults) for v in report.verdicts}
    assert found["detector"] == (1, {})
    # The second exposure came nowhere: lost on its way, and the old one counts still.
    assert found["journal"] == (1, {TWICE: "lost"})
    assert found["accumulator"] == (0, {TWICE: "unexpected"})


def test_an_id_that_the_ledger_names_is_no_loss(clean: Clean) -> None:
    plant_in_read_back(clean)
    metadata = json.loads(clean.metadata.read_text())
    metadata["ledger"]["rejected_indices"] = [[LOST, LOST + 1]]
    clean.metadata.write_text(json.dumps(metadata))
    (verdict,) = [v for v in clean.check().verdicts if v.place == "read-back"]
    assert verdict.classes[LOST] == "named"


def test_two_results_are_one_too_many(clean: Clean) -> None:
    twin = clean.metadata.parent.with_name("recon-twin")
    shutil.copytree(clean.metadata.parent, twin)
    assert clean.check().problem == "not one result: 2 complete"


def test_the_checker_is_a_program_that_knows_nothing_of_the_service(
    clean: Clean,
) -> None:
    folder = Path(__file__).parent / "checker"
    names: set[str] = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
    assert names <= {*sys.stdlib_module_names, "checker", "msgpack"}
    command = [sys.executable, "-m", "checker", str(clean.detector), clean.uid]
    command += ["--journal", str(clean.journal.parent), "--audit", str(clean.folder)]
    command += ["--results", str(clean.folder / "out"), "--planned", str(N)]
    for expected in (0, 1):
        done = subprocess.run(command, cwd=folder.parent, capture_output=True)
        assert done.returncode == expected, done.stderr
        plant_in_audit(clean)
