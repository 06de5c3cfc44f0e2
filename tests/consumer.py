"""The reconstruction at the end of a bad line, and the check of what came of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import zarr
from expected import Expectations, Expected
from numpy.typing import NDArray
from sessions import PLAIN
from telling import CENTER, COLUMNS, ROWS, Document, Teller

from ebl_stream.frames import Reason
from ebl_stream.profile_file import load
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.result import Progress, Result
from ebl_stream.service.run_index import RunIndex
from ebl_stream.transport.documents import pack, unpack
from ebl_stream.transport.journal import read_journal
from ebl_stream.transport.new_journal import new_journal

GRACE_S, SILENCE_S = 2.0, 600.0
N = 20
"""Projections of a clean run."""
PROFILE = load(
    "demo",
    PLAIN
    | {
        "reconstruct": {"fourier": {"padding": "zero"}},
        "geometry.rotation_center": CENTER,
        "files.timeout_s": 0.05,
        "refresh.every": 0.5,
        "preview.every": 0.0,
        "run.stop_grace_s": GRACE_S,
        "run.silence_s": SILENCE_S,
    },
)


class Alarms(logging.Handler):
    """Hears what must not be said."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # A run without a usable projection ends, and says so: nothing is amiss. So
        # does one whose first projection, which the others follow, is misshapen.
        if "no projection can be used" not in message and "have shape" not in message:
            self.heard.append(message)


class Consumer:
    """The reconstruction behind its journal; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.results: dict[str, Result] = {}
        self.failed: set[str] = set()
        self._folder = folder
        self._index = RunIndex()
        self._owners: list[str | None] = []
        self._settled = 0
        """Documents that have been used or given up."""
        self._path, self._journal = new_journal(folder, "all")
        self.house = self._begin()

    def _begin(self) -> Reconstruction:
        out = self._folder / "out"
        house = Reconstruction(
            PROFILE,
            out=out,
            roots=[self._folder],
            on_progress=self._progressed,
        )
        house.live = True  # from here on: kernels need not be warmed each time
        house._sorter._clock = lambda: self.now
        house._sorter._busy_s = 0.0
        return house

    def _progressed(self, progress: Progress) -> None:
        if progress.state == "failed":
            self.failed.add(progress.run_uid)

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        packed = pack(name, doc)
        self._journal.append(packed, 0.0)
        self._owners.append(self._index.run_uid(name, doc))
        self.house(*unpack(packed))
        self.results |= self.house.results

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.house.tick()
        if seconds > SILENCE_S:
            self._settled = len(self._owners)
        self.results |= self.house.results

    def crash(self) -> None:
        """Die without a word, and go on from the journal."""
        abandon(self.house)
        self.house = self._begin()
        over = self.results.keys() | self.failed
        records = zip(read_journal(self._path), self._owners, strict=True)
        for (_, name, doc), owner in islice(records, self._settled, None):
            if owner not in over:
                self.house(name, doc)
        self.results |= self.house.results

    def close(self) -> None:
        self.house.close()
        self.results |= self.house.results
        self._journal.close()


def abandon(house: Reconstruction) -> None:
    """Let go of memory and threads, as the end of a process does."""
    for run in house._sorter._runs.values():
        consumer: Any = run.consumer
        list(consumer._assembler.close())  # its files; nobody gets the frames
        if consumer._session is not None:
            consumer._session.close()


def metadata_of(result: Result) -> dict[str, Any]:
    return json.loads((Path(result.volume).parent / "metadata.json").read_text())


def volume_of(result: Result) -> NDArray[np.float32]:
    return np.asarray(zarr.open_array(result.volume, mode="r"))


def check(run: Expected, result: Result | None) -> None:
    """Compare what came of a run with what should have."""
    if not run.used:
        assert result is None
        return
    if run.like is not None and run.like.shape != (ROWS, COLUMNS):
        # It depends on whether flats were there before, see test_session.
        return
    assert result is not None
    metadata = metadata_of(result)
    check_ledger(run, result.ledger)
    assert metadata["ledger"] == json.loads(json.dumps(result.ledger))
    assert metadata["angles"]["index"] == sorted(run.used)
    theta = [run.used[k][1] for k in sorted(run.used)]
    np.testing.assert_allclose(metadata["angles"]["theta_rad"], theta)
    for stream in ("flats", "darks"):
        report = metadata["references"][stream]
        assert report["used"] == run.n_of(stream)
        assert (report["residue"], report["alarm"]) == (0, None)
    volume = volume_of(result)
    assert np.isfinite(volume).all()
    if run.n_of("flats"):
        batch = run.volume
        assert np.abs(volume - batch).max() <= 1e-5 * np.abs(batch).max()


def check_ledger(run: Expected, ledger: dict[str, Any]) -> None:
    named = {k for a, b in ledger["missing_indices"] for k in range(a, b)}
    refused = {k for a, b in ledger["rejected_indices"] for k in range(a, b)}
    assert named == run.missing
    assert refused == run.refused.keys()
    reasons = list(run.refused.values())
    assert ledger["rejected_by"] == {why: reasons.count(why) for why in set(reasons)}
    assert set(reasons) <= set(get_args(Reason))
    assert ledger["used"] == len(run.used)
    for how in ("superseded", "duplicate"):
        assert ledger[how] == run.repeats[how]
    assert (ledger["residue"], ledger["in_flight"], ledger["alarm"]) == (0, 0, None)


class Line:
    """A consumer, and what is expected of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.consumer = Consumer(folder)
        self.expected = Expectations()

    def teller(self, seed: int, *, in_file: bool = False, **kwargs: Any) -> Teller:
        teller = Teller(seed, self.folder if in_file else None, **kwargs)
        self.expected.tellers[teller.uid] = teller
        return teller

    def send(self, documents: Iterable[Document]) -> None:
        for name, doc in documents:
            self.consumer(name, doc)
            self.expected.take(name, doc)

    def check(self) -> None:
        """End the source, and compare every run with what is expected of it."""
        self.consumer.close()
        self.expected.give_up()
        for uid, run in self.expected.runs.items():
            check(run, self.consumer.results.get(uid))

    @property
    def is_at_rest(self) -> bool:
        sorter = self.consumer.house._sorter
        return not (sorter._runs or sorter._known or len(sorter._held))


def whole(teller: Teller, n: int = N, each: int = 4) -> Iterator[Document]:
    """A clean run: flats, then projections, a few at a time."""
    yield from teller.start()
    yield from teller.reference("flats", 2)
    for _ in range(n // each):
        yield from teller.expose(each)
    yield from teller.stop()
