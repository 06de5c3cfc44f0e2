"""A detector with the faults that real ones have.

Photons are counted (Poisson), pixels differ in gain, the gain has drifted between
flats and projections (that is what leaves rings), gamma rays hit single pixels
(zingers), and there is an offset without light (dark).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ebl_stream.frames import Kind

Map = NDArray[np.float64]


def raw_counts(
    line_integrals: NDArray[np.floating],
    *,
    i0: float,
    flat_gain: Map | float,
    dark: Map | float,
    rng: np.random.Generator,
    zingers: float = 0.0,
    readout_noise: float = 0.0,
) -> NDArray[np.uint16]:
    """Expose frames.

    Parameters
    ----------
    line_integrals : [..., row, column]
        Of the sample; zero where there is none, infinite where there is no light.
    i0 : float
        Photons (= counts) per pixel without sample at gain 1.
    flat_gain : (row, column) or float
        Illumination times gain of each pixel.
    dark : (row, column) or float
        Counts without light.
    rng : numpy.random.Generator
    zingers : float
        Fraction of pixels that are hit and show 10 to 40 thousand counts more.
    readout_noise : float
        Counts, standard deviation.

    Returns
    -------
    uint16 [..., row, column]
        Clipped at 0 and 65535.
    """
    mean = i0 * flat_gain * np.exp(-np.asarray(line_integrals, np.float64))
    counts = rng.poisson(mean).astype(np.float64) + dark
    counts += readout_noise * rng.standard_normal(counts.shape)
    n_hits = rng.binomial(counts.size, zingers)
    hits = rng.integers(counts.size, size=n_hits)
    counts.reshape(-1)[hits] += rng.uniform(10_000, 40_000, n_hits)
    return np.rint(counts).clip(0, 65_535).astype(np.uint16)


@dataclass(frozen=True)
class DetectorModel:
    """A detector whose frame k is the same whenever and wherever it is taken.

    With ``gain_spread``, ``ring_strength``, ``readout_noise`` and ``zingers`` zero
    only photon noise is left.
    """

    n_rows: int
    n_columns: int
    i0: float = 20_000.0
    """Photons (= counts) per pixel in the brightest part of a flat."""
    dark_level: float = 100.0
    """Counts without light."""
    readout_noise: float = 2.0
    """Counts, standard deviation."""
    gain_spread: float = 0.02
    """Relative, of columns and of pixels; flats see it too and correct it."""
    ring_strength: float = 0.005
    """Relative gain drift of columns between flats and projections: rings."""
    zingers: float = 1e-5
    """Fraction of pixels hit by a gamma ray, in every frame."""
    seed: int = 0

    def projections(
        self, line_integrals: NDArray[np.floating], first: int = 0
    ) -> NDArray[np.uint16]:
        """Expose projections number ``first`` and following.

        Parameters
        ----------
        line_integrals : [angle, row, column]

        Returns
        -------
        uint16 [angle, row, column]
        """
        gain = self.flat_gain * self.ring_gain
        frames = [
            self._expose(Kind.PROJECTION, first + k, image, gain)
            for k, image in enumerate(line_integrals)
        ]
        return np.stack(frames)

    def flats(self, n: int, first: int = 0) -> NDArray[np.uint16]:
        """Expose n flats: light, no sample; uint16 [frame, row, column]."""
        empty = np.zeros((self.n_rows, self.n_columns))
        return np.stack(
            [
                self._expose(Kind.FLAT, first + k, empty, self.flat_gain)
                for k in range(n)
            ]
        )

    def darks(self, n: int, first: int = 0) -> NDArray[np.uint16]:
        """Expose n darks: no light; uint16 [frame, row, column]."""
        shut = np.full((self.n_rows, self.n_columns), np.inf)
        return np.stack(
            [self._expose(Kind.DARK, first + k, shut, self.flat_gain) for k in range(n)]
        )

    @cached_property
    def flat_gain(self) -> Map:
        """Illumination times gain (row, column), as flats see it."""
        rng = np.random.default_rng([self.seed, 10])
        column = rng.normal(0, self.gain_spread, self.n_columns)
        pixel = rng.normal(0, self.gain_spread, (self.n_rows, self.n_columns))
        return self._illumination() * (1 + column) * (1 + pixel / 2)

    @cached_property
    def ring_gain(self) -> Map:
        """What flats do not know (row, column): most columns a bit, some a lot."""
        rng = np.random.default_rng([self.seed, 11])
        drift = rng.normal(0, self.ring_strength, self.n_columns)
        strong = rng.random(self.n_columns) < 0.03
        drift[strong] *= 4
        return np.broadcast_to(1 + drift, (self.n_rows, self.n_columns))

    @cached_property
    def dark(self) -> Map:
        """Counts without light (row, column), before noise."""
        rng = np.random.default_rng([self.seed, 12])
        pattern = rng.normal(0, 0.03, (self.n_rows, self.n_columns))
        return self.dark_level * (1 + pattern)

    def _illumination(self) -> Map:
        """Shape the beam: a broad hump up and down, a slight slope sideways."""
        up = np.linspace(-1, 1, self.n_rows)[:, None]
        across = np.linspace(-1, 1, self.n_columns)
        return np.exp(-0.4 * up**2) * (0.95 + 0.05 * across)

    def _expose(
        self, kind: Kind, index: int, line_integrals: NDArray[np.floating], gain: Map
    ) -> NDArray[np.uint16]:
        # Each frame has a random stream of its own, whatever was exposed before.
        return raw_counts(
            line_integrals,
            i0=self.i0,
            flat_gain=gain,
            dark=self.dark,
            rng=np.random.default_rng([self.seed, int(kind), index]),
            zingers=self.zingers,
            readout_noise=self.readout_noise,
        )
