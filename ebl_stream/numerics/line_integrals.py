"""From what the detector counted to line integrals, in one pass over memory.

The stages flat_field, normalize_beam, remove_zingers and minus_log of the preprocess
room call these kernels one by one; `fused` calls them all for a few rows at a time,
so that a pixel stays in the cache on its whole way, and gives the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic as numba_intrinsic

from ebl_stream.numerics.kernel_cache import kernel
from ebl_stream.numerics.wide import prefer_wide
from ebl_stream.numerics.zingers import (
    HALO,
    all_negative,
    calm,
    margin_row,
    noise_of,
    sample_row,
    sampling,
)

F = np.float32

INT32 = ir.IntType(32)
SQRT_HALF = 0x3F3504F3
"""Bits of the float32 at which mantissas begin: sqrt(1/2) to sqrt(2)."""

LN_2 = F(0.6931471805599453)
LARGEST = F(3.4e38)

SERIES = (
    F(1.0),
    F(-0.49999988),
    F(0.33333325),
    F(-0.25001586),
    F(0.20002072),
    F(-0.16609126),
    F(0.14180079),
    F(-0.13240843),
    F(0.1291417),
    F(-0.07638592),
)
"""log1p(m) / m for such mantissas 1 + m, interpolated at Chebyshev nodes: to 1.2e-7."""

intrinsic: Any = numba_intrinsic  # its decorated functions have another signature


@intrinsic
def _exponent(_typing: Any, _x: Any) -> Any:
    """Return e of x = m 2**e with m from sqrt(1/2) to sqrt(2); in 32 bits."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        shifted = _biased(builder, arguments[0])
        return builder.sitofp(shifted, ir.FloatType())

    return types.float32(types.float32), generate


@intrinsic
def _mantissa(_typing: Any, _x: Any) -> Any:
    """Return m of x = m 2**e, see `_exponent`."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], INT32)
        power = builder.shl(_biased(builder, arguments[0]), INT32(23))
        return builder.bitcast(builder.sub(bits, power), ir.FloatType())

    return types.float32(types.float32), generate


def _biased(builder: Any, x: Any) -> Any:
    bits = builder.bitcast(x, INT32)
    return builder.ashr(builder.sub(bits, INT32(SQRT_HALF)), INT32(23))


@kernel(inline="always")
def _log(x: Any) -> Any:
    """Return log(x) of a positive, normal, finite float32; no branch, no call."""
    m = _mantissa(x) - F(1)
    p = SERIES[9] * m + SERIES[8]
    p = p * m + SERIES[7]
    p = p * m + SERIES[6]
    p = p * m + SERIES[5]
    p = p * m + SERIES[4]
    p = p * m + SERIES[3]
    p = p * m + SERIES[2]
    p = p * m + SERIES[1]
    p = p * m + SERIES[0]
    return p * m + _exponent(x) * LN_2


@kernel(inline="always", fastmath={"contract"})
def _minus_log_of(x: Any, clip: Any) -> Any:
    bright = x if x > clip else clip
    return -_log(bright) if abs(x) <= LARGEST else F(np.nan)


@kernel(fastmath={"contract"})
def minus_log(values: Any, clip: Any, out: Any) -> None:
    """Write ``-log(max(value, clip))`` of 1-D values; what is not finite is NaN.

    The arrays must not overlap: then LLVM makes SIMD code of it.
    """
    prefer_wide()
    for k in range(values.size):
        out[k] = _minus_log_of(values[k], clip)


@kernel()
def _transmit(
    image: Any,
    dark: Any,
    a: Any,
    b: Any,
    share: Any,
    row: int,
    out: Any,
    out_row: int,
) -> None:
    """Write one row's transmission; NaN where there is no beam, see `fused`.

    Rows by their number: a slice for each would cost as much as the work.
    """
    prefer_wide()
    if share < 0:
        for k in range(image.shape[1]):
            out[out_row, k] = (F(image[row, k]) - dark[row, k]) * a[row, k]
    else:
        for k in range(image.shape[1]):
            flat = a[row, k] + share * (b[row, k] - a[row, k])
            gain = F(1) / (flat - dark[row, k])
            out[out_row, k] = (F(image[row, k]) - dark[row, k]) * gain


@kernel()
def _scale_rows(values: Any, scale: Any) -> None:
    for row in range(values.shape[0]):
        for column in range(scale.size):
            values[row, column] *= scale[column]


@kernel()
def fill(values: Any, first_row: int, holes: Any) -> None:
    """Fill pixels, in order, with the mean of those neighbors that are known by then.

    Parameters
    ----------
    values : ndarray float32, [row, column]
    first_row : int
        Row of the frame that ``values`` begins with.
    holes : ndarray int32, [hole, 3]
        Row and column of the frame, and which of the eight neighbors count (bits).
    """
    for k in range(holes.shape[0]):
        row, column = holes[k, 0] - first_row, holes[k, 1]
        total, count, bit = 0.0, 0, 1
        for i in range(-1, 2):
            for j in range(-1, 2):
                if i != 0 or j != 0:
                    if holes[k, 2] & bit:
                        total += values[row + i, column + j]
                        count += 1
                    bit <<= 1
        values[row, column] = total / count


@kernel()
def raw_noise(image: Any, dark: Any, a: Any, b: Any, share: Any, scale: Any) -> float:
    """Return `noise` of the transmission of a raw image, see `fused`."""
    row_step, step, found = sampling(*image.shape)
    values = np.empty((1, image.shape[1]), np.float32)
    n = 0
    for row in range(0, image.shape[0], row_step):
        _transmit(image, dark, a, b, share, row, values, 0)
        _scale_rows(values, scale)
        n = sample_row(values, 0, step, found, n)
    return noise_of(found, n)


@kernel()
def _room(n_columns: int) -> Any:
    """Return what `_finish_row` works with: two views of one, and another."""
    margin = np.full((n_columns + 1) // 2 * 2, F(-1))
    return margin, margin.view(np.int64), np.empty(8, np.float32)


@kernel(fastmath={"contract"})
def _finish_row(
    values: Any,
    row: int,
    variance: Any,
    max_pixels: int,
    clip: Any,
    room: Any,
    out: Any,
    out_row: int,
) -> None:
    """Write one row of an image without zingers, and as line integrals."""
    prefer_wide()
    n_columns = values.shape[1]
    if clip > 0:
        for k in range(n_columns):
            out[out_row, k] = _minus_log_of(values[row, k], clip)
    else:
        for k in range(n_columns):
            out[out_row, k] = values[row, k]
    if variance < 0:
        return
    margin, pairs, around = room
    margin_row(values, row, variance, margin)
    if all_negative(pairs):
        return
    for k in range(n_columns):
        if margin[k] >= 0:
            x = calm(values, row, k, variance, max_pixels, around)
            out[out_row, k] = _minus_log_of(x, clip) if clip > 0 else x


@kernel()
def remove_zingers(values: Any, variance: Any, max_pixels: int, out: Any) -> None:
    """Write an image ``[row, column]`` without zingers, see `fused`."""
    room = _room(values.shape[1])
    for row in range(values.shape[0]):
        _finish_row(values, row, variance, max_pixels, F(-1), room, out, row)


@kernel()
def fused(
    image: Any,
    dark: Any,
    a: Any,
    b: Any,
    share: Any,
    scale: Any,
    holes: Any,
    first: int,
    z0: int,
    z1: int,
    variance: Any,
    max_pixels: int,
    clip: Any,
    scratch: Any,
    out: Any,
    total: Any,
    sign: float,
) -> None:
    """Turn rows of a raw image into line integrals.

    Parameters
    ----------
    image : ndarray, [row, column]
        Counts, of any real dtype.
    dark : ndarray float32, [row, column]
    a, b : ndarray float32, [row, column]
        Flats before and after the frame; for ``share`` < 0, ``a`` is 1 / (flat - dark).
    share : float32
        How far the frame is on the way from flat ``a`` to flat ``b``, 0..1.
    scale : ndarray float32, [column]
        What the transmission is multiplied with; empty for nothing.
    holes : ndarray int32, [hole, 3]
        Pixels to `fill`, all within the rows of ``scratch``.
    first : int
        Row of the frame that ``scratch`` begins with.
    z0, z1 : int
        Half-open range of the frame's rows that are wanted.
    variance : float32
        Square of the limit for zingers at full beam; below 0 they stay.
    max_pixels : int
        The largest zinger, px.
    clip : float32
        Smallest transmission; below 0 no logarithm is taken.
    scratch : ndarray float32, [row, column]
        Room for the transmission of the wanted rows and their neighbors.
    out : ndarray float32, [z1 - z0, column]
    total : ndarray float64, [row of the frame, column]
        The result is added to these rows, ``sign`` times; 0 leaves it alone.
    """
    prefer_wide()
    room = _room(image.shape[1])
    ready, n_rows = 0, scratch.shape[0]
    if holes.shape[0] or scale.size:
        for row in range(n_rows):
            _transmit(image, dark, a, b, share, first + row, scratch, row)
        fill(scratch, first, holes)
        _scale_rows(scratch, scale)
        ready = n_rows
    for z in range(z1 - z0):
        row = z0 - first + z
        # A row is used while it is still in the cache.
        while ready < min(row + HALO + 1, n_rows):
            _transmit(image, dark, a, b, share, first + ready, scratch, ready)
            ready += 1
        _finish_row(scratch, row, variance, max_pixels, clip, room, out, z)
        if sign != 0:
            for k in range(out.shape[1]):
                total[z0 + z, k] += sign * out[z, k]
