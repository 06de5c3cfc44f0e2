"""A device without a GPU: ``kernels.cu`` through g++, streams that run out of step.

Work is put into its stream's queue and done when somebody waits for it, or earlier,
as an ``eagerness`` says; streams are only kept in order by events. A copy from memory
that was overwritten too early, or a kernel that ran before its data arrived,
therefore gives wrong numbers here. Memory starts as NaN, with a guard on both sides.
"""

from __future__ import annotations

import ctypes
import functools
import math
import re
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import DTypeLike, NDArray

from ebl_stream.gpu.device import KERNELS

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
KERNEL = re.compile(
    r'extern "C" __global__ void\s*(?:__launch_bounds__\(\d+\)\s*)?(\w+)\(([^)]*)\)'
)
GUARD = 256


def parameters(source: str) -> dict[str, list[str]]:
    """Return the types of each kernel's parameters, by the kernel's name."""
    return {
        name: [" ".join(p.split()).rsplit(" ", 1)[0] for p in given.split(",")]
        for name, given in KERNEL.findall(source)
    }


@functools.cache
def compile_for_cpu(source: str) -> ctypes.CDLL:
    """Return a library with one ``launch_<kernel>`` for each kernel.

    Raises
    ------
    FileNotFoundError
        There is no g++.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("g++ is needed to run CUDA source on the CPU")
    wrappers = []
    for name, types in parameters(source).items():
        values = ", ".join(f"*({t}*)values[{k}]" for k, t in enumerate(types))
        wrappers.append(
            f'extern "C" void launch_{name}(const int* g, const int* b, int backwards, '
            "void** values) { fibers::launch({g[0], g[1], g[2]}, {b[0], b[1], b[2]}, "
            f"backwards, [=] {{ {name}({values}); }}); }}"
        )
    folder = Path(tempfile.mkdtemp(prefix="cuda-on-cpu-"))
    try:
        program, library = folder / "kernels.cpp", folder / "kernels.so"
        text = f'#include "{HEADER}"\n' + source + "\n".join(wrappers)
        program.write_text(text)
        options = ["-std=c++17", "-O2", "-fno-strict-aliasing", "-w", "-shared"]
        done = subprocess.run(
            [compiler, *options, "-fPIC", "-o", library, program],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[:4000])
        return ctypes.CDLL(str(library))
    finally:
        shutil.rmtree(folder)


class Event:
    def __init__(self, device: EmulatedDevice) -> None:
        self.device, self.done = device, False

    def synchronize(self) -> None:
        self.device.run_until(lambda: self.done)


class Stream:
    def __init__(self, device: EmulatedDevice) -> None:
        self.device = device
        self.queue: deque[Event | Callable[[], None]] = deque()

    def __enter__(self) -> Stream:
        self.device.current.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.device.current.pop()

    def wait_event(self, event: Event) -> None:
        self.queue.append(event)

    def synchronize(self) -> None:
        self.device.run_until(lambda: not self.queue, first=self)

    def step(self) -> bool:
        """Do the next thing; return whether there was one that could be done."""
        if not self.queue:
            return False
        head = self.queue[0]
        if isinstance(head, Event):
            if not head.done:
                return False
            self.queue.popleft()
            return True
        self.queue.popleft()
        head()
        return True


class EmulatedDevice:
    """Follows `ebl_stream.gpu.device.Device`.

    Parameters
    ----------
    eagerness : float or None
        0: nothing is done before somebody waits. 1: everything at once. Between,
        that share of a stream chosen by ``seed`` runs after each call.
    backwards : bool
        Blocks and threads run in reverse.
    source : str
        What is compiled instead of ``kernels.cu``.
    """

    name = "emulated device"

    def __init__(
        self,
        *,
        eagerness: float = 1.0,
        seed: int = 0,
        backwards: bool = False,
        source: str | None = None,
        capacity: int = 2**32,
    ) -> None:
        source = source or KERNELS.read_text()
        self._library = compile_for_cpu(source)
        self._parameters = parameters(source)
        self._eagerness, self._backwards = eagerness, backwards
        self._random = np.random.default_rng(seed)
        self._streams: list[Stream] = []
        self.guarded: list[NDArray[np.uint8]] = []
        self.capacity = capacity
        self.current: list[Stream] = []
        self.launched: list[str] = []

    # ------------------------------------------------------------------ queues

    def stream(self) -> Stream:
        self._streams.append(Stream(self))
        return self._streams[-1]

    def record(self, stream: Stream) -> Event:
        event = Event(self)

        def reached() -> None:
            event.done = True

        stream.queue.append(reached)
        self._maybe_work()
        return event

    def run_until(
        self, enough: Callable[[], bool], first: Stream | None = None
    ) -> None:
        """Work, as little as possible beside ``first``, until something holds."""
        while not enough():
            streams = [first] if first is not None else []
            order = self._random.permutation(len(self._streams))
            streams += [self._streams[k] for k in order]
            if not any(stream.step() for stream in streams):
                raise RuntimeError("streams wait for each other")

    def _put(self, work: Callable[[], None]) -> None:
        if not self.current:
            raise RuntimeError("work outside of any stream")
        self.current[-1].queue.append(work)
        self._maybe_work()

    def _maybe_work(self) -> None:
        if self._eagerness >= 1:
            while any(stream.step() for stream in self._streams):
                pass
        elif self._random.random() < self._eagerness:
            stream = self._streams[self._random.integers(len(self._streams))]
            while stream.step():
                pass

    # ------------------------------------------------------------------ memory

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        whole = np.full(n_bytes + 2 * GUARD, 0xFF, np.uint8)
        self.guarded.append(whole)
        return whole[GUARD : GUARD + n_bytes].view(dtype).reshape(shape)

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        return np.full(shape, 77, dtype)

    def clear(self, array: NDArray[Any]) -> None:
        self._put(lambda: array.fill(0))

    def upload(self, target: NDArray[Any], source: NDArray[Any]) -> None:
        assert target.shape == source.shape
        assert target.dtype == source.dtype
        self._put(lambda: np.copyto(target, source))

    def download(self, target: NDArray[Any], source: NDArray[Any]) -> None:
        self.upload(target, source)

    def free_bytes(self) -> int:
        return self.capacity - sum(whole.nbytes for whole in self.guarded)

    def check_guards(self) -> None:
        """Raise if anything was written outside of what was allocated."""
        for whole in self.guarded:
            assert (whole[:GUARD] == 0xFF).all(), "written before the beginning"
            assert (whole[-GUARD:] == 0xFF).all(), "written beyond the end"

    # -------------------------------------------------------------------- work

    def fft(self, array: NDArray[Any], *, inverse: bool) -> None:
        assert array.dtype == np.complex64
        transform = scipy.fft.ifft if inverse else scipy.fft.fft
        norm = "forward" if inverse else "backward"
        self._put(lambda: np.copyto(array, transform(array, axis=-1, norm=norm)))

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        *arguments: Any,
    ) -> None:
        types = self._parameters[kernel]
        assert len(types) == len(arguments), kernel
        values = [_value(t, a) for t, a in zip(types, arguments, strict=True)]
        assert max(grid[1:]) <= 65_535
        assert math.prod(block) <= 1024
        three = ctypes.c_int * 3
        pointers = (ctypes.c_void_p * len(values))(
            *(ctypes.addressof(value) for value in values)
        )
        run = getattr(self._library, f"launch_{kernel}")

        def work() -> None:
            # Arguments' memory lives as long as the closure.
            assert len(values) == len(arguments)
            run(three(*grid), three(*block), int(self._backwards), pointers)
            self.launched.append(kernel)

        self._put(work)


POINTEES = {
    "float2": np.complex64,
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "uint8": np.uint8,
    "uint16": np.uint16,
}
NUMBERS = {"int": ctypes.c_int, "float": ctypes.c_float, "long long": ctypes.c_longlong}


def _value(kind: str, argument: Any) -> Any:
    """Return a C value of a parameter's type; complain where a GPU would not."""
    if not kind.endswith("*"):
        if kind == "long long":
            assert isinstance(argument, np.int64), "pass 64 bits as np.int64"
        elif kind == "int":
            assert isinstance(argument, int), argument
        else:
            assert isinstance(argument, float), argument
        return NUMBERS[kind](argument)
    if argument is None:
        return ctypes.c_void_p(None)
    wanted = POINTEES[kind.removeprefix("const ").removesuffix("*")]
    assert argument.dtype == wanted, f"{argument.dtype} for {kind}"
    assert argument.flags.c_contiguous
    return ctypes.c_void_p(argument.ctypes.data)
