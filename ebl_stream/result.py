"""What a run says of itself: while it runs (`Progress`) and at its end (`Result`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

State = Literal["running", "complete", "partial", "failed"]


@dataclass(frozen=True)
class Progress:
    """One look at a running reconstruction; plain JSON types only."""

    run_uid: str
    processed_uid: str
    state: State
    n_owed: int
    """Projections that the run owes as far as known."""
    n_received: int
    n_used: int
    coverage: float
    """Used over owed, 0..1."""
    version: int
    """Published looks at the volume so far."""
    rotation_center: float | None
    """px, column of the stored frame."""
    rotation_center_source: str
    rate_hz: float
    """Projections per second since the first."""
    latency_s: float | None
    """From the newest projection to the volume that held it, last version."""
    resolution_px: float | None
    """Split-half resolution (FRC 1/7), median over slabs."""
    eta_s: float | None
    ledger: dict[str, Any]
    volume: str | None
    """Path of the reconstructed volume's zarr array."""
    message: str = ""

    @classmethod
    def never_began(cls, run_uid: str, why: str) -> Progress:
        """Return what is said of a run that failed before its first frame."""
        return cls(
            run_uid=run_uid,
            processed_uid="",
            state="failed",
            n_owed=0,
            n_received=0,
            n_used=0,
            coverage=0.0,
            version=0,
            rotation_center=None,
            rotation_center_source="assumed",
            rate_hz=0.0,
            latency_s=None,
            resolution_px=None,
            eta_s=None,
            ledger={},
            volume=None,
            message=why,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """What came of a run; its dict is what `ebl-stream replay --json` prints."""

    run_uid: str
    processed_uid: str
    volume: str
    """Absolute path of the zarr array, ``[z, y, x]`` float32, 1/px."""
    shape: tuple[int, int, int]
    rotation_center: float
    """px, column of the stored frame."""
    rotation_center_source: str
    """given, file, measured, previous or assumed."""
    n_projections: int
    """Projections in the volume."""
    ledger: dict[str, Any]
    state: State
    latency_s: dict[str, float | None]
    """From first or last projection received, monotonic clock."""
    wall_s: float
    message: str = ""
    quality: dict[str, float] = field(default_factory=dict)
    """Means over the slabs of the last version."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    @property
    def exit_code(self) -> int:
        """0 complete, 3 partial, 1 failed."""
        return {"complete": 0, "partial": 3}.get(self.state, 1)
