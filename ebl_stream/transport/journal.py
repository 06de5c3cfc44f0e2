"""The journal: every document of a session, as it came, with the time it came.

A file of msgpack values that only ever grows: a header, then one record
``[received_s, packed document]`` per document, always framed alike (array of two,
float64, bin32). A crash tears the last record at most; the reader leaves it out.
Light to import: the doors use it too.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ebl_stream.errors import InputError
from ebl_stream.transport.documents import DocumentError, Packer, unpack

logger = logging.getLogger(__name__)

SUFFIX = ".ebldocs"
"""Suffix of journal files."""

_packed_header: Any = Packer().pack({"format": "ebl_stream.documents", "version": 1})
_HEADER: bytes = _packed_header
FIRST_RECORD = len(_HEADER)
"""Where the first record of a journal begins."""
_RECORD = struct.Struct(">BBdBI")
_ARRAY_OF_2, _FLOAT64, _BIN32 = 0x92, 0xCB, 0xC6


class JournalWriter:
    """Appends documents to a new journal; every record reaches the system at once.

    Parameters
    ----------
    path : pathlib.Path
        A file that does not exist yet; missing folders are made.
    resume_at : int, optional
        Go on with a journal that exists, after this byte; what is behind it goes.

    Raises
    ------
    FileExistsError
        There is such a file: a journal is never overwritten.
    OSError
        It cannot be made, or (from :meth:`append`) the disk is full; the journal
        then ends with its last whole record and may be appended to again.
    """

    def __init__(self, path: Path, resume_at: int | None = None) -> None:
        if resume_at is not None:
            self._file = path.open("r+b", buffering=0)
            self._file.truncate(resume_at)
            self._end = self._file.seek(resume_at)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: what was appended survives the death of this process.
        self._file = path.open("xb", buffering=0)
        self._end = 0
        self._append(_HEADER)
        sync_folder(path.parent)

    def append(self, packed: bytes, received_s: float) -> int:
        """Append a packed document and when it came (s since the epoch).

        Returns
        -------
        int
            Where the packed document begins in the file.
        """
        head = _RECORD.pack(_ARRAY_OF_2, _FLOAT64, received_s, _BIN32, len(packed))
        self._append(head, packed)
        return self._end - len(packed)

    def flush(self, sync: bool = False) -> None:
        """With ``sync``, wait until everything lies on the disk (fsync)."""
        if sync:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def _append(self, *parts: bytes) -> None:
        try:
            for part in parts:
                rest = memoryview(part)
                while rest:
                    rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.seek(self._end)
            self._file.truncate()
            raise
        self._end += sum(map(len, parts))


def is_journal(path: Path) -> bool:
    """Say whether a file begins as a journal does; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_HEADER)) == _HEADER
    except OSError:
        return False


def read_journal(path: Path) -> Iterator[tuple[float, str, dict[str, Any]]]:
    """Read a journal: ``(received_s, name, document)`` in the order of arrival.

    A torn end is left out, and so is a record that holds no document; both are
    logged as warnings.

    Raises
    ------
    InputError
        At the call: the file cannot be read or is no journal of this version.
    """
    return _unpacked(read_records(path), path)


def read_records(path: Path) -> Iterator[tuple[float, int, bytes]]:
    """Read a journal: ``(received_s, offset, packed document)``, up to a torn end.

    Raises
    ------
    InputError
        As `read_journal`.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if file.read(len(_HEADER)) != _HEADER:
        file.close()
        raise InputError(
            f"{path}: not a journal of recorded documents (version 1); "
            f"one is written by `ebl-stream serve` or callbacks.DocumentRecorder"
        )
    return _records(file, path)


def _records(file: BinaryIO, path: Path) -> Iterator[tuple[float, int, bytes]]:
    with file:
        while record := _read_record(file, path):
            received_s, packed = record
            yield received_s, file.tell() - len(packed), packed


def _unpacked(
    records: Iterator[tuple[float, int, bytes]], path: Path
) -> Iterator[tuple[float, str, dict[str, Any]]]:
    for received_s, _, packed in records:
        try:
            name, doc = unpack(packed)
        except DocumentError as error:
            logger.warning("%s: left out a record: %s", path, error)
            continue
        yield received_s, name, doc


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: fsync of a file says nothing of its name."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _read_record(file: BinaryIO, path: Path) -> tuple[float, bytes] | None:
    """Read one record; None at the end, which may be torn or damaged."""
    head = file.read(_RECORD.size)
    if not head:
        return None
    start = file.tell() - len(head)
    if len(head) == _RECORD.size:
        array, float64, received_s, bin32, size = _RECORD.unpack(head)
        framed = (array, float64, bin32) == (_ARRAY_OF_2, _FLOAT64, _BIN32)
        left = os.fstat(file.fileno()).st_size - file.tell()
        # Compared first: a damaged length must not make us ask for gigabytes.
        if framed and size <= left:
            return received_s, file.read(size)
    logger.warning("%s: torn or damaged after byte %d, read up to there", path, start)
    return None
