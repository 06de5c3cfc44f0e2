"""Faults of the way from the plan to a callback, for demos and tests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

Callback = Callable[[str, dict[str, Any]], Any]


class LostProjections:
    """A document callback whose sender loses some projections on the way.

    StreamDatum documents are cut around the lost frames, events with them left
    out; all else passes. Frames and angles are lost together, as they are when a
    detector's trigger is missed and its file keeps the place free.

    Parameters
    ----------
    callback : callable
        Gets ``(name, doc)`` of what is left.
    lost : collection of int
        0-based numbers of projections within the stream.
    stream : str
        The stream that holds the projections.
    """

    def __init__(
        self, callback: Callback, lost: Collection[int], stream: str = "primary"
    ) -> None:
        self._callback = callback
        self._lost = frozenset(lost)
        self._stream = stream
        self._descriptors: set[str] = set()

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        """Pass a document on, or what is left of it."""
        if name == "descriptor" and doc["name"] == self._stream:
            self._descriptors.add(doc["uid"])
        if doc.get("descriptor") not in self._descriptors:
            self._callback(name, doc)
        elif name == "stream_datum":
            for part in _without(doc, self._lost):
                self._callback(name, part)
        elif name != "event" or doc["seq_num"] - 1 not in self._lost:
            self._callback(name, doc)


def _without(
    datum: Mapping[str, Any], lost: Collection[int]
) -> Iterator[dict[str, Any]]:
    """Cut a StreamDatum into the pieces that hold none of the lost frames."""
    first, stop = datum["seq_nums"]["start"] - 1, datum["seq_nums"]["stop"] - 1
    shift = datum["indices"]["start"] - first
    cuts = [k for k in range(first, stop) if k in lost]
    for begin, end in zip([first, *(k + 1 for k in cuts)], [*cuts, stop], strict=True):
        if begin < end:
            yield {
                **datum,
                "uid": f"{datum['uid']}-{begin}",
                "seq_nums": {"start": begin + 1, "stop": end + 1},
                "indices": {"start": begin + shift, "stop": end + shift},
            }
