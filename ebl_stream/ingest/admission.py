"""Who may come in: every document, live or replayed, is looked at here first."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import ValidationError

from ebl_stream.ingest.legacy import Document, singles
from ebl_stream.ingest.measure import Measure, UnmeasurableError
from ebl_stream.ingest.models import MODELS

log = logging.getLogger(__name__)

Why: TypeAlias = Literal["unknown name", "malformed", "too large"]

_PACKED = frozenset({"event_page", "datum_page", "bulk_events", "bulk_datum"})
_MAX_PAGE = 200_000
"""Events, or datums, of one page: unpacked, they are much larger."""
_MAX_WORDS = 200
_REFERENCES = {
    "run_start": "run",
    "descriptor": "descriptor",
    "stream_resource": "resource",
    "resource": "resource",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a document is not let in."""

    name: str
    """Of the document; ``unknown`` where it is none of Bluesky's."""
    why: Why
    """One of a closed list, so that counts by it stay few."""
    words: str
    """What is wrong, and where."""

    @property
    def kind(self) -> str:
        """Name and reason: what refusals are counted by."""
        return f"{self.name}: {self.why}"


def refusal(name: object, doc: object) -> Refusal | None:
    """Return why a document is refused, None where it is let in; never raises.

    Parameters
    ----------
    name : object
        The document's name.
    doc : object
        The document.
    """
    try:
        return _judge(name, doc)
    except Exception as error:  # whatever it is, it is no document
        return Refusal(_known(name), "malformed", _words(repr(error)))


def _judge(name: object, doc: object) -> Refusal | None:
    if not isinstance(name, str) or (name not in MODELS and name not in _PACKED):
        return Refusal("unknown", "unknown name", _words(f"{name!r:.60}"))
    if not isinstance(doc, dict):
        return Refusal(name, "malformed", f"it is a {type(doc).__name__:.60}")
    try:
        Measure()(doc)
        if name in MODELS:
            MODELS[name].model_validate(doc)
        elif max(map(_length, doc.values()), default=0) > _MAX_PAGE:
            raise UnmeasurableError(f"a page of more than {_MAX_PAGE} documents")
    except UnmeasurableError as error:
        return Refusal(name, "too large", _words(str(error)))
    except ValidationError as error:
        return Refusal(name, "malformed", _explain(error))
    return None


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)
    where = ".".join(str(part)[:60] for part in first[0]["loc"])
    return _words(f"{where}: {first[0]['msg']}")


def _length(value: object) -> int:
    return len(value) if isinstance(value, list) else 0


def _words(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:_MAX_WORDS])


def _known(name: object) -> str:
    return name if isinstance(name, str) and name in MODELS else "unknown"


class Admission:
    """Lets documents in one by one; counts what it refuses, and says so once."""

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        """By name and reason: a few dozen entries, whatever comes."""

    def __call__(self, name: object, doc: object) -> Iterator[Document | Refusal]:
        """Yield what a document holds (a page holds many), or why it is refused."""
        name = getattr(name, "name", name)  # event_model.DocumentNames
        refused = refusal(name, doc)
        if refused is not None:
            yield self._note(refused)
            return
        if name not in _PACKED:
            yield str(name), doc  # type: ignore[misc]
            return
        inside = singles(str(name), doc)  # type: ignore[arg-type]
        while True:
            try:
                one_name, one = next(inside)
            except StopIteration:
                return
            except Exception as error:  # lists of unequal length, and worse
                yield self._note(Refusal(str(name), "malformed", _words(repr(error))))
                return
            refused = refusal(one_name, one)
            yield (one_name, one) if refused is None else self._note(refused)

    def _note(self, refused: Refusal) -> Refusal:
        kind = refused.kind
        self.refused[kind] += 1
        if self.refused[kind] == 1:
            log.warning(
                "refused a document (%s): %s; further ones are only counted",
                kind,
                refused.words,
            )
        return refused


def refers_to(doc: object) -> Iterator[tuple[str, str]]:
    """Yield what a document, however malformed, says that it belongs to."""
    for key, kind in _REFERENCES.items():
        uid = doc.get(key) if isinstance(doc, Mapping) else None
        if isinstance(uid, str):
            yield kind, uid
