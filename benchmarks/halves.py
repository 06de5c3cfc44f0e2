"""Do the halves tell the truth? RMS(A - B) and FRC(A, B) against a known phantom.

Foam of 512 columns, 804 angles, two photon levels; sequential, golden, interlaced and
random orders; after 25, 50, 75 and 100 % of the angles; reconstructed by the exact
adjoint NUFFT, so that only the split is judged. Rules:

* chance:    a coin per projection;
* nearest:   the half that does not hold the nearest direction so far;
* online:    `HalfSplit`, what the engine does as projections arrive;
* final:     `rebalanced`, which may move projections between the halves at the end;
* planned:   the final split of the whole plan, assigned from the start.

Columns: RMS(A - B) over the true error of A + B; the resolution where FRC(A, B)
crosses `split_threshold`, over the true one, where the correlation of A + B with the
phantom crosses 1/2; PSNR of 2 A; share of the projections that are moved.

Gate: RMS ratio 0.9..1.15 for complete sequential, golden and interlaced scans;
FRC ratio at most 1.05 at every prefix, 0.95..1.05 for complete scans.
Predicted (N = 256, and N = 512 with other seeds): nearest 1.14-1.22, online 1.05-1.10,
final 1.00-1.03, chance 1.4; FRC ratio 0.88-0.91 online, 0.95 final.

Run: ``python benchmarks/halves.py [--quick]``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import finufft
import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics.quality import (
    INSIDE,
    frc,
    inside_circle,
    resolution_px,
    split_noise,
    split_threshold,
)
from ebl_stream.numerics.weights import (
    HalfSplit,
    alternate,
    angular_weights,
    rebalanced,
)
from ebl_stream.simulation.phantom import Foam, angles_of
from ebl_stream.stages.reconstruct import Fourier

Angles: TypeAlias = NDArray[np.float64]
Stack: TypeAlias = NDArray[np.float32]
Halves: TypeAlias = NDArray[np.int8]

N_COLUMNS = 512
N_ANGLES = 804
PHOTONS = (20_000, 2_000)
PREFIXES = (0.25, 0.5, 0.75, 1.0)


def orders(n: int = N_ANGLES) -> dict[str, Angles]:
    """Return the orders of angles (rad)."""
    return {
        "sequential": angles_of("sequential", n),
        "golden": angles_of("golden", n),
        "interlaced": angles_of("interlaced", n),
        "random": np.random.default_rng(3).random(n) * np.pi,
        "two turns": np.arange(n) * 2 * np.pi / n,
        "two odd turns": np.arange(n + 1) * 2 * np.pi / (n + 1),
    }


# ------------------------------------------------------------------- the splits


def chance(theta: Angles, _: Angles) -> Halves:
    return np.random.default_rng(1).integers(0, 2, len(theta)).astype(np.int8)


def nearest(theta: Angles, _: Angles) -> Halves:
    halves = np.zeros(len(theta), np.int8)
    for k in range(1, len(theta)):
        apart = np.mod(theta[:k] - theta[k], np.pi)
        halves[k] = 1 - halves[np.argmin(np.minimum(apart, np.pi - apart))]
    return halves


def online(theta: Angles, _: Angles) -> Halves:
    split = HalfSplit()
    return np.array([split.assign(angle) for angle in theta], np.int8)


def final(theta: Angles, _: Angles) -> Halves:
    return rebalanced(theta, online(theta, theta))


def planned(theta: Angles, plan: Angles) -> Halves:
    return alternate(plan)[: len(theta)]


RULES: dict[str, Callable[[Angles, Angles], Halves]] = {
    "chance": chance,
    "nearest": nearest,
    "online": online,
    "final": final,
    "planned": planned,
}


# --------------------------------------------------------- what they look like


@dataclass(frozen=True)
class Verdict:
    """How one split of one scan did."""

    rms_ratio: float
    """RMS(A - B) over the RMS error of A + B."""
    frc_over_true: float
    """Resolution that the halves promise over the true one; above 1 is too much."""
    half_psnr_db: float
    """Of 2 A."""


def judge(
    volume: Stack, difference: Stack, truth: Stack, angular_coverage: float
) -> Verdict:
    """Compare what the halves say of a slab with the truth.

    Parameters
    ----------
    volume, difference, truth : ndarray, [z, y, x]
        A + B, A - B, and the phantom, 1/px.
    angular_coverage : float
        Share of the half circle that the weights stand for, 0..1.
    """
    inside = inside_circle(truth.shape, INSIDE)
    a, b = 0.5 * (volume + difference), 0.5 * (volume - difference)
    said = resolution_px(frc(a, b), split_threshold(angular_coverage))
    true = resolution_px(frc(volume, truth), 0.5)
    half_error = np.sqrt(np.mean((2 * a - truth)[:, inside] ** 2))
    return Verdict(
        split_noise(difference) / split_noise(volume - truth),
        true / said,
        float(20 * np.log10(np.ptp(truth) / half_error)),
    )


def adjoint(
    values: Stack, theta: Angles, weights: NDArray[np.float64]
) -> NDArray[np.float32]:
    """FBP by the adjoint NUFFT for several sets of weights at once.

    Parameters
    ----------
    values : ndarray, [angle, row, column]
    theta : ndarray, (angle,)
    weights : ndarray, [set, angle]
        Of even number: two real images are one complex image.

    Returns
    -------
    ndarray, [set, row, y, x]
    """
    _, n_rows, n = values.shape
    padded = 2 * n
    lag = np.minimum(np.arange(padded), padded - np.arange(padded))
    ramp = np.where(lag % 2 == 1, -1 / (np.pi * np.maximum(lag, 1)) ** 2, 0.0)
    ramp[0] = 0.25
    response = np.fft.fft(ramp).real / padded
    response[n] = 0  # Nyquist has no partner: it would mix the two images
    f = np.fft.fftfreq(padded)
    cos, sin = np.cos(theta)[:, None], np.sin(theta)[:, None]
    shift = f * (n - 1) / 2 + f * (n // 2 - (n - 1) / 2) * (cos + sin)
    spokes = np.fft.fft(values.transpose(1, 0, 2), padded, axis=2) * response
    spokes *= np.exp(2j * np.pi * shift)
    pairs = weights[0::2] + 1j * weights[1::2]
    strengths = (pairs[:, None, :, None] * spokes).astype(np.complex64)
    images = finufft.nufft2d1(
        (2 * np.pi * f * sin).ravel().astype(np.float32),
        (2 * np.pi * f * cos).ravel().astype(np.float32),
        strengths.reshape(len(pairs) * n_rows, -1),
        (n, n),
        isign=1,
        eps=1e-5,
        nthreads=1,
    ).reshape(len(pairs), n_rows, n, n)
    return np.stack([images.real, images.imag], 1).reshape(-1, n_rows, n, n)


def with_noise(exact: Stack, photons: int) -> Stack:
    """Return line integrals ``[angle, row, column]`` with Poisson noise."""
    counts = np.random.default_rng(0).poisson(photons * np.exp(-exact))
    return -np.log(np.maximum(counts, 0.5) / photons).astype(np.float32)


def verdicts(
    values: Stack, plan: Angles, share: float, truth: Stack, rules: tuple[str, ...]
) -> Iterator[tuple[str, Verdict, Halves]]:
    """Judge each rule on the first ``share`` of a scan."""
    n = round(share * len(plan))
    theta, weights = plan[:n], angular_weights(plan[:n])
    halves = [RULES[rule](theta, plan) for rule in rules]
    sets = [weights, *(weights * (1 - 2.0 * half) for half in halves)]
    sets += [weights] * (len(sets) % 2)
    volume, *differences = adjoint(values[:n], theta, np.array(sets))
    coverage = float(weights.sum() / np.pi)
    for rule, difference, half in zip(rules, differences, halves, strict=False):
        yield rule, judge(volume, difference, truth, coverage), half


def through_grids(values: Stack, theta: Angles, halves: Halves) -> tuple[Stack, Stack]:
    """Return A + B and A - B, ``[z, y, x]``, of the product's own grids."""
    _, n_rows, n_columns = values.shape
    shares = np.zeros((len(theta), 2))
    shares[np.arange(len(theta)), halves] = angular_weights(theta)
    grids = Fourier().accumulator(n_rows, n_columns, (n_columns - 1) / 2)
    grids.add(values, theta, shares)
    return grids.volume(), grids.half_difference()


def complete_scans(n_columns: int = N_COLUMNS, n_rows: int = 8) -> dict[str, Any]:
    """Measure complete scans with their final split, by the product's own grids.

    Returns
    -------
    dict
        ``halves_rms_ratio`` and ``frc_over_true``: of three orders and two photon
        levels the one farthest from 1; ``cases``: each of them.
    """
    foam = Foam(n_columns, n_rows, seed=1)
    truth, cases = foam.volume(), []
    plans = orders(round(N_ANGLES * n_columns / N_COLUMNS / 8) * 8)
    for order in ("sequential", "golden", "interlaced"):
        theta = plans[order]
        exact, halves = foam.project(theta), final(theta, theta)
        for photons in PHOTONS:
            images = through_grids(with_noise(exact, photons), theta, halves)
            verdict = judge(*images, truth, angular_weights(theta).sum() / np.pi)
            cases.append(
                {
                    "order": order,
                    "photons": photons,
                    "halves_rms_ratio": verdict.rms_ratio,
                    "frc_over_true": verdict.frc_over_true,
                }
            )
    worst = {
        name: max((case[name] for case in cases), key=lambda ratio: abs(ratio - 1))
        for name in ("halves_rms_ratio", "frc_over_true")
    }
    return worst | {"cases": cases}


def main() -> None:
    quick = "--quick" in sys.argv
    n_columns = 256 if quick else N_COLUMNS
    foam = Foam(n_columns, 4 if quick else 8, seed=1)
    truth = foam.volume()
    print("| order | angles | photons | " + " | ".join(RULES) + " | moved |")
    print("|" + "---|" * (len(RULES) + 4))
    for order, plan in orders(N_ANGLES * n_columns // N_COLUMNS).items():
        exact = foam.project(plan)
        for share in PREFIXES:
            for photons in PHOTONS:
                values = with_noise(exact, photons)
                row, halves = [], {}
                for rule, verdict, half in verdicts(
                    values, plan, share, truth, tuple(RULES)
                ):
                    halves[rule] = half
                    row.append(
                        f"{verdict.rms_ratio:.2f} {verdict.frc_over_true:.2f} "
                        f"{verdict.half_psnr_db:.1f} dB"
                    )
                moved = np.mean(halves["final"] != halves["online"])
                print(
                    f"| {order} | {share:.0%} | {photons} | "
                    + " | ".join(row)
                    + f" | {moved:.0%} |",
                    flush=True,
                )
    worst = complete_scans(n_columns, foam.n_rows)
    print(f"\ncomplete scans, by our own grids: {worst}")
    print(f"quick: {quick}")


if __name__ == "__main__":
    main()
