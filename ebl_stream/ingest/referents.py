"""What documents are referred to by, and what is to be known of them for that."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeAlias

from ebl_stream.ingest.legacy import external_keys

Token: TypeAlias = tuple[str, str]
"""What a document refers to: (``run`` | ``descriptor`` | ..., its id)."""


@dataclass(frozen=True, slots=True)
class Referent:
    """What is known of a document that others refer to."""

    run_uid: str
    stream: str = ""
    tellers: frozenset[str] = frozenset()
    """Who counts events: data keys of StreamDatums, and ``""`` for events."""
    external: frozenset[str] = frozenset()
    """Data keys whose events hold the id of a Datum."""
    data_key: str = ""


def token_of(name: str, doc: dict[str, Any]) -> Token | None:
    """Return by what other documents refer to this one."""
    if name == "start":
        return ("run", doc["uid"])
    if name == "descriptor":
        return ("descriptor", doc["uid"])
    if name in ("resource", "stream_resource"):
        return ("resource", doc["uid"])
    return ("datum", doc["datum_id"]) if name == "datum" else None


def referent(run_uid: str, name: str, doc: dict[str, Any]) -> Referent:
    """Return what is to be known of a document of a run."""
    if name != "descriptor":
        return Referent(run_uid, data_key=str(doc.get("data_key", "")))
    keys = doc["data_keys"]
    streamed = {
        key
        for key, data_key in keys.items()
        if str(data_key.get("external") or "").startswith("STREAM")
    }
    tellers = streamed | ({""} if len(streamed) < len(keys) or not keys else set())
    return Referent(
        run_uid,
        stream=doc["name"],
        tellers=frozenset(tellers),
        external=frozenset(external_keys(doc)),
    )


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two documents say the same, whatever carried them."""
    return _text(one) == _text(other)


def _text(doc: dict[str, Any]) -> str:
    # Tuples come out as lists, and NaN equals itself.
    try:
        return json.dumps(doc, sort_keys=True, default=_as_list)
    except (TypeError, ValueError, RecursionError):
        return repr(doc)


def _as_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)
