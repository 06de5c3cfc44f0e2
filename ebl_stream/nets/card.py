"""The card of a net: what it is, what it was trained on, and how to make it again."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeInt,
    ValidationError,
)

from ebl_stream import strict_json
from ebl_stream.errors import InputError
from ebl_stream.nets.architecture import Architecture

MAX_CARD_BYTES = 64 * 2**10
FORMAT_VERSION = 1
"""The newest that this version reads."""

Kind = Literal["tomogan", "noise2inverse"]


class Card(BaseModel):
    """All that is known of a net beside its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    """That of its files, too; so no path can hide in it."""
    kind: Kind
    """``tomogan`` sees the whole volume, ``noise2inverse`` one half of it."""
    architecture: Architecture
    data: dict[str, JsonValue]
    """What it was trained on: generator, parameters and seeds, or files and hashes."""
    steps: NonNegativeInt
    """Of training."""
    metrics: dict[str, FiniteFloat]
    licence: str
    command: str
    """The one command that makes it again."""
    software: str
    """What made it, and which version."""
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    format_version: Literal[1] = FORMAT_VERSION


def read_card(text: bytes, where: str) -> Card:
    """Read a card that somebody else may have written.

    Raises
    ------
    InputError
        No JSON, of a later format, or not a card; one line that begins with ``where``.
    """
    try:
        found = strict_json.loads(text, max_bytes=MAX_CARD_BYTES)
    except strict_json.JsonError as error:
        raise InputError(f"{where}: {error}") from None
    version = found.get("format_version") if isinstance(found, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise InputError(
            f"{where} is of format {version}, newer than {FORMAT_VERSION}: "
            "update ebl-stream"
        )
    try:
        return Card.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "it"
        why = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where} is no card of a net: {field}: {why}") from None
