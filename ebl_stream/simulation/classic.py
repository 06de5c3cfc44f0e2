"""The simulated beamline for classic ophyd: whole images inside the events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.utils import MsgGenerator
from numpy.typing import NDArray
from ophyd import Component, Device, Kind, Signal
from ophyd.sim import SynAxis
from ophyd.status import DeviceStatus

from ebl_stream.simulation.detector import DetectorModel
from ebl_stream.simulation.phantom import Order, Phantom, angles_of


class SimulatedCamera(Device):
    """A camera that exposes one image of a phantom each time it is triggered.

    Components: ``image`` (data key ``<name>_image``, uint16, row and column),
    ``shutter_open`` and ``sample_in`` (set them to 0 for darks and flats).

    Parameters
    ----------
    axis : SynAxis
        What the phantom turns on (deg).
    phantom : Phantom
    model : DetectorModel, optional
        One of the phantom's size.
    rotation_center : float, optional
        px, the column that the axis is seen at; the middle of the columns.
    """

    image = Component(Signal, kind=Kind.normal)
    shutter_open = Component(Signal, value=1, kind=Kind.config)
    sample_in = Component(Signal, value=1, kind=Kind.config)

    def __init__(
        self,
        axis: SynAxis,
        phantom: Phantom,
        model: DetectorModel | None = None,
        *,
        rotation_center: float | None = None,
        name: str = "camera",
    ) -> None:
        super().__init__(name=name)
        self._axis = axis
        self._phantom = phantom
        self._model = model or DetectorModel(phantom.n_rows, phantom.n_columns)
        self._rotation_center = rotation_center
        self._exposures = 0
        shape = (self._model.n_rows, self._model.n_columns)
        self.image.put(np.zeros(shape, np.uint16))

    def stage(self) -> list[object]:
        """Count exposures from zero."""
        self._exposures = 0
        return super().stage()

    def trigger(self) -> DeviceStatus:
        """Expose an image of what is in the beam."""
        self.image.put(self._expose(self._exposures))
        self._exposures += 1
        status = DeviceStatus(self)
        status.set_finished()
        return status

    def _expose(self, exposure: int) -> NDArray[np.uint16]:
        if not self.shutter_open.get():
            return self._model.darks(1, first=exposure)[0]
        if not self.sample_in.get():
            return self._model.flats(1, first=exposure)[0]
        theta = np.deg2rad(self._axis.position)
        shadow = self._phantom.project(theta, self._rotation_center)
        return self._model.projections(shadow, first=exposure)[0]


def classic_scan(
    camera: SimulatedCamera,
    axis: SynAxis,
    n_projections: int = 180,
    order: Order = "sequential",
    n_flats: int = 10,
    n_darks: int = 10,
    *,
    voxel_size_um: float = 1.0,
    sample_name: str = "foam",
    md: Mapping[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Step through the angles; every event carries its image.

    Parameters
    ----------
    camera : SimulatedCamera
    axis : SynAxis
    n_projections : int
    order : {"golden", "interlaced", "sequential"}
    n_flats, n_darks : int
        Zero leaves the stream out.
    voxel_size_um, sample_name, md
        Put into the start document.

    Returns
    -------
    str
        The run's uid.

    Raises
    ------
    InputError
        Unknown order.
    """
    angles_deg = np.rad2deg(angles_of(order, n_projections)).tolist()
    start = {
        "plan_name": "classic_scan",
        "n_projections": n_projections,
        "voxel_size_um": voxel_size_um,
        "sample_name": sample_name,
        "motors": [axis.name],
        "detectors": [camera.name],
        **(md or {}),
    }

    def every_stream() -> MsgGenerator[None]:
        yield from _still(camera, "darks", n_darks, shutter_open=0, sample_in=0)
        yield from _still(camera, "flats", n_flats, shutter_open=1, sample_in=0)
        yield from _turn(camera, axis, angles_deg)

    return (yield from bpp.run_wrapper(every_stream(), md=start))


def _still(
    camera: SimulatedCamera, stream: str, n: int, *, shutter_open: int, sample_in: int
) -> MsgGenerator[None]:
    devices: list[Any] = [camera]

    def expose() -> MsgGenerator[None]:
        for _ in range(n):
            yield from bps.trigger_and_read(devices, name=stream)

    yield from bps.mv(camera.shutter_open, shutter_open, camera.sample_in, sample_in)
    yield from bpp.stage_wrapper(expose(), [camera])


def _turn(
    camera: SimulatedCamera, axis: SynAxis, angles_deg: list[float]
) -> MsgGenerator[None]:
    # ophyd's annotations do not name Bluesky's protocols.
    devices: list[Any] = [camera, axis]

    def expose() -> MsgGenerator[None]:
        for angle in angles_deg:
            yield from bps.checkpoint()
            yield from bps.mv(axis, angle)
            yield from bps.trigger_and_read(devices)

    yield from bps.mv(camera.shutter_open, 1, camera.sample_in, 1)
    yield from bpp.stage_wrapper(expose(), [camera])
