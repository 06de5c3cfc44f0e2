"""A scan of a foam phantom by simulated devices, reconstructed while it runs.

Everything but the hardware is real: a RunEngine, ophyd-async devices, files that
grow, the door, the service as a process of its own, and its Tiled server.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import click
import numpy as np
import zarr
from bluesky import RunEngine
from bluesky.utils import RunEngineInterrupted
from numpy.typing import NDArray
from ophyd_async.core import init_devices

from ebl_stream.cli.browse import command, wait_and_look
from ebl_stream.cli.progress import ProgressView, summary
from ebl_stream.numerics.quality import inside_circle
from ebl_stream.profile_file import load
from ebl_stream.publish.tiled_api import Address, NodePath, TiledApi, TiledFault
from ebl_stream.publish.tiled_server import TiledServer
from ebl_stream.simulation.detector import DetectorModel
from ebl_stream.simulation.devices import RotationStage, TomoDetector
from ebl_stream.simulation.faults import LostProjections
from ebl_stream.simulation.phantom import Foam, Order
from ebl_stream.simulation.plan import tomo_scan

FINISH_S = 60.0
"""How long the last volume may take after the scan, and Tiled after that."""
POLL_S = 0.2
N_FLATS = N_DARKS = 20


class Door(Protocol):
    """What the demo needs of `ebl_stream.callbacks.LiveReconstruction`."""

    @property
    def status(self) -> dict[str, Any] | None:
        """How the latest run gets on."""
        ...

    @property
    def service_pid(self) -> int | None:
        """Process id of the service."""
        ...

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document."""
        ...

    def wait(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Wait until the latest run is reconstructed; return its result."""
        ...

    def close(self) -> None:
        """Let the service take what is left."""
        ...


@dataclass(frozen=True)
class Demo:
    """The settings of one demonstration.

    Parameters
    ----------
    columns, rows, angles : int
        Size of the detector, and projections.
    order : {"golden", "interlaced", "sequential"}
    rate_hz : float
        Projections per second.
    lose : float
        Fraction of the projections that are lost on the way to the house.
    seed : int
        Of the phantom, the noise and the losses.
    out : Path
        Folder of the results; raw files go to ``out/raw``.
    tiled : str, optional
        ``embedded`` (default), ``none``, or a server's address.
    """

    columns: int
    rows: int
    angles: int
    order: Order
    rate_hz: float
    lose: float
    seed: int
    out: Path
    tiled: str | None = None

    def run(self, as_json: bool) -> int:
        """Scan, reconstruct, compare with the truth; return the exit code."""
        with ProgressView() as view:
            view.say("making a foam phantom ...")
            phantom = Foam(self.columns, self.rows, self.seed)
            with self._door() as door:
                interrupted, result = self._scan(phantom, door, view)
                if "volume" in result:
                    result["tiled_uri"] = self._tiled_uri(result["processed_uid"])
        if "volume" not in result:
            view.say(f"there is no volume: {result.get('message')}")
            return 130 if interrupted else 1
        result |= compare(result["volume"], phantom.volume())
        self._tell(result, as_json)
        if interrupted:
            return 130
        return {"complete": 0, "partial": 3}.get(result["state"], 1)

    @contextmanager
    def _door(self) -> Iterator[Door]:
        raw = self.out.absolute() / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        # The folder's name makes the service one for this demonstration alone.
        settings = {"files.roots": [str(raw)]}
        # By name: doors import the house, the house imports no door.
        callbacks = import_module("ebl_stream.callbacks")
        door: Door = callbacks.LiveReconstruction(
            "demo", out=self.out, set=settings, tiled=self.tiled
        )
        try:
            yield door
        finally:
            end_service(door)

    def _scan(
        self, phantom: Foam, door: Door, view: ProgressView
    ) -> tuple[bool, dict[str, Any]]:
        """Run the plan; return whether it was interrupted, and what came of it."""
        engine = RunEngine({})
        engine.subscribe(LostProjections(door, self._lost()))
        with init_devices():
            stage = RotationStage("stage")
            camera = self._camera(stage, phantom)
        view.say(
            f"scanning: {self.angles} projections of {self.rows} x {self.columns} px, "
            f"{self.order} angles, {self.rate_hz:g} per second; the detector computes "
            "its frames first ..."
        )
        plan = tomo_scan(
            camera,
            stage,
            self.angles,
            self.order,
            self.rate_hz,
            N_FLATS,
            N_DARKS,
        )
        interrupted = False
        with following(door, view):
            try:
                engine(plan)
            except (RunEngineInterrupted, KeyboardInterrupt):
                interrupted = True
                if engine.state == "paused":
                    engine.abort("Ctrl-C")
            return interrupted, what_came(door)

    def _camera(self, stage: RotationStage, phantom: Foam) -> TomoDetector:
        return TomoDetector(
            self.out.absolute() / "raw",
            stage,
            phantom,
            DetectorModel(self.rows, self.columns, seed=self.seed),
            # Off the middle, as on every real stage: the house has to find it.
            rotation_center=(self.columns - 1) / 2 + 0.01 * self.columns,
        )

    def _lost(self) -> list[int]:
        dice = np.random.default_rng(self.seed).random(self.angles)
        return np.flatnonzero(dice < self.lose).tolist()

    def _tiled_uri(self, processed_uid: str) -> str | None:
        """Return where Tiled serves the run; waits until it has all of it."""
        if self.tiled == "none":
            return None
        publish = load("demo").publish
        path = (*publish.path.split("/"), processed_uid)
        if self.tiled is not None and not self._is_embedded:
            key = os.environ.get(publish.api_key_env)
            return ended_at(Address.parse(self.tiled), key, path)
        # The service's own server: this one only looks who serves the folder.
        server = TiledServer(self.out)
        server.start()
        try:
            if not server.wait_ready(FINISH_S):
                return None
            return ended_at(Address(str(server.uri)), server.api_key, path)
        finally:
            server.stop()

    @property
    def _is_embedded(self) -> bool:
        return self.tiled in (None, "embedded")

    def _tell(self, result: dict[str, Any], as_json: bool) -> None:
        if as_json:
            click.echo(json.dumps(result))
            return
        click.echo(summary(result))
        click.echo(
            f"  against truth    PSNR {result['psnr_db']:.1f} dB, "
            f"NRMSE {result['nrmse_truth']:.3f} (no fit, inside 0.9 of the circle)"
        )
        click.echo("\nOpen it in Python:")
        click.echo(f"  import zarr; volume = zarr.open({result['volume']!r}, mode='r')")
        click.echo("or look at it through Tiled:")
        click.echo(f"  {command()} browse {self.out}")
        port = urlsplit(result["tiled_uri"] or "").port
        if sys.stdout.isatty() and self._is_embedded and port is not None:
            self._stay(port)

    def _stay(self, port: int) -> None:
        # Where the service's server was, which ended with it.
        server = TiledServer(self.out, port)
        server.start()
        try:
            if server.wait_ready(FINISH_S):
                wait_and_look(server)
        finally:
            server.stop()


def end_service(door: Door) -> None:
    """Close the door, and end the service behind it; nothing of it is left."""
    service = door.service_pid
    door.close()
    if service is None:
        return
    with suppress(ProcessLookupError):
        os.kill(service, signal.SIGTERM)
    deadline = time.monotonic() + FINISH_S
    while door.service_pid == service and time.monotonic() < deadline:
        time.sleep(POLL_S)


@contextmanager
def following(door: Door, view: ProgressView) -> Iterator[None]:
    """Show what the service says while the RunEngine has this thread."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(POLL_S):
            show(door, view)
        show(door, view)

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def show(door: Door, view: ProgressView) -> None:
    """Show the newest progress; the result at the end is shown by itself."""
    status = door.status
    if status and not status.get("final"):
        view(status)


def what_came(door: Door) -> dict[str, Any]:
    """Return the run's result, or the reason why there is none."""
    try:
        return dict(door.wait(FINISH_S))
    except TimeoutError as error:
        return {"message": str(error)}


def ended_at(address: Address, api_key: str | None, path: NodePath) -> str | None:
    """Return where Tiled serves a run that has ended; None if it does not in time."""
    api = TiledApi(address, api_key)
    deadline = time.monotonic() + FINISH_S
    try:
        while time.monotonic() < deadline:
            try:
                if api.node(path)["metadata"].get("state") != "running":
                    return address.node_uri(path)
            except TiledFault as fault:
                if fault.kind in ("unreachable", "denied"):
                    return None
            time.sleep(POLL_S)
        return None
    finally:
        api.close()


def open_volume(path: Path | str) -> zarr.Array[Any]:
    """Open a volume's zarr array for reading.

    Raises
    ------
    TypeError
        There is a group, not an array.
    """
    volume = zarr.open(str(path), mode="r")
    if not isinstance(volume, zarr.Array):
        raise TypeError(f"{path} is not a zarr array")
    return volume


def compare(path: str, truth: NDArray[np.float32]) -> dict[str, float]:
    """Compare a volume with the truth, without any fit.

    Parameters
    ----------
    path : str
        zarr array, ``[z, y, x]``, 1/px.
    truth : ndarray, [z, y, x]
        1/px.

    Returns
    -------
    dict
        ``psnr_db`` (peak: the truth's range) and ``nrmse_truth`` (RMS error over
        the truth's standard deviation), both inside 0.9 of the circle.
    """
    inside = inside_circle(truth.shape, 0.9)
    true = truth[:, inside].astype(np.float64)
    error = np.asarray(open_volume(path)[:])[:, inside] - true
    rms = float(np.sqrt(np.mean(error**2)))
    return {
        "psnr_db": float(20 * np.log10(np.ptp(true) / rms)),
        "nrmse_truth": rms / float(true.std()),
    }
