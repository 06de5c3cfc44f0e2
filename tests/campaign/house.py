"""A service in a process of its own that may be killed at any time.

Processes are forked from one that has loaded everything, so that many can die in
little time; what they run is `serve`, as `ebl-stream serve` does.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from checker.check import Report, check
from numpy.typing import NDArray

from campaign.forks import forked
from campaign.scan import SETTINGS, Detector, N
from ebl_stream import audit, failpoints, profile_file
from ebl_stream.service.service import Settings, serve
from ebl_stream.transport.link import Link

PATIENCE_S = 60.0
SAME = 1e-6
"""Largest difference of two volumes, relative to the largest value."""


@dataclass(frozen=True)
class Orders:
    """What a service is to do, and when it is to die."""

    folder: Path
    tiled: str = "none"
    failpoint: str = ""
    api_key: str = ""
    file_bytes: int | None = None
    """No file may become larger."""
    settings: dict[str, Any] = field(default_factory=lambda: dict(SETTINGS))


def _serve(orders: Orders) -> None:
    """Be a service (the child)."""
    log = os.open(orders.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["XDG_RUNTIME_DIR"] = str(orders.folder)
    os.environ["TILED_API_KEY"] = orders.api_key
    os.environ[audit.VARIABLE] = str(orders.folder)
    if orders.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (orders.file_bytes, -1))
    failpoints.arm(orders.failpoint)
    profile = profile_file.load("demo", orders.settings)
    out = orders.folder / "out"
    ready = orders.folder / "ready"
    settings = Settings(profile, House.address_in(orders.folder), out, orders.tiled)
    sys.exit(serve(settings, ready.write_text))


class House:
    """A folder, a service that comes and goes, and a door that stays.

    Parameters
    ----------
    folder : Path
        Short: it holds a socket.
    """

    def __init__(self, folder: Path, **orders: Any) -> None:
        self.folder = folder
        self.detector = Detector(folder / "detector.jsonl")
        self.orders = Orders(folder, **orders)
        self.process: BaseProcess | None = None
        self.door = Link(self.address_in(folder), folder=folder)

    @staticmethod
    def address_in(folder: Path) -> str:
        """Return where the service of a folder listens."""
        return f"ipc://{folder}/s"

    @property
    def out(self) -> Path:
        """Folder of the results."""
        return self.folder / "out"

    def start(self, failpoint: str = "", **changes: Any) -> BaseProcess:
        """Start a service, the one before being dead."""
        fields = {**self.orders.__dict__, "failpoint": failpoint, **changes}
        self.process = forked(_serve, Orders(**fields))
        self.process.start()
        return self.process

    def kill(self) -> None:
        """Kill the service at once."""
        if self.process is not None:
            self.process.kill()
            self.process.join(PATIENCE_S)

    def died(self, timeout_s: float) -> bool:
        """Wait until the service has killed itself; False if it has not in time."""
        assert self.process is not None
        self.process.join(timeout_s)
        return self.process.exitcode == -signal.SIGKILL

    def end(self) -> int | None:
        """Ask the service to end (SIGTERM), and wait for it."""
        assert self.process is not None
        self.process.terminate()
        self.process.join(PATIENCE_S)
        return self.process.exitcode

    def close(self) -> None:
        """Let go of everything."""
        self.door.close(linger_s=0)
        self.kill()

    def check(self, run_uid: str, n: int = N) -> Report:
        """Let the checker judge a run."""
        return check(
            self.detector.record,
            run_uid,
            journal=self.out / "journal",
            audit=self.folder,
            results=self.out,
            n_planned=n,
        )

    def log(self) -> str:
        """Return what the services said."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""


def volume(result: dict[str, Any]) -> NDArray[np.float32]:
    """Read the volume of a result."""
    return np.asarray(zarr.open_array(result["volume"], mode="r"))


def difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the largest difference relative to the largest value."""
    return float(np.abs(one - other).max() / np.abs(other).max())


def until(condition: Any, timeout_s: float = PATIENCE_S) -> bool:
    """Wait for something; False if it does not come to pass in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
