"""What a run owes in all, as its end tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ebl_stream.frames import Closed, Kind
from ebl_stream.ingest.datum_reader import DatumReader
from ebl_stream.ingest.elsewhere import Elsewhere
from ebl_stream.ingest.fed import FedRun
from ebl_stream.ingest.run_streams import RunStreams
from ebl_stream.profile import Profile


def closed(
    stop: Mapping[str, Any],
    profile: Profile,
    streams: RunStreams,
    fed: FedRun | None,
    elsewhere: Elsewhere,
    reader: DatumReader,
) -> Closed:
    """Return the last item of a run.

    Parameters
    ----------
    stop : mapping
        The stop document; empty where there was none.
    """
    status = stop.get("exit_status")
    num_events = stop.get("num_events") or {}
    references = _references(num_events, profile, streams, fed)
    for kind, n in elsewhere.n.items():
        references[kind] = references.get(kind, 0) + n
    if elsewhere.is_wanted and not _has_flats(streams, elsewhere):
        # Somebody said where they are, and they are not there.
        references[Kind.FLAT] = max(1, references.get(Kind.FLAT, 0))
    return Closed(
        exit_status=status if status in ("success", "abort", "fail") else "unknown",
        reason=str(stop.get("reason") or ""),
        n_announced_by_stop=_projections(num_events, profile, streams, fed),
        n_orphan=reader.n_orphan(),
        n_references=references,
        feed=fed.report() if fed is not None else None,
        details=_details(streams, elsewhere),
        is_references_only=_is_references_only(num_events, profile, streams),
    )


def _details(streams: RunStreams, elsewhere: Elsewhere) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if (report := elsewhere.report()) is not None:
        details["references_elsewhere"] = report
    projections = streams.projections
    if projections is not None and len(projections.frames.interpolated):
        filled = [list(r) for r in projections.frames.interpolated]
        details["interpolated_angles"] = filled
    return details


def _has_flats(streams: RunStreams, elsewhere: Elsewhere) -> bool:
    own = any(s.frames.kind is Kind.FLAT and s.frames.has_announced for s in streams)
    return own or Kind.FLAT in elsewhere.found


def _is_references_only(
    num_events: Mapping[str, Any], profile: Profile, streams: RunStreams
) -> bool:
    """Return whether a run was flats and darks for others, as far as it says."""
    counted = any(num_events.get(name) for name in profile.streams.projections)
    promised = streams.scan().n_projections is not None
    return streams.projections is None and not counted and not promised


def _references(
    num_events: Mapping[str, Any],
    profile: Profile,
    streams: RunStreams,
    fed: FedRun | None,
) -> dict[Kind, int]:
    """Return the flats and darks that the stop document counts.

    Their descriptor may be lost: then the stream is known by its name alone.
    """
    names = profile.streams
    per_event = {s.frames.name: s.per_event for s in streams}
    owed: dict[Kind, int] = {}
    for kind, known in ((Kind.FLAT, names.flats), (Kind.DARK, names.darks)):
        for name in known:
            n, m = num_events.get(name), per_event.get(name, 1)
            if isinstance(n, int) and 0 < n * m <= profile.files.max_projections:
                owed.setdefault(kind, n * m)
            named = fed.n_named(name) if fed is not None else 0
            if named:
                owed[kind] = max(named, owed.get(kind, 0))
    return owed


def _projections(
    num_events: Mapping[str, Any],
    profile: Profile,
    streams: RunStreams,
    fed: FedRun | None,
) -> int | None:
    """Return the projections that the stop document counts."""
    stream = streams.projections
    if stream is None:
        return None
    said = num_events.get(stream.frames.name)
    n = said * stream.per_event if isinstance(said, int) else -1
    if n > profile.files.max_projections:
        n = -1
    if fed is not None:
        n = max(n, fed.n_named(stream.frames.name) or -1)
    return max(0, n - stream.frames.n_other_kinds) if n >= 0 else None
