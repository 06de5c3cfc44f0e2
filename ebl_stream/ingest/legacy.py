"""Documents of older kinds, told as today's: pages, Resource and Datum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias, cast

import event_model

Document: TypeAlias = tuple[str, dict[str, Any]]


def singles(name: str, doc: dict[str, Any]) -> Iterator[Document]:
    """Unpack pages and bulk documents; pass everything else on."""
    if name == "event_page":
        yield from _named("event", event_model.unpack_event_page(cast(Any, doc)))
    elif name == "datum_page":
        yield from _named("datum", event_model.unpack_datum_page(cast(Any, doc)))
    elif name == "bulk_events":
        for events in doc.values():
            yield from _named("event", events)
    elif name == "bulk_datum":
        page = event_model.bulk_datum_to_datum_page(doc)
        yield from _named("datum", event_model.unpack_datum_page(page))
    else:
        yield name, doc


def _named(name: str, docs: Iterable[Any]) -> Iterator[Document]:
    return ((name, doc) for doc in docs)


def external_keys(descriptor: Mapping[str, Any]) -> set[str]:
    """Return the data keys whose events hold the id of a Datum."""
    return {
        key
        for key, data_key in descriptor.get("data_keys", {}).items()
        if "external" in data_key
        and not str(data_key["external"] or "").startswith("STREAM")
    }


class Modernizer:
    """Turn Resource, Datum and old StreamResource documents into today's.

    What is modern already passes untouched: `RunNormalizer`, which does the turning,
    copies every array, and numbers events by the place of their frame in the file,
    which is not their ``seq_num`` after a rewind. Its StreamDatum documents are
    given the ``seq_num`` of the event that names the Datum.
    """

    def __init__(self) -> None:
        self._normalizer: Any = None
        self._descriptors: dict[str, dict[str, Any]] = {}
        self._external: dict[str, set[str]] = {}
        self._out: list[Document] = []

    def __call__(self, name: str, doc: dict[str, Any]) -> Iterator[Document]:
        """Yield the documents that this one makes, in order."""
        if name == "descriptor":
            self._note(doc)
            yield name, doc
        elif name in ("resource", "datum"):
            self._feed(name, doc)
        elif name == "stream_resource" and "mimetype" not in doc:
            self._feed(name, doc)
            yield from self._emitted()
        elif name == "event":
            yield from self._event(doc)
        else:
            yield name, doc

    def _note(self, doc: dict[str, Any]) -> None:
        if doc["uid"] in self._descriptors:
            return
        self._external[doc["uid"]] = keys = external_keys(doc)
        # It is strict with what it is not asked for: only what it is to turn.
        data_keys = {key: doc["data_keys"][key] for key in keys}
        self._descriptors[doc["uid"]] = slim = {
            **doc,
            "data_keys": data_keys,
            "configuration": {},
            "object_keys": {},
        }
        if self._normalizer is not None and keys:
            self._feed("descriptor", slim)

    def _event(self, doc: dict[str, Any]) -> Iterator[Document]:
        """Yield the event, then what its datum ids stand for."""
        yield "event", doc
        filled = doc.get("filled", {})
        keys = [
            key
            for key in self._external.get(doc["descriptor"], ())
            if key in doc["data"] and not _is_filled(filled.get(key))
        ]
        if not keys or self._normalizer is None:
            return
        slim = {
            **doc,
            "data": {key: doc["data"][key] for key in keys},
            "timestamps": {key: doc["timestamps"].get(key, 0.0) for key in keys},
            "filled": dict.fromkeys(keys, False),
        }
        self._feed("event", slim)
        seq_nums = {"start": doc["seq_num"], "stop": doc["seq_num"] + 1}
        for name, made in self._emitted():
            if name == "stream_datum":
                # A Datum may be named by two events: one delivery each.
                uid = f"{doc['uid']}/{made['uid']}"
                yield name, {**made, "uid": uid, "seq_nums": seq_nums}
            else:
                yield name, made

    def _feed(self, name: str, doc: dict[str, Any]) -> None:
        if self._normalizer is None:
            self._normalizer = _new_normalizer(self._out)
            for uid, descriptor in self._descriptors.items():
                if self._external[uid]:
                    self._normalizer("descriptor", descriptor)
        spec = str(doc.get("spec", ""))
        if "HDF5" in spec.upper():
            # A beamline's own name of it, as AD_HDF5_DX_V1: the file is what it is.
            self._normalizer.spec_to_mimetype.setdefault(spec, "application/x-hdf5")
        self._normalizer(name, doc)

    def _emitted(self) -> list[Document]:
        wanted = ("stream_resource", "stream_datum")
        emitted = [(name, doc) for name, doc in self._out if name in wanted]
        self._out.clear()
        return emitted


def _is_filled(value: Any) -> bool:
    # A Filler leaves the datum id here once it has put the image in.
    return bool(value)


def _new_normalizer(out: list[Document]) -> Any:
    # Imported here: it takes seconds, and modern runs do without.
    from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer

    normalizer = RunNormalizer()

    def keep(name: Any, doc: dict[str, Any]) -> None:
        out.append((getattr(name, "name", name), doc))

    normalizer.subscribe(keep)
    return normalizer
