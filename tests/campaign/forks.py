"""Processes forked from one that has loaded everything: many can begin in little time.

Each is a process of its own, as a script has it, without a second of imports and two
of kernels. What is true only of a fresh interpreter is tested with one.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOAD = "campaign.preload"
TIMEOUT_S = 150.0

_context = multiprocessing.get_context("forkserver")


def forked(target: Callable[..., object], *arguments: Any) -> BaseProcess:
    """Return a process, not yet started, that calls a function."""
    _begin()
    return _context.Process(target=_child, args=(target, arguments))


@cache
def _begin() -> None:
    """Start the server: our `sys.path` reaches it by its environment alone."""
    _context.set_forkserver_preload([PRELOAD])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _child(target: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    # The server leaves out without a word what it cannot import.
    assert PRELOAD in sys.modules
    target(*arguments)


def ebl_stream(cwd: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run ``ebl-stream`` with some words in a folder, and wait for its end."""
    given = [str(word) for word in words]
    with tempfile.TemporaryDirectory() as streams:
        process = forked(_command, cwd, given, Path(streams), dict(os.environ))
        process.start()
        process.join(TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
            process.join()
        out, err = ((Path(streams) / name).read_text() for name in ("out", "err"))
        code = process.exitcode
    assert code is not None
    return subprocess.CompletedProcess(given, code, out, err)


def _command(
    cwd: Path, words: list[str], streams: Path, environment: dict[str, str]
) -> None:
    """Be the command (the child)."""
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(streams / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    # What the server had when it began is another test's.
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["ebl-stream", *words]
    from ebl_stream.cli.__main__ import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # a child of multiprocessing leaves them out
