"""Reads HDF5 scans named on stdin as a replay does; says what became of each.

A process of its own: whoever asks sees it die, hang or grow.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from ebl_stream.errors import InputError
from ebl_stream.frames import Frame
from ebl_stream.ingest.assemble import Assembler
from ebl_stream.sources.files import FileSource

logging.disable(logging.CRITICAL)


def classify(path: Path) -> str:
    """Return ``read``, ``refused`` or ``unreadable``."""
    n_frames = 0
    try:
        source = FileSource(path, None)
        assembler = Assembler(source.profile, roots=source.roots)
        for name, doc in source.documents():
            n_frames += sum(isinstance(item, Frame) for item in assembler(name, doc))
    except InputError:
        return "refused"
    return "read" if n_frames else "unreadable"


def peak_mib() -> int:
    # Not ru_maxrss: that begins with what the parent had.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


for line in sys.stdin:
    print(classify(Path(line.rstrip("\n"))), peak_mib(), flush=True)
