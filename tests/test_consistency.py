"""Denoised slices are compared with the projections: what is not in them shows."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import sessions
from scipy import ndimage

from ebl_stream import profile_file
from ebl_stream.engine import consistency, interpret
from ebl_stream.engine.grids import Lens
from ebl_stream.engine.rooms import Rooms
from ebl_stream.errors import InputError
from ebl_stream.frames import Closed
from ebl_stream.numerics.quality import inside_circle
from ebl_stream.publish.output import RunOutput
from ebl_stream.simulation.phantom import Foam, golden_angles
from ebl_stream.stages import build
from ebl_stream.stages.denoise import Gaussian

N, N_ROWS = 64, 8
CENTER = (N - 1) / 2
I0 = 2_000.0
BLUR = {"gaussian": {"sigma_px": 0.8}}
FIGURES = ("data_residual", "data_residual_raw", "data_noise")


@pytest.fixture(scope="module", autouse=True)
def _dim():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "I0", I0)
        yield


class Seen:
    """A run's last figures, and the true noise of the projections."""

    def __init__(self, folder, images, theta, exact, **overrides):
        given = {"geometry.rotation_center": CENTER, "denoise": BLUR} | overrides
        self.outcome = sessions.run(folder, images, theta, **given)
        rows = self.outcome.output.folder / "quality.jsonl"
        self.row = json.loads(rows.read_text().splitlines()[-1])
        self.told = self.outcome.metadata["consistency"]
        self.state = self.outcome.result.state
        clean = exact[:, exact.shape[1] // 2]
        noisy = -np.log(np.maximum(images[:, exact.shape[1] // 2], 1) / I0)
        self.noise = rms(noisy - clean) / rms(noisy)
        self.residual, self.raw, self.known = (self.row[name] for name in FIGURES)


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


def scan(tmp_path, n_angles=96, *, n=N, seed=3, blur=0.0, extra=0.0, **overrides):
    foam, theta = Foam(n, N_ROWS, seed=seed), golden_angles(n_angles)
    exact = foam.project(theta)
    images = sessions.counts(exact + np.float32(extra))
    if blur:
        mean = I0 * np.exp(-exact)
        noise = ndimage.gaussian_filter(images - mean, (0, blur, blur))
        images = np.rint(mean + noise).astype(np.uint16)
    center = {"geometry.rotation_center": (n - 1) / 2}
    return Seen(tmp_path, images, theta, exact, **center | overrides)


@pytest.mark.parametrize(
    ("n", "n_angles", "blur", "high"),
    [(64, 96, 0.0, 1.15), (96, 48, 0.0, 1.25), (128, 256, 0.8, 1.25)],
)
def test_an_honest_denoiser_is_about_as_far_off_as_the_noise(
    tmp_path, n, n_angles, blur, high
):
    """Whose level neighbors tell, of few views and of a detector that blurs, too."""
    seen = scan(tmp_path, n_angles, n=n, blur=blur)
    assert 0.95 < seen.known / seen.noise < high
    assert 0.8 < seen.residual / seen.noise < 1.5
    assert seen.told == {"unknown": "", "n_angles": 30}


def hallucinate(monkeypatch, contrast=1.0):
    """Let the denoiser add a bright disc, as dense as the matrix, of 1/16 of N."""
    honest = Gaussian.__call__

    def call(self, volume, difference):
        made = honest(self, volume, difference)
        y, x = np.mgrid[:N, :N]
        disc = (x - 0.6 * N) ** 2 + (y - 0.45 * N) ** 2 < (N / 16) ** 2
        made[:, disc] += contrast * 0.65 / (0.46 * N)
        return made

    monkeypatch.setattr(Gaussian, "__call__", call)


@pytest.mark.parametrize("n_angles", [48, 96])
def test_what_a_denoiser_makes_up_is_seen(tmp_path, monkeypatch, n_angles):
    honest = scan(tmp_path, n_angles)
    hallucinate(monkeypatch)
    made_up = scan(tmp_path, n_angles)
    assert made_up.residual > 1.4 * honest.residual
    assert made_up.residual > 1.4 * made_up.known
    assert made_up.raw == pytest.approx(honest.raw, rel=1e-5)
    # What the noise should be is not drawn along.
    assert made_up.known == pytest.approx(honest.known, rel=1e-5)


def test_rings_are_taken_off_the_projections_too(tmp_path):
    stripes = np.random.default_rng(4).normal(0, 0.1, N)
    chain = [*sessions.PLAIN["preprocess"], "remove_rings"]
    seen = scan(tmp_path, extra=stripes, preprocess=chain)
    # With them, the stripes alone would be 0.1 of about 0.9.
    assert seen.residual < 0.08


def test_an_axis_in_the_wrong_place_does_not_agree(tmp_path):
    right = scan(tmp_path)
    wrong = scan(tmp_path, **{"geometry.rotation_center": CENTER + 3})
    assert wrong.residual > 1.5 * right.residual


def test_an_offset_detector_is_compared_where_it_sees(tmp_path):
    n_wide, cut = 96, 40
    theta = np.arange(180) * 2 * np.pi / 180
    exact = Foam(n_wide, 4, seed=5).project(theta)
    images = sessions.counts(exact)[:, :, cut:]
    center = (n_wide - 1) / 2 - cut
    given = {"geometry.offset_detector": True, "geometry.rotation_center": center}
    seen = Seen(tmp_path, images, theta, exact[:, :, cut:], **given)
    assert 0.95 < seen.known / seen.noise < 1.15
    assert 0.85 < seen.residual / seen.known < 1.3


def test_an_object_wider_than_the_field_is_not_compared(tmp_path):
    foam, theta = Foam(96, N_ROWS, seed=2), golden_angles(96)
    exact = foam.project(theta)[:, :, 16:80]
    seen = Seen(tmp_path, sessions.counts(exact), theta, exact)
    assert (seen.residual, seen.raw, seen.known) == (None, None, None)
    assert seen.told["unknown"] == "the object is wider than the field"


def test_line_integrals_that_stages_changed_are_not_compared(tmp_path):
    chain = [*sessions.PLAIN["preprocess"], "filter_stripes"]
    seen = scan(tmp_path, preprocess=chain)
    assert seen.residual is None
    assert "whole sinograms" in seen.told["unknown"]


def test_two_projections_are_too_few(tmp_path):
    seen = scan(tmp_path, 2)
    assert seen.residual is None
    assert seen.told == {"unknown": "fewer than three projections"}


def test_the_raw_volume_comes_first(tmp_path, monkeypatch):
    """At every look all of it is written before a projection is taken once more."""
    events = []
    write, begin = RunOutput.write, consistency.Consistency.__init__

    def written(self, name, z0, values, **stamp):
        events.append((name, stamp["version"]))
        return write(self, name, z0, values, **stamp)

    def begun(self, *arguments):
        events.append(("compared", 0))
        begin(self, *arguments)

    monkeypatch.setattr(RunOutput, "write", written)
    monkeypatch.setattr(consistency.Consistency, "__init__", begun)
    assert scan(tmp_path, **{"refresh.slab_rows": 4}).residual is not None
    last = max(k for k, event in enumerate(events) if event[0] == "compared")
    version = events[last - 1][1]
    assert ("recon", version) not in events[last:]
    assert events[:last].count(("recon", version)) == 2


@pytest.mark.parametrize("where", ["measure", "compare"])
def test_a_fault_in_it_harms_nothing(tmp_path, monkeypatch, where):
    expected = scan(tmp_path)

    def broken(*_):
        raise OSError("the disk is gone")

    if where == "measure":
        monkeypatch.setattr(consistency.Measured, "of", broken)
    else:
        monkeypatch.setattr(consistency, "project", broken)
    seen = scan(tmp_path)
    assert seen.state == "complete"
    assert seen.told["unknown"] == "OSError: the disk is gone"
    assert {seen.row[name] for name in FIGURES} == {None}
    for name in ("recon", "denoised"):
        there, wanted = seen.outcome.array(name), expected.outcome.array(name)
        np.testing.assert_allclose(there, wanted, atol=1e-6)


def test_voxels_that_are_no_numbers_make_no_figure(tmp_path, monkeypatch):
    hallucinate(monkeypatch, np.nan)
    seen = scan(tmp_path)
    assert seen.residual is None
    assert seen.raw < seen.known


def test_a_run_without_a_denoiser_has_no_such_columns(tmp_path):
    foam, theta = Foam(N, N_ROWS, seed=3), golden_angles(48)
    outcome = sessions.run(tmp_path, sessions.counts(foam.project(theta)), theta)
    text = (outcome.output.folder / "quality.jsonl").read_text()
    assert "data_residual" not in text
    assert "consistency" not in outcome.metadata


def test_a_center_that_a_look_makes_up_for_is_that_of_the_comparison(tmp_path):
    """Grids that turn 0.5 px beside the axis, seen through a lens that knows it."""
    foam, theta = Foam(N, N_ROWS, seed=3), golden_angles(96)
    truth, found = foam.volume(), []

    def look(session, item):
        if isinstance(item, Closed):
            projections = session._sum
            projections.settle()
            for shift in (0.5, -0.5):
                lens = Lens(shift=shift)
                checks = consistency.Consistency(projections, rooms, [0], lens)
                found.append(checks.as_row(0, truth, truth)["data_residual"])

    rooms = Rooms.furnish(profile_file.load("demo", sessions.PLAIN))
    given = {"geometry.rotation_center": CENTER - 0.5}
    images = sessions.counts(foam.project(theta))
    sessions.run(tmp_path, images, theta, hooks=[look], **given)
    assert found[0] < 0.05
    assert found[1] > 1.5 * found[0]


# ------------------------------------------------------------------------ correction


def psnr(volume, truth):
    inside = inside_circle(truth.shape, 0.95)
    return 20 * np.log10(np.ptp(truth) / rms((volume - truth)[:, inside]))


def few_views(tmp_path, correction_steps=0):
    """48 views of foam on 96 columns, denoised by the shipped net as it is."""
    pytest.importorskip("torch")
    from ebl_stream.nets.in_scan import InScan

    settings = {"steps": 0, "correction_steps": correction_steps}
    with pytest.MonkeyPatch.context() as patch:
        # The net is what this is about; a filter may be as good on so small a scan.
        without = functools.partialmethod(InScan.__init__, linear=False)
        patch.setattr(InScan, "__init__", without)
        seen = scan(tmp_path, 48, n=96, denoise={"noise2inverse": settings})
    assert seen.row["denoised_by"] == "warm"
    return seen


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return few_views(tmp_path_factory.mktemp("alone"))


def test_steps_toward_the_data_make_a_net_better(tmp_path, monkeypatch, alone):
    """Those of the last look; before, there is no time for them."""
    asked = []

    class Noted(interpret.Consistency):
        def __init__(self, *arguments):
            asked.append(arguments[-1])
            super().__init__(*arguments)

    monkeypatch.setattr(interpret, "Consistency", Noted)
    drawn = few_views(tmp_path, 3)
    assert asked[-1] == 3
    assert set(asked[:-1]) == {0}
    truth = Foam(96, N_ROWS, seed=3).volume()
    before, after = (
        psnr(one.outcome.array("denoised"), truth) for one in (alone, drawn)
    )
    assert after > before + 0.2
    assert drawn.known < drawn.residual < 0.95 * alone.residual
    (told,) = drawn.told["corrections"]
    assert (told["slab"], told["steps"]) == (0, 3)
    assert told["noise"] < told["residual_after"] < 0.95 * told["residual_before"]
    assert told["residual_after"] == pytest.approx(drawn.residual, rel=0.1)
    assert "corrections" not in alone.told


def test_steps_end_at_the_noise(tmp_path):
    """Otherwise they would fit it, as the raw volume does."""
    seen = few_views(tmp_path, 20)
    (told,) = seen.told["corrections"]
    assert 3 < told["steps"] < 20
    assert 0.9 * told["noise"] < told["residual_after"] <= told["noise"]


def test_a_fault_in_a_correction_leaves_what_the_net_made(tmp_path, monkeypatch, alone):
    monkeypatch.setattr(consistency, "Sirt", None)
    seen = few_views(tmp_path, 3)
    assert "TypeError" in seen.told["unknown"]
    there, wanted = (one.outcome.array("denoised") for one in (seen, alone))
    np.testing.assert_array_equal(there, wanted)


@pytest.mark.parametrize("steps", [-1, 21])
@pytest.mark.parametrize("stage", ["noise2inverse", "tomogan"])
def test_too_many_steps_are_one_clear_error(stage, steps):
    with pytest.raises(InputError, match="correction_steps must be from 0 to 20"):
        build("denoise", {stage: {"correction_steps": steps}})
