"""Lessons from archived runs: replayed by the house, with both halves kept."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from scipy import ndimage

from ebl_stream.errors import InputError
from ebl_stream.nets.card import Kind
from ebl_stream.nets.train.lessons import (
    Lessons,
    Slab,
    Stack,
    hold_out,
    of_halves,
    of_whole,
)
from ebl_stream.numerics.quality import INSIDE, inside_circle
from ebl_stream.profile_file import load
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.result import Result
from ebl_stream.sources import open_source
from ebl_stream.training_data import sha256_of

log = logging.getLogger(__name__)

ALIKE = 0.6
"""Correlation of the smoothed slices of two scans that show different things."""

LINED_UP = 0.97
"""The same of scans that lie on each other: 0.999; turned by 4 degrees, 0.91."""

SMOOTHING_PX = 4.0

_QUIET = {
    "denoise": None,
    "segment": None,
    "quantify": None,
    "publish.tiled": "none",
}


@dataclass(frozen=True)
class HalfDifference:
    """A denoise stage that hands the halves' difference on, where it can be read."""

    def __call__(
        self, volume: NDArray[np.float32], half_difference: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return A - B."""
        return half_difference


@dataclass(frozen=True)
class Archived:
    """A reconstructed scan; slabs ``[z, y, x]``, 1/px."""

    name: str
    volume: Slab
    """A + B."""
    half_difference: Slab
    """A - B."""
    about: dict[str, Any]


@dataclass(frozen=True)
class How:
    """How archived runs are replayed."""

    profile_name: str | None = None
    """A shipped profile or a file; None: the one that fits."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[int, int] | None = None
    """Half-open range of detector rows."""


def reconstruct(address: str, how: How, rotate_deg: float = 0.0) -> Archived:
    """Replay a run, and return its final volume with the halves' difference.

    Parameters
    ----------
    address : str
        Whatever `ebl-stream replay` takes.
    how : How
    rotate_deg : float
        Is added to its angles.

    Raises
    ------
    InputError
        It cannot be read or reconstructed, or there is no room for the halves.
    """
    overrides = {**how.overrides, **_QUIET}
    if rotate_deg:
        overrides["geometry.theta_offset_deg"] = rotate_deg
    given = load(how.profile_name, overrides) if how.profile_name else None
    source, profile = open_source(address, given, overrides=overrides)
    with tempfile.TemporaryDirectory(prefix="ebl_stream-train-") as folder:
        house = Reconstruction(
            profile,
            out=Path(folder),
            rows=how.rows,
            roots=source.roots,
            find_run=getattr(source, "find_run", None),
        )
        house.rooms = replace(house.rooms, denoise=HalfDifference())
        try:
            for name, doc in source.documents():
                house(name, doc)
        finally:
            source.close()
            house.close()
        if not house.results:
            raise InputError(f"{address}: there is no tomography run in it")
        return _archived(address, list(house.results.values())[-1], rotate_deg)


def lessons(
    kind: Kind,
    address: str,
    how: How,
    *,
    target: str | None = None,
    repeat: str | None = None,
    rotate_deg: float = 0.0,
) -> Lessons:
    """Make lessons of an archived run.

    Parameters
    ----------
    kind : str
    address : str
        The run whose noise is to go.
    how : How
    target : str, optional
        A run of the same sample with more dose: what is wanted instead.
    repeat : str, optional
        A run of the same sample with the same dose: each is made from the other
        (Noise2Noise: Lehtinen et al., ICML 2018).
    rotate_deg : float
        Is added to the angles of ``target`` or ``repeat``.

    Raises
    ------
    InputError
        As `reconstruct`; the two runs do not show the same; or a single run is to
        teach a net that sees the whole of it.
    """
    if kind == "tomogan" and not (target or repeat):
        raise InputError(
            f"{address}: what TomoGAN is to make of it is not known: give --target or "
            "--repeat, or train noise2inverse, which needs one run alone"
        )
    one = reconstruct(address, how)
    other_address = target or repeat
    if other_address is None:
        stacks = [of_halves(one.name, one.volume, one.half_difference)]
        about: dict[str, Any] = one.about
    else:
        other = reconstruct(other_address, how, rotate_deg)
        stacks = [_paired(kind, one, other)]
        if repeat:
            stacks.append(_paired(kind, other, one))
        about = {**one.about, "repeat" if repeat else "target": other.about}
    found = Lessons((), (), {"sources": [about]})
    for stack in stacks:
        found += hold_out(stack)
    return found


def _paired(kind: Kind, one: Archived, other: Archived) -> Stack:
    wanted = on_greys_of(one, other)
    make = of_halves if kind == "noise2inverse" else of_whole
    return make(one.name, one.volume, one.half_difference, wanted)


def on_greys_of(one: Archived, other: Archived) -> Slab:
    """Return the other's volume on the one's grey values: beams differ.

    Raises
    ------
    InputError
        Another shape, or they do not show the same thing.
    """
    if one.volume.shape != other.volume.shape:
        raise InputError(
            f"{one.name} has slices {one.volume.shape}, {other.name} "
            f"{other.volume.shape}: they cannot be compared"
        )
    circle = inside_circle(one.volume.shape, INSIDE)
    x, y = (_smooth(slab)[:, circle].ravel() for slab in (other.volume, one.volume))
    alike = float(np.corrcoef(x, y)[0, 1])
    if not alike >= ALIKE:
        raise InputError(
            f"{one.name} and {other.name} do not show the same (correlation "
            f"{alike:.2f}): another sample, or turned (--rotate-deg), or shifted"
        )
    if alike < LINED_UP:
        log.warning(
            "%s and %s correlate by %.3f only: turned or shifted against each other?",
            one.name,
            other.name,
            alike,
        )
    slope, offset = np.polyfit(x, y, 1)
    return (slope * other.volume + offset).astype(np.float32)


def _smooth(slab: Slab) -> NDArray[np.float64]:
    sigmas = (0, SMOOTHING_PX, SMOOTHING_PX)
    return ndimage.gaussian_filter(slab.astype(np.float64), sigmas)


def _archived(address: str, result: Result, rotate_deg: float) -> Archived:
    folder = Path(result.volume).parent
    if not (folder / "denoised").is_dir():
        raise InputError(
            f"{address}: there is no room for both halves of all slices\n"
            "choose fewer with --rows"
        )
    volume, difference = (_slices(folder / name) for name in ("recon", "denoised"))
    about = {
        "run": result.run_uid,
        "scan": Path(address).name,
        "projections": result.n_projections,
        "shape": list(volume.shape),
        "state": result.state,
        "sha256": sha256_of(volume, difference),
    }
    if rotate_deg:
        about["rotate_deg"] = rotate_deg
    return Archived(Path(address).stem, volume, difference, about)


def _slices(path: Path) -> Slab:
    array = zarr.open_array(path, mode="r")
    return np.asarray(array[:], np.float32)
