"""Commands about results that are there: ``export | clean``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ebl_stream.cli.messages import log_to_stderr
from ebl_stream.cli.options import RowsOption, json_option, results_option, set_option


@click.command()
@click.argument("run")
@click.option(
    "--tiff",
    type=click.Path(path_type=Path),
    help="Folder for one TIFF per slice; a name that ends with .tif: one BigTIFF.",
)
@click.option("--hdf5", type=click.Path(path_type=Path), help="File: NeXus NXtomoproc.")
@click.option(
    "--array",
    "arrays",
    type=click.Choice(["recon", "denoised", "labels"]),
    multiple=True,
    help="May be given more than once for HDF5. [default: recon; for HDF5 all]",
)
@click.option("--rows", type=RowsOption(), help="Slices, half-open. [default: all]")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "uint16", "uint8"]),
    help="Of TIFF; integers are scaled, and say how. [default: as stored]",
)
@click.option(
    "--range",
    "limits",
    nargs=2,
    type=float,
    metavar="LOW HIGH",
    help="Values that become 0 and the largest integer. [default: the extremes]",
)
@click.option("--force", is_flag=True, help="Replace an earlier export.")
@results_option
@json_option
@click.pass_context
def export(
    ctx: click.Context, run: str, out: Path, as_json: bool, **wanted: Any
) -> int:
    """Hand RUN on to other programs.

    RUN is a processed uid or a raw run's (the beginning will do), a folder, or latest.
    """
    log_to_stderr(ctx.obj).let_through()
    from ebl_stream.cli.export import Wanted, summary
    from ebl_stream.cli.export import export as run_export

    done = run_export(out, run, Wanted(**wanted))
    click.echo(json.dumps(done) if as_json else summary(done))
    return 0


@click.command()
@click.option("--profile", "profile_name", default="default", show_default=True)
@set_option
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@results_option
@json_option
@click.pass_context
def clean(
    ctx: click.Context,
    profile_name: str,
    sets: tuple[tuple[str, Any], ...],
    dry_run: bool,
    out: Path,
    as_json: bool,
) -> int:
    """Remove results and journals that the profile keeps no longer."""
    log_to_stderr(ctx.obj).let_through()
    from ebl_stream.cli.clean import clean_up, summary
    from ebl_stream.profile_file import load

    policy = load(profile_name, dict(sets)).retention
    done = clean_up(out, policy, dry_run=dry_run)
    click.echo(json.dumps(done) if as_json else summary(done))
    return 0
