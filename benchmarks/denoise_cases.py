"""What the denoiser's benchmark measures: one function per claim."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from denoise_runs import Outcome, psnr, replay_file, scan_phantom
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, maximum_filter
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from skimage.restoration import denoise_tv_chambolle

from ebl_stream.numerics.quality import inside_circle
from ebl_stream.simulation import families
from ebl_stream.simulation.families import Leaning
from ebl_stream.simulation.phantom import Foam, golden_angles

Volume = NDArray[np.float32]

ROTATION_DEG = -3.91
"""How far the low-dose pepper is turned against the other one."""

PEPPER_ROWS = (3, 11, 19, 27)
TV_WEIGHTS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
SIGMAS = (0.6, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0)
DEPTH = 1.3
"""Line integral of the thickest ray, as that of the foam."""

DOSES = (250, 500, 1000, 2000, 4000, 8000)


def tv(volume: Volume, scale: float, weight: float, *, flat: bool) -> Volume:
    """Denoise by total variation, slice by slice or as a volume."""
    values = volume / scale
    if flat:
        made = [denoise_tv_chambolle(plane, weight=weight) for plane in values]
        return np.stack(made) * scale
    return denoise_tv_chambolle(values, weight=weight) * scale


def foam_case(*, quick: bool) -> dict[str, Any]:
    """Foam, I0 = 2000, 256 views: learned in the scan against tuned filters."""
    n_rows, n = (12, 128) if quick else (32, 256)
    foam, theta = Foam(n, n_rows, seed=11), golden_angles(256)
    truth = foam.volume()
    scale = float(np.ptp(truth))
    whole = scan_phantom(foam, theta, 2000, "noise2inverse", seed=5)
    half = scan_phantom(foam, theta[:128], 2000, "noise2inverse", seed=5)
    fbp = psnr(whole.recon, truth)
    gauss = max(psnr(gaussian_filter(whole.recon, (0, s, s)), truth) for s in SIGMAS)
    tv_2d = max(
        psnr(tv(whole.recon, scale, w, flat=True), truth) for w in TV_WEIGHTS[4:]
    )
    tv_3d = max(
        psnr(tv(whole.recon, scale, w, flat=False), truth) for w in TV_WEIGHTS[4:]
    )
    learned = psnr(whole.denoised, truth)
    return {
        "fbp_db": fbp,
        "gaussian_db": gauss,
        "tv_db": tv_2d,
        "tv_3d_db": tv_3d,
        "n2i_db": learned,
        "n2i_half_angles_db": psnr(half.denoised, truth),
        "n2i_gain_db": learned - fbp,
        "n2i_half_angles_gain_db": psnr(half.denoised, truth) - fbp,
        "n2i_minus_tv_db": learned - max(tv_2d, tv_3d),
        "before_60_percent": _before_60_percent(whole),
        "guard": whole.metadata["denoise"]["guard"],
    }


def _before_60_percent(run: Outcome) -> dict[str, Any]:
    """Return who denoised the slabs that were published before 60 % of the angles."""
    shipped = run.metadata["denoise"]["start"]["weights"][:16]
    early = [
        row for row in run.rows if row["coverage"] < 0.6 and row["denoised_steps"] > 0
    ]
    learned = [row for row in early if row["denoised_weights"] != shipped]
    return {"slabs": len(learned), "steps": max(r["denoised_steps"] for r in learned)}


def warm_case(*, quick: bool) -> dict[str, Any]:
    """Warm start against a cold one, 500 steps each, over families of samples."""
    names = ("foam", "grains") if quick else ("foam", "grains", "fibers", "layers")
    n = 128 if quick else 192
    steps = 100 if quick else 500
    gains: dict[str, dict[str, float]] = {}
    for k, family in enumerate(names):
        bodies = getattr(families, family)(np.random.default_rng(400 + k), n, 16)
        bodies[:, 7] *= DEPTH / Leaning(n, 16, bodies).project(golden_angles(16)).max()
        phantom = Leaning(n, 16, bodies)
        truth, theta = phantom.volume(), golden_angles(256)
        scores: dict[str, float] = {}
        for name, model, n_steps in (
            ("warm", "noise2inverse-warm", steps),
            ("warm, few steps", "noise2inverse-warm", steps // 5),
            ("as shipped", "noise2inverse-warm", 0),
            ("cold", None, steps),
        ):
            stage = {"noise2inverse": {"model": model, "steps": n_steps}}
            run = scan_phantom(phantom, theta, 2000, stage, seed=7)
            scores |= {"fbp": psnr(run.recon, truth), name: psnr(run.denoised, truth)}
        gains[family] = scores
    ahead = {name: each["warm"] - each["cold"] for name, each in gains.items()}
    few = [each["warm, few steps"] - each["cold"] for each in gains.values()]
    return {
        "steps": steps,
        "families": gains,
        "warm_minus_cold_db": ahead["foam"],
        "warm_minus_cold_worst_db": min(ahead.values()),
        "warm_few_steps_minus_cold_worst_db": min(few),
    }


def uncertainty_case(*, quick: bool) -> dict[str, Any]:
    """Does what is said of the error follow the true one, slice by slice?"""
    n, n_rows = (96, 12) if quick else (160, 16)
    said: dict[str, list[float]] = {"split": [], "ensemble": [], "true": []}
    stage = {"noise2inverse": {"uncertainty_map": True}}
    maps: dict[str, list[float]] = {"error": [], "map": []}
    for k, i0 in enumerate(DOSES[::2] if quick else DOSES):
        foam = Foam(n, n_rows, seed=50 + k)
        truth, theta = foam.volume(), golden_angles(256)
        run = scan_phantom(
            foam, theta, i0, stage, seed=90 + k, **{"refresh.slab_rows": 4}
        )
        circle = inside_circle(truth.shape, 0.9)
        error = (run.denoised - truth)[:, circle].astype(np.float64)
        maps["error"] += list(np.sqrt(np.mean(error**2, 1)))
        spread = run.arrays["uncertainty"][:, circle].astype(np.float64)
        maps["map"] += list(np.sqrt(np.mean(spread**2, 1)))
        newest = {row["slab"]: row for row in run.rows}
        for slab, row in sorted(newest.items()):
            rows = slice(4 * slab, 4 * slab + 4)
            said["true"].append(float(np.sqrt(np.mean(error[rows] ** 2))))
            said["split"].append(row["uncertainty_split"])
            said["ensemble"].append(row["uncertainty_ensemble"])
    true = np.array(said["true"])
    found: dict[str, Any] = {"slabs": len(true)}
    for name in ("split", "ensemble"):
        values = np.array(said[name], float)
        found[f"uncertainty_rank_{name}"] = float(spearmanr(values, true).statistic)
        ratio = true / values
        found[f"true_over_{name}"] = [
            float(np.exp(np.log(ratio).mean())),
            float(ratio.min()),
            float(ratio.max()),
        ]
    found["uncertainty_rank_map"] = float(
        spearmanr(maps["map"], maps["error"]).statistic
    )
    return found


def pepper_case(data: Path, *, quick: bool) -> dict[str, Any]:
    """The measured dose pair, by default settings; scores as in a blind comparison."""
    low_path = data / "helsinki_pepper_lowdose.h5"
    normal_path = data / "helsinki_pepper_normal.h5"
    found: dict[str, Any] = {}
    for window in ("cosine",) if quick else ("cosine", "ramp"):
        shape = {"reconstruct": {"fourier": {"window": window}}}
        normal = replay_file(normal_path, denoise=None, **shape).recon
        low = replay_file(low_path, ROTATION_DEG, **shape)
        score, edges = Score(low.recon, normal), Edges(normal)
        raw, ours = score(low.recon), score(low.denoised)
        sigmas = SIGMAS[1:6]
        tuned = [
            score(gaussian_filter(low.recon, (z * s, s, s)))
            for s in sigmas
            for z in (0, 1)
        ]
        gauss = max(tuned, key=lambda each: each.psnr_db)
        weights = TV_WEIGHTS[:3:2] if quick else TV_WEIGHTS[:9]
        blurred = [tv(low.recon, score.peak, w, flat=False) for w in weights]
        tv_3d, best_tv = max(
            ((score(each), each) for each in blurred), key=lambda pair: pair[0].psnr_db
        )
        found[window] = {
            "fbp": asdict(raw),
            "n2i": asdict(ours),
            "gaussian": asdict(gauss),
            "tv_3d": asdict(tv_3d),
            "psnr_gain_db": ours.psnr_db - raw.psnr_db,
            "ssim_gain": ours.ssim - raw.ssim,
            "minus_tv3d_db": ours.psnr_db - tv_3d.psnr_db,
            "edge_ratio": edges.width(low.denoised) / edges.width(normal),
            "edge_ratio_fbp": edges.width(low.recon) / edges.width(normal),
            "edge_ratio_tv_3d": edges.width(best_tv) / edges.width(normal),
            "guard": low.metadata["denoise"]["guard"],
            "by": low.metadata["denoise"]["by"],
        }
    return found


@dataclass(frozen=True)
class Scores:
    """Against the normal dose."""

    psnr_db: float
    ssim: float


class Score:
    """Compare with the normal dose in a few rows, after one grey fit for all methods.

    Parameters
    ----------
    low, normal : ndarray, [z, y, x]
        Filtered back-projections.
    """

    def __init__(self, low: Volume, normal: Volume) -> None:
        self._normal = normal
        self._circle = inside_circle(normal.shape, 0.9)
        smooth = [
            np.concatenate(
                [gaussian_filter(each[r], 4)[self._circle] for r in PEPPER_ROWS]
            )
            for each in (low, normal)
        ]
        self.gain, self._offset = np.polyfit(*smooth, 1)
        seen = [gaussian_filter(normal[r], 1)[self._circle] for r in PEPPER_ROWS]
        self.peak = float(np.subtract(*np.percentile(seen, [99.9, 0.1])))

    def __call__(self, volume: Volume) -> Scores:
        squares, alike = [], []
        for row in PEPPER_ROWS:
            ours = volume[row] * self.gain + self._offset
            wanted = self._normal[row]
            squares.append(np.mean((ours - wanted)[self._circle] ** 2))
            _, each = structural_similarity(
                ours, wanted, data_range=self.peak, full=True
            )
            alike.append(each[self._circle].mean())
        error = float(np.mean(squares))
        return Scores(10 * float(np.log10(self.peak**2 / error)), float(np.mean(alike)))


class Edges:
    """Mean profile across the strongest edges of the normal dose."""

    REACH_PX, STEP_PX, SHARE = 8.0, 0.25, 0.01

    def __init__(self, normal: Volume) -> None:
        circle = inside_circle(normal.shape, 0.85)
        self._lines: dict[int, NDArray[np.float64]] = {}
        along = np.arange(-self.REACH_PX, self.REACH_PX + 1e-9, self.STEP_PX)
        for row in PEPPER_ROWS:
            smooth = gaussian_filter(normal[row], 2)
            slope_y, slope_x = np.gradient(smooth)
            slope = np.hypot(slope_y, slope_x) * circle
            crest = slope >= maximum_filter(slope, 3)
            strong = crest & (slope > np.quantile(slope[circle], 1 - self.SHARE))
            y, x = np.nonzero(strong)
            steepness = slope[y, x]
            up = np.stack([slope_y[y, x], slope_x[y, x]]) / steepness
            middle = np.stack([y, x]).astype(float)
            self._lines[row] = middle[..., None] + up[..., None] * along
        self._along = along

    def width(self, volume: Volume) -> float:
        """Return over how many px the profile rises from 10 to 90 %."""
        profiles = [
            map_coordinates(volume[row], line, order=1, mode="nearest")
            for row, line in self._lines.items()
        ]
        mean = np.concatenate(profiles).mean(0)
        low, high = mean.min(), mean.max()
        rise = (mean - low) / (high - low)
        start, stop = int(mean.argmin()), int(mean.argmax())
        part = slice(start, stop + 1)
        at = np.interp([0.1, 0.9], rise[part], self._along[part])
        return float(at[1] - at[0])


def latency_case(*, quick: bool) -> dict[str, Any]:
    """What denoising costs a live scan: last projection to volume, with and without."""
    n, n_rows, n_angles = (128, 32, 128) if quick else (512, 64, 256)
    foam, theta = Foam(n, n_rows, seed=21), golden_angles(n_angles)
    settings = {
        "refresh.slab_rows": 16,
        "refresh.first_rows": [n_rows // 2, n_rows // 2 + 1],
    }
    seconds: dict[str, list[float]] = {"without": [], "with": [], "watched": []}
    for _ in range(2 if quick else 5):
        for name, stage in (("without", None), ("with", "noise2inverse")):
            run = scan_phantom(
                foam, theta, 2000, stage, seed=3, is_behind=lambda: False, **settings
            )
            latency = run.metadata["latency_s"]
            seconds[name].append(latency["last_projection_to_recon"])
            if stage:
                seconds["watched"].append(latency["last_projection_to_watched"])
    middle = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "recon_s_without": middle["without"],
        "recon_s_with": middle["with"],
        "recon_latency_growth": middle["with"] / middle["without"] - 1,
        "watched_s": middle["watched"],
    }
