"""One scan in every dialect: the same frames, the same volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from dialect_runs import ANGLES, CENTER, PROJECTIONS, REFERENCES, THETA, N, Scan, frames
from scans import assemble

from ebl_stream.cli.commands import PLAIN
from ebl_stream.frames import Kind
from ebl_stream.profile_file import load
from ebl_stream.reconstruction import Reconstruction


def of_run(documents: list[Any]) -> list[Any]:
    """Leave out what belongs to another run."""
    first = [k for k, (name, _) in enumerate(documents) if name == "start"][-1]
    return documents[first:]


@pytest.mark.parametrize("projections", PROJECTIONS)
@pytest.mark.parametrize("references", REFERENCES)
def test_every_dialect_gives_the_same_frames(
    tmp_path: Path, projections: str, references: str
) -> None:
    raw, flats, darks = frames()
    for angles in ANGLES:
        scan = Scan(tmp_path, projections, references, angles)
        if not scan.is_possible:
            continue
        documents = of_run(scan.documents())
        outcome = assemble(
            documents,
            load("default", {**scan.settings, "files.timeout_s": 0.5}),
            roots=[tmp_path],
            find_run=scan.others.get,
        )
        outcome.check_conserved()
        np.testing.assert_array_equal(outcome.stack(), raw, err_msg=angles)
        np.testing.assert_allclose(outcome.theta(), np.radians(THETA), err_msg=angles)
        np.testing.assert_array_equal(outcome.stack(Kind.FLAT), flats)
        np.testing.assert_array_equal(outcome.stack(Kind.DARK), darks)
        assert outcome.closed.n_announced_by_stop in (N, N + 2)
        assert set(outcome.rejected.values()) <= {"invalid_kind"}


def reconstruct(scan: Scan, out: Path) -> tuple[Any, np.ndarray[Any, Any]]:
    documents = scan.documents()
    settings = {**PLAIN, "geometry.rotation_center": CENTER, **scan.settings}
    house = Reconstruction(
        load("default", settings),
        out=out,
        roots=[scan.folder],
        find_run=scan.others.get,
    )
    for name, doc in documents:
        house(name, doc)
    house.close()
    (result,) = house.results.values()
    return result, np.asarray(zarr.open_array(result.volume, mode="r"))


VARIED = [
    *((p, "before", "event") for p in PROJECTIONS),
    *(("nhw", r, "event") for r in REFERENCES[1:]),
    *(("nmhw", "other_run", a) for a in ANGLES),
]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray[Any, Any]:
    folder = tmp_path_factory.mktemp("usual")
    return reconstruct(Scan(folder), folder)[1]


@pytest.mark.parametrize(("projections", "references", "angles"), VARIED)
def test_every_dialect_gives_the_same_volume(
    tmp_path: Path,
    usual: np.ndarray[Any, Any],
    projections: str,
    references: str,
    angles: str,
) -> None:
    scan = Scan(tmp_path, projections, references, angles)
    result, volume = reconstruct(scan, tmp_path / "out")
    assert (result.ledger["used"], result.ledger["residue"]) == (N, 0)
    assert (result.ledger["missing"], result.ledger["in_flight"]) == (0, 0)
    assert np.abs(volume - usual).max() < 1e-5 * np.abs(usual).max()
    assert result.state == "complete"
