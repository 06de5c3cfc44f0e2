"""Show how a reconstruction gets on: a table, or a few lines without a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ebl_stream.cli.plain_text import printable

BAR_COLUMNS = 48
LINE_EVERY = 0.1
"""Coverage between two lines where there is no terminal."""

Row = tuple[str, str]


class ProgressView:
    """Show `Progress` dicts on stderr, so that stdout stays free for the result.

    Parameters
    ----------
    console : rich.console.Console, optional
        Default: stderr.
    quiet : bool
        Show nothing.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, markup=False, highlight=False)
        self._quiet = quiet
        self._latest: Mapping[str, Any] | None = None
        self._next_line = 0.0
        self._live: Live | None = None

    def __enter__(self) -> ProgressView:
        if self.console.is_terminal and not self._quiet:
            # The table is drawn a few times a second, however often we are called.
            self._live = Live(
                get_renderable=self._table, console=self.console, refresh_per_second=5
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, progress: Mapping[str, Any]) -> None:
        """Take the newest `Progress.as_dict()`."""
        if progress.get("run_uid") != (self._latest or progress).get("run_uid"):
            self._next_line = 0.0
        self._latest = progress
        if self._live is None and not self._quiet:
            self._maybe_line(progress)

    def say(self, message: str) -> None:
        """Print one line above the table."""
        if not self._quiet:
            self.console.print(Text(printable(message)), soft_wrap=True)

    def _maybe_line(self, progress: Mapping[str, Any]) -> None:
        coverage = float(progress.get("coverage") or 0)
        ended = progress.get("state") != "running"
        if coverage >= self._next_line or ended:
            self._next_line = (int(coverage / LINE_EVERY + 1e-6) + 1) * LINE_EVERY
            if ended:
                self._next_line = float("inf")
            self.say(one_line(progress))

    def _table(self) -> RenderableType:
        if self._latest is None:
            return Text("waiting for the first projection ...")
        table = Table.grid(padding=(0, 2))
        for label, value in rows(self._latest):
            table.add_row(Text(label, style="dim"), Text(printable(value)))
        coverage = min(1.0, float(self._latest.get("coverage") or 0))
        return Group(ProgressBar(1.0, coverage, width=BAR_COLUMNS), table)


def rows(progress: Mapping[str, Any]) -> list[Row]:
    """Return what the table shows: (label, value) in words and numbers."""
    shown = [
        ("projections", _angles(progress)),
        ("coverage", f"{100 * float(progress.get('coverage') or 0):.0f} %"),
        ("version", str(progress.get("version") or "none yet")),
        ("rate", _unit(progress.get("rate_hz"), ".1f", "projections/s")),
        ("latency", _unit(progress.get("latency_s"), ".2f", "s, newest to volume")),
        ("time left", _unit(progress.get("eta_s"), ".0f", "s")),
        ("resolution", _unit(progress.get("resolution_px"), ".1f", "px (FRC 1/7)")),
        ("rotation center", _center(progress)),
        ("frames", ledger_words(progress.get("ledger") or {})),
        ("volume", str(progress.get("volume") or "")),
        ("state", " ".join([str(progress.get("state")), _message(progress)]).strip()),
    ]
    return [(label, value) for label, value in shown if value]


def one_line(progress: Mapping[str, Any]) -> str:
    """Return the progress in one line, for logs."""
    parts = [
        _angles(progress),
        _unit(progress.get("rate_hz"), ".1f", "/s"),
        f"version {progress.get('version') or 0}",
        _unit(progress.get("resolution_px"), ".1f", "px resolution"),
        ledger_words(progress.get("ledger") or {}),
        "" if progress.get("state") == "running" else str(progress.get("state")),
        _message(progress),
    ]
    return ", ".join(part for part in parts if part)


def ledger_words(ledger: Mapping[str, Any]) -> str:
    """Return what went wrong with frames, in words and numbers."""
    parts = []
    for what in ("missing", "rejected", "dropped"):
        n = ledger.get(what) or 0
        why = ledger.get(f"{what}_by") or {}
        reasons = ", ".join(f"{str(k).replace('_', ' ')} {v}" for k, v in why.items())
        if n:
            parts.append(f"{n} {what}" + (f" ({reasons})" if reasons else ""))
    others = ("superseded", "duplicate", "orphan")
    parts += [f"{ledger[what]} {what}" for what in others if ledger.get(what)]
    if ledger.get("residue"):
        parts.append(f"{ledger['residue']} UNACCOUNTED FOR")
    if not ledger:
        return ""
    return " · ".join(parts) or "nothing lost"


def _angles(progress: Mapping[str, Any]) -> str:
    owed = progress.get("n_owed") or "?"
    return f"{progress.get('n_used') or 0}/{owed} projections"


def _unit(value: Any, form: str, unit: str) -> str:
    return "" if value is None else f"{value:{form}} {unit}"


def _center(progress: Mapping[str, Any]) -> str:
    center = progress.get("rotation_center")
    if center is None:
        return ""
    return f"{center:.2f} px ({progress.get('rotation_center_source')})"


def _message(progress: Mapping[str, Any]) -> str:
    message = progress.get("message")
    return f"- {message}" if message else ""


def summary(result: Mapping[str, Any]) -> str:
    """Return what came of a run, for people: a few lines."""
    ledger = result["ledger"]
    center = f"{result['rotation_center']:.2f} px ({result['rotation_center_source']})"
    shape = " x ".join(str(n) for n in result["shape"])
    lines = [
        f"{result['state']}: {result['n_projections']} projections, "
        f"{ledger_words(ledger)}, {result['wall_s']:.1f} s",
        f"  volume           {result['volume']}  [z, y, x] {shape}",
        f"  rotation center  {center}",
    ]
    if result.get("tiled_uri"):
        lines.append(f"  Tiled            {result['tiled_uri']}")
    if result.get("message"):
        lines.append(f"  note             {result['message']}")
    return printable("\n".join(lines))
