"""How much is tried: little in `make test`, all of it in a campaign."""

from __future__ import annotations

import os


def scaled(short: int, full: int) -> int:
    """Return ``short``, or ``full`` times EBL_STREAM_CAMPAIGN where that is more."""
    share = float(os.environ.get("EBL_STREAM_CAMPAIGN") or 0)
    return max(short, int(full * share))
