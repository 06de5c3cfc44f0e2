"""Where the images of events are, and which of them are read together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.ingest.stored import BLOCK_BYTES, StoredImages

Values: TypeAlias = tuple[float, ...]
"""What an event says: one value, or one for each of its frames."""


@dataclass(slots=True)
class Place:
    """Where the images of one event are."""

    stored: StoredImages | None
    index: int = 0
    """Event in the file."""
    images: NDArray[Any] | None = None
    """``(m, row, column)`` of an image that came inside its event."""
    drawn_with: Values | None = None
    """The angle with which it was handed on; None: not yet."""


def check_rows(rows: tuple[int, int], height: int) -> None:
    """Refuse a range of rows that the frames do not have.

    Raises
    ------
    InputError
        It reaches beyond the frame.
    """
    if not 0 <= rows[0] < rows[1] <= height:
        raise InputError(
            f"rows {rows[0]}:{rows[1]} are not in the frames, which have {height} rows"
        )


def blocks(events: list[tuple[int, Place]]) -> Iterator[list[tuple[int, Place]]]:
    """Group events that lie one after the other in a file, up to a block's bytes."""
    block: list[tuple[int, Place]] = []
    for event in events:
        place = event[1]
        if block and not _follows(block, place):
            yield block
            block = []
        block.append(event)
    if block:
        yield block


def _follows(block: list[tuple[int, Place]], place: Place) -> bool:
    last = block[-1][1]
    if place.stored is None or place.stored is not last.stored:
        return False
    fits = (len(block) + 1) * place.stored.event_bytes <= BLOCK_BYTES
    return fits and place.index == last.index + 1
