"""The campaign's table: what was done, what came of it, how to see it fail again."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One part of the campaign."""

    part: str
    n: int
    n_failed: int
    wall_s: float
    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """Names or seeds, and what was wrong: enough to see it again."""


class Table:
    """Grows row by row, and lies on disk after each.

    Parameters
    ----------
    folder : Path
        Gets ``campaign.json`` and ``campaign.md``.
    settings : dict
        The options of this campaign.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.rows = folder, list[Row]()
        self._settings = settings
        self._begun = time.strftime("%Y-%m-%d %H:%M")
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, row: Row) -> None:
        """Add a row, and write the table."""
        self.rows.append(row)
        content = {
            "begun": self._begun,
            "settings": self._settings,
            "rows": [asdict(one) for one in self.rows],
        }
        (self.folder / "campaign.json").write_text(json.dumps(content, indent=2))
        (self.folder / "campaign.md").write_text(self.as_markdown())

    @property
    def is_good(self) -> bool:
        """Whether nothing failed."""
        return not any(row.n_failed for row in self.rows)

    def as_markdown(self) -> str:
        """Return the table for people."""
        words = ", ".join(f"{k} {v}" for k, v in self._settings.items())
        lines = [f"Campaign of {self._begun}: {words}", ""]
        lines += [
            "| part | done | failed | minutes | figures |",
            "|---|---|---|---|---|",
        ]
        for row in self.rows:
            figures = "; ".join(f"{k} {v}" for k, v in row.figures.items())
            minutes = f"{row.wall_s / 60:.1f}"
            cells = (row.part, str(row.n), str(row.n_failed), minutes, figures)
            lines.append(f"| {' | '.join(cells)} |")
        failures = [
            f"- {row.part}: {what}" for row in self.rows for what in row.failures
        ]
        return "\n".join([*lines, "", *failures]) + "\n"
