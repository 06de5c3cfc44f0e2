"""Arbitrary documents, bytes and addresses: nothing escapes, nothing grows."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import random
import tracemalloc
from pathlib import Path

import pytest
from fuzz_sizes import scaled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebl_stream import strict_json
from ebl_stream.errors import InputError
from ebl_stream.ingest.admission import Refusal, refusal
from ebl_stream.ingest.assemble import Assembler
from ebl_stream.ingest.hdf5 import resolve_uri
from ebl_stream.ingest.models import MODELS
from ebl_stream.ingest.router import RunSorter
from ebl_stream.profile_file import load
from ebl_stream.transport.documents import NAMES, DocumentError, pack, unpack
from ebl_stream.transport.journal import JournalWriter, read_journal

pytestmark = pytest.mark.timeout(3600)
many = settings(
    max_examples=scaled(1000, 20_000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
some = settings(max_examples=scaled(500, 10_000), deadline=None)

OTHER_KEYS = {"start", "stop", "shape", "dtype", "external", "image", "theta"}
MODEL_KEYS = {key for model in MODELS.values() for key in model.model_fields}
KEYS = st.sampled_from(sorted({*MODEL_KEYS, *OTHER_KEYS}))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, -1, 2**31, 2**40, 10**15, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["d", "r", "run", "primary", "STREAM:", "<u2", "|O", "../x"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)
NAMED = st.sampled_from(sorted(NAMES)) | st.text(max_size=8) | st.none()
DOCS = st.dictionaries(KEYS, VALUES, max_size=9) | VALUES

IMAGE = {"source": "PV", "dtype": "array", "shape": [1, 8, 9], "external": "STREAM:"}
THETA = {"source": "PV", "dtype": "number", "shape": [], "units": "deg"}
SCAN = [
    ("start", {"uid": "R", "time": 1.0, "n_projections": 4, "motors": ["theta"]}),
    (
        "descriptor",
        {
            "uid": "d",
            "run_start": "R",
            "name": "primary",
            "data_keys": {"image": IMAGE, "theta": THETA},
            "hints": {"theta": {"fields": ["theta"]}},
        },
    ),
    (
        "stream_resource",
        {
            "uid": "r",
            "data_key": "image",
            "run_start": "R",
            "mimetype": "application/x-hdf5",
            "uri": "file://localhost/nowhere/a.h5",
            "parameters": {"dataset": "/x", "multiplier": 1},
        },
    ),
    (
        "stream_datum",
        {
            "uid": "r/0",
            "stream_resource": "r",
            "descriptor": "d",
            "indices": {"start": 0, "stop": 2},
            "seq_nums": {"start": 1, "stop": 3},
        },
    ),
    (
        "event",
        {
            "uid": "e",
            "descriptor": "d",
            "seq_num": 1,
            "data": {"theta": 1.0},
            "timestamps": {"theta": 1.0},
            "filled": {},
        },
    ),
    ("stop", {"uid": "s", "run_start": "R", "num_events": {"primary": 2}}),
]


@st.composite
def nearly_sound(draw) -> list[tuple[str, dict]]:
    """A scan of which a few values, anywhere in it, are something else."""
    scan = copy.deepcopy(SCAN)
    for _ in range(draw(st.integers(1, 3))):
        here = draw(st.sampled_from(scan))[1]
        while True:
            key = draw(st.sampled_from(sorted(here)) | KEYS)
            below = here.get(key)
            if not (isinstance(below, dict) and below) or draw(st.booleans()):
                break
            here = below
        here[key] = draw(VALUES)
    return scan


@many
@given(st.lists(st.tuples(NAMED, DOCS), min_size=2, max_size=3))
def test_no_document_makes_an_exception(documents) -> None:
    """Through the judge and, whatever it says, through the sorter of runs."""
    logging.disable(logging.CRITICAL)
    try:
        sorter = RunSorter(lambda start: lambda name, doc: None)
        for name, doc in documents:
            tracemalloc.start()
            refused = refusal(name, doc)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            if refused is not None:
                assert isinstance(refused, Refusal)
                assert refused.words.isprintable()
                assert peak < 2**20
            sorter(name, doc)
        sorter.close()
    finally:
        logging.disable(logging.NOTSET)


@settings(many, max_examples=scaled(250, 20_000))
@given(nearly_sound())
def test_nearly_sound_scans_end_in_frames_or_reasons(documents) -> None:
    """On to the assembler: only what a run ends with may come out of it."""
    profile = load("default", {"files.timeout_s": 0.01})
    logging.disable(logging.CRITICAL)

    def follow(start):
        assembler = Assembler(profile, roots=[Path("/nowhere")])

        def take(name, doc) -> None:
            with contextlib.suppress(InputError):
                for _ in assembler(name, doc):
                    pass

        return take

    try:
        sorter = RunSorter(follow)
        for name, doc in documents:
            sorter(name, doc)
        sorter.close()
    finally:
        logging.disable(logging.NOTSET)


def flipped(whole: bytes, seed: int) -> bytes:
    dice, raw = random.Random(seed), bytearray(whole)
    for _ in range(dice.choice([1, 2, 8])):
        raw[dice.randrange(len(raw))] = dice.randrange(256)
    if dice.random() < 0.2:
        del raw[dice.randrange(len(raw)) :]
    return bytes(raw)


EVENT = pack(
    "event",
    {"uid": "e", "seq_num": 3, "data": {"a": [1, {"b": 2.5}]}, "filled": {"a": True}},
)


def test_flipped_bytes_are_refused_or_documents() -> None:
    fates = {"refused": 0, "read": 0}
    for seed in range(scaled(3000, 200_000)):
        try:
            name, doc = unpack(flipped(EVENT, seed))
        except DocumentError:
            fates["refused"] += 1
            continue
        assert name in NAMES
        refusal(name, doc)
        fates["read"] += 1
    assert min(fates.values()) > 0


def test_flipped_journals_end_early_or_leave_out(tmp_path) -> None:
    path = tmp_path / "scan.ebldocs"
    writer = JournalWriter(path)
    for n in range(5):
        writer.append(EVENT, float(n))
    writer.close()
    whole = path.read_bytes()
    logging.disable(logging.CRITICAL)
    try:
        for seed in range(scaled(300, 10_000)):
            path.write_bytes(flipped(whole, seed))
            with contextlib.suppress(InputError):
                assert len(list(read_journal(path))) <= 5
    finally:
        logging.disable(logging.NOTSET)


PIECES = st.sampled_from(
    """/ .. . %2e%2e %252e %2f %00 // a.h5 link ? # file: file:// localhost [::1
    @ :80 % é ~ \\""".split()  # noqa: SIM905
) | st.sampled_from(["\n", "\0", " "])


@pytest.fixture(scope="module")
def fenced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a way out in it."""
    top = tmp_path_factory.mktemp("fence").resolve()
    (top / "in").mkdir()
    (top / "in" / "a.h5").touch()
    (top / "a.h5").touch()
    (top / "in" / "link").symlink_to(top)
    return top


@some
@given(st.lists(PIECES, max_size=10), st.booleans())
def test_no_address_leaves_the_folder(fenced, pieces, inside) -> None:
    head = f"file://localhost{fenced}/in/" if inside else ""
    try:
        path = resolve_uri(head + "".join(pieces), [fenced / "in"])
    except InputError:
        return
    assert path == fenced / "in" / "a.h5"


@some
@given(st.text(max_size=60) | VALUES.map(json.dumps))
def test_json_is_read_or_refused(text) -> None:
    try:
        value = strict_json.loads(text)
    except strict_json.JsonError:
        return
    assert json.loads(text) == value
