"""What `benchmarks/gpu.py` compares with, and how it tells."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from typing import Any

import numpy as np

BACK_PROJECT = r"""
extern "C" __global__ void back_project(const float* rows, const float* direction,
                                        float* slice, int n, int n_angles) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= n || y >= n) return;
  const float middle = 0.5f * (n - 1);
  float sum = 0;
  for (int k = 0; k < n_angles; ++k) {
    const float s =
        (x - middle) * direction[2 * k] + (y - middle) * direction[2 * k + 1] + middle;
    const int column = (int)floorf(s);
    if (column < 0 || column + 1 >= n) continue;
    const float part = s - column;
    const float* at = rows + (long long)k * n + column;
    sum += at[0] + part * (at[1] - at[0]);
  }
  slice[(long long)y * n + x] = sum * 3.14159265f / n_angles;
}
"""
PACKAGES = (
    "cupy-cuda12x",
    "cupy-cuda13x",
    "numpy",
    "scipy",
    "numba",
    "torch",
    "tomocupy",
)


class AbsentError(Exception):
    """What is compared with is not on this machine."""


class Discs:
    """Overlapping discs in a slice of ``n`` px, known in closed form."""

    def __init__(self, n: int, n_discs: int = 40) -> None:
        rng = np.random.default_rng(7)
        self.n = n
        self.radius = rng.uniform(0.02, 0.12, n_discs) * n
        away = rng.uniform(0, 0.44, n_discs) * n - self.radius
        where = rng.uniform(0, 2 * np.pi, n_discs)
        self.x, self.y = away * np.cos(where), away * np.sin(where)
        self.value = rng.uniform(0.2, 1, n_discs) / n

    def project(self, theta: np.ndarray) -> np.ndarray:
        """Return line integrals [angle, column], averaged over each column."""
        offsets = (np.arange(8) - 3.5) / 8
        s = np.arange(self.n)[:, None] - (self.n - 1) / 2 + offsets
        rows = np.zeros((len(theta), self.n))
        for x, y, r, v in zip(self.x, self.y, self.radius, self.value, strict=True):
            middle = x * np.cos(theta) + y * np.sin(theta)
            away = s - middle[:, None, None]
            rows += 2 * v * np.sqrt(np.maximum(r * r - away**2, 0)).mean(2)
        return rows

    def psnr(self, image: np.ndarray) -> float:
        """Return dB inside 0.95 of the circle."""
        x = np.arange(self.n) - (self.n - 1) / 2
        fine = (np.arange(4) - 1.5) / 4
        truth = np.zeros((self.n, self.n))
        for dy in fine:
            for dx in fine:
                for a, b, r, v in zip(
                    self.x, self.y, self.radius, self.value, strict=True
                ):
                    inside = np.hypot(x[:, None] + dy - b, x + dx - a) < r
                    truth += v * inside / 16
        circle = np.hypot(x[:, None], x) < 0.95 * self.n / 2
        error = np.sqrt(np.mean((image - truth)[circle] ** 2))
        return float(20 * np.log10(truth[circle].max() / error))


def _cupy() -> Any:
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        raise AbsentError(f"cupy: {error}") from error
    return cupy


def naive(size: tuple[int, int, int]) -> dict[str, Any]:
    """FBP of 16 slices by one thread a pixel: seconds for all, by proportion."""
    cupy, (n, n_rows, n_angles) = _cupy(), size
    kernel = cupy.RawKernel(BACK_PROJECT, "back_project")
    theta = np.arange(n_angles) * np.pi / n_angles
    direction = cupy.asarray(
        np.stack([np.cos(theta), np.sin(theta)], 1).astype(np.float32)
    )
    rows = cupy.random.random((16, n_angles, n), dtype=cupy.float32)
    ramp = cupy.abs(cupy.fft.rfftfreq(2 * n)).astype(cupy.float32)
    slices = cupy.empty((16, n, n), cupy.float32)

    def reconstruct() -> None:
        filtered = cupy.fft.irfft(cupy.fft.rfft(rows, 2 * n) * ramp)[..., :n]
        filtered = cupy.ascontiguousarray(filtered, cupy.float32)
        blocks = (-(-n // 32), -(-n // 8))
        for k in range(16):
            given = (filtered[k], direction, slices[k], np.int32(n), np.int32(n_angles))
            kernel(blocks, (32, 8), given)
        cupy.cuda.Device().synchronize()

    reconstruct()
    begin = time.perf_counter()
    reconstruct()
    seconds = time.perf_counter() - begin
    return {
        "seconds_for_all": seconds * n_rows / 16,
        "ms_per_slice": 1e3 * seconds / 16,
    }


def tomocupy(size: tuple[int, int, int]) -> dict[str, Any]:
    """tomocupy's reconstruction, where it is installed."""
    try:
        from ebl_stream.stages.tomocupy_backend import Tomocupy

        importlib.metadata.version("tomocupy")
    except Exception as error:
        raise AbsentError(f"tomocupy: {error}") from error
    n, n_rows, n_angles = size
    n_rows = min(n_rows, 64)
    values = np.random.default_rng(0).random((n_angles, n_rows, n), np.float32)
    theta = np.arange(n_angles) * np.pi / n_angles
    backend = Tomocupy()
    backend(values, theta, n / 2)
    begin = time.perf_counter()
    backend(values, theta, n / 2)
    seconds = time.perf_counter() - begin
    return {"seconds_for_all": seconds * size[1] / n_rows, "rows_run": n_rows}


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def free_memory() -> None:
    """Give back what a case took, also where it failed."""
    import gc

    gc.collect()
    if "cupy" in sys.modules:
        pool = sys.modules["cupy"].get_default_memory_pool
        pool().free_all_blocks()
        sys.modules["cupy"].get_default_pinned_memory_pool().free_all_blocks()


def markdown(report: dict[str, Any]) -> str:
    lines = [f"# {report['device']}", ""]
    lines += [", ".join(f"{k} {v}" for k, v in report["versions"].items()), ""]
    if report["emulated"]:
        lines += ["Emulated: the times mean nothing.", ""]
    lines += ["| case | what | measured |", "|---|---|---|"]
    for case, result in report["cases"].items():
        for what, value in result.items():
            parts = value.items() if isinstance(value, dict) else [("", value)]
            for part, figure in parts:
                shown = f"{figure:.4g}" if isinstance(figure, float) else f"{figure}"
                lines.append(f"| {case} | {what} {part} | {shown} |")
    return "\n".join(lines) + "\n"
