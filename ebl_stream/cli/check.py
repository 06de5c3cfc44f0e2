"""Say before a scan whether anything would stop it."""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ebl_stream.cli.extras import advice
from ebl_stream.cli.plain_text import printable
from ebl_stream.engine.memory import free_memory, n_threads, plan_memory
from ebl_stream.engine.rooms import Rooms
from ebl_stream.errors import InputError
from ebl_stream.gpu.choice import best_device
from ebl_stream.ingest import pva
from ebl_stream.numerics import kernel_cache, tiles_plain
from ebl_stream.numerics.tiles import tiles
from ebl_stream.profile import Profile
from ebl_stream.publish.space import GB, fit, free_bytes
from ebl_stream.publish.tiled_api import Address
from ebl_stream.publish.tiled_server import TiledServer

Verdict = Literal["ok", "note", "stop"]


@dataclass(frozen=True)
class Size:
    """The scan to plan for."""

    angles: int
    rows: int
    columns: int
    source: Literal["given", "demo", "assumed"]
    """An assumed size cannot stop a scan, so it only makes notes."""

    @property
    def too_small(self) -> Verdict:
        """Verdict where the machine has no room for this size."""
        return "note" if self.source == "assumed" else "stop"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    words: str


def parse_shape(text: str | None, profile_name: str) -> Size:
    """Read ``ANGLES,ROWS,COLUMNS``.

    Raises
    ------
    InputError
        Not three positive numbers.
    """
    if text is None:
        if profile_name == "demo":
            return Size(400, 128, 256, "demo")
        return Size(2048, 2048, 2048, "assumed")
    if not re.fullmatch(r"[1-9]\d{0,6}(,[1-9]\d{0,6}){2}", text):
        raise InputError(
            f"--shape {text!r}: expected ANGLES,ROWS,COLUMNS such as 1500,2048,2448"
        )
    angles, rows, columns = (int(part) for part in text.split(","))
    return Size(angles, rows, columns, "given")


def run_checks(profile: Profile, size: Size, out: Path, tiled: str) -> list[Finding]:
    """Look at everything that a scan with this profile needs; writes nothing.

    Parameters
    ----------
    profile : Profile
    size : Size
    out : Path
        Folder of the results; need not exist.
    tiled : str
        ``embedded``, ``none``, or the address of a server.
    """
    return [
        *_check_stages(profile),
        _check_folder(out),
        _check_disk(profile, size, out),
        *_check_memory(profile, size),
        *_check_tiled(tiled, os.environ.get(profile.publish.api_key_env)),
        *_check_feed(profile),
        *_check_devices(profile),
        _check_cache(),
    ]


def show(profile_name: str, size: Size, findings: list[Finding]) -> None:
    """Print the findings as a table on stdout."""
    console = Console(markup=False, highlight=False)
    said = {"given": "as given", "demo": "the demo's", "assumed": "assumed, --shape"}
    console.print(
        f"profile {printable(profile_name)}; scan of {size.angles} angles, "
        f"{size.rows} rows, {size.columns} columns ({said[size.source]})"
    )
    style = {"ok": "green", "note": "yellow", "stop": "bold red"}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        verdict = Text(finding.verdict, style=style[finding.verdict])
        table.add_row(verdict, Text(finding.what), Text(printable(finding.words)))
    console.print(table)


def _check_stages(profile: Profile) -> Iterator[Finding]:
    try:
        rooms = Rooms.furnish(profile).as_dict()
    except InputError as error:
        yield Finding("stages", "stop", str(error))
        return
    chain = ", ".join(name for stage in rooms["preprocess"] for name in stage)
    yield Finding("preprocess", "ok", chain or "nothing")
    for room in ("center", "reconstruct", "denoise", "segment", "quantify"):
        yield Finding(room, "ok", ", ".join(rooms.get(room) or ["nothing"]))


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _check_folder(out: Path) -> Finding:
    folder = _existing(out)
    if not folder.is_dir():
        return Finding("output folder", "stop", f"{folder} is a file, not a folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding("output folder", "stop", f"{folder}: {error.strerror}")
    new = "" if folder == out.absolute() else " (will be made)"
    return Finding("output folder", "ok", f"{out.absolute()}{new}")


def _check_disk(profile: Profile, size: Size, out: Path) -> Finding:
    voxels = size.rows * size.columns**2
    sizes = {"recon": 4 * voxels}
    sizes |= {"denoised": 4 * voxels} if profile.denoise else {}
    sizes |= {"labels": voxels} if profile.segment else {}
    free = free_bytes(_existing(out))
    stack = _bytes(2 * size.angles * size.rows * size.columns)
    try:
        plan = fit(sizes, round(profile.retention.min_free_gb * GB), free)
    except OSError as error:
        return Finding("disk", size.too_small, error.strerror or str(error))
    words = f"{plan.words}; {stack} more where events hold the images (journal)"
    return Finding("disk", "note" if plan.skipped else "ok", words)


def _check_memory(profile: Profile, size: Size) -> Iterator[Finding]:
    free = free_memory()
    stack = 2 * size.angles * size.rows * size.columns
    ring, rooms = min(profile.window.max_bytes, stack), Rooms.furnish(profile)
    try:
        plan = plan_memory(
            (size.rows, size.columns),
            profile.refresh.slab_rows,
            oversampling=rooms.reconstruct.oversampling,
            interpret=bool(rooms.denoise or rooms.segment),
            learns=rooms.learns,
            ring_bytes=ring,
            free=free,
            threads=n_threads(),
        )
    except InputError as error:
        yield Finding("memory", size.too_small, str(error))
        return
    known = "free memory is not known here" if free is None else f"{_bytes(free)} free"
    verdict: Verdict = "ok" if plan.rung == 1 and free is not None else "note"
    yield Finding("memory", verdict, f"{plan.words}; {known}")
    rest = "" if stack <= ring else "; the rest is read again from the detector's file"
    yield Finding(
        "ring", "ok", f"{_bytes(ring)} of {_bytes(stack)} raw frames (uint16){rest}"
    )


def _check_tiled(tiled: str, api_key: str | None) -> Iterator[Finding]:
    if tiled == "none":
        yield Finding("Tiled", "ok", "not asked for")
        return
    if tiled == "embedded":
        yield _check_embedded()
        return
    try:
        address = Address.parse(tiled)
    except InputError as error:
        yield Finding("Tiled", "stop", str(error))
        return
    yield _check_server(address, api_key or address.api_key)
    yield from _check_keyless(address.server)


def _check_server(address: Address, api_key: str | None) -> Finding:
    server, safe = address.server, "; results stay safe on disk until it is back"
    headers = {"Authorization": f"Apikey {api_key}"} if api_key else {}
    try:
        reply = httpx.get(f"{server}/api/v1/", headers=headers, timeout=5)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding("Tiled", "note", f"{server} does not answer ({error}){safe}")
    if reply.status_code != 200:
        return Finding("Tiled", "note", f"{server}: HTTP {reply.status_code}{safe}")
    keyless = "" if api_key else " (no API key is set: it may refuse to be written to)"
    return Finding("Tiled", "note" if keyless else "ok", f"{server} answers{keyless}")


def _check_keyless(server: str) -> Iterator[Finding]:
    """Warn of what a server tells to whoever asks: Tiled's /zarr asks for no key."""
    try:
        is_open = httpx.get(f"{server}/api/v1/metadata/", timeout=5).is_success
        zarr = httpx.get(f"{server}/zarr/v3/zarr.json", timeout=5).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return
    if is_open:
        words = "anybody who reaches it may read results and metadata without a key"
        yield Finding("Tiled's key", "note", f"{server}: {words}")
    elif zarr:
        words = "its /zarr routes answer without a key; let a proxy close them"
        yield Finding("Tiled's key", "note", f"{server}: {words}")


def _check_embedded() -> Finding:
    with tempfile.TemporaryDirectory(prefix="ebl_stream-") as folder:
        server = TiledServer(Path(folder))
        server.start()
        try:
            if server.api_key is not None and server.wait_ready(30):
                return Finding("Tiled", "ok", "the embedded server starts")
        finally:
            server.stop()
    return Finding("Tiled", "note", "the embedded server does not start")


def _check_feed(profile: Profile) -> Iterator[Finding]:
    address = profile.feed.address
    if address is None:
        return
    try:
        answer = pva.probe(address)
    except InputError as error:
        yield Finding("frame feed", "stop", str(error))
    except ModuleNotFoundError as error:
        yield Finding("frame feed", "stop", advice(error) or str(error))
    else:
        words = answer or "does not answer: is the IOC up, and EPICS_PVA_ADDR_LIST set?"
        yield Finding("frame feed", "ok" if answer else "note", f"{address} {words}")


def _check_devices(profile: Profile) -> Iterator[Finding]:
    kernels = "vector kernels" if tiles() is not tiles_plain else "plain kernels, slow"
    yield Finding("CPU", "ok", f"{len(os.sched_getaffinity(0))} cores, {kernels}")
    if profile.compute.device == "gpu":
        device, words = best_device()
        yield Finding("GPU", "ok" if device else "note", words)
    else:
        yield Finding("GPU", "ok", "not asked for (compute.device: cpu)")
    if importlib.util.find_spec("torch") is not None:
        yield Finding("PyTorch", "ok", version("torch"))


def _check_cache() -> Finding:
    """Compiled kernels are kept, so that a service starts in a second."""
    folder = kernel_cache.folder()
    if folder is not None:
        return Finding("kernel cache", "ok", str(folder))
    return Finding(
        "kernel cache",
        "note",
        "not writable: every start compiles anew; set NUMBA_CACHE_DIR",
    )


def _bytes(n: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"
