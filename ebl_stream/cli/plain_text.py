"""Text that may come from anywhere, made fit for a terminal and a log."""

from __future__ import annotations

import logging
import re

_KEYS = re.compile(r"(?i)(api_?key(?:=|['\"]?\s*[:=]\s*['\"]?|\s+))[0-9A-Za-z_\-]{4,}")


def printable(text: str) -> str:
    """Return text without what could steer a terminal; its lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def without_keys(text: str) -> str:
    """Return text in which API keys are stars."""
    return _KEYS.sub(r"\1***", text)


class PlainFormatter(logging.Formatter):
    """Formats records of which no part forges another, and no key shows.

    Further lines of a record are indented: what a document says cannot begin a line.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one record as text."""
        return without_keys(printable(super().format(record))).replace("\n", "\n  ")
