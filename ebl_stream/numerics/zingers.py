"""Zingers: pixels that a stray photon lit, and the noise that they must stand out of.

Kernels for the stage remove_zingers, which says what is a zinger and what is not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ebl_stream.numerics.kernel_cache import kernel
from ebl_stream.numerics.wide import prefer_wide

F = np.float32

SIGMA_PER_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""

NOISE_ROWS, NOISE_COLUMNS = 16, 64
"""Rows, and pixels of each, that a projection's noise is estimated from: to 4 %."""

DIMMEST = F(0.01)
"""Of the beam: noise is not taken to fall below what it is at this transmission."""

FAINTEST = F(0.01)
"""Of the beam: a zinger brighter by less harms nobody; quantized data have such."""

FAINTEST_RELATIVE = F(0.03)
"""Of its surroundings: the same, for structure in data without noise."""

SUSPECT = F(0.64)
"""Square of the share of the limit at which a pixel is looked at closely."""

SUSPECT_FLOOR = F(0.64 * 0.01**2)
"""The same of `FAINTEST`."""

TEXTURE = F(3)
"""A zinger is so much farther above its surroundings than the darkest is below."""

HALO = 2
"""Rows on either side that decide whether a pixel is a zinger."""

BOTH_SIGNS = np.int64(-0x7FFFFFFF80000000)
"""Sign bits of two float32 in an int64."""

LARGEST = F(3.4e38)


@kernel()
def _median(values: Any, n: int) -> Any:
    """Return the median of the first n values, few, which are put in order."""
    for i in range(1, n):
        value, j = values[i], i
        while j > 0 and values[j - 1] > value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value
    return (values[(n - 1) // 2] + values[n // 2]) * F(0.5)


@kernel()
def sampling(n_rows: int, n_columns: int) -> Any:
    """Return every how many rows and columns to sample, and room for what is found."""
    row_step = -(-n_rows // NOISE_ROWS)
    # Few rows are sampled the denser.
    n_sampled = -(-n_rows // row_step)
    step = max(1, n_columns * n_sampled // (NOISE_ROWS * NOISE_COLUMNS))
    n = (n_rows // row_step + 1) * (n_columns // step + 1)
    return row_step, step, np.empty(n, np.float32)


@kernel()
def sample_row(transmission: Any, row: int, step: int, found: Any, n: int) -> int:
    """Append what pixels differ from their neighbors, in units of their photon noise.

    Photon noise is proportional to the root of the transmission, so that is divided
    out. The mean of two has half the variance of one: 1.5 in all.
    """
    for k in range(1, transmission.shape[1] - 1, step):
        around = F(0.5) * (transmission[row, k - 1] + transmission[row, k + 1])
        value = transmission[row, k]
        residual = abs(value - around) / np.sqrt(F(1.5) * max(value, DIMMEST))
        if residual <= LARGEST:
            found[n] = residual
            n += 1
    return n


@kernel()
def noise_of(found: Any, n: int) -> float:
    """Return the noise at full beam from n sampled differences."""
    # The median keeps edges and zingers from counting.
    return SIGMA_PER_MAD * float(np.median(found[:n])) if n else 0.0


@kernel()
def noise(transmission: Any) -> float:
    """Return a projection's noise at full beam, from its pixels; NaN ones are left out.

    Parameters
    ----------
    transmission : ndarray float32, [row, column]

    Returns
    -------
    float
        Standard deviation where the transmission is 1.
    """
    row_step, step, found = sampling(*transmission.shape)
    n = 0
    for row in range(0, transmission.shape[0], row_step):
        n = sample_row(transmission, row, step, found, n)
    return noise_of(found, n)


@kernel(fastmath={"nnan", "nsz", "contract"})
def margin_row(values: Any, row: int, variance: Any, out: Any) -> None:
    """Write by how much pixels pass two of their four neighbors; few are above 0.

    No branch: this is all that nearly every row takes.
    """
    prefer_wide()
    up, down = max(row - 1, 0), min(row + 1, values.shape[0] - 1)
    last = values.shape[1] - 1
    for k in range(1, last):
        left, right = values[row, k - 1], values[row, k + 1]
        x, above, below = values[row, k], values[up, k], values[down, k]
        out[k] = _margin(x, above, below, left, right, variance)
    # What the image does not show counts as bright as the pixel.
    x, inner = values[row, 0], values[row, min(1, last)]
    out[0] = _margin(x, values[up, 0], values[down, 0], x, inner, variance)
    x, inner = values[row, last], values[row, max(last - 1, 0)]
    out[last] = _margin(x, values[up, last], values[down, last], inner, x, variance)


@kernel()
def all_negative(pairs: Any) -> bool:
    """Whether all float32 are below 0, of which each int64 holds two."""
    prefer_wide()
    signs = np.int64(-1)
    for k in range(pairs.size):
        signs &= pairs[k]
    return (signs & BOTH_SIGNS) == BOTH_SIGNS


@kernel(inline="always", fastmath={"nnan", "nsz", "contract"})
def _margin(x: Any, up: Any, down: Any, left: Any, right: Any, variance: Any) -> Any:
    """Return above 0 for a pixel that is to be looked at closely."""
    # Python's min and max are not made into one instruction each, but these are.
    low1, high1 = (up, down) if up < down else (down, up)
    low2, high2 = (left, right) if left < right else (right, left)
    low = low1 if low1 > low2 else low2
    high = high1 if high1 < high2 else high2
    third = low if low < high else high
    excess, noise2 = x - third, SUSPECT * variance * third
    return excess * abs(excess) - (noise2 if noise2 > SUSPECT_FLOOR else SUSPECT_FLOOR)


@kernel(inline="always")
def _limit2(level: Any, variance: Any) -> Any:
    """Return the square of the excess over a level that makes a pixel a zinger."""
    relative = FAINTEST_RELATIVE * level
    floor = relative if relative > FAINTEST else FAINTEST
    noise2, floor2 = variance * level, floor * floor
    return noise2 if noise2 > floor2 else floor2


@kernel()
def calm(
    values: Any, row: int, column: int, variance: Any, max_pixels: int, around: Any
) -> Any:
    """Return a pixel, or the median of its darker neighbors if it is a zinger."""
    n_rows, n_columns = values.shape
    x = values[row, column]
    n = 0
    for i in range(max(row - 1, 0), min(row + 2, n_rows)):
        for j in range(max(column - 1, 0), min(column + 2, n_columns)):
            if i != row or j != column:
                around[n] = values[i, j]
                n += 1
    if n == 0:
        return x
    usual = _median(around, n)
    excess = x - usual
    # Of few photons, chance adds more than it takes: the level is higher.
    limit2 = _limit2(usual + F(0.5) * excess, variance)
    if not (excess > 0 and excess * excess > limit2):
        return x
    top, bottom = max(row - HALO, 0), min(row + HALO + 1, n_rows)
    left, right = max(column - HALO, 0), min(column + HALO + 1, n_columns)
    half, bright, darkest = usual + F(0.5) * excess, -1, usual
    for i in range(top, bottom):
        for j in range(left, right):
            bright += values[i, j] > half
            darkest = min(darkest, values[i, j])
    # Where the sample has texture, some pixels are as far below the usual; noise is
    # not texture.
    if excess + F(0.5) * np.sqrt(limit2) < TEXTURE * (usual - darkest):
        return x
    # A line of the sample crosses the window, which is smaller at the border.
    if bright > max(0, min(max_pixels - 1, bottom - top - 2, right - left - 2)):
        return x
    darker = 0
    while darker < n and around[darker] <= half:
        darker += 1
    return _median(around, darker)
