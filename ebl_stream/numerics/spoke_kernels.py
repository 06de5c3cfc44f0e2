"""Compiled kernels that filter projections and spread them onto a tile's grid.

A tile is 32 slices, two to a complex number, 16 lanes: slice 2 i is the real part of
lane i, slice 2 i + 1 the imaginary part. Its grid is ``[kx, ky, 2, lane]``, real
parts before imaginary ones. One footprint serves all slices of a tile, and what is
done to a sample is done to 16 lanes by the same few instructions.
"""

from __future__ import annotations

import numpy as np

from ebl_stream.numerics.kernel_cache import kernel
from ebl_stream.numerics.lane_fft import fft, split_signal
from ebl_stream.numerics.simd import (
    LANES,
    WIDTH,
    load,
    prefetch,
    store,
    transpose,
    zero,
)

CHUNK = 64
"""Samples of a spoke that are spread before the next spoke's: the grid points around
them stay in the cache, since spokes of a block are often neighbors."""

AHEAD = 8
"""Samples between asking for grid points and using them: without it the processor
waits for memory half of the time."""


@kernel()
def _load_block(values, start, row_stride, n_rows, n_columns, column, block):  # type: ignore[no-untyped-def]
    """Put 16 columns of a tile's rows into lanes, ``block[column, 2, lane]``."""
    if n_rows == WIDTH and n_columns >= LANES:
        transpose(values, start + column, 2 * row_stride, block, 0, WIDTH)
        odd = start + row_stride + column
        transpose(values, odd, 2 * row_stride, block, LANES, WIDTH)
        return
    for n in range(min(LANES, n_columns)):
        store(block, n * WIDTH, zero())
        for row in range(n_rows):
            lane = row // 2 + LANES * (row % 2)
            block[n * WIDTH + lane] = values[start + row * row_stride + column + n]


@kernel()
def _mean(signal, first, count):  # type: ignore[no-untyped-def]
    """Return the mean of ``count`` samples from ``first`` on."""
    total = zero()
    for n in range(first, first + count):
        total = total + load(signal, n * WIDTH)
    return total * np.float32(1 / count)


@kernel(fastmath=True)
def _pad_zero(values, start, row_stride, n_rows, n_columns, turn, block, even, odd):  # type: ignore[no-untyped-def]
    """Load a projection and do the first pass, radix 2, of its transform.

    The second half of the signal is padding, zero, so that the signals of the even
    and of the odd frequencies are a copy, and a copy that is turned.
    """
    for n in range(n_columns, turn.size):
        store(even, n * WIDTH, zero())
        store(odd, n * WIDTH, zero())
    for column in range(0, n_columns, LANES):
        # The last block overlaps the one before.
        n0 = max(0, min(column, n_columns - LANES))
        _load_block(values, start, row_stride, n_rows, n_columns, n0, block)
        for n in range(min(LANES, n_columns)):
            sample = load(block, n * WIDTH)
            store(even, (n0 + n) * WIDTH, sample)
            store(odd, (n0 + n) * WIDTH, sample * turn[n0 + n])


@kernel(fastmath=True)
def _pad_edge(even, odd, n_columns, turn, blend, n_edge):  # type: ignore[no-untyped-def]
    """Fill the padding with the edges' values, where `_pad_zero` left zeros."""
    left = _mean(even, 0, n_edge)
    change = _mean(even, n_columns - n_edge, n_edge) - left
    for n in range(n_columns, turn.size):
        store(even, n * WIDTH, left + change * blend[n - n_columns])
    for n in range(turn.size):
        near = load(even, n * WIDTH)
        far = left + change * blend[turn.size + n - n_columns]
        store(even, n * WIDTH, near + far)
        store(odd, n * WIDTH, (near - far) * turn[n])


@kernel(fastmath=True)
def filter_spokes(  # type: ignore[no-untyped-def]
    values,
    layout,
    n_angles,
    n_columns,
    blend,
    n_edge,
    turn,
    split,
    turns,
    radices,
    twiddles,
    response,
    block,
    a,
    b,
    spokes,
):
    """Transform and filter a tile's projections, ``spokes[chunk, angle, sample]``.

    ``values`` is flat, and its layout the first projection, the steps to the next
    one and to the next row, and the number of rows. ``turn`` are the twiddle factors
    of the first pass, half as many as the padded projection has samples.
    """
    start, angle_stride, row_stride, n_rows = layout
    half, part = turn.size, turn.size // split
    even, odd = a[: half * WIDTH], a[half * WIDTH :]
    parts, other = b[: half * WIDTH], b[half * WIDTH :]
    for k in range(n_angles):
        at = start + k * angle_stride
        _pad_zero(values, at, row_stride, n_rows, n_columns, turn, block, even, odd)
        if blend.size > 0:
            _pad_edge(even, odd, n_columns, turn, blend, n_edge)
        for parity in range(2):
            split_signal(odd if parity else even, parts, half, split, turns)
            for i in range(split):
                some = parts[i * part * WIDTH : (i + 1) * part * WIDTH]
                spectrum = fft(some, other, part, radices, twiddles)
                first = parity + 2 * i
                _filter_part(
                    spectrum,
                    part,
                    first,
                    2 * split,
                    half,
                    response,
                    k,
                    n_angles,
                    spokes,
                )


@kernel(inline="always")
def _place(sample, spoke, n_spokes):  # type: ignore[no-untyped-def]
    """Return where a sample of a spoke is kept: chunk by chunk, then by spoke."""
    return ((sample // CHUNK) * n_spokes + spoke) * CHUNK + sample % CHUNK


@kernel(fastmath=True)
def _filter_part(  # type: ignore[no-untyped-def]
    spectrum, part, first, step, half, response, spoke, n_spokes, spokes
):
    """Filter the frequencies first, first + step, ... and put them in their place."""
    for n in range(part):
        frequency = first + n * step
        value = load(spectrum, n * WIDTH)
        sample = frequency + half if frequency <= half else frequency - half
        at = _place(sample, spoke, n_spokes) * WIDTH
        store(spokes, at, value * response[sample])
        if frequency == half:  # Nyquist stands at both ends
            store(spokes, _place(0, spoke, n_spokes) * WIDTH, value * response[0])


@kernel(fastmath=True, inline="always")
def _fetch(grid, corner, stride, taps):  # type: ignore[no-untyped-def]
    for i in range(taps):
        at = (corner + i * stride) * WIDTH
        for j in range(taps):
            prefetch(grid, at + j * WIDTH)
            prefetch(grid, at + j * WIDTH + LANES)


@kernel(fastmath=True, inline="always")
def _spread_one(grid, corner, stride, taps, table, share, rows, value):  # type: ignore[no-untyped-def]
    for i in range(taps):
        part = value * (table[rows[0], i] * share)
        at = (corner + i * stride) * WIDTH
        for j in range(taps):
            point = at + j * WIDTH
            store(grid, point, load(grid, point) + part * table[rows[1], j])


@kernel(fastmath=True, inline="always")
def _spread_two(grid, corner, stride, taps, table, share, rows, value, rows_2, value_2):  # type: ignore[no-untyped-def]
    for i in range(taps):
        part = value * (table[rows[0], i] * share)
        part_2 = value_2 * (table[rows_2[0], i] * share)
        at = (corner + i * stride) * WIDTH
        for j in range(taps):
            point = at + j * WIDTH
            both = part * table[rows[1], j] + part_2 * table[rows_2[1], j]
            store(grid, point, load(grid, point) + both)


@kernel(fastmath=True, inline="always")
def _spread_chunk(  # type: ignore[no-untyped-def]
    grid, stride, taps, table, share, corner, fraction, n0, n1, spokes, first
):
    """Add samples n0 to n1 of one spoke; sample 0 would be kept at ``first``."""
    n = n0
    while n < n1:
        at = np.int64(corner[n])
        # Beyond the chunk, too: that is wanted when all spokes come to the next one.
        ahead = min(n + AHEAD, corner.size - 1)
        _fetch(grid, np.int64(corner[ahead]), stride, taps)
        rows, value = fraction[n], load(spokes, (first + n) * WIDTH)
        # Where two samples go to the same points, these are read and written once.
        if n + 1 < n1 and corner[n + 1] == corner[n]:
            rows_2, value_2 = fraction[n + 1], load(spokes, (first + n + 1) * WIDTH)
            _spread_two(
                grid, at, stride, taps, table, share, rows, value, rows_2, value_2
            )
            n += 2
        else:
            _spread_one(grid, at, stride, taps, table, share, rows, value)
            n += 1


@kernel(fastmath=True)
def spread_spokes(grid, stride, spokes, corner, fraction, table, shares):  # type: ignore[no-untyped-def]
    """Add spokes to one tile's grid; angles whose share is zero are left out."""
    n_angles, n_frequencies = corner.shape
    for n0 in range(0, n_frequencies, CHUNK):
        n1 = min(n0 + CHUNK, n_frequencies)
        for k in range(n_angles):
            share, at, rows = shares[k], corner[k], fraction[k]
            if share == 0:
                continue
            first = _place(n0, k, n_angles) - n0
            # The number of taps is written out, so that the loops are unrolled.
            if table.shape[1] == 4:
                _spread_chunk(
                    grid, stride, 4, table, share, at, rows, n0, n1, spokes, first
                )
            else:
                _spread_chunk(
                    grid, stride, 6, table, share, at, rows, n0, n1, spokes, first
                )
