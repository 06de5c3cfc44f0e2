"""The journal: every document of a session, as it came, with the time it came.

A file of msgpack values, written only at its end: a header, then one record
``[received_s, packed document]`` per document. A crash tears the last record at
most; the reader leaves that one out. Light to import: the doors use it too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ebl_stream.documents import DocumentError, Packer, unpack, unpackb
from ebl_stream.errors import InputError

logger = logging.getLogger(__name__)

SUFFIX = ".ebldocs"
FORMAT = {"format": "ebl_stream.documents", "version": 1}

_HEADER = Packer().pack(FORMAT)
_MAX_RECORD = (1 << 30) + 64
