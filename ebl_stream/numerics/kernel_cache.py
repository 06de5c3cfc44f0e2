"""Compiled kernels on disk: compiled once per machine model, found again at start.

Numba keeps compiled code beside the source, and tells neither that a function
called from another module has changed nor what to do where that folder cannot be
written. Here the folder's name holds what the code depends on: the sources of this
package's kernels, numba's version, the processor and its features. A home that
machines of several kinds share is safe, and an upgrade never runs old code.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite import binding
from numba.core import config as numba_config

config: Any = numba_config  # attributes are made at run time
COMPILED = re.compile(rb"^(from|import) .*(numba|kernel_cache)", re.MULTILINE)
"""Sources whose text compiled code depends on."""

_LOCK = threading.Lock()


@functools.cache
def folder() -> Path | None:
    """Return the folder of compiled kernels, made if need be.

    ``NUMBA_CACHE_DIR`` goes first; then ``ebl_stream/kernels`` in the user's cache
    (``XDG_CACHE_HOME`` or ``~/.cache``); then ``__pycache__`` of this package.

    Returns
    -------
    Path or None
        None where none can be written: every start compiles anew.
    """
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(given)
    here = Path(__file__).parent
    # Without a home (some containers) this stays "~", which is no folder to write.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    places = [cache / "ebl_stream" / "kernels"] if cache.is_absolute() else []
    for parent in (*places, here / "__pycache__"):
        path = parent / fingerprint(here)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(path, os.W_OK | os.X_OK):
            return path
    return None


def fingerprint(sources: Path) -> str:
    """Return a name for everything that compiled code depends on."""
    digest = hashlib.sha256(numba.__version__.encode())
    digest.update((config.CPU_NAME or binding.get_host_cpu_name()).encode())
    digest.update(_cpu_features().encode())
    for source in sorted(sources.glob("*.py")):
        text = source.read_bytes()
        if COMPILED.search(text):
            digest.update(text)
    return digest.hexdigest()[:16]


def _cpu_features() -> str:
    if config.CPU_FEATURES:
        return config.CPU_FEATURES
    try:
        return binding.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM does not know this processor
        return ""


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function that is compiled without the GIL and kept in `folder`.

    Parameters
    ----------
    **options
        For ``numba.njit``, over no GIL and NumPy's rules of division.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        settings = {"nogil": True, "error_model": "numpy"} | options
        path = folder()
        if path is None:
            return numba.njit(**settings)(function)
        # Numba asks for the folder at this moment, and only here may it be ours.
        with _LOCK:
            before, config.CACHE_DIR = config.CACHE_DIR, str(path)
            try:
                return numba.njit(cache=True, **settings)(function)
            finally:
                config.CACHE_DIR = before

    return decorate
