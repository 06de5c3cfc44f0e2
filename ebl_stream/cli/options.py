"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

DEFAULT_OUT = "ebl_stream_out"


class SetOption(click.ParamType):
    """``dotted.path=VALUE`` with a YAML value."""

    name = "dotted.path=yaml"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Return (dotted path, value)."""
        import yaml

        from ebl_stream.profile_file import parse_yaml

        path, equals, text = str(value).partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", path):
            self.fail(f"expected dotted.path=VALUE, got {value!r}", param, ctx)
        try:
            return path, parse_yaml(text)
        except yaml.YAMLError as error:
            why = " ".join(str(error).split())[:200]
            self.fail(f"{path}: not a YAML value: {why}", param, ctx)


class RowsOption(click.ParamType):
    """``A:B``, a half-open range of detector rows."""

    name = "A:B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return (first row, one past the last row)."""
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", str(value))
        if match is None or int(match[1]) >= int(match[2]):
            wanted = "two row numbers with A < B, such as 0:64"
            self.fail(f"expected {wanted}, got {value!r}", param, ctx)
        return int(match[1]), int(match[2])


class SpeedOption(click.FloatRange):
    """A finite factor above 0."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the factor."""
        speed = super().convert(value, param, ctx)
        if not math.isfinite(speed):
            self.fail(f"expected a finite number, got {value!r}", param, ctx)
        return speed


class TiledOption(click.ParamType):
    """``embedded``, ``none``, or the address of a Tiled server."""

    name = "embedded|none|uri"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Return the choice as it is."""
        if not re.fullmatch(r"embedded|none|https?://[^\s/]+\S*", str(value)):
            wanted = "embedded, none, or http(s)://host:port"
            self.fail(f"expected {wanted}, got {value!r}", param, ctx)
        return str(value)


def _out(words: str) -> Callable[[Any], Any]:
    return click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=DEFAULT_OUT,
        show_default=True,
        help=words,
    )


out_option = _out("Folder of the results; an existing result is never overwritten.")
results_option = _out("Folder of the results.")
tiled_option = click.option(
    "--tiled",
    type=TiledOption(),
    help="Where to publish. [default: what the profile says]",
)
set_option = click.option(
    "--set",
    "sets",
    type=SetOption(),
    multiple=True,
    help="Change a key of the profile; may be given more than once.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON object."
)
