"""Record the fixtures of this folder: small scans in the dialects of beamlines.

Each is taken by a RunEngine that runs a plan with the streams, data keys and file
layout of the beamline's public start-up code (named in its profile), with devices that
write what its detectors write. Paths in the documents are the beamline's; the files
lie beside them in a folder of this one.

Run it anew with ``python tests/dialects/record.py [FOLDER]``.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import h5py
import numpy as np
from bluesky import RunEngine
from event_model import compose_resource
from numpy.typing import NDArray
from ophyd.sim import SynAxis
from ophyd_async.core import (
    DetectorAcquireLogic,
    DetectorDataLogic,
    DetectorTriggerLogic,
    StandardDetector,
    StreamableDataProvider,
    StreamResourceDataProvider,
    StreamResourceInfo,
    TriggerInfo,
    soft_signal_r_and_setter,
)

from ebl_stream.callbacks import DocumentRecorder
from ebl_stream.simulation.detector import DetectorModel
from ebl_stream.simulation.phantom import Foam, interlaced_angles

COLUMNS, ROWS, N_FLATS, N_DARKS = 48, 4, 6, 4
CENTER = 23.9
"""px, rotation center of all of them."""
PHANTOM = Foam(COLUMNS, ROWS, seed=8)
MODEL = DetectorModel(ROWS, COLUMNS, seed=8)


def projections(theta_deg: Sequence[float] | NDArray[np.float64]) -> NDArray[np.uint16]:
    """Expose the phantom."""
    shadows = PHANTOM.project(np.deg2rad(np.asarray(theta_deg, np.float64)), CENTER)
    return MODEL.projections(shadows)


def write(path: Path, **datasets: NDArray[Any]) -> None:
    """Write a file as areaDetector does without SWMR: a chunk for each frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            chunks = (1, *values.shape[1:]) if values.ndim > 1 else (1024,)
            limits = (None, *values.shape[1:])
            file.create_dataset(
                name.replace("__", "/"),
                data=values,
                chunks=chunks,
                maxshape=limits,
                compression="gzip",
            )


def record(folder: Path) -> tuple[RunEngine, DocumentRecorder]:
    """Return a RunEngine whose documents go to journals in a folder."""
    engine, door = RunEngine({}), DocumentRecorder(folder)
    engine.subscribe(door)
    return engine, door


# ------------------------------------------------------------------------ NSLS-II HEX

HEX_ROOT = "/nsls2/data/hex/proposals"


@dataclass
class Hardware:
    """What stands behind an ophyd-async detector that writes HDF5."""

    folder: Path
    dataset: str
    shape: tuple[int, ...]
    dtype: str
    values: NDArray[Any] | None = None
    """What the next acquisition takes."""
    scan: str = ""
    prefix: str = ""

    def __post_init__(self) -> None:
        self.written, self.set_written = soft_signal_r_and_setter(int)


class HexDetector(StandardDetector):
    """A Kinetix, or the PandA: a dataset in a file of its own, closed by `unstage`."""

    def __init__(self, hardware: Hardware, data_key: str, name: str) -> None:
        self.hardware = hardware
        self.add_detector_logics(
            _Trigger(), _Acquire(hardware), _Data(hardware, data_key)
        )
        super().__init__(name=name)


class _Trigger(DetectorTriggerLogic):
    async def prepare_internal(
        self, num: int, livetime: float, deadtime: float
    ) -> None: ...


class _Acquire(DetectorAcquireLogic):
    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        self._task: asyncio.Task[None] | None = None

    async def start_acquiring(self) -> None:
        self._task = asyncio.create_task(self._count())

    async def _count(self) -> None:
        values = self._hardware.values
        n = 0 if values is None else len(values)
        for k in range(0, n, 24):
            await asyncio.sleep(0.06)
            self._hardware.set_written(min(k + 24, n))

    async def wait_for_idle(self) -> None:
        if self._task is not None:
            await self._task

    async def ensure_stopped(self) -> None:
        self._task = None


class _Data(DetectorDataLogic):
    def __init__(self, hardware: Hardware, data_key: str) -> None:
        self._hardware, self._data_key = hardware, data_key
        self._path: Path | None = None

    async def prepare_unbounded(self, datakey_name: str) -> StreamableDataProvider:
        hw = self._hardware
        where = f"2025-3/pass-316789/assets/{datakey_name}/2025/{hw.scan}"
        name = f"{hw.prefix}_{hw.scan}_{uuid.uuid4()}.h5"
        self._path = hw.folder / where / name
        hw.set_written(0)
        info = StreamResourceInfo(
            data_key=self._data_key,
            shape=hw.shape,
            chunk_shape=(1, *hw.shape) if hw.shape else (1024,),
            dtype_numpy=hw.dtype,
            parameters={"dataset": hw.dataset},
        )
        return StreamResourceDataProvider(
            uri=f"file://localhost{HEX_ROOT}/{where}/{name}",
            mimetype="application/x-hdf5",
            resources=(info,),
            collections_written_signal=hw.written,
        )

    async def stop(self) -> None:
        if self._path is not None and self._hardware.values is not None:
            dataset = self._hardware.dataset.strip("/").replace("/", "__")
            write(self._path, **{dataset: self._hardware.values})
        self._path = None


def hex_fly(detectors: list[Any], n: int, stream: str) -> Iterator[Any]:
    yield from bps.stage_all(*detectors)
    for detector in detectors:
        info = TriggerInfo(number_of_events=n, livetime=0.001)
        yield from bps.prepare(detector, info, wait=True)
    yield from bps.declare_stream(*detectors, name=stream)
    yield from bps.kickoff_all(*detectors, wait=True)
    yield from bps.collect_while_completing(
        detectors, detectors, flush_period=0.05, stream_name=stream
    )
    yield from bps.unstage_all(*detectors)


def hex_plans(kinetix: HexDetector, panda: HexDetector, n: int) -> Iterator[Any]:
    """Take darks and flats in a run of their own, then fly."""
    camera, turn = kinetix.hardware, panda.hardware
    camera.scan = turn.scan = "scan_00041"
    uid = yield from bps.open_run(md={"tomo_scanning_mode": "tomo_dark_flat"})
    camera.values, camera.prefix = MODEL.darks(N_DARKS), "dark"
    yield from hex_fly([kinetix], N_DARKS, "dark")
    camera.values, camera.prefix = MODEL.flats(N_FLATS), "flat"
    yield from hex_fly([kinetix], N_FLATS, "flat")
    yield from bps.close_run()
    camera.scan = turn.scan = "scan_00042"
    # The stage does not begin where its encoder has zero.
    turn.values, turn.prefix = np.linspace(0, 180, n) + 17.3, "panda1"
    camera.values, camera.prefix = projections(turn.values), "proj"
    md = {
        "detectors": [kinetix.name],
        "num_points": n,
        "plan_name": "tomo_flyscan",
        "hints": {},
        "tomo_scanning_mode": "tomo_flyscan",
        "current_dark_flat_scan_uid": uid,
    }
    yield from bps.open_run(md=md)
    yield from hex_fly([panda, kinetix], n, "tomo")
    yield from bps.close_run()


def nsls2_hex(folder: Path, n: int = 61) -> None:
    """Record two runs at HEX: darks and flats, projections."""
    engine, door = record(folder)

    async def devices() -> tuple[HexDetector, HexDetector]:
        camera = Hardware(folder, "/entry/data/data", (ROWS, COLUMNS), "<u2")
        turn = Hardware(folder, "/Angle", (), "<f8")
        kinetix = HexDetector(camera, "kinetix-det1", "kinetix-det1")
        panda = HexDetector(turn, "Angle", "panda1")
        await kinetix.connect()
        await panda.connect()
        return kinetix, panda

    future = asyncio.run_coroutine_threadsafe(devices(), engine.loop)
    engine(hex_plans(*future.result(), n))
    door.close()


# ----------------------------------------------------------------- APS 2-BM and 32-ID


class PluginCamera:
    """A classic ophyd camera whose HDF5 plugin tells by Resource and Datum.

    Parameters
    ----------
    name, root : str
        Of the device, and the folder in the documents.
    folder : Path
        Where the file really is.
    spec : str
    n_frames : int
        Of one event.
    """

    parent = None

    def __init__(
        self, name: str, root: str, folder: Path, spec: str, n_frames: int
    ) -> None:
        self.name = name
        self._root, self._folder = root, folder
        self._spec, self._n_frames = spec, n_frames
        self._assets: deque[tuple[str, Any]] = deque()
        self._datum_id, self._resource, self._n = "", None, 0
        self.frames: list[NDArray[np.uint16]] = []
        self.before: dict[str, NDArray[np.uint16]] = {}
        """Flats and darks by dataset."""

    def stage(self) -> list[Any]:
        self._path = f"{uuid.uuid4()}_000.h5"
        bundle = compose_resource(
            spec=self._spec,
            root="/",
            resource_path=f"{self._root.strip('/')}/{self._path}",
            resource_kwargs={"frame_per_point": self._n_frames},
        )
        self._resource = bundle
        doc = dict(bundle.resource_doc)
        doc.pop("run_start", None)
        self._assets.append(("resource", doc))
        self._n = 0
        return [self]

    def unstage(self) -> list[Any]:
        self.close_file()
        return [self]

    def close_file(self) -> None:
        """Write the file as its plugin leaves it."""
        if self.frames:
            write(
                self._folder / self._path,
                exchange__data=np.concatenate(self.frames),
                **{key.replace("/", "__"): v for key, v in self.before.items()},
            )
        self.frames = []

    def point(self) -> None:
        """Make the Datum of the next event."""
        assert self._resource is not None
        datum = self._resource.compose_datum(datum_kwargs={"point_number": self._n})
        self._n += 1
        self._datum_id = datum["datum_id"]
        self._assets.append(("datum", datum))

    def collect_asset_docs(self) -> Iterator[tuple[str, Any]]:
        while self._assets:
            yield self._assets.popleft()

    def describe(self) -> dict[str, Any]:
        return {
            f"{self.name}_image": {
                "shape": [self._n_frames, ROWS, COLUMNS],
                "source": "PV:CAM:",
                "dtype": "array",
                "external": "FILESTORE:",
            }
        }

    def read(self) -> dict[str, Any]:
        return {f"{self.name}_image": {"value": self._datum_id, "timestamp": 0.0}}

    def describe_configuration(self) -> dict[str, Any]:
        return {}

    def read_configuration(self) -> dict[str, Any]:
        return {}


def one_event(camera: PluginCamera, rotation: SynAxis, n: int) -> Iterator[Any]:
    """Fly: the frames are read as one event when the turn is over."""
    yield from bps.monitor(rotation.readback, name="rotation_monitor")
    camera.frames.append(projections(np.arange(n) * (180 / n)))
    yield from bps.mv(rotation, 180.0)
    camera.close_file()
    camera.point()
    yield from bps.create(name="primary")
    yield from bps.read(camera)
    yield from bps.save()
    yield from bps.unmonitor(rotation.readback)


def aps_2bm(folder: Path, n: int = 60) -> None:
    """Record a run of 2-BM's own fly scan."""
    engine, door = record(folder)
    camera = PluginCamera("pg3_det", "/local/user2bmb/mona", folder, "AD_HDF5_DX_V1", n)
    camera.before = {
        "exchange/data_dark": MODEL.darks(N_DARKS),
        "exchange/data_white": MODEL.flats(N_FLATS),
    }
    parameters = {"start": 0, "stop": 180, "numProjPerSweep": n, "slewSpeed": 5}
    md = {"project": "mona", "plan_name": "tomo_scan", "tomo parameters": parameters}
    rotation = SynAxis(name="tomo_stage_rotary")
    plan = bpp.run_wrapper(one_event(camera, rotation, n), md=md)
    engine(bpp.stage_wrapper(plan, [camera]))
    door.close()


def step_by_step(
    camera: PluginCamera, rotation: SynAxis, theta_deg: NDArray[np.float64]
) -> Iterator[Any]:
    for angle, frame in zip(theta_deg.tolist(), projections(theta_deg), strict=True):
        yield from bps.checkpoint()
        yield from bps.mv(rotation, angle)
        camera.frames.append(frame[np.newaxis])
        camera.point()
        yield from bps.create(name="primary")
        yield from bps.read(camera)
        yield from bps.read(rotation)
        yield from bps.save()


def aps_32id(folder: Path, n: int = 60) -> None:
    """Record an interlaced step scan in 32-ID's file layout."""
    engine, door = record(folder)
    camera = PluginCamera("oryx", "/mnt/tomodata1/TXM/2025-11", folder, "AD_HDF5", 1)
    # Dark and flat field mode "Both": taken before and after, in one dataset each.
    camera.before = {
        "exchange/data_dark": MODEL.darks(N_DARKS),
        "exchange/data_white": MODEL.flats(N_FLATS),
    }
    rotation = SynAxis(name="theta")
    md: Mapping[str, Any] = {
        "plan_name": "tomo_step",
        "detectors": ["oryx"],
        "NumAngles": n,
    }
    theta_deg = np.rad2deg(interlaced_angles(n, 4))
    plan = bpp.run_wrapper(step_by_step(camera, rotation, theta_deg), md=md)
    engine(bpp.stage_wrapper(plan, [camera]))
    door.close()


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
    for take in (nsls2_hex, aps_2bm, aps_32id):
        take(target.resolve() / take.__name__)
