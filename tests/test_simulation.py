"""The simulated beamline: phantoms, detector, devices, plans."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import event_model
import h5py
import numpy as np
import pytest
from bluesky import RunEngine
from event_model import DocumentNames, schema_validators
from ophyd.sim import SynAxis
from ophyd_async.core import init_devices
from scipy.integrate import quad
from scipy.ndimage import map_coordinates

from ebl_stream.errors import InputError
from ebl_stream.simulation.classic import SimulatedCamera, classic_scan
from ebl_stream.simulation.detector import DetectorModel, raw_counts
from ebl_stream.simulation.devices import (
    DATA,
    THETA,
    FrameFile,
    RotationStage,
    TomoDetector,
)
from ebl_stream.simulation.faults import LostProjections
from ebl_stream.simulation.phantom import (
    Asymmetric,
    Foam,
    Phantom,
    angles_of,
    golden_angles,
    interlaced_angles,
    sequential_angles,
)
from ebl_stream.simulation.plan import tomo_scan

Documents = list[tuple[str, dict[str, Any]]]


# --------------------------------------------------------------- phantoms


def chord(s: float, radius: float) -> float:
    return 2 * np.sqrt(max(radius**2 - s**2, 0.0))


@pytest.mark.parametrize("theta", [0.0, 0.7, np.pi / 2, 3.0])
def test_projection_of_a_disc_is_its_chord_length(theta: float) -> None:
    x, y, radius, density, center = 5.3, -3.1, 11.7, 0.02, 20.25
    disc = Phantom(48, 1, [[x, y, 0, radius, radius, np.inf, 0, density]])
    (line,) = disc.project(theta, rotation_center=center)[0]
    s0 = x * np.cos(theta) + y * np.sin(theta)
    edges = [s0 - radius, s0 + radius]
    for column in range(48):
        s = column - center
        inside = [edge for edge in edges if s - 0.5 < edge < s + 0.5]
        exact, _ = quad(
            lambda t: chord(t - s0, radius), s - 0.5, s + 0.5, points=inside or None
        )
        assert line[column] == pytest.approx(density * exact, abs=1e-6)


def test_projection_of_an_ellipse_is_its_chord_length_along_its_axes() -> None:
    a, b, phi = 12.0, 5.0, 0.4
    ellipse = Phantom(41, 1, [[0, 0, 0, a, b, np.inf, phi, 1.0]])
    across, along = ellipse.project([phi, phi + np.pi / 2])[:, 0, 20]
    # Averaged over the middle pixel; the chord falls by 1 - t^2/(2 w^2) from there.
    assert across == pytest.approx(2 * b * (1 - 1 / 24 / a**2), rel=1e-5)
    assert along == pytest.approx(2 * a * (1 - 1 / 24 / b**2), rel=1e-5)


def test_a_sphere_is_smooth_and_symmetric_along_z() -> None:
    sphere = Phantom(32, 21, [[0, 0, 10, 8, 8, 8, 0, 1.0]])
    mass = sphere.project(0.3).sum(axis=2)[0]
    z = np.arange(21) - 10
    assert mass == pytest.approx(np.pi * np.clip(64 - z**2, 0, None), abs=1e-3)


@pytest.mark.parametrize("phantom", [Foam(96, 12, seed=3), Asymmetric(96, 12)])
def test_mass_is_the_same_at_every_angle_and_in_the_volume(phantom: Phantom) -> None:
    mass = phantom.project(golden_angles(13)).sum(axis=2, dtype=np.float64)
    truth = phantom.volume().sum(axis=(1, 2), dtype=np.float64)
    assert mass == pytest.approx(np.broadcast_to(truth, mass.shape), rel=1e-4)


def ray_sums(volume: np.ndarray, theta: float) -> np.ndarray:
    """Integrate numerically along x cos + y sin = s, as the geometry says."""
    size = volume.shape[2]
    line = np.arange(size) - (size - 1) / 2
    s, t = np.meshgrid(line, line)
    x, y = s * np.cos(theta) - t * np.sin(theta), s * np.sin(theta) + t * np.cos(theta)
    at = [y + (size - 1) / 2, x + (size - 1) / 2]
    slices = [map_coordinates(image, at, order=1).sum(axis=0) for image in volume]
    return np.stack(slices)


MIRRORS = {
    "x": np.s_[:, :, ::-1],
    "y": np.s_[:, ::-1],
    "z": np.s_[::-1],
    "half turn": np.s_[:, ::-1, ::-1],
}


def test_projection_and_volume_agree_in_orientation_sign_and_scale() -> None:
    phantom = Asymmetric(96, 24)
    theta = np.array([0.0, 0.5, 1.3, 2.2, 2.9])
    exact = phantom.project(theta).ravel()
    volume = phantom.volume()

    def brute(volume: np.ndarray) -> np.ndarray:
        return np.stack([ray_sums(volume, angle) for angle in theta]).ravel()

    summed = brute(volume)
    assert np.corrcoef(exact, summed)[0, 1] > 0.999
    assert exact @ summed / (summed @ summed) == pytest.approx(1, abs=0.01)
    for mirror in MIRRORS.values():
        assert np.corrcoef(exact, brute(volume[mirror]))[0, 1] < 0.99
    turned = brute(volume.transpose(0, 2, 1))
    assert np.corrcoef(exact, turned)[0, 1] < 0.99


def test_the_rotation_center_shifts_the_columns() -> None:
    phantom = Asymmetric()
    theta = golden_angles(5)
    assert np.array_equal(phantom.project(theta), phantom.project(theta, 31.5))
    shifted = phantom.project(theta, 33.5)
    np.testing.assert_allclose(
        shifted[..., 2:], phantom.project(theta)[..., :-2], atol=1e-6
    )


def test_rows_are_a_half_open_range() -> None:
    foam = Foam(48, 16)
    theta = golden_angles(3)
    assert np.array_equal(foam.project(theta)[:, 4:9], foam.project(theta, rows=(4, 9)))
    assert np.array_equal(foam.volume()[4:9], foam.volume(rows=(4, 9)))


def test_the_volume_is_averaged_over_pixels() -> None:
    disc = Phantom(32, 1, [[0.3, -0.2, 0, 7.4, 7.4, np.inf, 0, 1.0]])
    (truth,) = disc.volume()
    fine = (np.arange(32 * 128) + 0.5) / 128 - 16
    inside = (fine[None] - 0.3) ** 2 + (fine[:, None] + 0.2) ** 2 < 7.4**2
    averaged = inside.reshape(32, 128, 32, 128).mean(axis=(1, 3))
    np.testing.assert_allclose(truth, averaged, atol=0.003)


def test_foam_has_three_phases_and_its_absorption() -> None:
    foam = Foam()
    volume = foam.volume(rows=(60, 68))
    assert volume.min() >= -1e-7
    assert volume.max() == pytest.approx(2 * foam.matrix, rel=1e-5)
    share = np.bincount(foam.labels(rows=(60, 68)).ravel()) / volume.size
    assert share.size == 3
    assert share.min() > 0.01
    assert 1.2 < foam.project(golden_angles(8)).max() < 2.2


def test_foam_spheres_neither_touch_nor_leave_the_cylinder() -> None:
    foam = Foam(128, 64, seed=5)
    cylinder, spheres = foam.bodies[0], foam.bodies[1:]
    assert len(spheres) > 20
    apart = np.linalg.norm(spheres[:, None, :3] - spheres[None, :, :3], axis=2)
    apart -= spheres[:, None, 3] + spheres[None, :, 3]
    assert apart[~np.eye(len(spheres), dtype=bool)].min() > 1
    assert (np.hypot(*spheres[:, :2].T) + spheres[:, 3]).max() < cylinder[3]


def test_foam_is_the_same_for_the_same_seed_only() -> None:
    assert np.array_equal(Foam(64, 8, seed=1).bodies, Foam(64, 8, seed=1).bodies)
    assert not np.array_equal(Foam(64, 8, seed=1).volume(), Foam(64, 8).volume())


# ----------------------------------------------------------------- angles


def test_golden_angles_fill_the_half_circle_at_every_prefix() -> None:
    for n in (5, 40, 233):
        angles = np.sort(golden_angles(n))
        assert angles[0] >= 0
        assert angles[-1] < np.pi
        gaps = np.diff([*angles, angles[0] + np.pi])
        # Three-gap theorem: no gap is longer than phi^2 times the mean.
        assert gaps.max() < 2.62 * np.pi / n


@pytest.mark.parametrize(("n", "k"), [(16, 4), (400, 8), (10, 3)])
def test_interlaced_angles_visit_the_even_grid_once(n: int, k: int) -> None:
    angles = interlaced_angles(n, k)
    np.testing.assert_allclose(np.sort(angles), np.arange(n) * np.pi / n)
    np.testing.assert_allclose(np.diff(angles[: n // k]), k * np.pi / n)


def test_second_interlaced_pass_halves_the_gaps() -> None:
    two_passes = np.sort(interlaced_angles(16, 4)[:8])
    np.testing.assert_allclose(two_passes, np.arange(8) * np.pi / 8)


def test_sequential_angles_leave_the_end_out() -> None:
    assert sequential_angles(4).tolist() == pytest.approx(
        [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    )
    assert sequential_angles(3, 2 * np.pi)[-1] == pytest.approx(4 * np.pi / 3)


def test_an_unknown_order_is_refused_with_a_hint() -> None:
    with pytest.raises(InputError, match="did you mean 'golden'"):
        angles_of("goldn", 4)


# --------------------------------------------------------------- detector


def test_counts_are_poisson_about_the_transmitted_beam() -> None:
    rng = np.random.default_rng(7)
    path = np.full((400, 500), 0.5)
    counts = raw_counts(path, i0=1000.0, flat_gain=0.8, dark=50.0, rng=rng)
    mean = 800 * np.exp(-0.5)
    signal = counts.astype(np.float64) - 50
    n = path.size
    assert counts.dtype == np.uint16
    assert signal.mean() == pytest.approx(mean, abs=5 * np.sqrt(mean / n))
    assert signal.var() == pytest.approx(mean, rel=5 * np.sqrt(2 / n))


def test_counts_are_clipped_to_the_sensor() -> None:
    rng = np.random.default_rng(0)
    bright = raw_counts(np.zeros((2, 3)), i0=1e6, flat_gain=1, dark=0, rng=rng)
    assert (bright == 65_535).all()


def test_frame_k_is_the_same_whenever_it_is_taken() -> None:
    model = DetectorModel(8, 32, seed=4)
    path = np.random.default_rng(0).random((5, 8, 32))
    together = model.projections(path)
    assert np.array_equal(model.projections(path[3:], first=3), together[3:])
    assert np.array_equal(model.flats(1, first=2)[0], model.flats(4)[2])
    assert np.array_equal(model.darks(1, first=2)[0], model.darks(4)[2])
    assert not np.array_equal(DetectorModel(8, 32, seed=5).projections(path), together)
    assert not np.array_equal(*model.flats(2))


def test_gain_that_drifted_after_the_flats_leaves_rings() -> None:
    model = DetectorModel(64, 128, i0=40_000, zingers=0)
    path = np.zeros((40, 64, 128))
    dark = model.darks(20).mean(axis=0)
    flat = model.flats(40).mean(axis=0) - dark
    ratio = (model.projections(path).mean(axis=0) - dark) / flat
    rings = ratio.mean(axis=0)
    assert np.corrcoef(rings, model.ring_gain[0])[0, 1] > 0.98
    assert rings.std() == pytest.approx(model.ring_gain[0].std(), rel=0.1)


def test_zingers_hit_as_many_pixels_as_asked() -> None:
    model = DetectorModel(64, 64, i0=500, zingers=1e-3)
    hits = (model.flats(50) > 9000).sum()
    expected = 1e-3 * 50 * 64 * 64
    assert abs(hits - expected) < 5 * np.sqrt(expected)
    assert (DetectorModel(64, 64, i0=500, zingers=0).flats(50) < 9000).all()


# ------------------------------------------------------- devices and plans

COLUMNS, ROWS, CENTER, N = 48, 16, 24.6, 30
DROPPED = 7


class Beamline:
    """A RunEngine with the simulated devices, and the documents of its runs."""

    def __init__(self, directory: Path) -> None:
        self.RE = RunEngine()
        self.phantom = Foam(COLUMNS, ROWS)
        self.model = DetectorModel(ROWS, COLUMNS, seed=9)
        with init_devices():
            self.stage = RotationStage()
            self.detector = TomoDetector(
                directory,
                self.stage,
                self.phantom,
                self.model,
                rotation_center=CENTER,
                drop={DROPPED},
                name="camera",
            )

    def scan(self, *callbacks: Any, **settings: Any) -> Documents:
        documents: Documents = []
        tokens = [self.RE.subscribe(each) for each in callbacks]
        tokens.append(self.RE.subscribe(lambda *pair: documents.append(pair)))
        settings = {"rate_hz": 2000, "n_flats": 5, "n_darks": 4} | settings
        try:
            self.RE(tomo_scan(self.detector, self.stage, N, **settings))
        finally:
            for token in tokens:
                self.RE.unsubscribe(token)
        return documents


@pytest.fixture(scope="module")
def beamline(tmp_path_factory: pytest.TempPathFactory) -> Beamline:
    return Beamline(tmp_path_factory.mktemp("frames"))


@pytest.fixture(scope="module")
def documents(beamline: Beamline) -> Documents:
    return beamline.scan(rotation_center=CENTER, md={"operator": "nobody"})


def of(documents: Documents, name: str) -> list[dict[str, Any]]:
    return [doc for each, doc in documents if each == name]


def stored(documents: Documents) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield stream name, frames and angles (deg) from the files of a run."""
    streams = {doc["uid"]: doc["name"] for doc in of(documents, "descriptor")}
    resources = {doc["uid"]: doc for doc in of(documents, "stream_resource")}
    held: dict[str, dict[str, np.ndarray]] = {}
    for datum in of(documents, "stream_datum"):
        resource = resources[datum["stream_resource"]]
        path = resource["uri"].removeprefix("file://localhost")
        with h5py.File(path, "r") as file:
            values = file[resource["parameters"]["dataset"]][()]
        held.setdefault(streams[datum["descriptor"]], {})[resource["data_key"]] = values
    for name, keys in held.items():
        yield name, keys["camera"], keys["camera-theta"]


def assert_valid(documents: Documents) -> None:
    for name, doc in documents:
        schema_validators[DocumentNames[name]].validate(doc)


def test_the_fly_scan_emits_valid_documents(documents: Documents) -> None:
    assert_valid(documents)
    (start,), (stop,) = of(documents, "start"), of(documents, "stop")
    assert start["plan_name"] == "tomo_scan"
    assert start["n_projections"] == N
    assert start["rotation_center"] == CENTER
    assert start["voxel_size_um"] == 1.0
    assert start["operator"] == "nobody"
    assert stop["exit_status"] == "success"
    assert stop["num_events"] == {"darks": 4, "flats": 5, "primary": N}


def test_the_angle_says_its_unit(documents: Documents) -> None:
    for descriptor in of(documents, "descriptor"):
        assert descriptor["data_keys"]["camera-theta"]["units"] == "deg"
        assert descriptor["data_keys"]["camera"]["shape"] == [1, ROWS, COLUMNS]


def test_the_files_hold_what_the_model_predicts(
    beamline: Beamline, documents: Documents
) -> None:
    streams = {name: (frames, theta) for name, frames, theta in stored(documents)}
    path = beamline.phantom.project(golden_angles(N), CENTER)
    predicted = beamline.model.projections(path)
    frames, theta_deg = streams["primary"]
    kept = np.arange(N) != DROPPED
    assert np.array_equal(frames[kept], predicted[kept])
    assert np.array_equal(theta_deg, np.rad2deg(golden_angles(N)))
    assert np.array_equal(streams["flats"][0], beamline.model.flats(5))
    assert np.array_equal(streams["darks"][0], beamline.model.darks(4))


def test_a_dropped_frame_reads_as_the_fill_value(documents: Documents) -> None:
    (primary,) = [frames for name, frames, _ in stored(documents) if name == "primary"]
    assert not primary[DROPPED].any()
    assert primary[DROPPED - 1].all()


def test_every_frame_is_announced_once_and_in_order(documents: Documents) -> None:
    resources = {
        doc["uid"]: doc["data_key"] for doc in of(documents, "stream_resource")
    }
    (primary,) = [d for d in of(documents, "descriptor") if d["name"] == "primary"]
    announced: dict[str, list[int]] = {"camera": [], "camera-theta": []}
    for datum in of(documents, "stream_datum"):
        if datum["descriptor"] == primary["uid"]:
            indices = range(datum["indices"]["start"], datum["indices"]["stop"])
            announced[resources[datum["stream_resource"]]] += indices
    assert announced == {"camera": [*range(N)], "camera-theta": [*range(N)]}


def test_streams_can_be_left_out_and_the_center_unsaid(beamline: Beamline) -> None:
    documents = beamline.scan(n_flats=0, n_darks=0, order="interlaced")
    assert [doc["name"] for doc in of(documents, "descriptor")] == ["primary"]
    assert "rotation_center" not in of(documents, "start")[0]
    ((_, _, theta_deg),) = stored(documents)
    assert np.array_equal(theta_deg, np.rad2deg(interlaced_angles(N, 8)))


def test_a_run_that_fails_stops_cleanly_and_the_next_one_works(
    beamline: Beamline,
) -> None:
    class ShutterBrokeError(Exception):
        pass

    documents: Documents = []
    stream: list[str] = []

    def fail(name: str, doc: dict[str, Any]) -> None:
        documents.append((name, doc))
        if name == "descriptor":
            stream.append(doc["name"])
        if name == "stream_datum" and stream[-1] == "primary":
            raise ShutterBrokeError

    with pytest.raises(ShutterBrokeError):
        beamline.scan(fail, rate_hz=50, flush_period_s=0.02)
    assert of(documents, "stop")[0]["exit_status"] == "fail"
    again = beamline.scan()
    assert of(again, "stop")[0]["exit_status"] == "success"


def test_a_scan_that_cannot_be_is_refused_before_it_starts(beamline: Beamline) -> None:
    with pytest.raises(InputError, match="rate must be positive"):
        beamline.scan(rate_hz=0)
    with pytest.raises(InputError, match="interlaced"):
        beamline.scan(order="interlacd")


READER = """
import sys, h5py
with h5py.File(sys.argv[1], "r", libver="latest", swmr=True) as file:
    data = file["/entry/data/data"]
    for _ in sys.stdin:
        data.refresh()
        print(data.shape[0], int(data[-1].sum()), flush=True)
"""


def test_another_process_reads_the_file_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "frames.h5"
    file = FrameFile(path, (4, 6))
    file.append(np.full((4, 6), 1, np.uint16), 0.0)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    for n in (2, 3, 4):
        file.append(np.full((4, 6), n, np.uint16), 10.0 * n)
        reader.stdin.write("look\n")
        reader.stdin.flush()
        assert reader.stdout.readline().split() == [str(n), str(24 * n)]
    reader.communicate(timeout=30)
    assert reader.returncode == 0
    file.close()
    with h5py.File(path, "r") as closed:
        assert closed[DATA].shape == (4, 4, 6)
        assert closed[THETA][()].tolist() == [0.0, 20.0, 30.0, 40.0]


def test_a_classic_scan_carries_its_images_in_its_events() -> None:
    phantom, model = Foam(COLUMNS, ROWS), DetectorModel(ROWS, COLUMNS, seed=2)
    axis = SynAxis(name="theta")
    camera = SimulatedCamera(axis, phantom, model, rotation_center=CENTER)
    documents: Documents = []
    RunEngine()(
        classic_scan(camera, axis, 6, n_flats=3, n_darks=2),
        lambda *pair: documents.append(pair),
    )
    assert_valid(documents)
    assert of(documents, "start")[0]["n_projections"] == 6
    streams = {doc["uid"]: doc["name"] for doc in of(documents, "descriptor")}
    images: dict[str, list[np.ndarray]] = {"darks": [], "flats": [], "primary": []}
    for event in of(documents, "event"):
        images[streams[event["descriptor"]]].append(event["data"]["camera_image"])
    theta = np.array(
        [e["data"]["theta"] for e in of(documents, "event") if "theta" in e["data"]]
    )
    np.testing.assert_allclose(np.deg2rad(theta), sequential_angles(6))
    predicted = model.projections(phantom.project(np.deg2rad(theta), CENTER))
    assert np.array_equal(images["primary"], predicted)
    assert np.array_equal(images["flats"], model.flats(3))
    assert np.array_equal(images["darks"], model.darks(2))


# ------------------------------------------------------------------ faults


def test_lost_projections_are_cut_out_of_the_documents(documents: Documents) -> None:
    lost = {0, 3, 4, N - 1}
    left: Documents = []
    lossy = LostProjections(lambda *pair: left.append(pair), lost)
    for name, doc in documents:
        lossy(name, doc)
    assert_valid(left)
    (primary,) = [d for d in of(left, "descriptor") if d["name"] == "primary"]
    resources = {doc["uid"]: doc["data_key"] for doc in of(left, "stream_resource")}
    seen: dict[str, list[int]] = {"camera": [], "camera-theta": []}
    for datum in of(left, "stream_datum"):
        if datum["descriptor"] == primary["uid"]:
            indices, seq_nums = datum["indices"], datum["seq_nums"]
            assert seq_nums["start"] == indices["start"] + 1
            assert seq_nums["stop"] == indices["stop"] + 1
            seen[resources[datum["stream_resource"]]] += range(*indices.values())
    kept = [k for k in range(N) if k not in lost]
    assert seen == {"camera": kept, "camera-theta": kept}
    others = [d for d in of(left, "stream_datum") if d["descriptor"] != primary["uid"]]
    assert all(d in of(documents, "stream_datum") for d in others)


def test_lost_projections_are_left_out_of_the_events() -> None:
    events = []
    lossy = LostProjections(lambda name, doc: events.append((name, doc)), {1})
    run = event_model.compose_run()
    stream = run.compose_descriptor(
        name="primary",
        data_keys={"x": {"source": "s", "dtype": "number", "shape": []}},
    )
    lossy("descriptor", dict(stream.descriptor_doc))
    for value in (0.0, 1.0, 2.0):
        event = stream.compose_event(data={"x": value}, timestamps={"x": 0.0})
        lossy("event", dict(event))
    assert [doc["data"]["x"] for name, doc in events if name == "event"] == [0.0, 2.0]
