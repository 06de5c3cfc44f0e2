"""Split-half Fourier accumulation on a GPU: `Accumulator`'s methods, its plan."""

from __future__ import annotations

import contextlib
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ebl_stream.gpu.device import Device
from ebl_stream.gpu.layout import Layout
from ebl_stream.gpu.look import Look, Term
from ebl_stream.gpu.memory import Memory
from ebl_stream.gpu.sampling import Sampling, binned, every_pixel
from ebl_stream.gpu.spread import Spreader
from ebl_stream.numerics.fan import Common, check_common
from ebl_stream.numerics.fourier_plan import Footprint, FourierPlan
from ebl_stream.numerics.windows import Window


class Preview(NamedTuple):
    """A volume of wider voxels, about the same axis."""

    values: NDArray[np.float32]
    """``[row, y, x]``, 1/px."""
    voxel: float
    """Width of its voxels in y and x, px."""


class GpuAccumulator:
    """Fourier grids of one slab on a GPU, to which projections are added.

    Same geometry, plan and results as `ebl_stream.numerics.accumulate.Accumulator`,
    to 1e-5; not bit by bit, as the device adds in any order. Calls must come from
    one thread at a time. What `add` is given may be changed when it returns.

    Parameters
    ----------
    plan : FourierPlan
        Lengths, filters and tables.
    n_rows : int
        Detector rows of the slab. Multiples of 64 use the device best, and one large
        slab is better than several.
    rotation_center : float
        px, column of the projection.
    halves : bool
        Keep A and B apart; else one grid takes the shares of both.
    device : Device
        See `ebl_stream.gpu.cupy_device.best_device`.
    frames : dtype
        What will be added: float32 line integrals or raw counts. Memory for it is
        taken now; for others when they first come.
    **settings
        ``batch``, ``n_slots`` and ``look_bytes``, see `Layout`.

    Raises
    ------
    ValueError
        A setting is out of range.
    """

    def __init__(
        self,
        plan: FourierPlan,
        n_rows: int,
        rotation_center: float,
        *,
        halves: bool = True,
        device: Device,
        frames: DTypeLike = np.float32,
        **settings: int,
    ) -> None:
        self.plan, self.n_rows = plan, n_rows
        self.rotation_center = rotation_center
        self.layout = Layout(plan, n_rows, halves, **settings)
        self._memory = Memory(device, self.layout)
        self._spreader = Spreader(self._memory)
        self._spreader.ring(np.dtype(frames))
        self._look = Look(self._memory)
        self._sampled: dict[bool, tuple[object, Sampling]] = {}
        self.prepare()
        self.reset()

    def __del__(self) -> None:
        # Memory that the device still writes to must not become somebody else's.
        with contextlib.suppress(Exception):
            self.synchronize()

    @property
    def halves(self) -> bool:
        """Whether A and B are kept apart."""
        return self.layout.halves

    @property
    def nbytes(self) -> int:
        """Bytes of the grids; see `Layout.device_bytes` for all that is taken."""
        return self.layout.grid_bytes

    def reset(self, rotation_center: float | None = None) -> None:
        """Forget everything that was added, and perhaps move the rotation center."""
        if rotation_center is not None:
            self.rotation_center = rotation_center
        memory = self._memory
        with memory.work:
            memory.device.clear(memory["grid"])
        spoke_filter = self.plan.spoke_filter(self.rotation_center)
        memory.copy(memory["factor"], spoke_filter)

    def synchronize(self) -> None:
        """Wait until all that was added is on the grids."""
        self._memory.work.synchronize()

    def add(
        self,
        values: NDArray[np.float32],
        theta: ArrayLike,
        shares: ArrayLike,
        *,
        footprint: Footprint | None = None,
    ) -> None:
        """Filter projections once and spread them onto the halves.

        It returns when they are copied to pinned memory, and waits only where the
        device is slower than what arrives.

        Parameters
        ----------
        values : ndarray, [angle, row, column]
            Line integrals.
        theta : ndarray, (angle,)
            rad.
        shares : ndarray, [angle, half]
            rad; what is added to A and to B. Zero leaves a half alone, negative
            shares take a projection back.
        footprint : Footprint, optional
            ``plan.footprint(theta)``, where several slabs share it.

        Raises
        ------
        ValueError
            The shapes do not fit.
        """
        self._add(np.asarray(values, np.float32), theta, shares, footprint)

    def volume(
        self,
        *,
        window: Window = "ramp",
        shift: float = 0.0,
        first_theta: float = 0.0,
        less: Common | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return A + B as slices ``[row, y, x]``, 1/px.

        Parameters
        ----------
        window : str
            Low-pass on top of the ramp.
        shift, first_theta : float
            px and rad, see `FourierPlan.grid_response`.
        less : Common
            Is taken away: what every projection has too much, with the weights of
            A + B (in `half_difference` A - B, in `half` A or B).
        out : ndarray, [row, y, x]
            Where to; the copy is fastest into pinned memory.
        """
        sampling = self._sampling(1, window, shift, first_theta)
        return self._slices((1, 1), sampling, less, out)

    def half_difference(
        self,
        *,
        window: Window = "ramp",
        shift: float = 0.0,
        first_theta: float = 0.0,
        less: Common | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return A - B, ``[row, y, x]``: a map of the volume's noise, 1/px.

        Raises
        ------
        ValueError
            There is only one grid.
        """
        sampling = self._sampling(1, window, shift, first_theta)
        return self._slices((1, -1), sampling, less, out)

    def half(
        self,
        which: Literal["a", "b"],
        *,
        window: Window = "ramp",
        shift: float = 0.0,
        first_theta: float = 0.0,
        less: Common | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return A or B alone, ``[row, y, x]``, 1/px.

        Raises
        ------
        ValueError
            There is only one grid.
        """
        sampling = self._sampling(1, window, shift, first_theta)
        signs = (1, 0) if which == "a" else (0, 1)
        return self._slices(signs, sampling, less, out)

    def preview(
        self,
        factor: int = 4,
        *,
        window: Window = "hann",
        shift: float = 0.0,
        first_theta: float = 0.0,
        less: Common | None = None,
    ) -> Preview:
        """Return A + B in wider voxels: ``factor**2`` times cheaper than a volume.

        Parameters
        ----------
        factor : int
            Width of a voxel, about, px.
        window : str
            Low-pass of the coarser sampling; ``ramp`` rings at edges.
        shift, first_theta, less
            See `volume`.
        """
        sampling = self._sampling(factor, window, shift, first_theta)
        values = self._slices((1, 1), sampling, less, None)
        return Preview(values, self.plan.n_grid / sampling.n_out)

    def compute_slices(self) -> None:
        """Make all slices of A + B on the device and copy none: the look's own cost."""
        sampling = self._sampling(1, "ramp", 0.0, 0.0)
        for _ in self._look.chunks(self._terms((1, 1)), sampling):
            pass
        self.synchronize()

    def prepare(
        self, *, window: Window = "ramp", shift: float = 0.0, first_theta: float = 0.0
    ) -> None:
        """Let the device know how the next volume is wanted, so that it need not wait.

        At N = 2048 another window or shift costs some 0.1 s on the host.
        """
        self._sampling(1, window, shift, first_theta)

    def _sampling(
        self, factor: int, window: Window, shift: float, first_theta: float
    ) -> Sampling:
        """Return where a look samples, known to the device."""
        wanted, rest = (factor, window, shift, first_theta), (shift, first_theta)
        known = self._sampled.get(factor > 1)
        if known is not None and known[0] == wanted:
            return known[1]
        if factor == 1:
            sampling = every_pixel(self.plan, window, *rest)
        else:
            sampling = binned(self.plan, factor, window, *rest)
        self._look.respond(sampling)
        self._sampled[factor > 1] = wanted, sampling
        return sampling

    def _add(
        self,
        frames: NDArray[Any],
        theta: ArrayLike,
        shares: ArrayLike,
        footprint: Footprint | None = None,
        **how: bool,
    ) -> None:
        """Copy projections into slots, batch by batch, and send them on their way."""
        angles, parts = checked(theta, shares)
        shape = (len(angles), self.n_rows, self.plan.n_columns)
        if frames.shape != shape:
            raise ValueError(f"projections must be {shape}, not {frames.shape}")
        if footprint is None:
            footprint = self.plan.footprint(angles)
        ring, batch = self._spreader.ring(frames.dtype), self.layout.batch
        for first in range(0, len(angles), batch):
            some = slice(first, first + batch)
            slot = ring.acquire()
            np.copyto(slot.host["frames"][: len(angles[some])], frames[some])
            places = Footprint(footprint.corner[some], footprint.fraction[some])
            self._spreader.spread(slot, places, parts[some], **how)

    def _slices(
        self,
        signs: tuple[int, int],
        sampling: Sampling,
        less: Common | None,
        out: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        shape = (self.n_rows, sampling.n_slice, sampling.n_slice)
        if out is None:
            out = np.empty(shape, np.float32)
        if out.shape != shape or out.dtype != np.float32:
            raise ValueError(
                f"out must be float32 {shape}, not {out.dtype} {out.shape}"
            )
        terms = self._terms(signs)
        # Held until the slices are made, and no longer: it is half of these grids.
        taken = None if less is None else self._spread(less)
        if taken is not None:
            terms += [(g, -w) for g, w in taken._terms((1, 1))]  # noqa: SLF001
        whole = out if out.flags.c_contiguous else np.empty(shape, np.float32)
        self._look.slices(terms, sampling, whole)
        if whole is not out:
            out[:] = whole
        return out

    def _spread(self, less: Common) -> GpuAccumulator:
        """Return a grid of what every projection has too much."""
        check_common(less, self.plan, self.n_rows, self.rotation_center)
        one = GpuAccumulator(
            self.plan,
            self.n_rows,
            self.rotation_center,
            halves=False,
            device=self._memory.device,
        )
        theta, weights = less.fan.theta, less.fan.weights
        shares = np.stack([weights, np.zeros_like(weights)], 1)
        values = np.broadcast_to(less.profile, (len(theta), *less.profile.shape))
        one.add(values, theta, shares)
        one.synchronize()
        return one

    def _terms(self, signs: tuple[int, int]) -> list[Term]:
        """Return A and B times their signs; without those of sign 0."""
        if not self.halves:
            if signs != (1, 1):
                raise ValueError("the halves are not kept apart (halves=False)")
            signs = (1, 0)
        grid = self._memory["grid"]
        return [(grid[k], float(s)) for k, s in enumerate(signs) if s]


def checked(
    theta: ArrayLike, shares: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return angles (angle,) and shares [angle, 2]; raise ValueError if they differ."""
    angles = np.atleast_1d(np.asarray(theta, np.float64))
    parts = np.atleast_2d(np.asarray(shares, np.float32))
    if angles.ndim != 1 or parts.shape != (len(angles), 2):
        raise ValueError(
            "theta (angle,) and shares [angle, 2] do not match: "
            f"{angles.shape} and {parts.shape}"
        )
    return angles, parts
