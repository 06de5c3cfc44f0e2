"""The command line.

Its commands: ``demo replay serve check look browse export clean models train bench``.

Exit codes: 0 complete, 3 partial, 2 bad usage or input (nothing was written), 1
internal fault, 130 after Ctrl-C. Results go to stdout, everything else to stderr.
Heavy imports happen inside the commands: help and usage errors come at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from ebl_stream.cli.messages import answer_errors, log_to_stderr, stdout_to_stderr
from ebl_stream.cli.nets import models
from ebl_stream.cli.options import (
    DEFAULT_OUT,
    RowsOption,
    SpeedOption,
    json_option,
    out_option,
    set_option,
    tiled_option,
)
from ebl_stream.cli.results import clean, export
from ebl_stream.cli.training import train
from ebl_stream.errors import InputError

PLAIN: dict[str, Any] = {
    "preprocess": ["flat_field", {"minus_log": {"clip": 1e-5}}],
    "reconstruct": {"fourier": {"window": "ramp"}},
    "denoise": None,
    "segment": None,
    "quantify": None,
}
"""Overrides of ``--plain``: nothing but what every reconstruction does."""


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ebl-stream", prog_name="ebl-stream")
@click.option(
    "--debug",
    is_flag=True,
    envvar="EBL_STREAM_DEBUG",
    help="Show tracebacks and what the house logs.",
)
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Live tomography inside Bluesky: documents in, a sharpening volume out."""
    ctx.obj = debug


@cli.command()
@click.argument("source")
@click.option("--profile", "profile_name", help="A shipped profile, or a YAML file.")
@set_option
@tiled_option
@out_option
@click.option(
    "--speed",
    type=SpeedOption(),
    help="1 = the recorded cadence. [default: as fast as possible]",
)
@click.option("--rows", type=RowsOption(), help="Detector rows, half-open, 0-based.")
@click.option(
    "--plain",
    is_flag=True,
    help="Only flats, darks, -log, center, ramp: what one compares others with.",
)
@json_option
@click.pass_context
def replay(
    ctx: click.Context,
    source: str,
    profile_name: str | None,
    sets: tuple[tuple[str, Any], ...],
    tiled: str | None,
    out: Path,
    speed: float | None,
    rows: tuple[int, int] | None,
    plain: bool,
    as_json: bool,
) -> int:
    """Reconstruct SOURCE through the callbacks of a live scan.

    SOURCE is a file (APS Data Exchange, NXtomo, recorded documents),
    tiled:URL#uid, or databroker:CATALOG/uid.
    """
    check_out(out)
    held = log_to_stderr(ctx.obj)
    overrides = {**(PLAIN if plain else {}), **dict(sets)}

    from ebl_stream.cli.browse import wait_and_look
    from ebl_stream.cli.progress import ProgressView
    from ebl_stream.cli.replay import open_with_profile
    from ebl_stream.cli.replay import replay as run_replay
    from ebl_stream.publish.publishing import Publishing

    opened, profile = open_with_profile(source, profile_name, overrides, speed)
    publishing = Publishing(tiled or profile.publish.tiled, out, profile)
    try:
        with ProgressView() as view, stdout_to_stderr():

            def progressed(progress: Any) -> None:
                # Before that it may still turn out that the input is bad.
                if progress.volume is not None:
                    held.let_through()
                    view(progress.as_dict())

            outcome = run_replay(
                opened, profile, publishing, out=out, rows=rows, on_progress=progressed
            )
        held.let_through()
        print_results(outcome.as_dicts(), as_json)
        server = publishing.server
        may_stay = sys.stdout.isatty() and not as_json and not outcome.interrupted
        if may_stay and server is not None and server.is_ready:
            wait_and_look(server)
        return outcome.exit_code
    finally:
        publishing.close()


@cli.command()
@click.option("--profile", "profile_name", required=True, help="Name or YAML file.")
@click.option(
    "--source",
    required=True,
    help="Where documents come from: zmq://host:port, ipc:///path, "
    "zmq+sub://host:port, kafka://host:port/topic?group=NAME or tiled:URL.",
)
@set_option
@tiled_option
@out_option
@click.option("--idle-exit", "idle_exit_s", type=float, hidden=True)
@click.pass_context
def serve(
    ctx: click.Context,
    profile_name: str,
    source: str,
    sets: tuple[tuple[str, Any], ...],
    tiled: str | None,
    out: Path,
    idle_exit_s: float | None,
) -> int:
    """Reconstruct live scans whose documents come over a socket."""
    check_out(out)
    log_to_stderr(ctx.obj).let_through()
    from ebl_stream.profile_file import load
    from ebl_stream.service.service import Settings
    from ebl_stream.service.service import serve as run_service

    profile = load(profile_name, dict(sets))
    where = tiled or profile.publish.tiled
    return run_service(
        Settings(profile, source, out, where, idle_exit_s),
        lambda address: click.echo(f"ready: {profile.name} at {address}"),
    )


@cli.command()
@click.argument("profile_name", metavar="[PROFILE]", default="default")
@set_option
@tiled_option
@out_option
@click.option(
    "--shape",
    metavar="ANGLES,ROWS,COLUMNS",
    help="The scan to plan for. [default: 2048,2048,2048]",
)
@click.pass_context
def check(
    ctx: click.Context,
    profile_name: str,
    sets: tuple[tuple[str, Any], ...],
    tiled: str | None,
    out: Path,
    shape: str | None,
) -> int:
    """Say before the scan whether anything would stop it."""
    log_to_stderr(ctx.obj).let_through()
    from ebl_stream.cli.check import parse_shape, run_checks, show
    from ebl_stream.profile_file import load

    profile = load(profile_name, dict(sets))
    size = parse_shape(shape, profile.name)
    findings = run_checks(profile, size, out, tiled or profile.publish.tiled)
    show(profile.name, size, findings)
    return 2 if any(finding.verdict == "stop" for finding in findings) else 0


@cli.command()
@click.argument("out", type=click.Path(path_type=Path), default=DEFAULT_OUT)
@click.option("--run", help="Beginning of a processed uid. [default: the one running]")
@click.option("--rows", type=RowsOption(), help="Slices to refresh first, half-open.")
@click.option("--window", help="Low-pass of the previews: ramp, hann, parzen, ...")
@click.option(
    "--plane",
    nargs=6,
    type=float,
    metavar="Z Y X NZ NY NX",
    help="An oblique plane: a voxel on it, and its normal.",
)
@click.pass_context
def look(
    ctx: click.Context,
    out: Path,
    run: str | None,
    rows: tuple[int, int] | None,
    window: str | None,
    plane: tuple[float, ...] | None,
) -> int:
    """Ask the run that is under way in OUT to show something first.

    Only previews change; the final volume is what the profile says.
    """
    log_to_stderr(ctx.obj).let_through()
    from ebl_stream.cli.look import ask, find_run

    folder = find_run(out, run)
    wishes = ask(folder, rows, window, plane or ())
    click.echo(f"{folder.name}: {wishes.model_dump_json(exclude_none=True)}")
    return 0


@cli.command()
@click.argument("out", type=click.Path(path_type=Path), default=DEFAULT_OUT)
@click.pass_context
def browse(ctx: click.Context, out: Path) -> int:
    """Serve the results in OUT with Tiled until Ctrl-C."""
    log_to_stderr(ctx.obj).let_through()
    if not out.is_dir():
        raise InputError(f"there is no folder {str(out)!r} with results")
    from ebl_stream.cli.browse import browse as run_browse

    return run_browse(out)


@cli.command()
@click.option(
    "--columns", type=click.IntRange(16, 4096), default=256, show_default=True
)
@click.option("--rows", type=click.IntRange(2, 4096), default=128, show_default=True)
@click.option("--angles", type=click.IntRange(8, 20000), default=400, show_default=True)
@click.option(
    "--order",
    type=click.Choice(["golden", "interlaced", "sequential"]),
    default="golden",
    show_default=True,
)
@click.option(
    "--rate",
    "rate_hz",
    type=click.FloatRange(min=0, min_open=True),
    default=12.0,
    show_default=True,
    help="Projections per second.",
)
@click.option(
    "--lose",
    type=click.FloatRange(0, 0.9),
    default=0.0,
    help="Fraction of the frames that the detector loses.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@out_option
@tiled_option
@json_option
@click.pass_context
def demo(ctx: click.Context, as_json: bool, **settings: Any) -> int:
    """Scan a foam phantom with simulated devices and watch its volume sharpen."""
    check_out(settings["out"])
    log_to_stderr(ctx.obj).let_through()
    from ebl_stream.cli.demo import Demo

    return Demo(**settings).run(as_json)


@cli.command()
@click.option(
    "--columns", type=click.IntRange(32, 4096), default=512, show_default=True
)
@click.option("--angles", type=click.IntRange(8, 20000), default=512, show_default=True)
@click.option(
    "--rows",
    type=click.IntRange(1, 4096),
    default=64,
    show_default=True,
    help="Slices to reconstruct.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    default=usable_cores,
    help="For every method alike. [default: the cores there are]",
)
@json_option
def bench(columns: int, angles: int, rows: int, threads: int, as_json: bool) -> int:
    """Compare speed and accuracy with ASTRA, algotom and others on this machine."""
    from ebl_stream.cli.bench import bench as run_bench

    return run_bench(columns, angles, rows, threads, as_json)


cli.add_command(export)
cli.add_command(clean)
cli.add_command(models)
cli.add_command(train)


def check_out(out: Path) -> None:
    """Refuse an output folder that cannot be one; creates nothing.

    Raises
    ------
    InputError
        A file is in the way, or the folder cannot be written.
    """
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"--out {out}: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: no permission to write in {folder}")


def print_results(results: list[dict[str, Any]], as_json: bool) -> None:
    """Print what came of every run on stdout."""
    from ebl_stream.cli.progress import summary

    for result in results:
        click.echo(json.dumps(result) if as_json else summary(result))


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    words = sys.argv[1:] if argv is None else argv
    debug = "--debug" in words or bool(os.environ.get("EBL_STREAM_DEBUG"))
    code = answer_errors(lambda: cli(words, "ebl-stream", standalone_mode=False), debug)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Who reads us went away: nothing is wrong with the result.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
