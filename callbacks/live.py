"""The door to a service on this machine, which it starts where there is none."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ebl_stream.service.discovery import ServicePlace, service_key
from ebl_stream.transport.link import Link

logger = logging.getLogger(__name__)

DEFAULT_OUT = "ebl_stream_out"
IDLE_EXIT_S = 60.0
"""How long a service that a door started outlives its last door."""
LOOK_EVERY_S = 0.5
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
LIVES_LONG_S = 60.0
"""A service that lived so long was not started in vain."""


class LiveReconstruction:
    """Reconstruct tomography scans while they run, in a process of its own.

    The RunEngine's thread hands documents over and goes on: it never waits and
    never fails, whatever becomes of the service. A service that dies is started
    again and goes on with the run from its journal.

    Parameters
    ----------
    profile : str
        A shipped profile's name, or the path of a YAML file.
    address : str, optional
        Of a service that somebody else runs; by default one on this machine is
        found, or started.
    out : Path or str, optional
        Folder of the results.
    set : mapping, optional
        ``{"dotted.path": value}``, changes of the profile.
    tiled : str, optional
        ``embedded``, ``none`` or the address of a Tiled server, for a service that
        is started; the profile's choice by default.
    on_status : callable, optional
        Called in another thread with every status of a run, a plain dict.

    Raises
    ------
    InputError
        The profile or the address is wrong: now, before the scan.

    Examples
    --------
    >>> RE.subscribe(LiveReconstruction("2bm"))  # doctest: +SKIP
    """

    def __init__(
        self,
        profile: str = "demo",
        *,
        address: str | None = None,
        out: Path | str | None = None,
        set: Mapping[str, Any] | None = None,
        tiled: str | None = None,
        on_status: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        # Not at import: a startup file that only imports doors stays fast.
        from ebl_stream.profile_file import load

        settings = load(profile, dict(set or {}))
        self.profile = profile
        self.out = Path(out or DEFAULT_OUT).absolute()
        self._keeper: ServiceKeeper | None = None
        if address is None:
            place = ServicePlace(service_key(settings, self.out))
            command = _command(profile, self.out, set or {}, tiled, place)
            self._keeper = ServiceKeeper(place, command)
            address = self._keeper.ensure()
        self._link = Link(address, on_status=on_status)
        if self._keeper is not None:
            self._keeper.keep(self._link)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document."""
        self._link.send(name, doc)

    @property
    def status(self) -> dict[str, Any] | None:
        """How the latest run gets on (a `Progress` as a dict); None before that."""
        return self._link.status()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until the service has everything; False if it has not in time."""
        return self._link.flush(timeout_s)

    def wait(
        self, timeout_s: float | None = None, run_uid: str | None = None
    ) -> dict[str, Any]:
        """Wait until a run is reconstructed, by default the latest; return its result.

        Raises
        ------
        TimeoutError
            It has not in time, or there is no run to wait for.
        """
        return self._link.wait(timeout_s, run_uid)

    def close(self) -> None:
        """Let the service take what is left, and stop; it finishes by itself."""
        if self._keeper is not None:
            self._keeper.stop()
        self._link.close()

    @property
    def service_log(self) -> Path | None:
        """Log of a service that this door started."""
        return self._keeper.log if self._keeper is not None else None

    @property
    def service_pid(self) -> int | None:
        """Process id of the service on this machine, while it answers to its name."""
        return self._keeper.pid if self._keeper is not None else None

    def __repr__(self) -> str:
        service = f", {self._keeper}" if self._keeper is not None else ""
        where = f"{self.profile!r} -> {self.out}"
        latest = _in_words(self.status)
        return f"<LiveReconstruction {where}{latest}, {self._link!r}{service}>"


class ServiceKeeper:
    """Sees to it that a service lives in its place, without ever waiting for it.

    Parameters
    ----------
    place : ServicePlace
    command : sequence of str
        What starts a service there.
    """

    def __init__(self, place: ServicePlace, command: list[str]) -> None:
        self._place = place
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._failure = ""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def log(self) -> Path:
        """What the service writes to stderr."""
        return self._place.log

    @property
    def pid(self) -> int | None:
        """Process id of the service; None while there is none."""
        found = self._place.find()
        return found.pid if found else None

    def ensure(self) -> str:
        """Start a service where none lives; return where it listens, or will."""
        found = self._place.find()
        if found is None and not self._place.is_taken():
            self._start()
        return found.address if found else self._place.default_address

    def keep(self, link: Link) -> None:
        """Start the service again where it dies, and lead the link to it."""
        self._thread = threading.Thread(
            target=self._keep, args=(link,), name="ebl-stream-keeper", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Look no more; the service goes on until it is idle."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def __repr__(self) -> str:
        pid = self.pid
        state = f"service {pid}" if pid else self._failure or "service starts"
        return f"{state}, log {self.log}"

    def _keep(self, link: Link) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                self._look(link)
            except Exception as error:  # the thread must outlive any surprise
                link.note("service", f"the service cannot be looked after: {error}")

    def _look(self, link: Link) -> None:
        ended = self._child is not None and self._child.poll() is not None
        found = self._place.find()
        if found is not None:
            self._failure = ""
            if found.address != link.address:
                link.connect(found.address)
        elif not self._place.is_taken() and (ended or self._child is None):
            self._start_again(link)

    def _start_again(self, link: Link) -> None:
        lived_s = time.monotonic() - self._started_at
        if self._child is not None and not self._failure:
            code = self._child.returncode
            self._failure = f"the service ended (code {code}: {_last_line(self.log)})"
            log = "%s and is started again; the scan goes on; see %s"
            logger.warning(log, self._failure, self.log)
        if lived_s > LIVES_LONG_S:
            self._pause_s = FIRST_PAUSE_S
        if lived_s >= self._pause_s:
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._start()
            if link.address != self._place.default_address:
                link.connect(self._place.default_address)

    def _start(self) -> None:
        self._started_at = time.monotonic()
        fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=fd,
                stderr=fd,
                # Ctrl-C in the user's terminal is for the RunEngine alone.
                start_new_session=True,
            )
        finally:
            os.close(fd)
        logger.info("started service %d, log %s", self._child.pid, self.log)


def _command(
    profile: str,
    out: Path,
    changes: Mapping[str, Any],
    tiled: str | None,
    place: ServicePlace,
) -> list[str]:
    # A path is one for the service too; its working folder is ours.
    command = [sys.executable, "-m", "ebl_stream.cli", "serve"]
    command += ["--profile", profile, "--source", place.default_address]
    command += ["--out", str(out), "--idle-exit", str(IDLE_EXIT_S)]
    if tiled is not None:
        command += ["--tiled", tiled]
    for path, value in changes.items():
        command += ["--set", f"{path}={_as_yaml(value)}"]
    return command


def _as_yaml(value: Any) -> str:
    """Write a value on one line; JSON's 1e-05 would be read as a word."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return text.removesuffix("...\n").strip()


def _in_words(status: Mapping[str, Any] | None) -> str:
    """Return how a run gets on, in a few words."""
    if status is None:
        return ""
    ledger = status.get("ledger") or {}
    words = f", run {status.get('run_uid', '')[:8]} {status.get('state')}"
    if ledger:
        words += f", {ledger.get('used')}/{ledger.get('announced')} projections"
    lost = [n for n in ("missing", "rejected", "dropped") if ledger.get(n)]
    return words + "".join(f", {ledger[name]} {name}" for name in lost)


def _last_line(log: Path) -> str:
    """Return the last thing that a service said."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 1000))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line.strip()), "")[:200]
