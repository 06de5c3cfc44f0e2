"""What a net is trained on: slices that it sees, and what it should make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.nets.scale import Scale
from ebl_stream.numerics.quality import INSIDE

Slab = NDArray[np.float32]
"""``[z, y, x]``."""

LEAST_ERROR = 0.02
"""Mean square error below which a stack counts no more for having less."""

HELD_SHARE = 0.1
"""Of the slices of a scan, held out of the training."""


@dataclass(frozen=True)
class Stack:
    """Adjacent slices of one sample, on the scale of `Scale`."""

    family: str
    """What the scores are told apart by."""
    ways: tuple[tuple[Slab, Slab], ...]
    """Pairs (what a net sees, what it should make of it), all of one shape."""
    truth: Slab | None = None
    """What the scores compare with, where it is known."""

    def __post_init__(self) -> None:
        shapes = {slab.shape for way in self.ways for slab in way}
        if len(shapes) != 1 or len(self.ways[0][0].shape) != 3:
            raise ValueError(f"slabs of different shapes: {sorted(shapes)}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        n_z, n_y, n_x = self.ways[0][0].shape
        return n_z, n_y, n_x

    @cached_property
    def weight(self) -> float:
        """Of its losses: about one over the error that a good net leaves.

        Otherwise only the noisiest stacks would be learned from, and clean ones harmed.
        """
        errors = [np.square(y - x).mean(dtype=np.float64) for x, y in self.ways]
        power = float(np.mean(errors))
        return 1 / (LEAST_ERROR + power / (1 + power))

    def cut(self, start: int, stop: int) -> Stack:
        """Return some of the slices."""
        ways = tuple((x[start:stop], y[start:stop]) for x, y in self.ways)
        truth = None if self.truth is None else self.truth[start:stop]
        return Stack(self.family, ways, truth)


@dataclass(frozen=True)
class Lessons:
    """What is learned from, what is held out, and where both come from."""

    train: tuple[Stack, ...]
    held: tuple[Stack, ...]
    about: dict[str, Any] = field(default_factory=dict)
    """For the card: files with their hashes, generators with their seeds."""

    def __add__(self, other: Lessons) -> Lessons:
        both = [*self.about.get("sources", []), *other.about.get("sources", [])]
        return Lessons(
            self.train + other.train, self.held + other.held, {"sources": both}
        )


def of_halves(
    family: str,
    volume: Slab,
    half_difference: Slab,
    target: Slab | None = None,
    truth: Slab | None = None,
) -> Stack:
    """Return what a net that sees one half learns from.

    Parameters
    ----------
    family : str
    volume, half_difference : ndarray, [z, y, x]
        A + B and A - B, 1/px.
    target : ndarray, [z, y, x], optional
        What to make of either half, 1/px; without, the other half.
    truth : ndarray, [z, y, x], optional
        1/px.
    """
    scale = Scale.of(volume, half_difference)
    halves = [
        scale.to_net(volume + half_difference),
        scale.to_net(volume - half_difference),
    ]
    wanted = halves[::-1] if target is None else [scale.to_net(target)] * 2
    return Stack(
        family,
        tuple(zip(halves, wanted, strict=True)),
        None if truth is None else scale.to_net(truth),
    )


def of_whole(
    family: str,
    volume: Slab,
    half_difference: Slab,
    target: Slab,
    truth: Slab | None = None,
) -> Stack:
    """Return what a net that sees the whole volume learns from; as `of_halves`."""
    scale = Scale.of(volume, half_difference)
    return Stack(
        family,
        ((scale.to_net(volume), scale.to_net(target)),),
        None if truth is None else scale.to_net(truth),
    )


def of_pair(family: str, noisy: Slab, wanted: Slab) -> Stack:
    """Return what is learned from two images of the same, in any unit.

    The wanted one sets the scale: there are no halves that tell signal from noise.
    """
    scale = Scale.of(wanted, np.zeros_like(wanted))
    pair = scale.to_net(noisy), scale.to_net(wanted)
    return Stack(family, (pair,), pair[1])


def hold_out(stack: Stack) -> Lessons:
    """Hold slices in the middle out of a stack: its ends may be unlike the rest.

    Raises
    ------
    InputError
        There are fewer than four slices.
    """
    n = stack.shape[0]
    if n < 4:
        raise InputError(
            f"{stack.family}: {n} slices are too few to hold some out; give 4 or more"
        )
    held = max(1, round(HELD_SHARE * n))
    start = (n - held) // 2
    train = (stack.cut(0, start), stack.cut(start + held, n))
    return Lessons(train, (stack.cut(start, start + held),))


class Batch(NamedTuple):
    """Crops that are learned from together."""

    seen: Slab
    """``[crop, depth, y, x]``."""
    wanted: Slab
    """``[crop, 1, y, x]``."""
    weights: NDArray[np.float32]
    """``(crop,)``, of their losses."""


class Crops:
    """Random crops of the slices of some stacks, turned and mirrored.

    Parameters
    ----------
    stacks : sequence of Stack
    depth : int
        Adjacent slices that a net sees.
    size : int
        Edge, px; less where slices are smaller.
    multiple : int
        What the edge is a multiple of.

    Raises
    ------
    InputError
        There is no slice, or slices are smaller than two multiples.
    """

    def __init__(
        self, stacks: Sequence[Stack], depth: int, size: int, multiple: int
    ) -> None:
        if not stacks:
            raise InputError("there is nothing to learn from")
        least = min(min(stack.shape[1:]) for stack in stacks)
        self.size = min(size, least) // multiple * multiple
        if self.size < 2 * multiple:
            raise InputError(
                f"slices of {least} px are too small to learn from: {2 * multiple} px "
                "or more"
            )
        self._stacks = list(stacks)
        self._depth = depth
        n_slices = [stack.shape[0] for stack in stacks]
        self._ends = np.cumsum(n_slices)

    def batch(self, rng: np.random.Generator, n: int) -> Batch:
        """Draw n crops."""
        seen, wanted, weights = zip(*(self._one(rng) for _ in range(n)), strict=True)
        return Batch(np.stack(seen), np.stack(wanted), np.array(weights, np.float32))

    def _one(self, rng: np.random.Generator) -> tuple[Slab, Slab, float]:
        at = int(rng.integers(self._ends[-1]))
        k = int(np.searchsorted(self._ends, at, side="right"))
        stack = self._stacks[k]
        z = at - int(self._ends[k] - stack.shape[0])
        see, want = stack.ways[int(rng.integers(len(stack.ways)))]
        y, x = self._corner(rng, stack.shape)
        window = (slice(y, y + self.size), slice(x, x + self.size))
        seen = see[around(z, self._depth, len(see))][:, *window]
        wanted = want[z : z + 1][:, *window]
        turns, mirror, upside_down = rng.integers([4, 2, 2])
        if upside_down:
            seen = seen[::-1]
        crops = _turned(seen, turns, mirror), _turned(wanted, turns, mirror)
        return *crops, stack.weight

    def _corner(
        self, rng: np.random.Generator, shape: tuple[int, int, int]
    ) -> tuple[int, int]:
        """Return where a crop begins whose middle lies in the circle that is seen."""
        _, n_y, n_x = shape
        radius = INSIDE * min(n_y, n_x) / 2 * np.sqrt(rng.random())
        angle = 2 * np.pi * rng.random()
        y = n_y / 2 + radius * np.sin(angle) - self.size / 2
        x = n_x / 2 + radius * np.cos(angle) - self.size / 2
        return (
            int(np.clip(y, 0, n_y - self.size)),
            int(np.clip(x, 0, n_x - self.size)),
        )


def around(z: int, depth: int, n: int) -> NDArray[np.intp]:
    """Return the slices about slice z of n; the ends stand for what lies beyond."""
    return np.clip(np.arange(z - depth // 2, z + depth // 2 + 1), 0, n - 1)


def _turned(crop: Slab, turns: int, mirror: int) -> Slab:
    crop = np.rot90(crop, turns, (1, 2))
    return crop[:, :, ::-1] if mirror else crop
