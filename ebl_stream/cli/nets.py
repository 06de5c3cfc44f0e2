"""Commands about nets: ``models``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ebl_stream.cli.messages import log_to_stderr
from ebl_stream.cli.options import json_option


@click.command()
@click.argument("words", nargs=-1, metavar="[NAME|PATH | import FILE]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for what is imported.",
)
@json_option
@click.pass_context
def models(
    ctx: click.Context, words: tuple[str, ...], out: Path | None, as_json: bool
) -> int:
    """List the nets that are shipped, show one's card, or import one.

    Every net shown has been loaded, its SHA-256 compared with its card's. FILE is a
    TomoGAN generator as Keras saves it (HDF5).
    """
    name = words[-1] if words else None
    if (words[:-1], out is None) not in [((), True), (("import",), False)]:
        raise click.UsageError(
            "expected one NAME or PATH, or: import FILE --out FOLDER"
        )
    log_to_stderr(ctx.obj).let_through()
    from ebl_stream.cli.models import as_card, as_table, import_keras, show, table

    if name is not None:
        row = show(str(import_keras(Path(name), out)) if out else name)
        click.echo(json.dumps(row) if as_json else as_card(row))
        return 0
    rows = table()
    click.echo(json.dumps({"models": rows}) if as_json else as_table(rows))
    return 2 if any("error" in row for row in rows) else 0
