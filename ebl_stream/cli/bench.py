"""Compare with other packages on the user's own machine."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ebl_stream.cli.contest import Contest, Score, hold
from ebl_stream.cli.messages import stdout_to_stderr

HEADINGS = ("total s", "x ours", "last→done s", "x ours", "PSNR dB", "NRMSE")
NOTES = (
    "total: all slices, all projections; peers work on a few slices at a time, scaled",
    "last→done: what is left once the last projection is there",
    "PSNR, NRMSE: middle slice against the truth, no fit; each in the mirroring and on "
    "the half pixel that suits it best",
)


def bench(columns: int, angles: int, rows: int, threads: int, as_json: bool) -> int:
    """Measure, and show a table on stdout or one line of JSON; return an exit code."""
    progress = Console(stderr=True, markup=False, highlight=False)
    with progress.status("starting") as status:

        def say(words: str) -> None:
            status.update(words)
            if not progress.is_terminal:
                progress.print(words)

        with stdout_to_stderr():
            contest = hold(columns, angles, rows, threads, say)
    if as_json:
        click.echo(json.dumps(as_dict(contest)))
    else:
        show(contest, Console(markup=False, highlight=False))
    return 0


def as_dict(contest: Contest) -> dict[str, Any]:
    """Return what `--json` prints."""
    methods = []
    for score in contest.scores:
        ratio = contest.ratio(score)
        ratios = {
            "total_ratio": ratio.total_s,
            "last_to_done_ratio": ratio.last_to_done_s,
        }
        methods.append(score.as_dict() | ratios)
    return {
        "machine": contest.machine,
        "sizes": contest.sizes,
        "methods": methods,
        "absent": contest.absent,
    }


def show(contest: Contest, console: Console) -> None:
    """Print the table."""
    machine, sizes = contest.machine, contest.sizes
    console.print(
        f"{sizes['columns']} columns x {sizes['angles']} angles x {sizes['rows']} "
        f"slices of a foam phantom, float32; {machine['threads']} threads"
    )
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores; Python {machine['python']}, "
        f"numpy {machine['numpy']}, numba {machine['numba']}"
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("method", no_wrap=True)
    table.add_column("version", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for score in contest.scores:
        table.add_row(*_cells(contest, score))
    console.print(table)
    for peer in contest.absent:
        console.print(f"{peer['name']}: {peer['why']} ({peer['get']})", style="dim")
    for note in NOTES:
        console.print(note, style="dim")


def _cells(contest: Contest, score: Score) -> list[str]:
    ratio = contest.ratio(score)
    times = [
        score.timing.total_s,
        ratio.total_s,
        score.timing.last_to_done_s,
        ratio.last_to_done_s,
    ]
    return [
        score.name,
        score.version,
        *(f"{time:,.0f}" if time >= 100 else f"{time:.3g}" for time in times),
        f"{score.accuracy.psnr_db:.2f}",
        f"{score.accuracy.nrmse:.4f}",
    ]
