"""Libraries of simulated scans: what the house shows of samples that are known.

Every scan has its own sample, dose, angles, window and detector blur, drawn from a
seed of its own. It is reconstructed as a live scan is, in two halves.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from ebl_stream.errors import InputError
from ebl_stream.numerics.accumulate import Accumulator
from ebl_stream.numerics.fourier_plan import FourierPlan
from ebl_stream.numerics.weights import alternate, angular_weights
from ebl_stream.numerics.windows import Window, window_response
from ebl_stream.simulation.detector import raw_counts
from ebl_stream.simulation.families import FAMILIES, Leaning
from ebl_stream.simulation.phantom import angles_of

TRAIN_SEED = 1_000_000
"""First seed of what nets are trained on."""

HELD_SEED = 2_000_000
"""First seed of what they are judged on. Tests and benchmarks stay below 100,000."""

WINDOWS: tuple[Window, ...] = ("ramp", "shepp_logan", "cosine", "hann")
_ARRAYS = ("truth", "volume", "half_difference")
VERSION = 1
"""Of what a seed stands for: another one makes other scans."""


@dataclass(frozen=True)
class Library:
    """Which scans there are; the same library is the same scans, to the last bit.

    Raises
    ------
    InputError
        A family is unknown, or a size makes no sense.
    """

    families: tuple[str, ...] = tuple(FAMILIES)
    scans: int = 50
    """The families take turns."""
    seed: int = TRAIN_SEED
    """Of the first scan; the others follow."""
    n_columns: int = 256
    n_rows: int = 12
    i0: tuple[float, float] = (200.0, 20_000.0)
    """Photons per pixel without sample, from and to."""
    views: tuple[int, int] = (64, 512)
    """Projections of a scan, from and to."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.families if name not in FAMILIES]
        if unknown or not self.families:
            raise InputError(
                f"no family of samples is called {', '.join(unknown) or 'nothing'!r} "
                f"(there are: {', '.join(FAMILIES)})"
            )
        if self.n_columns < 64 or self.n_rows < 1 or self.scans < 1:
            raise InputError("a library has 1 scan or more, of 64 columns and 1 row")

    def known(self, cache: Path | None = None) -> Iterator[Known]:
        """Yield the scans, simulated on all cores but one.

        Parameters
        ----------
        cache : Path, optional
            Folder from which they are taken, and where they are put if they are not
            there. It may be deleted at any time.

        Raises
        ------
        OSError
            The folder cannot be written.
        """
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1)) as pool:
            yield from pool.map(lambda k: self._cached(k, cache), range(self.scans))

    def _cached(self, number: int, cache: Path | None) -> Known:
        if cache is None:
            return self.scan(number)
        words = json.dumps(self.as_dict() | {"scans": 1, "number": number})
        path = cache / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.npz"
        try:
            return _load(path)
        except FileNotFoundError:
            pass
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            path.unlink()  # damaged: made again
        known = self.scan(number)
        _store(path, known)
        return known

    def as_dict(self) -> dict[str, Any]:
        """Return what makes it again, parameters and seeds; plain JSON types."""
        plain = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
        return {
            "generator": "ebl_stream.simulation.library",
            "version": VERSION,
        } | plain

    def scan(self, number: int) -> Known:
        """Simulate and reconstruct one scan, number 0 to ``scans - 1``."""
        rng = np.random.default_rng(self.seed + number)
        family = self.families[number % len(self.families)]
        bodies = FAMILIES[family](rng, self.n_columns, self.n_rows)
        how = _How.draw(rng, self.i0, self.views)
        sample = Leaning(self.n_columns, self.n_rows, bodies)
        theta = angles_of(how.order, how.views)
        exact = sample.project(theta)
        # Densities are relative so far: the thickest ray is to lose that much.
        gain = np.float32(how.depth / max(float(exact.max()), 1e-9))
        values = _measured(gain * exact, how, rng)
        volume, difference = _reconstruct(values, theta, how.window)
        truth = _as_shown(gain * sample.volume(), how)
        settings = {"seed": self.seed + number, **asdict(how)}
        return Known(family, settings, truth, volume, difference)


@dataclass(frozen=True)
class Known:
    """A reconstructed scan of a sample that is known; ``[z, y, x]``, 1/px."""

    family: str
    settings: dict[str, Any]
    """How it was scanned."""
    truth: NDArray[np.float32]
    """What this detector and this window show of the sample without noise."""
    volume: NDArray[np.float32]
    """A + B."""
    half_difference: NDArray[np.float32]
    """A - B."""


@dataclass(frozen=True)
class _How:
    """How a sample was scanned."""

    i0: float
    """Photons per pixel without sample."""
    views: int
    order: str
    depth: float
    """Line integral of the thickest ray."""
    blur_px: float
    """Of the detector, standard deviation; it spreads photons already counted."""
    window: Window

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        i0: tuple[float, float],
        views: tuple[int, int],
    ) -> _How:
        return cls(
            i0=_log_uniform(rng, *i0),
            views=round(_log_uniform(rng, *views)),
            order=str(rng.choice(["golden", "interlaced", "sequential"])),
            depth=_log_uniform(rng, 0.4, 3),
            blur_px=float(rng.uniform(0.3, 0.7)) if rng.random() < 0.4 else 0.0,
            window=WINDOWS[int(rng.integers(len(WINDOWS)))],
        )


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _measured(
    exact: NDArray[np.float32], how: _How, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Count photons, and return the line integrals that follow from the counts."""
    counts = raw_counts(exact, i0=how.i0, flat_gain=1.0, dark=0.0, rng=rng)
    seen = counts.astype(np.float32)
    if how.blur_px:
        seen = ndimage.gaussian_filter(seen, (0, how.blur_px, how.blur_px))
    return -np.log(np.maximum(seen, 0.5) / np.float32(how.i0))


def _reconstruct(
    values: NDArray[np.float32], theta: NDArray[np.float64], window: Window
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return A + B and A - B, as the engine makes them of a complete scan."""
    _, n_rows, n_columns = values.shape
    shares = np.zeros((len(theta), 2))
    shares[np.arange(len(theta)), alternate(theta)] = angular_weights(theta)
    grids = Accumulator(FourierPlan(n_columns), n_rows, (n_columns - 1) / 2)
    grids.add(values, theta, shares)
    return grids.volume(window=window), grids.half_difference(window=window)


def _as_shown(truth: NDArray[np.float32], how: _How) -> NDArray[np.float32]:
    """Return the truth as blurred as the scan shows it: denoising is not sharpening."""
    if how.blur_px:
        truth = np.asarray(ndimage.gaussian_filter(truth, how.blur_px), np.float32)
    n = truth.shape[-1]
    radius = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])
    response = window_response(np.minimum(radius, 0.5), how.window)
    response[radius > 0.5] = 0  # what no projection holds
    spectrum = np.asarray(fft.rfft2(truth)) * response.astype(np.float32)
    planes = fft.irfft2(spectrum, truth.shape[1:])
    return np.asarray(planes, np.float32)


def _store(path: Path, known: Known) -> None:
    """Write a scan, all of it or nothing."""
    about = json.dumps({"family": known.family, "settings": known.settings})
    arrays = {name: getattr(known, name) for name in _ARRAYS}
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=".", suffix=".part", delete=False
    ) as draft:
        try:
            np.savez(draft, about=np.array(about), **arrays)
            draft.flush()
            os.replace(draft.name, path)
        except BaseException:
            Path(draft.name).unlink(missing_ok=True)
            raise


def _load(path: Path) -> Known:
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        arrays = [file[name] for name in _ARRAYS]
    return Known(about["family"], about["settings"], *arrays)
