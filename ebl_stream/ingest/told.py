"""What events said, kept in a few bytes each: a long scan has a great many."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = tuple[float, ...]
"""What an event says: one value, or one for each of its frames."""

_RECENT = 1024


class Told:
    """Values by event number. Nearly all events say one, which is in an array.

    Parameters
    ----------
    of : {"d", "b"}
        ``d``: floats, ``b``: small integers.
    """

    def __init__(self, of: Literal["d", "b"]) -> None:
        self._one = array(of)
        self._has_one = bytearray()
        self._others: dict[int, Values] = {}

    def get(self, seq: int) -> Values | None:
        """Return what an event said; None: nothing."""
        if seq < len(self._has_one) and self._has_one[seq]:
            return (self._one[seq],)
        return self._others.get(seq)

    def __contains__(self, seq: int) -> bool:
        return self.get(seq) is not None

    def __iter__(self) -> Iterator[int]:
        """Yield the events that said something."""
        yield from np.flatnonzero(np.frombuffer(self._has_one, np.uint8)).tolist()
        yield from self._others

    def __setitem__(self, seq: int, values: Values) -> None:
        self.pop(seq)
        if len(values) != 1:
            self._others[seq] = values
            return
        if (lacking := seq + 1 - len(self._one)) > 0:
            self._one.frombytes(bytes(lacking * self._one.itemsize))
            self._has_one.extend(bytes(lacking))
        self._one[seq] = values[0]  # type: ignore[call-overload]
        self._has_one[seq] = 1

    def pop(self, seq: int) -> None:
        """Forget what an event said, if it did."""
        self._others.pop(seq, None)
        if seq < len(self._has_one):
            self._has_one[seq] = 0

    def update(self, other: Told) -> None:
        """Take over what another one was told."""
        for seq in other:
            self[seq] = other.get(seq) or ()


class SeenUids:
    """Uids that were met before: 8 bytes of each, that nobody can guess."""

    def __init__(self) -> None:
        self._key = os.urandom(16)
        self._recent: set[int] = set()
        self._older: NDArray[np.uint64] = np.zeros(0, np.uint64)

    def add(self, uid: str) -> bool:
        """Note a uid; return whether it had been met before."""
        text = uid.encode("utf-8", "surrogatepass")
        digest = blake2b(text, digest_size=8, key=self._key).digest()
        number = int.from_bytes(digest, "little")
        if number in self._recent or self._is_older(number):
            return True
        self._recent.add(number)
        if len(self._recent) == _RECENT:
            recent = np.fromiter(self._recent, np.uint64)
            self._older = np.sort(np.concatenate([self._older, recent]))
            self._recent.clear()
        return False

    def _is_older(self, number: int) -> bool:
        wanted = np.uint64(number)
        at = int(np.searchsorted(self._older, wanted))
        return at < len(self._older) and self._older[at] == wanted
