"""The nouns that flow through the house.

Axes everywhere: projections ``[angle, row, column]``, volumes ``[z, y, x]``.
Angles are radians; where degrees come in or go out the name says ``_deg``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

Image: TypeAlias = NDArray[Any]
"""One detector image, ``(row, column)``, in the detector's dtype."""


class Kind(IntEnum):
    """What a frame shows; the numbers are those of NXtomo's ``image_key``."""

    PROJECTION = 0
    FLAT = 1
    DARK = 2
    INVALID = 3


Reason: TypeAlias = Literal[
    "non_finite",  # more than half of the pixels are NaN or infinite
    "blank",  # every pixel is zero
    "unreadable",  # announced, but the file did not yield it
    "no_angle",  # an image without an angle, or with a NaN angle
    "wrong_shape",  # another shape or dtype than the run's first frame
    "no_image",  # an angle without an image
    "invalid_kind",  # marked invalid (image key 3) by the beamline
    "budget",  # no memory and no file to keep it in
]
"""Why a frame was rejected or dropped: a closed list, published with the data."""


@dataclass(frozen=True, slots=True)
class FrameRef:
    """Where a file-backed frame lies, so that it can be read again."""

    path: str
    """Resolved local path of the HDF5 file."""
    dataset: str
    index: tuple[int, ...]
    """Leading indices of the dataset that lead to one ``(row, column)`` image."""
    rows: tuple[int, int] | None = None
    """Half-open range of stored rows to read; None reads all."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One detector image with all that is needed to use it."""

    index: int
    """0-based within its stream and run: the key; the last write of a key wins."""
    kind: Kind
    theta: float
    """rad; NaN for flats and darks."""
    image: Image
    ref: FrameRef | None = None


@dataclass(frozen=True, slots=True)
class Announced:
    """Documents named these frames for the first time: the run owes them."""

    kind: Kind
    start: int
    stop: int
    """Half-open range of frame indices."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """A delivery of frames that had been delivered before.

    ``duplicate``: the very same document again, no effect. ``superseded``: a new
    document for the same key (a rewind); the new ``Frame`` follows and replaces.
    """

    kind: Kind
    start: int
    stop: int
    how: Literal["duplicate", "superseded"]


@dataclass(frozen=True, slots=True)
class Rejected:
    """An announced frame that cannot be used."""

    kind: Kind
    index: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Closed:
    """The run ended: what it owed in all."""

    exit_status: Literal["success", "abort", "fail", "unknown"]
    """``unknown``: the documents ended without a stop document."""
    reason: str
    n_announced_by_stop: int | None
    """Projections owed by ``stop.num_events``; None when it does not say."""
    n_orphan: int
    """Frames in the files that no document named."""
    n_references: dict[Kind, int] = field(default_factory=dict)
    """Flats and darks owed by ``stop.num_events``, as far as it says."""
    feed: dict[str, Any] | None = None
    """What a frame feed says of its part; None: there was none."""
    details: dict[str, Any] = field(default_factory=dict)
    """More to publish: flats from elsewhere, angles put between their neighbors."""
    is_references_only: bool = False
    """It held flats and darks for other runs, and no projections."""


Item: TypeAlias = Announced | Repeated | Frame | Rejected | Closed
"""What the assembler makes of documents, in order."""


@dataclass(frozen=True)
class Scan:
    """What is known of a run before its first frame."""

    run_uid: str
    start: dict[str, Any]
    """The start document, untouched."""
    n_projections: int | None = None
    """Projections that the plan promises; None when it does not say."""
    rotation_center: float | None = None
    """px, column of the stored frame, as file or start document state it."""
    voxel_size_um: float | None = None
    rows: tuple[int, int] | None = None
    """Half-open range of stored rows in use; z = row - rows[0]. None = all."""
