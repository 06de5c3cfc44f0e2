"""Documents as the exporter of bluesky-tiled-plugins writes them, cut for replay."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from ebl_stream.profile import Profile
from ebl_stream.sources.recorded import find_hdf5
from ebl_stream.sources.synthesis import BLOCK_FRAMES, Document

logger = logging.getLogger(__name__)


def export_documents(run: Any) -> list[Document] | None:
    """Ask the server for the run's documents.

    None where it has no exporter, fails at it, or would have to write images into
    JSON: those are better read as arrays.
    """
    keys = [key for doc in run.descriptors for key in doc["data_keys"].values()]
    if any(key["dtype"] == "array" and not key.get("external") for key in keys):
        return None
    try:
        return [(name, dict(doc)) for name, doc in run.documents()]
    except httpx.HTTPStatusError as error:
        logger.info("documents are made of metadata and arrays: %s", error)
        return None


def is_readable(
    resource: dict[str, Any], profile: Profile, roots: Sequence[Path]
) -> bool:
    """Say whether a stream resource is an HDF5 file here, within the roots."""
    is_hdf5 = resource["mimetype"] == "application/x-hdf5"
    return is_hdf5 and find_hdf5(resource["uri"], roots, profile) is not None


def recut(exported: list[Document], streams: Sequence[str]) -> Iterator[Document]:
    """Cut each key's one long stream datum into blocks, interleaved by place."""
    names = {doc["uid"]: doc["name"] for name, doc in exported if name == "descriptor"}
    datums = [doc for name, doc in exported if name == "stream_datum"]
    yield from ((n, d) for n, d in exported if n not in ("stream_datum", "stop"))
    blocks = [block for datum in datums for block in _cut(datum)]
    blocks.sort(
        key=lambda doc: (
            streams.index(names[doc["descriptor"]]),
            doc["seq_nums"]["start"],
        )
    )
    yield from (("stream_datum", block) for block in blocks)
    yield from ((n, d) for n, d in exported if n == "stop" and d)


def _cut(datum: dict[str, Any]) -> Iterator[dict[str, Any]]:
    indices, seq_nums = datum["indices"], datum["seq_nums"]
    offset = seq_nums["start"] - indices["start"]
    for start in range(indices["start"], indices["stop"], BLOCK_FRAMES):
        stop = min(start + BLOCK_FRAMES, indices["stop"])
        yield {
            **datum,
            "uid": f"{datum['uid']}/{start}",
            "indices": {"start": start, "stop": stop},
            "seq_nums": {"start": start + offset, "stop": stop + offset},
        }
