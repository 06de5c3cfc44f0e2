"""A net at work: slabs in, slabs out, of any size, on one thread per caller."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ebl_stream.nets.architecture import Architecture

Frozen: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""A net that stays as it is: ``[batch, depth, y, x]`` to ``[batch, 1, y, x]``; from
any thread."""

TILE = 1024
"""Sides of the tiles that larger slices are cut into, px."""

HALO = 64
"""Pixels around a tile that its own depend on, at most."""

BATCH_PIXELS = 256 * 256
"""Small slices go together, up to so many pixels: what the cache holds."""


@lru_cache(1)
def has_bfloat16() -> bool:
    """Return whether this machine computes with bfloat16 faster than with float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    try:
        words = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in words or "amx_bf16" in words


def device() -> torch.device:
    """Return where nets work: a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Applied:
    """A net that is ready to be applied; what happens to the original is not seen.

    Parameters
    ----------
    net : torch.nn.Module
        Built from ``architecture``.
    architecture : Architecture
    precise : bool
        Float32 even where bfloat16 is faster. With bfloat16 the last layer, and what
        comes out, stay float32.
    frozen : callable, optional
        Computes instead of ``net``, see `ebl_stream.nets.frozen`.
    """

    def __init__(
        self,
        net: nn.Module,
        architecture: Architecture,
        *,
        precise: bool = False,
        frozen: Frozen | None = None,
    ) -> None:
        one_thread()
        self.architecture = architecture
        self._frozen = frozen
        self._dtype = torch.float32
        work = copy.deepcopy(net).eval().requires_grad_(False)
        if has_bfloat16() and not precise:
            self._dtype = torch.bfloat16
            work = work.bfloat16()
            work.get_submodule("leave").float()
        where = device()
        self._net = work.to(where, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._device = where

    def __call__(
        self, seen: NDArray[np.float32], rows: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """Denoise slices of a slab.

        Parameters
        ----------
        seen : ndarray, [z, y, x]
            On the nets' scale; not finite values are taken for the mean.
        rows : sequence of int, optional
            The slices that are wanted; all of them. Beyond the slab's ends its last
            slice is repeated.

        Returns
        -------
        ndarray, [row, y, x] float32
        """
        wanted = np.arange(len(seen)) if rows is None else np.asarray(rows, np.intp)
        out = np.empty((len(wanted), *seen.shape[1:]), np.float32)
        reach = np.arange(self.architecture.depth) - self.architecture.depth // 2
        stacks = np.clip(wanted[:, None] + reach, 0, len(seen) - 1)
        many = max(1, BATCH_PIXELS // (seen.shape[1] * seen.shape[2]))
        clean = np.nan_to_num(seen, nan=0.0, posinf=0.0, neginf=0.0)
        with torch.inference_mode():
            for start in range(0, len(wanted), many):
                some = slice(start, start + many)
                out[some] = self._slices(torch.from_numpy(clean[stacks[some]]))
        return out

    def _slices(self, x: Tensor) -> NDArray[np.float32]:
        """Denoise ``[slice, depth, y, x]``, tile by tile."""
        n_y, n_x = x.shape[-2:]
        out = torch.empty((len(x), n_y, n_x))
        for y0, y1 in _tiles(n_y):
            for x0, x1 in _tiles(n_x):
                top, left = max(0, y0 - HALO), max(0, x0 - HALO)
                tile = x[..., top : y1 + HALO, left : x1 + HALO]
                made = self._tile(tile)
                out[:, y0:y1, x0:x1] = made[
                    :, y0 - top : y1 - top, x0 - left : x1 - left
                ]
        return out.numpy()

    def _tile(self, x: Tensor) -> Tensor:
        n_y, n_x = x.shape[-2:]
        step = self.architecture.multiple
        pad = (0, -n_x % step, 0, -n_y % step)
        if any(pad):
            x = functional.pad(x, pad, mode="replicate")
        if self._frozen is not None:
            return torch.from_numpy(self._frozen(x.numpy()))[:, 0, :n_y, :n_x]
        x = x.to(self._device, self._dtype, memory_format=torch.channels_last)
        return self._net(x)[:, 0, :n_y, :n_x].float().cpu()


def one_thread() -> None:
    """Let torch compute on the thread that asks: slabs are what goes side by side.

    Two of torch's own threads wait for each other when a neighbor is busy: a step of
    20 ms took a second.
    """
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def _tiles(n: int) -> Iterator[tuple[int, int]]:
    """Cut a length into about equal parts; their edges are multiples of 8."""
    count = -(-n // (TILE + 2 * HALO)) if n > TILE + 2 * HALO else 1
    size = -(-n // count // 8) * 8
    for start in range(0, n, size):
        yield start, min(start + size, n)
