"""A simulated tomography beamline of ophyd-async devices.

The detector looks at a phantom on the rotation stage, writes HDF5 in SWMR mode
and tells of its frames by StreamResource and StreamDatum, as a real one does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import h5py
import numpy as np
from bluesky.protocols import Flyable, Preparable
from event_model import DataKey
from numpy.typing import NDArray
from ophyd_async.core import (
    AsyncStatus,
    DetectorAcquireLogic,
    DetectorDataLogic,
    DetectorTriggerLogic,
    StandardDetector,
    StandardReadable,
    StaticPathProvider,
    StreamableDataProvider,
    StreamResourceDataProvider,
    StreamResourceInfo,
    UUIDFilenameProvider,
    soft_signal_r_and_setter,
    soft_signal_rw,
)

from ebl_stream.frames import Kind
from ebl_stream.simulation.detector import DetectorModel
from ebl_stream.simulation.phantom import Phantom

logger = logging.getLogger(__name__)

DATA = "/entry/data/data"
THETA = "/entry/instrument/theta"
BLOCK = 32
"""Projections computed together."""


class RotationStage(StandardReadable, Flyable, Preparable):
    """A rotation stage that visits a list of angles, one per exposure.

    Children: ``theta`` (readback, deg) and ``sample_in`` (whether the sample is in
    the beam). ``prepare`` takes the angles (deg) in the order of the exposures.
    """

    def __init__(self, name: str = "stage") -> None:
        self.angles_deg: tuple[float, ...] = ()
        self._arrived = asyncio.Event()
        with self.add_children_as_readables():
            self.theta, self._set_theta = soft_signal_r_and_setter(float, units="deg")
        self.sample_in = soft_signal_rw(bool, True)
        super().__init__(name=name)

    @AsyncStatus.wrap
    async def prepare(self, value: Sequence[float]) -> None:
        """Take the angles (deg) to visit and go to the first."""
        self.angles_deg = tuple(float(angle) for angle in value)
        if self.angles_deg:
            self._set_theta(self.angles_deg[0])

    @AsyncStatus.wrap
    async def kickoff(self) -> None:
        """Start the turn; the detector sets the pace."""
        self._arrived.clear()

    @AsyncStatus.wrap
    async def complete(self) -> None:
        """Wait until the last angle was visited."""
        await self._arrived.wait()

    def step(self, exposure: int) -> float:
        """Go to the angle of an exposure and return it (deg)."""
        angle = self.angles_deg[exposure]
        self._set_theta(angle)
        if exposure == len(self.angles_deg) - 1:
            self._arrived.set()
        return angle


class FrameFile:
    """An HDF5 file of frames and their angles that can be read while it grows."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self._file = h5py.File(path, "w", libver="latest")
        self._frames = self._file.create_dataset(
            DATA, (0, *shape), np.uint16, maxshape=(None, *shape), chunks=(1, *shape)
        )
        self._theta = self._file.create_dataset(
            THETA, (0,), np.float64, maxshape=(None,), chunks=(1024,)
        )
        self._theta.attrs["units"] = "deg"
        self._file.swmr_mode = True

    def append(self, frame: NDArray[np.uint16], theta_deg: float) -> None:
        """Add a frame and its angle (deg)."""
        n = len(self._theta)
        self._theta.resize(n + 1, 0)
        self._theta[n] = theta_deg
        self._theta.flush()
        self._frames.resize(n + 1, 0)
        self._frames[n] = frame
        self._frames.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Camera:
    """The hardware behind the detector: exposes frames, writes them to a file.

    Parameters
    ----------
    stage : RotationStage
    phantom : Phantom
        What lies on the stage.
    model : DetectorModel
    rotation_center : float, optional
        px, the column that the axis is seen at; the middle of the columns.
    """

    def __init__(
        self,
        stage: RotationStage,
        phantom: Phantom,
        model: DetectorModel,
        rotation_center: float | None = None,
    ) -> None:
        self.stage = stage
        self.phantom = phantom
        self.model = model
        self.rotation_center = rotation_center
        self.shutter_open = soft_signal_rw(bool, True)
        self.written, self._set_written = soft_signal_r_and_setter(int)
        self._frames: NDArray[np.uint16] | None = None
        self._kind = Kind.PROJECTION
        self._period_s = 0.0
        self._file: FrameFile | None = None

    async def expose(self, n: int, period_s: float) -> None:
        """Compute the next n frames now, so that the scan costs only writing."""
        self._period_s = period_s
        self._kind = await self._what_is_in_the_beam()
        theta = np.deg2rad(self.stage.angles_deg[:n])
        logger.debug("computing %d frames of %s", n, self._kind.name)
        self._frames = await asyncio.to_thread(self._compute, self._kind, n, theta)

    async def _what_is_in_the_beam(self) -> Kind:
        if not await self.shutter_open.get_value():
            return Kind.DARK
        sample_in = await self.stage.sample_in.get_value()
        return Kind.PROJECTION if sample_in else Kind.FLAT

    def _compute(
        self, kind: Kind, n: int, theta: NDArray[np.float64]
    ) -> NDArray[np.uint16]:
        if kind is Kind.DARK:
            return self.model.darks(n)
        if kind is Kind.FLAT:
            return self.model.flats(n)
        blocks = []
        for first in range(0, n, BLOCK):
            angles = theta[first : first + BLOCK]
            shadows = self.phantom.project(angles, self.rotation_center)
            blocks.append(self.model.projections(shadows, first))
        return np.concatenate(blocks)

    def open(self, path: Path) -> None:
        """Create the file that the next frames go to."""
        self._file = FrameFile(path, (self.model.n_rows, self.model.n_columns))
        self._set_written(0)

    async def run(self) -> None:
        """Write the exposed frames at their pace."""
        if self._file is None or self._frames is None:
            raise RuntimeError("the camera was started before it was prepared")
        started = time.monotonic()
        for k, frame in enumerate(self._frames):
            due = started + (k + 1) * self._period_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._file.append(frame, self.stage.step(k))
            self._set_written(k + 1)

    def close(self) -> None:
        """Close the file, if one is open."""
        if self._file is not None:
            self._file.close()
            self._file = None


class TomoDetector(StandardDetector):
    """A tomography detector that writes HDF5 (SWMR) and emits StreamDatum.

    Data keys: ``<name>`` (uint16, row and column) and ``<name>-theta`` (deg), each
    with its own StreamResource in one file; a new file each time it is staged.
    Child ``shutter_open`` and the stage's ``sample_in`` decide what it sees.

    Parameters
    ----------
    directory : path
        Where the files go; must exist.
    stage, phantom, model, rotation_center
        See `Camera`; ``model`` defaults to one of the phantom's size.
    """

    def __init__(
        self,
        directory: Path | str,
        stage: RotationStage,
        phantom: Phantom,
        model: DetectorModel | None = None,
        *,
        rotation_center: float | None = None,
        name: str = "camera",
    ) -> None:
        model = model or DetectorModel(phantom.n_rows, phantom.n_columns)
        camera = Camera(stage, phantom, model, rotation_center)
        self.shutter_open = camera.shutter_open
        self.add_detector_logics(
            _Trigger(camera), _Acquire(camera), _Data(Path(directory).resolve(), camera)
        )
        super().__init__(name=name)


@dataclass
class _Trigger(DetectorTriggerLogic):
    camera: Camera

    async def prepare_internal(
        self, num: int, livetime: float, deadtime: float
    ) -> None:
        await self.camera.expose(num, livetime + deadtime)


class _Acquire(DetectorAcquireLogic):
    def __init__(self, camera: Camera) -> None:
        self._camera = camera
        self._task: asyncio.Task[None] | None = None

    async def start_acquiring(self) -> None:
        self._task = asyncio.create_task(self._camera.run())

    async def wait_for_idle(self) -> None:
        if self._task is not None:
            await self._task

    async def ensure_stopped(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None


class _Data(DetectorDataLogic):
    def __init__(self, directory: Path, camera: Camera) -> None:
        self._path_of = StaticPathProvider(UUIDFilenameProvider(), PurePath(directory))
        self._camera = camera

    async def prepare_unbounded(self, datakey_name: str) -> StreamableDataProvider:
        info = self._path_of(datakey_name)
        file_name = f"{info.filename}.h5"
        self._camera.open(Path(info.directory_path) / file_name)
        shape = (self._camera.model.n_rows, self._camera.model.n_columns)
        resources = (
            _resource(datakey_name, shape, (1, *shape), "<u2", DATA),
            _resource(f"{datakey_name}-theta", (), (1024,), "<f8", THETA),
        )
        return _Provider(
            uri=f"{info.directory_uri}{file_name}",
            mimetype="application/x-hdf5",
            resources=resources,
            collections_written_signal=self._camera.written,
        )

    async def stop(self) -> None:
        self._camera.close()

    def get_hinted_fields(self, datakey_name: str) -> Sequence[str]:
        return [f"{datakey_name}-theta"]


class _Provider(StreamResourceDataProvider):
    """Says the unit of the angle, which its base class has no field for."""

    async def make_datakeys(self, collections_per_event: int) -> dict[str, DataKey]:
        keys = await super().make_datakeys(collections_per_event)
        for name, key in keys.items():
            if name.endswith("-theta"):
                key["units"] = "deg"
        return keys


def _resource(
    data_key: str,
    shape: tuple[int, ...],
    chunk_shape: tuple[int, ...],
    dtype: str,
    dataset: str,
) -> StreamResourceInfo:
    return StreamResourceInfo(
        data_key=data_key,
        shape=shape,
        chunk_shape=chunk_shape,
        dtype_numpy=dtype,
        parameters={"dataset": dataset, "swmr": True},
    )
