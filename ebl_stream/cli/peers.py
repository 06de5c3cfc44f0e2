"""Who `ebl-stream bench` compares with, each as its own documentation has it.

Batch methods are given the whole sinogram, already in the order that they want, for
free. A peer works on a few slices at a time with all threads; its time per slice is
what counts.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.numerics.quality import inside_circle
from ebl_stream.simulation.phantom import Phantom
from ebl_stream.stages.tomocupy_backend import Tomocupy

INSIDE = 0.95
"""Share of the reconstruction circle that errors are counted in."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What every method is asked to reconstruct."""

    values: NDArray[np.float32]
    """``[angle, row, column]``, line integrals."""
    theta: NDArray[np.float64]
    """(angle,), rad."""
    rotation_center: float
    """px, column."""
    threads: int

    def rows(self, start: int, stop: int) -> Problem:
        """Return the problem of some rows alone."""
        values = np.ascontiguousarray(self.values[:, start:stop])
        return Problem(values, self.theta, self.rotation_center, self.threads)


@dataclass(frozen=True)
class Peer:
    """One way of another package to reconstruct."""

    name: str
    package: str
    """What is imported."""
    distribution: str
    """What is installed."""
    get: str
    """How a user installs it."""
    slices: Callable[[Problem], NDArray[np.float32]]
    """Makes slices ``[row, y, x]`` of all rows of a problem."""
    check: Callable[[], None] = lambda: None
    """Raises InputError where it is installed but cannot run."""

    @property
    def absent(self) -> str | None:
        """Why it cannot run here: None where it can."""
        if importlib.util.find_spec(self.package) is None:
            return "not installed"
        try:
            self.check()
        except InputError as error:
            return str(error)
        return None

    @property
    def version(self) -> str:
        """The version that is installed."""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return "unknown"


def _astra_fbp(problem: Problem) -> NDArray[np.float32]:
    """Run ASTRA's own FBP, which uses one thread, on many slices at a time.

    It wants the axis in the middle of the detector: columns of zeros on one side
    put it there, to a quarter of a pixel.
    """
    astra = importlib.import_module("astra")
    n = problem.values.shape[2]
    off = round(2 * problem.rotation_center) - (n - 1)
    left, right = max(0, -off), max(0, off)
    wide = n + left + right
    detector = astra.create_proj_geom("parallel", 1.0, wide, problem.theta)
    half = n / 2
    plane = astra.create_vol_geom(n, n, -half, half, -half, half)

    def one(sinogram: NDArray[np.float32]) -> NDArray[np.float32]:
        padded = np.pad(sinogram, ((0, 0), (left, right)))
        projector = astra.create_projector("linear", detector, plane)
        data = astra.data2d.create("-sino", detector, padded)
        image = astra.data2d.create("-vol", plane)
        settings = astra.astra_dict("FBP")
        settings["ProjectorId"] = projector
        settings["ProjectionDataId"] = data
        settings["ReconstructionDataId"] = image
        algorithm = astra.algorithm.create(settings)
        astra.algorithm.run(algorithm)
        found = astra.data2d.get(image)
        astra.algorithm.delete(algorithm)
        astra.data2d.delete([data, image])
        astra.projector.delete(projector)
        return found[::-1]

    with ThreadPoolExecutor(problem.threads) as pool:
        return np.stack(list(pool.map(one, problem.values.swapaxes(0, 1))))


def _algotom(problem: Problem, method: str, **settings: Any) -> NDArray[np.float32]:
    import numba

    module = importlib.import_module("algotom.rec.reconstruction")
    before = numba.get_num_threads()
    numba.set_num_threads(min(problem.threads, before))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            slices = getattr(module, method)(
                problem.values,
                problem.rotation_center,
                angles=problem.theta,
                ratio=None,
                filter_name=None,
                apply_log=False,
                ncore=problem.threads,
                **settings,
            )
    finally:
        numba.set_num_threads(before)
    return np.asarray(slices).swapaxes(0, 1)[:, ::-1]


def _algotom_fbp(problem: Problem) -> NDArray[np.float32]:
    pad = problem.values.shape[2] // 2
    return _algotom(
        problem, "fbp_reconstruction", gpu=False, pad=pad, pad_mode="constant"
    )


def _algotom_dfi(problem: Problem) -> NDArray[np.float32]:
    return _algotom(problem, "dfi_reconstruction")


def _tomopy_gridrec(problem: Problem) -> NDArray[np.float32]:
    """Run gridrec on rows padded to twice their width, as TomoPy's users do."""
    tomopy = importlib.import_module("tomopy")
    n = problem.values.shape[2]
    pad = n // 2
    wide = np.pad(problem.values, ((0, 0), (0, 0), (pad, pad)))
    slices = tomopy.recon(
        wide,
        problem.theta,
        center=problem.rotation_center + pad,
        algorithm="gridrec",
        filter_name="ramlak",
        ncore=problem.threads,
    )
    return slices[:, pad : pad + n, pad : pad + n]


def _iradon(problem: Problem) -> NDArray[np.float32]:
    transform = importlib.import_module("skimage.transform")
    theta_deg = np.rad2deg(problem.theta)

    def one(sinogram: NDArray[np.float32]) -> NDArray[np.float32]:
        found = transform.iradon(sinogram.T, theta_deg, circle=True)
        return np.asarray(found, np.float32)

    with ThreadPoolExecutor(problem.threads) as pool:
        return np.stack(list(pool.map(one, problem.values.swapaxes(0, 1))))


def _tomocupy(problem: Problem) -> NDArray[np.float32]:
    return Tomocupy()(problem.values, problem.theta, problem.rotation_center)


PEERS = (
    Peer("ASTRA FBP", "astra", "astra-toolbox", "pip install astra-toolbox",
         _astra_fbp),
    Peer("algotom FBP", "algotom", "algotom", "pip install algotom", _algotom_fbp),
    Peer("algotom DFI", "algotom", "algotom", "pip install algotom", _algotom_dfi),
    Peer("tomopy gridrec", "tomopy", "tomopy", "conda install -c conda-forge tomopy",
         _tomopy_gridrec),
    Peer("scikit-image iradon", "skimage", "scikit-image", "pip install scikit-image",
         _iradon),
    Peer("tomocupy fourierrec (GPU)", "tomocupy", "tomocupy",
         "conda install -c conda-forge tomocupy", _tomocupy, Tomocupy().check),
)  # fmt: skip
"""All of them on the CPU where nothing else is said."""


@dataclass(frozen=True)
class Accuracy:
    """How far slices are from the truth, without any fit of gray values."""

    psnr_db: float
    """Peak: the range of the truth."""
    nrmse: float
    """Over the root mean square of the truth."""


def accuracy(slices: NDArray[np.float32], truth: NDArray[np.float32]) -> Accuracy:
    """Compare slices ``[row, y, x]`` with the truth inside the circle."""
    inside = inside_circle(truth.shape[1:], INSIDE)
    found = slices[:, inside].astype(np.float64)
    true = truth[:, inside].astype(np.float64)
    error = max(np.sqrt(np.mean((found - true) ** 2)), np.finfo(np.float32).tiny)
    return Accuracy(
        float(20 * np.log10(np.ptp(true) / error)),
        float(error / np.sqrt(np.mean(true**2))),
    )


class Judge:
    """Judge a peer's slice in the geometry that suits it best.

    Peers mirror slices and put the axis on a pixel or between two; which is not what
    is compared. So every mirroring is tried, on truths shifted by half pixels.
    """

    def __init__(self, phantom: Phantom, row: int) -> None:
        halves = (0.0, -0.5, 0.5)
        self._truths = [
            _shifted(phantom, x, y).volume((row, row + 1))
            for x, y in itertools.product(halves, halves)
        ]

    def __call__(self, plane: NDArray[np.float32]) -> Accuracy:
        """Return the accuracy of a slice [y, x], at its best."""
        views = [
            np.rot90(flipped, k)[None] for flipped in (plane, plane.T) for k in range(4)
        ]
        found = itertools.product(views, self._truths)
        return max((accuracy(*pair) for pair in found), key=lambda a: a.psnr_db)


def _shifted(phantom: Phantom, x: float, y: float) -> Phantom:
    bodies = phantom.bodies + np.array([x, y, 0, 0, 0, 0, 0, 0])
    return Phantom(phantom.n_columns, phantom.n_rows, bodies)
