"""How large a document is, found out without making anything of its size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

MAX_DEPTH = 64
MAX_KEYS = 4096
"""Entries of one dictionary."""
MAX_ITEMS = 16_000_000
"""Entries of all lists and dictionaries."""
MAX_TEXT = 2**20
"""Characters of the texts that stand side by side."""
MAX_TEXTS = 64 * 2**20
"""Characters of all texts."""
MAX_NDIM = 8
MAX_ARRAY_BYTES = 2**30

_QUICK = frozenset({float, bool, type(None)})
_PLAIN = _QUICK | {int, str}
_NUMBER_KINDS = "biufcSUmM"


class UnmeasurableError(ValueError):
    """A document has something that no document may have."""


class Measure:
    """Walks through a document once and stops where it is too much.

    Raises
    ------
    UnmeasurableError
        Nested too deeply, too many entries, too much text, an array of objects or one
        that is too large, an integer of more than 64 bits.
    """

    def __init__(self) -> None:
        self._items = 0
        self._characters = 0

    def __call__(self, doc: Mapping[Any, Any]) -> None:
        """Walk through a document."""
        level: list[Any] = [doc]
        for _ in range(MAX_DEPTH):
            level = [child for node in level for child in self._look(node)]
            if not level:
                return
        raise UnmeasurableError(f"nested deeper than {MAX_DEPTH} levels")

    def _look(self, node: Any) -> list[Any]:
        """Account for one container; return those inside."""
        self._items += len(node)
        if self._items > MAX_ITEMS:
            raise UnmeasurableError(f"more than {MAX_ITEMS} values")
        values = node
        if isinstance(node, Mapping):
            self._look_at_keys(node)
            values = node.values()
        types = set(map(type, values))
        if types <= _QUICK:  # as most are
            return []
        if types <= _PLAIN:
            self._look_at_plain(values)
            return []
        return [child for child in values if self._is_container(child)]

    def _look_at_keys(self, keys: Mapping[Any, Any]) -> None:
        if len(keys) > MAX_KEYS:
            raise UnmeasurableError(f"a dictionary of {len(keys)} entries")
        if set(map(type, keys)) - {str}:
            raise UnmeasurableError("a key that is not a text")
        self._read(sum(map(len, keys)))

    def _look_at_plain(self, values: Iterable[Any]) -> None:
        """Account for numbers and texts."""
        self._read(sum(len(value) for value in values if type(value) is str))
        for value in values:
            if type(value) is int:
                _check_integer(value)

    def _read(self, n_characters: int) -> None:
        self._characters += n_characters
        if n_characters > MAX_TEXT or self._characters > MAX_TEXTS:
            raise UnmeasurableError(f"texts of {n_characters} characters")

    def _is_container(self, value: Any) -> bool:
        if isinstance(value, list | tuple | Mapping):
            return True
        self._look_at_one(value)
        return False

    def _look_at_one(self, value: Any) -> None:
        if isinstance(value, str | bytes):
            self._read(len(value))
        elif isinstance(value, int):
            _check_integer(value)
        elif isinstance(value, np.ndarray | np.generic):
            _check_array(value)


def _check_integer(value: int) -> None:
    if not -(2**63) <= value < 2**64:
        raise UnmeasurableError("an integer of more than 64 bits")


def _check_array(array: np.ndarray[Any, Any] | np.generic) -> None:
    if array.dtype.kind not in _NUMBER_KINDS:
        raise UnmeasurableError(f"an array of dtype {str(array.dtype)[:40]}")
    if array.ndim > MAX_NDIM:
        raise UnmeasurableError(f"an array of {array.ndim} dimensions")
    # A broadcast array claims more than it holds.
    if math.prod(array.shape) * array.dtype.itemsize > MAX_ARRAY_BYTES:
        raise UnmeasurableError(f"an array of shape {array.shape}")
