"""One contract for all backends of the reconstruct room: same volume, same place."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import astra
import numpy as np
import pytest
import zarr
from reference import circle, nrmse, nufft_fbp
from scipy import ndimage

from ebl_stream import profile_file as profiles
from ebl_stream.cli.commands import PLAIN
from ebl_stream.engine.field import Field
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.session import Session
from ebl_stream.errors import InputError
from ebl_stream.frames import Announced, Closed, Frame, Kind, Scan
from ebl_stream.publish.output import RunOutput
from ebl_stream.simulation.phantom import Asymmetric, Foam, golden_angles
from ebl_stream.stages import available, build
from ebl_stream.stages.astra_backend import Astra
from ebl_stream.stages.filtering import filtered_rows
from ebl_stream.stages.reconstruct import Fourier
from ebl_stream.stages.tomocupy_backend import Tomocupy

ENTRIES: dict[str, Any] = {
    "fourier": "fourier",
    "astra fbp": "astra",
    "astra sirt": {"astra": {"method": "sirt", "iterations": 60}},
    "astra cgls": {"astra": {"method": "cgls"}},
    "tomocupy fourierrec": "tomocupy",
    "tomocupy linerec": {"tomocupy": {"method": "linerec"}},
}
SLOPE = dict.fromkeys(ENTRIES, 0.01) | {"astra sirt": 0.03, "astra cgls": 0.02}
"""How far from 1 the scale may be; iterative ways stop before the end."""
NEAR = dict.fromkeys(ENTRIES, 0.1) | {"astra sirt": 0.2}
"""Root mean square error over the standard deviation of the truth."""

GEOMETRIES = {
    # name: (columns, center off the middle in px, theta in rad)
    "half turn, even": (64, 0.0, np.arange(160) * np.pi / 160),
    "half turn, odd, sub-pixel axis": (63, 2.37, np.arange(160) * np.pi / 160),
    "full turn, axis left": (64, -3.6, np.arange(300) * 2 * np.pi / 300),
    "from -90, doubled end": (65, 1.5, np.linspace(-0.5, 0.5, 161) * np.pi),
    "golden, not reduced": (61, -0.25, np.arange(170) * np.pi * (np.sqrt(5) - 1) / 2),
    "uneven": (64, 0.4, np.pi * (np.arange(200) / 200) ** 1.3),
}


def backend(name: str) -> Any:
    """Build a backend, or skip by name where it cannot run."""
    stage = build("reconstruct", ENTRIES[name])
    if hasattr(stage, "check"):
        try:
            stage.check()
        except InputError as error:
            pytest.skip(f"{name}: {error}")
    return stage


def scan(geometry: str) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Return line integrals, theta, rotation center, and the truth."""
    n, off, theta = GEOMETRIES[geometry]
    phantom = Asymmetric(n, 4)
    center = (n - 1) / 2 + off
    return phantom.project(theta, center), theta, center, phantom.volume()


def slope(volume: np.ndarray, truth: np.ndarray) -> float:
    """Return the scale, fitted through the origin within 0.85 of the circle."""
    inside = circle(truth.shape[-1], 0.85)
    a, b = volume[:, inside].astype(float), truth[:, inside].astype(float)
    return float((a * b).sum() / (b * b).sum())


def displacement(volume: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return how far (y, x) the volume lies from the truth, px, by least squares."""
    inside = circle(truth.shape[-1], 0.85)
    smooth = [ndimage.gaussian_filter(v, (0, 1.5, 1.5)) for v in (volume, truth)]
    slopes = np.stack([g[:, inside].ravel() for g in np.gradient(smooth[1])[1:]], 1)
    change = (smooth[0] - smooth[1])[:, inside].ravel()
    return -np.linalg.lstsq(slopes, change, rcond=None)[0]


def test_every_backend_is_in_the_contract() -> None:
    named = {
        entry if isinstance(entry, str) else next(iter(entry))
        for entry in ENTRIES.values()
    }
    assert named == set(available("reconstruct"))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", ENTRIES)
def test_a_backend_gives_the_volume_in_its_place(name: str, geometry: str) -> None:
    stage = backend(name)
    values, theta, center, truth = scan(geometry)
    untouched = values.copy()
    volume = stage(values, theta, center)
    np.testing.assert_array_equal(values, untouched)
    assert volume.shape == truth.shape
    assert volume.dtype == np.float32
    assert np.isfinite(volume).all()
    assert slope(volume, truth) == pytest.approx(1, abs=SLOPE[name])
    assert nrmse(volume, truth) < NEAR[name]
    assert np.abs(displacement(volume, truth)).max() < 0.03
    # What is mirrored, turned or upside-down is nothing like it.
    for wrong in (
        volume[::-1],
        volume[:, ::-1],
        volume[..., ::-1],
        volume.swapaxes(1, 2),
    ):
        assert nrmse(wrong, truth) > 0.4


def astras_own_fbp(sinogram: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Run ASTRA's FBP [angle, column]; the axis is in the middle, angles are even."""
    n = sinogram.shape[1]
    detector = astra.create_proj_geom("parallel", 1.0, n, theta)
    plane = astra.create_vol_geom(n, n)
    projector = astra.create_projector("linear", detector, plane)
    settings = astra.astra_dict("FBP")
    settings["ProjectorId"] = projector
    settings["ProjectionDataId"] = astra.data2d.create("-sino", detector, sinogram)
    settings["ReconstructionDataId"] = image = astra.data2d.create("-vol", plane)
    astra.algorithm.run(astra.algorithm.create(settings))
    return astra.data2d.get(image)[::-1]


@pytest.mark.parametrize("n", [64, 63])
def test_fbp_by_astra_is_astras_own_where_that_can_go(n: int) -> None:
    theta = np.arange(90) * np.pi / 90
    values = Foam(n, 2, seed=1).project(theta)
    ours = Astra()(values, theta, (n - 1) / 2)
    own = astras_own_fbp(np.ascontiguousarray(values[:, 1]), theta)
    np.testing.assert_allclose(ours[1], own, atol=1e-4 * np.abs(own).max())


@pytest.mark.parametrize("name", ["fourier", "astra fbp"])
def test_lost_and_uneven_angles_have_voronoi_weights(name: str) -> None:
    rng = np.random.default_rng(3)
    theta = rng.choice(np.pi * (np.arange(400) / 400) ** 1.5, 360, replace=False)
    foam = Foam(64, 2, seed=4)
    values, center = foam.project(theta, 30.3), 30.3
    volume = build("reconstruct", ENTRIES[name])(values, theta, center)
    exact = nufft_fbp(values[:, 1].astype(float), theta, center)
    uniform = np.full(len(theta), np.pi / len(theta))
    mutant = nufft_fbp(values[:, 1].astype(float), theta, center, uniform)
    tolerance = {"fourier": 0.01, "astra fbp": 0.15}[name]  # linear interpolation
    assert nrmse(volume[1], exact) < tolerance
    assert nrmse(mutant, exact) > 0.3


def test_edge_padding_keeps_a_cut_object_level() -> None:
    theta = np.arange(120) * np.pi / 120
    foam = Foam(128, 2, seed=5)
    values, truth = foam.project(theta)[..., 32:96], foam.volume()[:, 32:96, 32:96]
    errors = [
        nrmse(Astra(padding=padding)(values, theta, 31.5), truth)
        for padding in ("zero", "edge")
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("method", ["fbp", "sirt", "cgls"])
def test_without_astra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    monkeypatch.setitem(sys.modules, "astra", None)
    stage = Astra(method)
    values, theta, center, _ = scan("half turn, even")
    for work in (stage.check, lambda: stage(values, theta, center)):
        with pytest.raises(InputError, match=r"pip install 'ebl-stream\[astra\]'"):
            work()


@pytest.mark.parametrize("method", ["fourierrec", "linerec"])
def test_without_tomocupy_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    monkeypatch.setitem(sys.modules, "tomocupy", None)
    stage = Tomocupy(method)
    values, theta, center, _ = scan("half turn, even")
    for work in (stage.check, lambda: stage(values, theta, center)):
        with pytest.raises(InputError, match="conda-forge tomocupy") as caught:
            work()
        assert "\n" not in str(caught.value)


class LineSum:
    """The geometry that tomocupy's line summation documents in its kernel, slowly."""

    def __init__(self, theta: Any, n_angles: int, *sizes: Any) -> None:
        self.theta, self.scale = theta.astype(float), 4 / n_angles

    def backprojection(self, slices: Any, data: Any, stream: Any) -> None:
        n = slices.shape[1]
        x = np.arange(n) - n // 2
        for k, theta in enumerate(self.theta):
            u = np.cos(theta) * x + np.sin(theta) * x[:, None] + n // 2
            for row, plane in zip(data[:, k], slices, strict=True):
                plane[::-1] += self.scale * np.interp(u, np.arange(n), row, 0, 0)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_what_tomocupy_is_handed_fits_its_geometry(
    monkeypatch: pytest.MonkeyPatch, geometry: str
) -> None:
    """Its kernel does not run without a GPU: the algebra around it does."""
    cuda = SimpleNamespace(get_current_stream=lambda: None)
    xp = SimpleNamespace(**vars(np), asnumpy=np.asarray, cuda=cuda)
    monkeypatch.setattr(Tomocupy, "_load", lambda stage: (xp, LineSum))
    values, theta, center, truth = scan(geometry)
    volume = Tomocupy("linerec", slab_rows=4)(values, theta, center)
    assert volume.shape == truth.shape
    assert slope(volume, truth) == pytest.approx(1, abs=0.01)
    assert nrmse(volume, truth) < 0.1
    assert np.abs(displacement(volume, truth)).max() < 0.03


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"astra": {"method": "art"}}, "astra: method"),
        ({"astra": {"iterations": 5}}, "iterations: fbp has none"),
        ({"astra": {"method": "sirt", "iterations": 0}}, "iterations must be 1"),
        ({"astra": {"padding": "wrap"}}, "astra: padding"),
        ({"tomocupy": {"slab_rows": 3}}, "slab_rows must be even"),
        ({"tomocupy": {"method": "lprec"}}, "tomocupy: method"),
    ],
)
def test_a_wrong_setting_is_explained(entry: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("reconstruct", entry)


def test_filtered_rows_shift_and_weigh() -> None:
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter1d(rng.normal(size=(3, 96)), 4, axis=-1)
    smooth[:, :24] = smooth[:, -24:] = 0
    values = smooth.astype(np.float32)
    weights = np.array([1.0, 2.0, -0.5])
    plain = filtered_rows(values, np.zeros(3), np.ones(3))
    shifted = filtered_rows(values, np.full(3, 5.0), weights)
    expected = weights[:, None] * np.roll(plain, -5, axis=1)
    np.testing.assert_allclose(shifted[:, :-5], expected[:, :-5], atol=1e-5)


@pytest.mark.parametrize("name", ["fourier", "astra fbp", "astra sirt"])
def test_an_offset_detector_counts_each_direction_twice(name: str) -> None:
    """Both sides are feathered, so that opposite rows add up to one: twice each."""
    theta = np.arange(301) * 2 * np.pi / 301
    phantom, center = Asymmetric(81, 3), 50.0
    field = Field(60, center - 8, offset=True)
    values = field.spread(phantom.project(theta, center)[..., 8:68])
    truth = Asymmetric(81, 3).volume()
    stage = backend(name)
    volume = stage(values * (field.period / np.pi), theta, field.rotation_center)
    n, wide = truth.shape[-1], volume.shape[-1]
    edge = abs(wide - n) // 2
    if wide > n:
        volume = volume[:, edge : edge + n, edge : edge + n]
    else:
        truth = truth[:, edge : edge + wide, edge : edge + wide]
    assert slope(volume, truth) == pytest.approx(1, abs=SLOPE[name])
    assert nrmse(volume, truth) < NEAR[name]


def test_blended_rows_are_not_for_cgls() -> None:
    """They contradict one another, and CGLS believes every one of them."""
    assert not Astra("cgls").takes_blended
    assert Astra("sirt").takes_blended
    assert Astra("fbp").takes_blended
    assert Tomocupy().takes_blended


def test_a_profile_may_have_the_final_volume_made_by_a_backend(tmp_path: Path) -> None:
    theta = golden_angles(80)
    exact = Foam(48, 8, seed=2).project(theta, 24.2)
    settings = PLAIN | {
        "reconstruct": {"astra": {"window": "hann"}},
        "geometry.rotation_center": 24.2,
        "refresh.every": 0.5,
        "refresh.slab_rows": 4,
        "publish.tiled": "none",
    }
    profile = profiles.load("default", settings)
    session = Session(
        Scan("raw", {}, 80), profile, Rooms.furnish(profile), RunOutput(tmp_path, "run")
    )
    flat = np.ones(exact.shape[1:], np.float32)
    session.take(Frame(0, Kind.FLAT, np.nan, flat))
    session.take(Frame(0, Kind.DARK, np.nan, 0 * flat))
    live = None
    for k, image in enumerate(np.exp(-exact)):
        session.take(Announced(Kind.PROJECTION, k, k + 1))
        session.take(Frame(k, Kind.PROJECTION, theta[k], image))
        progress = session.progress()
        if live is None and progress.version == 1:
            live = zarr.open_array(progress.volume, mode="r")[:]
            expected = Fourier(window="hann")(exact[: k + 1], theta[: k + 1], 24.2)
            assert nrmse(live, expected) < 1e-4
    assert live is not None
    result = session.take(Closed("success", "", 80, 0))
    session.close()
    final = zarr.open_array(result.volume, mode="r")[:]
    assert nrmse(final, Astra(window="hann")(exact, theta, 24.2)) < 1e-4
    assert nrmse(final, Fourier(window="hann")(exact, theta, 24.2)) > 1e-3


def test_a_backend_that_cannot_run_is_refused_before_the_scan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "astra", None)
    profile = profiles.load("default", {"reconstruct": "astra"})
    with pytest.raises(InputError, match=r"ebl-stream\[astra\]"):
        Rooms.furnish(profile)
