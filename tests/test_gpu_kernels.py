"""``kernels.cu``: what compilers and the emulator say; and the choice of a device."""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from cuda_on_cpu.emulator import EmulatedDevice, parameters

from ebl_stream.gpu import choice, look, memory, spread
from ebl_stream.gpu.accumulator import GpuAccumulator
from ebl_stream.gpu.device import KERNELS
from ebl_stream.numerics import fourier_plan
from ebl_stream.numerics.fourier_plan import FourierPlan

SOURCE = KERNELS.read_text()
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="CUDA source runs on the CPU through g++"
)


def nvrtc() -> ctypes.CDLL:
    """Return NVIDIA's compiler, which needs no GPU; skip where it is absent."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(p) for p in spec.submodule_search_locations or ()] if spec else []
    found = [f for p in folders for f in p.glob("*/lib/libnvrtc.so.*")]
    if not found:
        pytest.skip(f"nvidia-cuda-nvrtc-cu12 has no wheel for {sys.platform}")
    return ctypes.CDLL(str(found[0]))


class Compiled:
    """What NVRTC makes of some source."""

    def __init__(self, source: str, architecture: str) -> None:
        library, program = nvrtc(), ctypes.c_void_p()
        options = [f"--gpu-architecture={architecture}", "-std=c++17"]
        # As CuPy compiles it, and the assembler tells about registers.
        options.append("--ptxas-options=-v")
        given = [option.encode() for option in options]
        text = source.encode()
        library.nvrtcCreateProgram(
            ctypes.byref(program), text, b"kernels.cu", 0, None, None
        )
        status = library.nvrtcCompileProgram(
            program, len(given), (ctypes.c_char_p * len(given))(*given)
        )
        self.log = self._get(library, program, "ProgramLog")
        assert status == 0, self.log
        self.ptx = self._get(library, program, "PTX")

    @staticmethod
    def _get(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
        size = ctypes.c_size_t()
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{what}")(program, text)
        return text.value.decode()


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_every_kernel_compiles_without_spills(architecture):
    compiled = Compiled(SOURCE, architecture)
    assert "warning" not in compiled.log
    names = re.findall(r"\.visible \.entry (\w+)\(", compiled.ptx)
    assert set(names) == set(parameters(SOURCE))
    assert {"pack_uint16", "scatter_4", "blend", "turn", "unpack"} < set(names)
    reports = re.findall(
        r"Function properties for (\w+)\n.*?(\d+) bytes stack frame, (\d+) bytes spill "
        r"stores.*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?",
        compiled.log,
        re.DOTALL,
    )
    assert {name for name, *_ in reports} == set(names)
    for name, stack, spilled, registers, shared in reports:
        assert (int(stack), int(spilled)) == (0, 0), name
        threads = 128 if name.startswith("scatter") else 256
        # Two blocks or more per multiprocessor, and half its warps for 4 taps.
        assert int(registers) * threads <= 65_536 // 2, name
        assert int(shared or 0) <= 48 * 1024, name
        if name == "scatter_4":
            assert int(registers) * threads * 4 <= 65_536


def test_sums_go_out_in_pairs_where_the_device_can():
    for architecture, pairs, singles in (
        ("sm_90", True, False),
        ("sm_80", False, True),
    ):
        ptx = Compiled(SOURCE, architecture).ptx
        assert ("red.global.add.v2.f32" in ptx) == pairs
        assert bool(re.search(r"(red|atom)\.global\.add\.f32", ptx)) == singles


def test_a_spill_would_be_seen():
    greedy = SOURCE.replace("__launch_bounds__(128)", "__launch_bounds__(128, 16)")
    assert re.search(r"[1-9]\d* bytes spill stores", Compiled(greedy, "sm_90").log)


def test_constants_agree_with_the_source():
    constants = dict(re.findall(r"constexpr int (\w+) = (\d+);", SOURCE))
    assert {name: int(value) for name, value in constants.items()} == {
        "WARP": memory.WARP,
        "PACK_THREADS": spread.PACK_THREADS,
        "SCATTER_WARPS": spread.SCATTER_WARPS,
        "TILE_WARPS": memory.TILE_WARPS,
        "EDGE_COLUMNS": fourier_plan.EDGE_COLUMNS,
    }
    assert spread.SAMPLES_PER_WARP % memory.WARP == 0
    assert look.UNPACK_THREADS % memory.WARP == 0


def test_gpu_modules_import_only_numpy_cupy_torch_and_the_plan():
    allowed = ("numpy", "cupy", "torch", "ebl_stream.gpu")
    shared = ("fan", "fourier_plan", "windows")
    plan = {f"ebl_stream.numerics.{name}" for name in shared}
    for module in KERNELS.parent.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, module.name
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and name not in plan:
                    assert name.startswith(allowed), f"{module.name}: {name}"


def some_volume(source: str, *, backwards: bool) -> np.ndarray:
    rng = np.random.default_rng(0)
    plan = FourierPlan(40, padding="edge")
    device = EmulatedDevice(source=source, backwards=backwards)
    grids = GpuAccumulator(plan, 5, 19.0, device=device, batch=4)
    values = rng.normal(size=(4, 5, 40)).astype(np.float32)
    grids.add(values, rng.uniform(0, 3, 4), rng.uniform(0.1, 0.2, (4, 2)))
    device.check_guards()
    return grids.volume()


@needs_compiler
def test_threads_and_blocks_may_run_in_any_order():
    forth, back = (some_volume(SOURCE, backwards=b) for b in (False, True))
    np.testing.assert_allclose(back, forth, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize(
    "where", ["void pack(", "void scatter(", "void blend(", "void turn("]
)
def test_a_missing_barrier_would_be_seen(where):
    start = SOURCE.index(where)
    barrier = re.compile(r"__sync(threads|warp)\(\);")
    without = SOURCE[:start] + barrier.sub("", SOURCE[start:], count=1)
    volumes = [some_volume(without, backwards=b) for b in (False, True)]
    expected = some_volume(SOURCE, backwards=False)
    assert any(not np.allclose(v, expected, atol=1e-3) for v in volumes)


@needs_compiler
def test_a_write_beyond_the_end_would_be_seen():
    wild = SOURCE.replace("if (sample < n_padded)\n", "if (sample < n_padded + 8)\n")
    assert wild != SOURCE
    with pytest.raises(AssertionError, match="beyond the end"):
        some_volume(wild, backwards=False)


# ------------------------------------------------------------------------ choice


@needs_compiler
def test_a_device_is_tried_out(monkeypatch):
    choice.try_out(EmulatedDevice())
    wrong = SOURCE.replace("value.x * scale", "value.y * scale")
    with pytest.raises(RuntimeError, match="instead of"):
        choice.try_out(EmulatedDevice(source=wrong))
    monkeypatch.setattr(choice, "CupyDevice", EmulatedDevice)
    device, reason = choice.best_device()
    assert isinstance(device, EmulatedDevice)
    assert reason == "GPU: emulated device, 4 GiB free"
    factory = choice.accumulator_factory(device, batch=2)
    grids = factory(FourierPlan(20), 3, 9.0, halves=False)
    assert (grids.layout.batch, grids.halves, grids.n_rows) == (2, False, 3)


def test_no_cupy_is_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    device, reason = choice.best_device()
    assert device is None
    assert reason == "no GPU: cupy is not installed (extra ebl-stream[gpu])"


def test_a_driver_that_fails_is_no_gpu(monkeypatch):
    def fails(*_: object) -> None:
        raise RuntimeError("cudaErrorInsufficientDriver:\n  driver is too old")

    runtime = types.SimpleNamespace(getDeviceProperties=fails)
    cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    device, reason = choice.best_device()
    assert device is None
    expected = "no GPU: RuntimeError: cudaErrorInsufficientDriver: driver is too old"
    assert reason == expected
