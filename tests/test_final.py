"""The last look: what the profile asks for beyond the live volume, and the ladder."""

from __future__ import annotations

import gc
import time
import weakref

import numpy as np
import pytest
import sessions
import zarr
from reference import nrmse

from ebl_stream.engine.memory import plan_memory
from ebl_stream.engine.viewer import Wishes, write_wishes
from ebl_stream.simulation.phantom import Foam
from ebl_stream.stages.preprocess.stripes import FilterStripes
from ebl_stream.stages.reconstruct import Fourier

N_COLUMNS, N_ROWS, N_ANGLES = 64, 70, 96
CENTER = (N_COLUMNS - 1) / 2 + 1.5
GIVEN = {"geometry.rotation_center": CENTER}
RINGS = np.random.default_rng(4).normal(0, 0.02, N_COLUMNS)


@pytest.fixture(scope="module")
def theta():
    return np.arange(N_ANGLES) * np.pi / N_ANGLES


@pytest.fixture(scope="module")
def values(theta):
    foam = Foam(N_COLUMNS, N_ROWS, seed=2)
    return foam.project(theta, rotation_center=CENTER).astype(np.float32)


def test_every_rung_of_the_ladder_gives_the_same_volume(tmp_path, theta, values):
    """Passes change nothing but the grid, which a lower rung makes coarser."""
    images = sessions.counts(values)
    coarse = {"reconstruct": {"fourier": {"oversampling": 1.125}}}
    best = sessions.run(tmp_path, images, theta, **GIVEN, **coarse)
    assert best.metadata["memory"]["rung"] == 1
    rungs = {}
    for memory in (16.7e6, 15e6, 11.7e6):
        done = sessions.run(tmp_path, images, theta, memory=memory, **GIVEN)
        rungs[done.metadata["memory"]["rung"]] = done
        assert nrmse(done.array(), best.array()) < 1e-5
        assert done.result.state == "complete"
    assert set(rungs) == {2, 3, 4}
    assert rungs[4].metadata["memory"]["passes"] > 1


def test_whole_sinogram_stages_make_the_final_volume(tmp_path, theta, values):
    """Whatever the order of arrival, they see sinograms, and the volume is theirs."""
    images = sessions.counts(values[:, :40] + RINGS.astype(np.float32))
    chain = [*sessions.PLAIN["preprocess"], "filter_stripes"]
    order = np.random.default_rng(1).permutation(N_ANGLES).tolist()
    done = sessions.run(tmp_path, images, theta, order, preprocess=chain, **GIVEN)
    plain = -np.log(np.maximum(images, 1) / sessions.I0).astype(np.float32)
    expected = Fourier()(FilterStripes()(plain), theta, CENTER)
    assert nrmse(done.array(), expected) < 1e-4
    assert nrmse(Fourier()(plain, theta, CENTER), expected) > 0.05


def test_a_batch_backend_makes_the_final_volume(tmp_path, theta, values):
    pytest.importorskip("astra")
    images = sessions.counts(values[:, :6])
    ours = sessions.run(tmp_path, images, theta, **GIVEN)
    astra = sessions.run(
        tmp_path, images, theta, reconstruct={"astra": {"method": "fbp"}}, **GIVEN
    )
    difference = nrmse(astra.array(), ours.array())
    assert 1e-4 < difference < 0.2
    assert "astra" in astra.metadata["analysis"]["stages"]["reconstruct"]
    assert astra.result.quality.keys() == ours.result.quality.keys()


def test_an_offset_detector_sees_the_whole_sample(tmp_path):
    n_wide, cut = 96, 40
    theta = np.arange(180) * 2 * np.pi / 180
    foam = Foam(n_wide, 4, seed=5)
    wide = foam.project(theta, rotation_center=(n_wide - 1) / 2).astype(np.float32)
    images = np.random.default_rng(0).poisson(sessions.I0 * np.exp(-wide))
    center = (n_wide - 1) / 2 - cut
    done = sessions.run(
        tmp_path,
        images[:, :, cut:].astype(np.uint16),
        theta,
        **{"geometry.offset_detector": True, "geometry.rotation_center": center},
    )
    volume = done.array()
    whole = -np.log(np.maximum(images, 1) / sessions.I0).astype(np.float32)
    expected = Fourier()(whole, theta, (n_wide - 1) / 2)
    assert volume.shape == expected.shape
    # Each side is seen once, not twice: noisier, but the same.
    assert nrmse(volume, expected) < 0.25
    assert (done.result.state, done.metadata["unseen"]) == ("complete", None)


def test_an_offset_detector_that_saw_half_a_turn_says_so(tmp_path, values):
    theta = np.arange(len(values)) * np.pi / len(values)
    given = {"geometry.offset_detector": True, "geometry.rotation_center": 20.0}
    done = sessions.run(tmp_path, sessions.counts(values), theta, **given)
    assert done.result.state == "partial"
    assert "of 360 degrees" in done.metadata["unseen"]
    assert "of 360 degrees" in done.result.message


def test_viewers_change_previews_never_the_end(tmp_path, theta, values):
    images = sessions.counts(values)
    expected = sessions.run(tmp_path, images, theta, **GIVEN).array()
    asked = []

    def ask(session, item):
        folder = session._views.output.folder
        if folder.exists() and not asked:
            asked.append(True)
            write_wishes(folder, Wishes(rows=(64, 70), window="hann"))

    done = sessions.run(tmp_path, images, theta, hooks=[ask], **GIVEN)
    assert asked
    np.testing.assert_array_equal(done.array(), expected)


def test_an_object_that_leaves_the_field_is_seen_and_said(tmp_path, theta, values):
    """Its level is right to a tenth; without the edges it is off by more than half."""
    cut = values[:, :4, 16:48]
    center = {"geometry.rotation_center": CENTER - 16}
    images = sessions.counts(cut)
    seen = sessions.run(tmp_path, images, theta, **center)
    zero = {"reconstruct": {"fourier": {"padding": "zero"}}}
    blind = sessions.run(tmp_path, images, theta, **center, **zero)
    whole = Fourier()(values[:, :4], theta, CENTER)[:, 16:48, 16:48]
    assert "at the left" in seen.metadata["truncated"]
    error = nrmse(seen.array(), whole)
    assert error < 0.5 * nrmse(blind.array(), whole)
    plain = -np.log(np.maximum(images, 1) / sessions.I0).astype(np.float32)
    assert nrmse(seen.array(), Fourier()(plain, theta, CENTER - 16)) < 1e-5
    inside = sessions.run(tmp_path, sessions.counts(values[:, :4]), theta, **GIVEN)
    assert inside.metadata["truncated"] is None


def test_previews_show_the_volume(tmp_path, theta, values):
    done = sessions.run(tmp_path, sessions.counts(values), theta, **GIVEN)
    volume = done.array()
    n, nz = N_COLUMNS, N_ROWS
    np.testing.assert_array_equal(done.array("plane_z")[0], volume[nz // 2])
    np.testing.assert_array_equal(done.array("plane_y")[:, 0], volume[:, n // 2])
    np.testing.assert_array_equal(done.array("plane_x")[..., 0], volume[..., n // 2])
    blocks = volume[: nz // 4 * 4].reshape(nz // 4, 4, n // 4, 4, n // 4, 4)
    coarse = done.array("preview")[: nz // 4]
    assert np.corrcoef(blocks.mean((1, 3, 5)).ravel(), coarse.ravel())[0, 1] > 0.97


def test_previews_before_the_end_come_from_the_grids(tmp_path, theta, values):
    images, seen = sessions.counts(values), {}

    def look(session, item):
        previews = session._views._n_previews
        if previews and previews not in seen:
            output = session._views.output
            planes = ("plane_z", "plane_y", "plane_x")
            seen[previews] = {
                name: zarr.open_array(output.path(name))[:] for name in planes
            }

    def wait(session, item):
        # Live, nothing is settled before memory is ready.
        while session._sum is not None and not session.is_ready:
            time.sleep(0.001)

    every = {"refresh.every": 0.5}
    sessions.run(tmp_path, images, theta, hooks=[look], **GIVEN, **every)
    assert not seen  # nobody looks at a replay before its end
    sessions.run(
        tmp_path,
        images,
        theta,
        hooks=[wait, look],
        is_behind=lambda: False,
        **GIVEN,
        **every,
    )
    assert len(seen) > 5
    half = sessions.run(tmp_path, images, theta, range(45), **GIVEN).array()

    def distance(k):
        return np.abs(seen[k]["plane_z"][0] - half[35]).max()

    at_half, middle = seen[min(seen, key=distance)], N_COLUMNS // 2
    cuts = {
        "plane_z": half[35, None],
        "plane_y": half[:, middle, None],
        "plane_x": half[..., middle, None],
    }
    for name, cut in cuts.items():
        assert np.abs(at_half[name] - cut).max() < 1e-4 * np.abs(half).max()


def test_frames_on_the_scratch_file_are_read_side_by_side(tmp_path, theta, values):
    """Whole-sinogram stages read all frames again, on several threads."""
    images = sessions.counts(values)
    chain = [*sessions.PLAIN["preprocess"], "filter_stripes"]
    settings = GIVEN | {"preprocess": chain}
    held = sessions.run(tmp_path, images, theta, **settings).array()
    small = settings | {"window.max_bytes": 10_000}
    for _ in range(3):
        spilled = sessions.run(tmp_path, images, theta, **small)
        np.testing.assert_array_equal(spilled.array(), held)


def test_a_nan_does_not_make_the_threads_wait_for_themselves(tmp_path, theta, values):
    images = sessions.counts(values).astype(np.float32)
    images[5, 3, 20] = np.nan
    chain = [*sessions.PLAIN["preprocess"], "filter_stripes"]
    done = sessions.run(tmp_path, images, theta, preprocess=chain, **GIVEN)
    assert done.result.state == "complete"
    assert np.isfinite(done.array()).all()


def test_passes_find_the_center_that_one_pass_finds(tmp_path):
    """The first pass must not judge rows that it does not hold."""
    theta = np.arange(N_ANGLES) * np.pi / N_ANGLES
    foam = Foam(N_COLUMNS, 256, seed=3)
    exact = foam.project(theta, rotation_center=CENTER).astype(np.float32)
    exact[:, :64] = 0
    images = sessions.counts(exact)
    whole = sessions.run(tmp_path, images, theta)
    # Flats are float32 here, and the ring is planned for them.
    memory = next(
        free
        for free in range(25_000_000, 0, -100_000)
        if len(
            plan_memory(
                (256, N_COLUMNS),
                32,
                oversampling=1.25,
                interpret=False,
                ring_bytes=2 * images.nbytes,
                free=free,
                threads=2,
            ).passes
        )
        >= 3
    )
    passes = sessions.run(tmp_path, images, theta, memory=memory)
    assert passes.metadata["memory"]["passes"] >= 3
    assert passes.metadata["truncated"] is None
    assert passes.result.rotation_center_source == "measured"
    found = passes.result.rotation_center
    assert found == pytest.approx(whole.result.rotation_center, abs=0.1)


def test_rings_are_left_alone_while_they_cannot_be_told(tmp_path, theta, values):
    """A run that ends early keeps its sample, whatever stages come in the end."""
    images = sessions.counts(values[:, :8])
    few = range(12)
    chain = [*sessions.PLAIN["preprocess"], "filter_stripes"]
    rings = [*sessions.PLAIN["preprocess"], "remove_rings", "filter_stripes"]
    without, with_rings = (
        sessions.run(tmp_path, images, theta, few, preprocess=stages, **GIVEN).array()
        for stages in (chain, rings)
    )
    np.testing.assert_array_equal(with_rings, without)


def test_nothing_is_kept_after_the_run(tmp_path, theta, values):
    held = []

    def look(session, item):
        held[:] = [weakref.ref(session), weakref.ref(session._views)]

    gc.disable()
    try:
        sessions.run(tmp_path, sessions.counts(values), theta, hooks=[look], **GIVEN)
        assert [ref() for ref in held] == [None, None]
    finally:
        gc.enable()
