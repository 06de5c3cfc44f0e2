"""Documents that came before what they refer to, kept within bounds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ebl_stream.ingest.referents import Token


@dataclass(frozen=True, order=True, slots=True)
class Arrived:
    """A document, and the how manieth it was: others have this order, too."""

    number: int
    name: str = field(compare=False)
    doc: dict[str, Any] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Held:
    """A document that waits."""

    arrived: Arrived
    needs: Token
    run_uid: str | None
    """Known where only a part of what it refers to is missing."""
    since_s: float
    n_bytes: int


class HeldDocuments:
    """Documents that wait, each for one token, in the order in which they came.

    Parameters
    ----------
    max_held, max_bytes : int
        Beyond them the oldest goes; one document is held whatever its size.
    """

    def __init__(self, max_held: int, max_bytes: int) -> None:
        self._max_held = max_held
        self._max_bytes = max_bytes
        self._held: OrderedDict[int, Held] = OrderedDict()
        self._waiting: dict[Token, list[int]] = {}
        self.n_bytes = 0
        """Estimated memory of what is held."""

    def __len__(self) -> int:
        return len(self._held)

    def hold(
        self,
        arrived: Arrived,
        needs: Token,
        run_uid: str | None,
        since_s: float,
    ) -> list[Held]:
        """Take a document in; return those that had to go for it."""
        number = arrived.number
        held = Held(arrived, needs, run_uid, since_s, document_bytes(arrived.doc))
        self._held[number] = held
        self._waiting.setdefault(needs, []).append(number)
        self.n_bytes += held.n_bytes
        gone = []
        while len(self._held) > self._max_held or (
            self.n_bytes > self._max_bytes and len(self._held) > 1
        ):
            gone.append(self._take(next(iter(self._held))))
        return gone

    def release(self, token: Token) -> list[Held]:
        """Return what waited for a token."""
        return [self._take(number) for number in list(self._waiting.get(token, ()))]

    def release_run(self, run_uid: str) -> list[Held]:
        """Return what waits and is known to be of a run, the first to come first."""
        of_run = [n for n, held in self._held.items() if held.run_uid == run_uid]
        return [self._take(number) for number in sorted(of_run)]

    def release_older(self, since_s: float) -> Iterator[Held]:
        """Yield what has waited since then or longer."""
        while self._held:
            number, held = next(iter(self._held.items()))
            if held.since_s > since_s:
                return
            yield self._take(number)

    def clear(self) -> None:
        """Let everything go."""
        self._held.clear()
        self._waiting.clear()
        self.n_bytes = 0

    def _take(self, number: int) -> Held:
        held = self._held.pop(number)
        self.n_bytes -= held.n_bytes
        waiting = self._waiting[held.needs]
        waiting.remove(number)
        if not waiting:
            del self._waiting[held.needs]
        return held


def document_bytes(doc: dict[str, Any]) -> int:
    """Estimate the memory of a document: what counts are images inside events."""
    data = doc.get("data")
    values = data.values() if isinstance(data, dict) else ()
    return 1000 + sum(_value_bytes(value) for value in values)


def _value_bytes(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    n = 32
    while isinstance(value, list | tuple) and value:
        n *= len(value)
        value = value[0]
    return n
