"""Tell which run a document belongs to; light, the doors use it too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MAX_REFERENTS = 100_000
"""Descriptors and resources remembered, the oldest are forgotten first."""

MAX_UID = 512
"""Characters; a longer one is none."""

_REFERENCES = {
    "descriptor": ("run_start",),
    "resource": ("run_start",),
    "stream_resource": ("run_start",),
    "event": ("descriptor",),
    "event_page": ("descriptor",),
    "stream_datum": ("descriptor", "stream_resource"),
    "datum": ("resource",),
    "datum_page": ("resource",),
    "stop": ("run_start",),
}
"""What a document refers to, by its name."""

_REFERENTS = ("descriptor", "resource", "stream_resource")
"""What other documents than the start are referred to."""


class RunIndex:
    """Follows references from documents to the start documents of their runs."""

    def __init__(self) -> None:
        self._run_of: dict[str, str] = {}

    def run_uid(self, name: str, doc: Mapping[str, Any]) -> str | None:
        """Return the uid of a document's run; None where nothing leads to one."""
        run_uid, uid = self._find(name, doc), doc.get("uid")
        # Only what others refer to: a long scan must not push its own descriptor out.
        if run_uid is not None and name in _REFERENTS and isinstance(uid, str):
            self._remember(uid, run_uid)
        return run_uid

    def _find(self, name: str, doc: Mapping[str, Any]) -> str | None:
        if name == "start":
            uid = doc.get("uid")
            return uid if isinstance(uid, str) and len(uid) <= MAX_UID else None
        if name.startswith("bulk_"):
            return self._find_bulk(name, doc)
        for key in _REFERENCES.get(name, ()):
            referent = doc.get(key)
            if isinstance(referent, str) and 0 < len(referent) <= MAX_UID:
                # A start document that is late, or was lost, is named all the same.
                known = referent if key == "run_start" else self._run_of.get(referent)
                if known is not None:
                    return known
        return None

    def _find_bulk(self, name: str, doc: Mapping[str, Any]) -> str | None:
        """Bulk documents hold lists of events by descriptor, of datums by resource."""
        referents = doc if name == "bulk_events" else [doc.get("resource")]
        found = (self._run_of.get(r) for r in referents if isinstance(r, str))
        return next((run_uid for run_uid in found if run_uid), None)

    def _remember(self, uid: str, run_uid: str) -> None:
        if len(uid) <= MAX_UID:
            self._run_of[uid] = run_uid
        while len(self._run_of) > MAX_REFERENTS:
            self._run_of.pop(next(iter(self._run_of)))


def file_safe(uid: str) -> str:
    """Return a uid as it may stand in the name of a file."""
    return re.sub(r"[^0-9A-Za-z_-]", "_", uid)[:100] or "_"
