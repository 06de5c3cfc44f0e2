"""The codec and the journal: what goes in comes out, and nothing else comes out."""

from __future__ import annotations

import datetime
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from event_model import DocumentNames
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from ebl_stream.errors import InputError
from ebl_stream.transport.documents import (
    MAX_DEPTH,
    NAMES,
    DocumentError,
    pack,
    pack_array,
    unpack,
)
from ebl_stream.transport.journal import JournalWriter, is_journal, read_journal

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | TEXTS
    | st.binary(max_size=40)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4)
    ),
    max_leaves=20,
)
ARRAYS = st_numpy.arrays(
    st.one_of(
        st_numpy.boolean_dtypes(),
        st_numpy.integer_dtypes(endianness="?"),
        st_numpy.unsigned_integer_dtypes(endianness="?"),
        st_numpy.floating_dtypes(endianness="?"),
        st_numpy.complex_number_dtypes(endianness="?"),
        st_numpy.byte_string_dtypes(min_len=1),
        st_numpy.unicode_string_dtypes(endianness="?", min_len=1),
    ),
    st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


def same(a: Any, b: Any) -> bool:
    """Compare and let NaN equal NaN."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b


def as_document(value: Any) -> bytes:
    return msgpack.packb(["event", value])


def array_document(dtype: str, shape: tuple[int, ...], pixels: bytes) -> bytes:
    lengths = struct.pack(f"<{len(shape)}Q{8 * (len(shape) % 2)}x", *shape)
    head = struct.pack("<B3x12s", len(shape), dtype.encode())
    return as_document({"a": msgpack.ExtType(1, head + lengths + pixels)})


def test_the_names_are_those_of_event_model() -> None:
    assert set(DocumentNames.__members__) == NAMES


@given(st.sampled_from(sorted(NAMES)), st.dictionaries(TEXTS, VALUES, max_size=5))
def test_plain_documents_survive(name: str, doc: dict[str, Any]) -> None:
    name_back, back = unpack(pack(name, doc))
    assert name_back == name
    assert same(doc, back)


@given(ARRAYS, st.booleans())
def test_arrays_survive(array: np.ndarray[Any, Any], transposed: bool) -> None:
    array = array.T if transposed else array
    back = unpack(pack("event", {"data": {"image": array}}))[1]["data"]["image"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == np.ascontiguousarray(array).tobytes()
    assert back.flags.aligned


def test_numpy_scalars_become_plain() -> None:
    doc = {
        "a": np.int16(3),
        "b": np.float32(0.5),
        "c": np.bool_(True),
        "d": np.str_("x"),
        "e": (1, np.float64(np.inf)),
    }
    plain = {"a": 3, "b": 0.5, "c": True, "d": "x", "e": [1, math.inf]}
    assert same(plain, unpack(pack("start", doc))[1])


@pytest.mark.parametrize(
    ("doc", "where"),
    [
        ({"a": {"b": [0, datetime.datetime.now()]}}, r"start\.a\.b\[1\].*datetime"),
        ({"folder": Path("/")}, r"start\.folder.*Path"),
        ({"a": {1, 2}}, r"start\.a.*set"),
        ({"a": 2**64}, r"start\.a: wider than 64 bits"),
        ({"a": "\ud800"}, r"start\.a.*surrogates"),
        ({"a": np.array([None])}, r"start\.a.*object"),
        ({"a": np.array(["2026-01-01"], "M8[D]")}, r"start\.a.*datetime64"),
        ({"a": np.zeros(2, [("x", "f4")])}, r"start\.a.*dtype"),
        ({"a": {3: 1}}, r"start\.a: key 3 is not a string"),
    ],
)
def test_what_cannot_travel_is_named(doc: dict[str, Any], where: str) -> None:
    with pytest.raises(TypeError, match=where):
        pack("start", doc)


def test_pack_refuses_cycles_and_unknown_names() -> None:
    cycle: list[Any] = []
    cycle.extend((cycle, cycle))
    with pytest.raises(TypeError, match="nested deeper"):
        pack("start", {"a": cycle})
    with pytest.raises(TypeError, match="'begin'"):
        pack("begin", {})


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(DocumentError):
        unpack(data)


@settings(max_examples=300)
@given(st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    packed = bytearray(pack("event", {"data": {"a": np.arange(6.0)}, "seq_num": 1}))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] = data.draw(st.integers(0, 255))
    try:
        name, doc = unpack(bytes(packed))
    except DocumentError:
        return
    assert name in NAMES
    assert isinstance(doc, dict)


@pytest.mark.parametrize(
    "data",
    [
        msgpack.packb(["begin", {}]),
        msgpack.packb(["start", {}, 1]),
        msgpack.packb({"start": {}}),
        msgpack.packb(["start", [1]]),
        msgpack.packb(["start", {}]) + b"\xc0",
        msgpack.packb(["start", {1: 2}]),
        msgpack.packb(["start", {b"a": 2}]),
        msgpack.packb(["start", {"a": msgpack.ExtType(7, b"")}]),
        array_document("|O8", (1,), bytes(8)),
        array_document("<M8[s]", (1,), bytes(8)),
        array_document("f8,f8", (1,), bytes(16)),
        array_document("<f8", (2,), bytes(8)),
        array_document("<f8", (2**40,), bytes(8)),
        array_document("<f8", (2**63, 2), b""),
        array_document("<f8", (1,) * 33, bytes(8)),
        as_document({"a": msgpack.ExtType(1, b"\x02")}),
    ],
)
def test_bad_documents_are_refused(data: bytes) -> None:
    with pytest.raises(DocumentError):
        unpack(data)


def test_deep_wide_and_large_documents_are_refused() -> None:
    deep: Any = 0
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(DocumentError, match="deeper"):
        unpack(as_document({"a": deep}))
    many = b"\x92\xa5event\x81\xa1a\xdd" + struct.pack(">I", 2_000_000)
    with pytest.raises(DocumentError, match="too many"):
        unpack(many + b"\x90" * 2_000_000)
    with pytest.raises(DocumentError, match="at most 10"):
        unpack(pack("start", {"a": "long enough"}), max_bytes=10)


def test_arrays_of_empty_strings_survive() -> None:
    assert pack_array(np.empty(0, "U0")).code == 1


PATCHED = """
import msgpack_numpy, msgpack
msgpack_numpy.patch()
import ebl_stream.transport.documents as documents
import pickle, sys
class Trap:
    def __reduce__(self):
        return (sys.exit, (99,))
evil = {b"nd": True, b"type": b"O", b"kind": b"O", b"shape": (1,),
        b"data": pickle.dumps(Trap())}
data = documents.Packer().pack(["event", {"a": evil}])
try:
    documents.unpack(data)
except documents.DocumentError:
    print("refused")
"""


def test_a_patched_msgpack_does_not_unpickle() -> None:
    """msgpack_numpy, loaded by some Kafka clients, makes plain msgpack unpickle."""
    pytest.importorskip("msgpack_numpy")
    done = subprocess.run(
        [sys.executable, "-c", PATCHED], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "refused"), done.stderr


def test_codec_and_journal_are_light() -> None:
    """They run in the RunEngine's process."""
    code = (
        "import sys, ebl_stream.transport.journal\n"
        "print(sorted({'h5py', 'tiled', 'numba', 'torch', 'zarr', 'event_model'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "scan.ebldocs"
    writer = JournalWriter(path)
    for i in range(5):
        doc = {"seq_num": i, "data": {"image": np.full((3, 4), i, "u2")}}
        writer.append(pack("event", doc), 100.0 + i)
    writer.flush(sync=True)
    writer.close()
    return path


def seq_nums(path: Path) -> list[int]:
    return [doc["seq_num"] for _, _, doc in read_journal(path)]


def test_a_journal_tells_all(journal: Path) -> None:
    assert is_journal(journal)
    records = list(read_journal(journal))
    assert [received for received, _, _ in records] == [100, 101, 102, 103, 104]
    assert {name for _, name, _ in records} == {"event"}
    assert (records[3][2]["data"]["image"] == 3).all()


def test_a_journal_can_be_read_while_it_grows(journal: Path, tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "growing.ebldocs")
    writer.append(pack("start", {"seq_num": 0}), 1.0)
    assert seq_nums(tmp_path / "growing.ebldocs") == [0]
    writer.close()
    writer.close()


def test_a_journal_is_never_overwritten(journal: Path) -> None:
    before = journal.read_bytes()
    with pytest.raises(FileExistsError):
        JournalWriter(journal)
    assert journal.read_bytes() == before


def test_every_torn_end_leaves_the_records_before_it(
    journal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = journal.read_bytes()
    head = len(msgpack.packb({"format": "ebl_stream.documents", "version": 1}))
    record = (len(data) - head) // 5
    for cut in range(1, 2 * record):
        journal.write_bytes(data[:-cut])
        caplog.clear()
        assert seq_nums(journal) == list(range(5 - math.ceil(cut / record)))
        assert bool(caplog.records) == (cut % record != 0)


def test_zeros_at_the_end_are_left_out(journal: Path) -> None:
    """What some file systems leave after a power cut."""
    journal.write_bytes(journal.read_bytes() + bytes(1000))
    assert seq_nums(journal) == [0, 1, 2, 3, 4]


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_journal_never_raises(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "scan.ebldocs"
    writer = JournalWriter(path)
    for i in range(3):
        writer.append(pack("event", {"seq_num": i}), float(i))
    writer.close()
    raw = bytearray(path.read_bytes())
    head = len(msgpack.packb({"format": "ebl_stream.documents", "version": 1}))
    raw[data.draw(st.integers(head, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    assert len(list(read_journal(path))) <= 3


def test_a_full_disk_leaves_whole_records(journal: Path, tmp_path: Path) -> None:
    """A limit on the file's size stands for the full disk."""
    code = f"""
import resource, signal
from pathlib import Path
from ebl_stream.transport.documents import pack
from ebl_stream.transport.journal import JournalWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
writer = JournalWriter(Path({str(tmp_path / "full.ebldocs")!r}))
writer.append(pack("event", {{"seq_num": 0}}), 0.0)
try:
    writer.append(pack("event", {{"seq_num": 1, "data": "x" * 2000}}), 1.0)
except OSError:
    writer.append(pack("event", {{"seq_num": 2}}), 2.0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert seq_nums(tmp_path / "full.ebldocs") == [0, 2]


def test_other_files_are_no_journals(tmp_path: Path) -> None:
    other = tmp_path / "other"
    for content in (b"", b"\x89HDF\r\n\x1a\n", msgpack.packb({"format": "x"})):
        other.write_bytes(content)
        assert not is_journal(other)
        with pytest.raises(InputError, match="not a journal"):
            read_journal(other)
    assert not is_journal(tmp_path / "absent")
    with pytest.raises(InputError, match="No such file"):
        read_journal(tmp_path / "absent")
