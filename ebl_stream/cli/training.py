"""Commands that train nets: ``train noise2inverse``, ``tomogan`` and ``library``."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from ebl_stream.cli.messages import log_to_stderr, stdout_to_stderr
from ebl_stream.cli.options import RowsOption, json_option, set_option

Kind = Literal["tomogan", "noise2inverse"]
"""As a card's, which is not imported yet."""

NETS = "ebl_stream_nets"
"""Where nets go unless the user says otherwise."""

FAMILIES = "foam,grains,fibers,layers,clutter"

UNTOLD = ("out", "cache", "as_json")
"""Options that change no weight."""


@click.group()
def train() -> None:
    """Train a denoiser on archived runs, pairs of images or simulated samples."""


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_out = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=NETS,
    show_default=True,
    help="Folder of the net, its card, curves and checkpoint.",
)
_seed = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True
)
_cache = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that simulated scans are kept in. [default: OUT/library]",
)
_scans = click.option(
    "--scans",
    type=click.IntRange(1, 100_000),
    default=100,
    show_default=True,
    help="Simulated scans to learn from; a quarter as many are held out.",
)

data_options = _options(
    click.option("--target", help="A run of the same sample with more dose."),
    click.option("--repeat", help="A run of the same sample with the same dose."),
    click.option(
        "--rotate-deg",
        type=click.FloatRange(-360, 360),
        default=0.0,
        help="Is added to the angles of --target or --repeat.",
    ),
    click.option("--profile", "profile_name", help="To replay runs with."),
    set_option,
    click.option("--rows", type=RowsOption(), help="Detector rows, half-open."),
    click.option(
        "--library",
        metavar="FAMILIES",
        help=f"Simulated samples, such as {FAMILIES}.",
    ),
    _scans,
    _cache,
)


def _name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse now what would not do as a file's name in the end."""
    if value is not None and not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", value):
        raise click.BadParameter("small letters, digits, - and _ make a net's name")
    return value


net_options = _options(
    click.option(
        "--name",
        callback=_name,
        help="Of the net and its files. [default: the kind]",
    ),
    _out,
    click.option(
        "--net",
        type=click.Choice(["fast", "tomogan"]),
        default="fast",
        show_default=True,
    ),
    click.option("--depth", type=click.IntRange(1, 15), help="Adjacent slices, odd."),
    click.option("--width", type=click.IntRange(4, 256), default=32, show_default=True),
    click.option("--warm", help="A net to begin with: its name, or a file."),
    click.option("--licence", default="unstated", help="Of the weights, for the card."),
)
recipe_options = _options(
    click.option(
        "--steps", type=click.IntRange(1, 10**7), default=10_000, show_default=True
    ),
    click.option("--batch", type=click.IntRange(1, 1024), default=8, show_default=True),
    click.option(
        "--crop",
        type=click.IntRange(16, 4096),
        default=64,
        show_default=True,
        help="Edge of what is learned from at once, px.",
    ),
    click.option(
        "--rate",
        type=click.FloatRange(0, 1, min_open=True),
        default=1e-3,
        show_default=True,
        help="Learning rate of Adam.",
    ),
    click.option(
        "--schedule",
        type=click.Choice(["cosine", "constant"]),
        default="cosine",
        show_default=True,
    ),
    click.option(
        "--check-every",
        type=click.IntRange(1),
        default=500,
        show_default=True,
        help="Steps between two looks at the held-out slices, and checkpoints.",
    ),
    click.option(
        "--patience",
        type=click.IntRange(0),
        default=0,
        help="Looks that may bring nothing before it stops. [default: no end]",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
    ),
    _seed,
    json_option,
)


@train.command()
@click.argument("data", nargs=-1)
@data_options
@net_options
@recipe_options
@click.pass_context
def noise2inverse(ctx: click.Context, **settings: Any) -> int:
    """Train on what the two halves of noisy runs agree about.

    DATA are scans as `ebl-stream replay` takes them, or HDF5 files of pairs.
    """
    return _train(ctx, "noise2inverse", settings)


@train.command()
@click.argument("data", nargs=-1)
@data_options
@net_options
@click.option(
    "--pixel", type=click.Choice(["mse", "l1"]), default="mse", show_default=True
)
@click.option(
    "--adversarial",
    type=click.FloatRange(0, 100),
    default=0.02,
    show_default=True,
    help="Weight of the adversarial loss.",
)
@click.option(
    "--gan", type=click.Choice(["bce", "hinge"]), default="bce", show_default=True
)
@click.option(
    "--features",
    type=click.FloatRange(0, 100),
    default=0.0,
    show_default=True,
    help="Weight of discriminator feature matching.",
)
@click.option(
    "--pretrain",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of the steps before the adversary enters.",
)
@click.option(
    "--discriminator-steps",
    type=click.IntRange(1, 16),
    default=2,
    show_default=True,
    help="For one of the generator.",
)
@recipe_options
@click.pass_context
def tomogan(ctx: click.Context, **settings: Any) -> int:
    """Train TomoGAN: a pixel loss and a discriminator, on pairs of images.

    DATA are HDF5 files with train_ns, train_gt, test_ns, test_gt, or scans with
    --target or --repeat.
    """
    return _train(ctx, "tomogan", settings)


@train.command()
@click.argument("path", metavar="OUT.h5", type=click.Path(path_type=Path))
@click.option("--families", default=FAMILIES, show_default=True)
@_scans
@click.option("--columns", type=click.IntRange(64, 4096), default=256)
@click.option("--rows", type=click.IntRange(1, 1024), default=12)
@click.option("--seed", type=click.IntRange(0, 900_000), default=0, show_default=True)
@click.pass_context
def library(ctx: click.Context, path: Path, **settings: Any) -> int:
    """Write simulated pairs in TomoGAN's layout to OUT.h5."""
    log_to_stderr(ctx.find_root().obj).let_through()
    from ebl_stream.cli.train import write_library

    with stdout_to_stderr():
        n = write_library(path, **settings)
    click.echo(f"{path}: {n} pairs")
    return 0


def _train(ctx: click.Context, kind: Kind, settings: dict[str, Any]) -> int:
    log_to_stderr(ctx.find_root().obj).let_through()
    if not settings["data"] and not settings["library"]:
        raise click.UsageError("what is to be learned from? Give DATA, or --library")
    if settings["target"] and settings["repeat"]:
        raise click.UsageError("--target and --repeat exclude each other")
    if (settings["target"] or settings["repeat"]) and len(settings["data"]) != 1:
        raise click.UsageError("--target and --repeat belong to one run in DATA")
    from ebl_stream.cli.train import fit, summary

    with stdout_to_stderr():
        made = fit(kind, command_of(ctx), settings)
    click.echo(json.dumps(made) if settings["as_json"] else summary(made))
    return 0


def command_of(ctx: click.Context) -> str:
    """Return the command line that trains the same net again."""
    words = ["ebl-stream", "train", str(ctx.info_name)]
    for param in ctx.command.params:
        value = ctx.params[str(param.name)]
        if isinstance(param, click.Argument):
            words += value
        elif param.name not in UNTOLD and value not in (None, (), param.default):
            words += _told(param.opts[0], value)
    return shlex.join(words)


def _told(option: str, value: Any) -> list[str]:
    if option == "--set":
        return [w for k, v in value for w in (option, f"{k}={json.dumps(v)}")]
    if option == "--rows":
        return [option, f"{value[0]}:{value[1]}"]
    return [option, str(value)]
