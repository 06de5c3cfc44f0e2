"""Bluesky plan of a tomography fly scan: darks, flats, projections in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.utils import MsgGenerator
from ophyd_async.core import TriggerInfo

from ebl_stream.errors import InputError
from ebl_stream.simulation.devices import RotationStage, TomoDetector
from ebl_stream.simulation.phantom import Order, angles_of


def tomo_scan(
    det: TomoDetector,
    stage: RotationStage,
    n_projections: int = 400,
    order: Order = "golden",
    rate_hz: float = 40.0,
    n_flats: int = 20,
    n_darks: int = 20,
    *,
    rotation_center: float | None = None,
    voxel_size_um: float = 1.0,
    sample_name: str = "foam",
    flush_period_s: float = 0.1,
    md: Mapping[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Take darks, flats and projections in one run.

    Parameters
    ----------
    det : TomoDetector
    stage : RotationStage
    n_projections : int
    order : {"golden", "interlaced", "sequential"}
    rate_hz : float
        Frames per second.
    n_flats, n_darks : int
        Zero leaves the stream out.
    rotation_center : float, optional
        px; put into the start document where given (the scan does not use it).
    voxel_size_um, sample_name
        Put into the start document.
    flush_period_s : float
        Time between two StreamDatum documents.
    md : mapping, optional
        More metadata for the start document.

    Returns
    -------
    str
        The run's uid.

    Raises
    ------
    InputError
        Unknown order, or a count or rate that is not positive.
    """
    if n_projections < 1 or min(n_flats, n_darks) < 0 or not rate_hz > 0:
        raise InputError(
            f"tomo_scan: cannot take {n_projections} projections, {n_flats} flats and "
            f"{n_darks} darks at {rate_hz} Hz; counts and rate must be positive"
        )
    angles_deg = np.rad2deg(angles_of(order, n_projections)).tolist()
    streams = {
        "darks": [angles_deg[0]] * n_darks,
        "flats": [angles_deg[0]] * n_flats,
        "primary": angles_deg,
    }
    start = {
        "plan_name": "tomo_scan",
        "n_projections": n_projections,
        "voxel_size_um": voxel_size_um,
        "sample_name": sample_name,
        "angle_order": order,
        "motors": [f"{det.name}-theta"],
        "detectors": [det.name],
    }
    if rotation_center is not None:
        start["rotation_center"] = rotation_center
    scan = _every_stream(det, stage, streams, 1 / rate_hz, flush_period_s)
    return (yield from bpp.run_wrapper(scan, md={**start, **(md or {})}))


def _every_stream(
    det: TomoDetector,
    stage: RotationStage,
    streams: Mapping[str, Sequence[float]],
    period_s: float,
    flush_period_s: float,
) -> MsgGenerator[None]:
    for name, angles_deg in streams.items():
        if angles_deg:
            yield from bps.checkpoint()  # where a deferred pause waits for it
            yield from bps.mv(det.shutter_open, name != "darks")
            yield from bps.mv(stage.sample_in, name == "primary")
            fly = _fly(det, stage, name, angles_deg, period_s, flush_period_s)
            # Staged for each stream: each has a file of its own. A turn under way
            # cannot be rewound: an immediate pause ends it with what there is.
            staged = bpp.stage_wrapper(fly, [det, stage])
            yield from bpp.rewindable_wrapper(staged, rewindable=False)


def _fly(
    det: TomoDetector,
    stage: RotationStage,
    stream: str,
    angles_deg: Sequence[float],
    period_s: float,
    flush_period_s: float,
) -> MsgGenerator[None]:
    info = TriggerInfo(
        number_of_events=len(angles_deg),
        livetime=0.9 * period_s,
        deadtime=0.1 * period_s,
    )
    # The stage first: the detector exposes ahead, at the angles that it is told.
    yield from bps.prepare(stage, angles_deg, wait=True)
    yield from bps.prepare(det, info, wait=True)
    yield from bps.declare_stream(det, name=stream, collect=True)
    yield from bps.kickoff_all(stage, det, wait=True)
    yield from bps.collect_while_completing(
        flyers=[stage, det],
        dets=[det],
        flush_period=flush_period_s,
        stream_name=stream,
    )
