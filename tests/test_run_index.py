"""Which run a document belongs to."""

from __future__ import annotations

from ebl_stream.service.run_index import RunIndex
from ebl_stream.transport import documents


def test_a_run_is_found_by_any_document() -> None:
    index = RunIndex()
    found = {
        name: index.run_uid(name, doc)
        for name, doc in [
            ("start", {"uid": "r"}),
            ("descriptor", {"uid": "d", "run_start": "r"}),
            ("stream_resource", {"uid": "s", "run_start": "r"}),
            ("resource", {"uid": "res", "run_start": "r"}),
            ("datum", {"datum_id": "x", "resource": "res"}),
            ("datum_page", {"resource": "res"}),
            ("event", {"uid": "e", "descriptor": "d"}),
            ("event_page", {"uid": ["e"], "descriptor": "d"}),
            ("stream_datum", {"uid": "sd", "descriptor": "", "stream_resource": "s"}),
            ("bulk_events", {"d": []}),
            ("bulk_datum", {"resource": "res"}),
            ("stop", {"uid": "x", "run_start": "r"}),
        ]
    }
    assert found == dict.fromkeys(documents.NAMES, "r")
    assert index.run_uid("event", {"descriptor": "of another run"}) is None
