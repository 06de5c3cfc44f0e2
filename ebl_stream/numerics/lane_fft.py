"""Fourier transform of 16 complex signals at once, one in each lane.

Stockham's self-sorting form (van Loan, Computational Frameworks for the Fast
Fourier Transform, 1992, section 1.7) with radices 2, 3, 4, 5 and 8. Only forward:
the inverse is the same with real and imaginary parts exchanged.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebl_stream.numerics.kernel_cache import kernel
from ebl_stream.numerics.simd import WIDTH, load, store, times_i

C1, C2 = np.float32(np.cos(2 * np.pi / 5)), np.float32(np.cos(4 * np.pi / 5))
S1, S2 = np.float32(np.sin(2 * np.pi / 5)), np.float32(np.sin(4 * np.pi / 5))
S3 = np.float32(np.sqrt(0.75))
HALF, DIAGONAL = np.float32(0.5), np.float32(np.sqrt(0.5))


LONG = 160
"""Longer signals do not stay in the first-level cache while they are transformed."""


class LaneFFT(NamedTuple):
    """Radices and twiddle factors of one length.

    A long signal is first split into as many parts as ``split`` says; part k has
    the frequencies k, k + split, k + 2 split, ... of the signal.
    """

    split: int
    """1 where it is not split."""
    turns: NDArray[np.complex64]
    """Twiddle factors of the split."""
    radices: NDArray[np.int64]
    """(pass,), of the transform of a part."""
    twiddles: NDArray[np.complex64]
    """Of all passes, one after the other; of each ``[p, 1 .. radix - 1]``."""


def plan_fft(length: int) -> LaneFFT:
    """Return the plan for a length with no prime factor above 5.

    Raises
    ------
    ValueError
        The length has another prime factor.
    """
    split = 1
    if length > LONG:
        split = next((r for r in (8, 5, 4, 3, 2) if length % r == 0), 1)
    part = length // split
    radices, twiddles, left = _radices(part), [], part
    for radix in radices:
        twiddles.append(_turns(left, radix))
        left //= radix
    flat = np.concatenate([*twiddles, np.empty(0, np.complex64)])
    turns = _turns(length, split) if split > 1 else np.empty(0, np.complex64)
    return LaneFFT(split, turns, np.array(radices, np.int64), flat)


def _turns(length: int, radix: int) -> NDArray[np.complex64]:
    """Return the twiddle factors of a pass, ``[p, 1 .. radix - 1]``, flat."""
    turn = np.outer(np.arange(length // radix), np.arange(1, radix)) / length
    return np.exp(-2j * np.pi * turn).ravel().astype(np.complex64)


def _radices(length: int) -> list[int]:
    odd, left = [], length
    for radix in (5, 3):
        while left % radix == 0:
            odd.append(radix)
            left //= radix
    twos = left.bit_length() - 1
    if left != 1 << twos:
        raise ValueError(f"length {length} has a prime factor above 5")
    eights, rest = divmod(twos, 3)
    if rest == 1 and eights:
        return odd + [4, 4] + [8] * (eights - 1)
    return odd + [8] * eights + ([2**rest] if rest else [])


@kernel(fastmath=True)
def split_signal(signal, parts, length, radix, turns):  # type: ignore[no-untyped-def]
    """Split a signal into ``radix`` parts, one after the other in ``parts``."""
    part = length // radix
    if radix == 1:
        for n in range(length):
            store(parts, n * WIDTH, load(signal, n * WIDTH))
    else:
        _pass(signal, parts, radix, part, 1, 1, part, turns, 0)


@kernel(fastmath=True)
def fft(a, b, length, radices, twiddles):  # type: ignore[no-untyped-def]
    """Transform the signal, or part of one, in ``a``; return where the result is.

    Both buffers are flat float32, and both are overwritten.
    """
    here, first, spacing = True, 0, 1
    for i in range(radices.size):
        radix = radices[i]
        length //= radix
        x, y = (a, b) if here else (b, a)
        _pass(x, y, radix, length, spacing, radix * spacing, spacing, twiddles, first)
        first += length * (radix - 1)
        spacing *= radix
        here = not here
    return a if here else b


@kernel(fastmath=True)
def _pass(x, y, radix, m, s, row, step, w, first):  # type: ignore[no-untyped-def]
    """Do one pass over ``s`` interleaved signals of length ``radix`` times ``m``.

    Result k of butterfly p of signal q goes to place q + row p + step k.
    """
    if radix == 8:
        _pass_8(x, y, m, s, row, step * WIDTH, w, first)
    elif radix == 4:
        _pass_4(x, y, m, s, row, step * WIDTH, w, first)
    elif radix == 5:
        _pass_5(x, y, m, s, row, step * WIDTH, w, first)
    elif radix == 3:
        _pass_3(x, y, m, s, row, step * WIDTH, w, first)
    else:
        _pass_2(x, y, m, s, row, step * WIDTH, w, first)


@kernel(fastmath=True)
def _pass_2(x, y, m, s, row, step, w, first):  # type: ignore[no-untyped-def]
    jump = m * s * WIDTH
    for p in range(m):
        w1 = w[first + p]
        for q in range(s):
            i = (q + s * p) * WIDTH
            a, b = load(x, i), load(x, i + jump)
            o = (q + row * p) * WIDTH
            store(y, o, a + b)
            store(y, o + step, (a - b) * w1)


@kernel(fastmath=True)
def _pass_3(x, y, m, s, row, step, w, first):  # type: ignore[no-untyped-def]
    jump = m * s * WIDTH
    for p in range(m):
        k = first + 2 * p
        w1, w2 = w[k], w[k + 1]
        for q in range(s):
            i = (q + s * p) * WIDTH
            a, b, c = load(x, i), load(x, i + jump), load(x, i + 2 * jump)
            both = b + c
            middle, turned = a - both * HALF, times_i((b - c) * S3)
            o = (q + row * p) * WIDTH
            store(y, o, a + both)
            store(y, o + step, (middle - turned) * w1)
            store(y, o + 2 * step, (middle + turned) * w2)


@kernel(fastmath=True)
def _pass_4(x, y, m, s, row, step, w, first):  # type: ignore[no-untyped-def]
    jump = m * s * WIDTH
    for p in range(m):
        k = first + 3 * p
        w1, w2, w3 = w[k], w[k + 1], w[k + 2]
        for q in range(s):
            i = (q + s * p) * WIDTH
            a, c = load(x, i), load(x, i + 2 * jump)
            b, d = load(x, i + jump), load(x, i + 3 * jump)
            e, f, g, h = a + c, a - c, b + d, times_i(b - d)
            o = (q + row * p) * WIDTH
            store(y, o, e + g)
            store(y, o + step, (f - h) * w1)
            store(y, o + 2 * step, (e - g) * w2)
            store(y, o + 3 * step, (f + h) * w3)


@kernel(fastmath=True)
def _pass_5(x, y, m, s, row, step, w, first):  # type: ignore[no-untyped-def]
    jump = m * s * WIDTH
    for p in range(m):
        k = first + 4 * p
        w1, w2, w3, w4 = w[k], w[k + 1], w[k + 2], w[k + 3]
        for q in range(s):
            i = (q + s * p) * WIDTH
            a, b, e = load(x, i), load(x, i + jump), load(x, i + 4 * jump)
            c, d = load(x, i + 2 * jump), load(x, i + 3 * jump)
            outer, inner = b + e, c + d
            across, along = b - e, c - d
            near = a + outer * C1 + inner * C2
            far = a + outer * C2 + inner * C1
            turned = times_i(across * S1 + along * S2)
            turned_far = times_i(across * S2 - along * S1)
            o = (q + row * p) * WIDTH
            store(y, o, a + outer + inner)
            store(y, o + step, (near - turned) * w1)
            store(y, o + 2 * step, (far - turned_far) * w2)
            store(y, o + 3 * step, (far + turned_far) * w3)
            store(y, o + 4 * step, (near + turned) * w4)


@kernel(fastmath=True)
def _pass_8(x, y, m, s, row, step, w, first):  # type: ignore[no-untyped-def]
    jump = m * s * WIDTH
    for p in range(m):
        k = first + 7 * p
        for q in range(s):
            i, j = (q + s * p) * WIDTH, jump
            # Two transforms of four, of the even and of the odd eighths, ...
            x0, x4 = load(x, i), load(x, i + 4 * j)
            x2, x6 = load(x, i + 2 * j), load(x, i + 6 * j)
            a, b, c, d = x0 + x4, x0 - x4, x2 + x6, times_i(x2 - x6)
            e0, e1, e2, e3 = a + c, b - d, a - c, b + d
            x1, x5 = load(x, i + j), load(x, i + 5 * j)
            x3, x7 = load(x, i + 3 * j), load(x, i + 7 * j)
            a, b, c, d = x1 + x5, x1 - x5, x3 + x7, times_i(x3 - x7)
            # ... the odd ones turned by an eighth of a circle each.
            o0, o2 = a + c, times_i(a - c)
            u, v = b - d, b + d
            o1, o3 = (u - times_i(u)) * DIAGONAL, (v + times_i(v)) * DIAGONAL
            o = (q + row * p) * WIDTH
            store(y, o, e0 + o0)
            store(y, o + step, (e1 + o1) * w[k])
            store(y, o + 2 * step, (e2 - o2) * w[k + 1])
            store(y, o + 3 * step, (e3 - o3) * w[k + 2])
            store(y, o + 4 * step, (e0 - o0) * w[k + 3])
            store(y, o + 5 * step, (e1 - o1) * w[k + 4])
            store(y, o + 6 * step, (e2 + o2) * w[k + 5])
            store(y, o + 7 * step, (e3 + o3) * w[k + 6])
