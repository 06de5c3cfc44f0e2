"""Remove what the profile keeps no longer, or show it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ebl_stream.errors import InputError
from ebl_stream.profile import Retention
from ebl_stream.publish.retention import DAY_S, Stored, clean, due, survey
from ebl_stream.publish.space import GB, free_bytes


def clean_up(out: Path, policy: Retention, *, dry_run: bool) -> dict[str, Any]:
    """Remove what is due, or with ``dry_run`` only find it; returns what it is.

    Raises
    ------
    InputError
        There is no such folder.
    """
    if not out.is_dir():
        raise InputError(f"there is no folder {str(out)!r} with results")
    stored, now = survey(out), time.time()
    sizes = {one.path: one.n_bytes() for one in due(stored, policy, now)}
    gone = due(stored, policy, now) if dry_run else clean(out, policy)
    free = free_bytes(out)
    return {
        "dry_run": dry_run,
        "removed": [_as_dict(one, sizes.get(one.path, 0), now) for one in gone],
        "freed_gb": sum(sizes.get(one.path, 0) for one in gone) / GB,
        "free_gb": None if free is None else free / GB,
        "kept": len(stored) - len(gone),
        "open": sum(one.is_open for one in stored),
        "marked": sum(one.is_kept for one in stored),
        "policy": policy.model_dump(),
    }


def _as_dict(one: Stored, n_bytes: int, now: float) -> dict[str, Any]:
    return {
        "path": str(one.path),
        "kind": one.kind,
        "run_uid": one.run_uid,
        "age_days": round((now - one.changed) / DAY_S, 3),
        "gb": n_bytes / GB,
    }


def summary(done: dict[str, Any]) -> str:
    """Return what `ebl-stream clean` prints."""
    lines = [
        f"{item['kind']:8} {item['gb']:9.3f} GB {item['age_days']:8.1f} days  "
        f"{item['path']}"
        for item in done["removed"]
    ]
    verb = "would go" if done["dry_run"] else "removed"
    lines.append(
        f"{len(done['removed'])} {verb}, {done['freed_gb']:.3g} GB; "
        f"{done['kept']} stay ({done['open']} being written, {done['marked']} marked)"
    )
    limits = ("keep_days", "keep_runs", "journal_days")
    if all(done["policy"][name] is None for name in limits):
        lines.append("the profile removes nothing: set retention.keep_days, ...")
    return "\n".join(lines)
