"""Compiled kernels that make slices of a tile's grid: an inverse transform in 2-D.

The layout is that of `spoke_kernels`. Between the two passes, and inside them, real
and imaginary parts are exchanged, which makes the forward transform the inverse.
"""

from __future__ import annotations

import numpy as np

from ebl_stream.numerics.kernel_cache import kernel
from ebl_stream.numerics.lane_fft import fft, split_signal
from ebl_stream.numerics.simd import (
    LANES,
    WIDTH,
    load,
    store,
    store_past,
    swap,
    transpose,
    transpose_past,
    zero,
)

STRETCH = 64
"""Grid points of a row that are added up at a time."""

SIDE_BY_SIDE = 4
"""Lines along x that are gathered together: 512 bytes lie side by side."""


@kernel(fastmath=True)
def _add_row(grids, signs, less, shape, row, response, first, signal):  # type: ignore[no-untyped-def]
    """Put one stored row of the grids, kx fixed, into ``signal``, or add it there.

    The margin is folded back. Outside the circle that the spokes reach, the grid is
    zero and not read.
    """
    n_grid, taps = shape
    stride, margin, middle = n_grid + taps, taps // 2 - 1, n_grid // 2
    away = max(abs(row - margin - middle) - taps // 2, 0)
    reach = int(np.sqrt(max(middle * middle - away * away, 0))) + taps // 2 + 1
    low = max(middle + margin - reach, 0)
    high = min(middle + margin + reach, stride - 1) + 1
    inner_low, inner_high = max(low, margin), min(high, margin + n_grid)
    if first:
        for n in range(min(inner_low - margin, n_grid)):
            store(signal, n * WIDTH, zero())
        for n in range(max(inner_high - margin, 0), n_grid):
            store(signal, n * WIDTH, zero())
    # Short stretches: what the first grid leaves is still near for the others.
    for begin in range(inner_low, inner_high, STRETCH):
        end = min(begin + STRETCH, inner_high)
        points = (row, stride, begin, end, -margin)
        _add_stretch(grids, signs, less, points, response, first, signal)
    points = (row, stride, low, margin, n_grid - margin)
    _add_stretch(grids, signs, less, points, response, False, signal)
    last = margin + n_grid
    points = (row, stride, last, high, -last)
    _add_stretch(grids, signs, less, points, response, False, signal)


@kernel(fastmath=True)
def _add_stretch(grids, signs, less, points, response, first, signal):  # type: ignore[no-untyped-def]
    """Put grid points of one row, times the response, ``offset`` places further."""
    row, stride, begin, end, offset = points
    for k in range(signs.size):
        grid, sign = grids[k], signs[k]
        fresh = first and k == 0
        if response.size == stride:
            factor, base = response[row] * sign, 0
        else:
            factor, base = np.complex64(sign), row * stride
        for n in range(begin, end):
            value = load(grid, (row * stride + n) * WIDTH)
            value = swap(value * (response[base + n] * factor))
            at = (n + offset) * WIDTH
            if not fresh:
                value = value + load(signal, at)
            store(signal, at, value)
    if less[0].size > 0:
        _take_away(less, points, response, signal)


@kernel(fastmath=True)
def _take_away(less, points, response, signal):  # type: ignore[no-untyped-def]
    """Take a spoke that is the same at all angles from one row's grid points."""
    spoke, nearest, count, coefficient = less
    row, stride, begin, end, offset = points
    middle = (spoke.size // WIDTH) // 2
    for n in range(begin, end):
        point = row * stride + n
        if count[0, point] + count[1, point] == 0:
            continue
        value, sample = zero(), middle + nearest[point]
        for i in range(count[0, point]):
            value = value + load(spoke, (sample + i) * WIDTH) * coefficient[0, point, i]
        sample = middle - nearest[point]
        for i in range(count[1, point]):
            value = value + load(spoke, (sample - i) * WIDTH) * coefficient[1, point, i]
        if response.size == stride:
            factor = response[row] * response[n]
        else:
            factor = response[point]
        at = (n + offset) * WIDTH
        store(signal, at, load(signal, at) - swap(value * factor))


@kernel(fastmath=True)
def transform_rows(  # type: ignore[no-untyped-def]
    grids,
    signs,
    less,
    shape,
    response,
    n_pixels,
    split,
    turns,
    radices,
    twiddles,
    a,
    b,
    rows,
    row_stride,
):
    """Transform along ky and crop to the slice: ``rows[kx, y, lanes]``, swapped.

    ``response`` is that of one axis, (stride,), or flat of both, (stride ** 2,).
    ``less`` is a spoke that is taken away, and where it goes, see `fan.FanTable`; or
    an empty one.
    """
    n_grid, taps = shape
    margin, half, part = taps // 2 - 1, n_pixels // 2, n_grid // split
    for n in range(n_grid):
        _add_row(grids, signs, less, shape, n + margin, response, True, a)
        if n <= taps // 2:
            _add_row(grids, signs, less, shape, n + margin + n_grid, response, False, a)
        if n >= n_grid - margin:
            _add_row(grids, signs, less, shape, n + margin - n_grid, response, False, a)
        split_signal(a, b, n_grid, split, turns)
        for k in range(split):
            some = b[k * part * WIDTH : (k + 1) * part * WIDTH]
            image = fft(some, a, part, radices, twiddles)
            for i in range(part):
                y = k + i * split + half
                if y >= n_grid:
                    y -= n_grid
                if y < n_pixels:
                    at = (n * row_stride + y) * WIDTH
                    store_past(rows, at, load(image, i * WIDTH))


@kernel(fastmath=True)
def transform_columns(  # type: ignore[no-untyped-def]
    rows,
    row_stride,
    n_grid,
    deapodization,
    split,
    turns,
    radices,
    twiddles,
    several,
    a,
    b,
    out,
    layout,
):
    """Transform along kx, undo the kernel, and write slices ``out[row, y, x]``.

    The layout is the steps to the next slice and to the next y, the number of
    slices, and whether 16 pixels always begin on a 64-byte boundary.
    """
    n_pixels, part = deapodization.size, n_grid // split
    half = n_pixels // 2
    for y0 in range(0, n_pixels, SIDE_BY_SIDE):
        n_lines = min(SIDE_BY_SIDE, n_pixels - y0)
        for n in range(n_grid):
            for i in range(n_lines):
                value = load(rows, (n * row_stride + y0 + i) * WIDTH)
                store(several, (i * n_grid + n) * WIDTH, value)
        for i in range(n_lines):
            signal = several[i * n_grid * WIDTH : (i + 1) * n_grid * WIDTH]
            split_signal(signal, b, n_grid, split, turns)
            for k in range(split):
                some = b[k * part * WIDTH : (k + 1) * part * WIDTH]
                image = fft(some, a, part, radices, twiddles)
                for j in range(part):
                    x = k + j * split + half
                    if x >= n_grid:
                        x -= n_grid
                    if x < n_pixels:
                        value = swap(load(image, j * WIDTH))
                        scale = deapodization[y0 + i] * deapodization[x]
                        store(signal, x * WIDTH, value * scale)
            _write_line(signal, n_pixels, out, y0 + i, layout)


@kernel(fastmath=True)
def _write_line(line, n_pixels, out, y, layout):  # type: ignore[no-untyped-def]
    """Write one line of pixels of each slice of the tile."""
    slice_stride, y_stride, n_slices, aligned = layout
    for column in range(0, n_pixels, LANES):
        # The last block overlaps the one before.
        x0 = max(0, min(column, n_pixels - LANES))
        at, step = y * y_stride + x0, 2 * slice_stride
        if n_slices < WIDTH or n_pixels < LANES:
            for row in range(n_slices):
                lane = row // 2 + LANES * (row % 2)
                for n in range(min(LANES, n_pixels)):
                    pixel = line[(x0 + n) * WIDTH + lane]
                    out[at + row * slice_stride + n] = pixel
        elif aligned:
            transpose_past(line, x0 * WIDTH, WIDTH, out, at, step)
            odd = x0 * WIDTH + LANES
            transpose_past(line, odd, WIDTH, out, at + slice_stride, step)
        else:
            transpose(line, x0 * WIDTH, WIDTH, out, at, step)
            odd = x0 * WIDTH + LANES
            transpose(line, odd, WIDTH, out, at + slice_stride, step)
