"""The flats and darks of the last runs, as documents: other runs may name them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ebl_stream.ingest.held import document_bytes
from ebl_stream.profile import Streams

Document: TypeAlias = tuple[str, dict[str, Any]]

MAX_RUNS = 32
MAX_BYTES = 256 * 2**20
"""Documents of all these runs, images inside events included."""


@dataclass
class _Run:
    documents: list[Document] = field(default_factory=list)
    descriptors: set[str] = field(default_factory=set)
    n_bytes: int = 0
    is_over: bool = False


class RecentRuns:
    """Keep what is needed to make the flats and darks of the last runs again.

    Documents name files or hold images; no pixel is read before another run asks.

    Parameters
    ----------
    streams : Streams
        Which streams hold flats and darks.
    """

    def __init__(self, streams: Streams) -> None:
        self._names = {*streams.flats, *streams.darks}
        self._runs: OrderedDict[str, _Run] = OrderedDict()

    def note(self, run_uid: str, name: str, doc: dict[str, Any]) -> None:
        """Take one document of a run, referents first."""
        if name == "start":
            self._runs[run_uid] = _Run()
        run = self._runs.get(run_uid)
        if run is None or not self._is_wanted(run, name, doc):
            return
        run.documents.append((name, doc))
        run.n_bytes += document_bytes(doc)
        run.is_over |= name == "stop"
        if run.is_over and not run.descriptors:
            del self._runs[run_uid]  # nobody will ask
        self._shrink(run_uid)

    def find(self, run_uid: str) -> list[Document] | None:
        """Return the documents of a run that is over; None where none is known."""
        run = self._runs.get(run_uid)
        return run.documents if run is not None and run.is_over else None

    def _is_wanted(self, run: _Run, name: str, doc: dict[str, Any]) -> bool:
        if name == "descriptor" and doc["name"] in self._names:
            run.descriptors.add(doc["uid"])
        if name == "descriptor":
            return doc["uid"] in run.descriptors
        if name in ("event", "stream_datum"):
            return doc["descriptor"] in run.descriptors
        return True

    def _shrink(self, newest: str) -> None:
        while len(self._runs) > MAX_RUNS or (
            sum(run.n_bytes for run in self._runs.values()) > MAX_BYTES
        ):
            oldest = next(iter(self._runs))
            del self._runs[oldest]
            if oldest == newest:
                return
