"""Frozen nets: torch's numbers, from any thread, and not a word to anybody."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ebl_stream.nets import frozen, zoo
from ebl_stream.nets.architecture import Architecture
from ebl_stream.nets.frozen import Precision, freeze

RMS_LIMIT = {"f32": 1e-5, "bf16": 0.03}
"""Of the differences from torch's float32, over the result's standard deviation."""


@pytest.fixture(params=["openvino", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to run what is frozen; the first where its extra is installed."""
    if request.param == "torch":
        monkeypatch.setattr(frozen, "_openvino", lambda: None)
    elif not frozen.is_available():
        pytest.skip("OpenVINO is not installed (extra 'frozen')")
    return request.param


@pytest.fixture(autouse=True)
def one_of_torchs_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(folder: Path, architecture: Architecture) -> zoo.Model:
    """Return a net that passes on what it sees, as trained ones do."""
    torch.manual_seed(4)
    net = architecture.build()
    for name, value in net.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.kaiming_normal_(value, nonlinearity="relu")
        else:
            torch.nn.init.normal_(value, std=0.1)
    path = zoo.save(
        folder,
        net.state_dict(),
        name="net",
        kind="tomogan",
        architecture=architecture,
        data={},
        steps=0,
        metrics={},
        licence="",
        command="",
    )
    return zoo.load(path)


def noise(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def in_torch(one: zoo.Model, seen: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return one.net(torch.from_numpy(seen)).numpy()


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(kind="fast", depth=5, width=8),
        Architecture(kind="tomogan", width=8),
        Architecture(kind="tomogan", depth=3, width=8, upsampling="nearest"),
    ],
    ids=lambda a: f"{a.kind}-{a.upsampling}" if isinstance(a, Architecture) else None,
)
def test_the_numbers_are_torchs(
    tmp_path: Path, way: str, architecture: Architecture, precision: Precision
) -> None:
    one = model(tmp_path, architecture)
    run = freeze(one, precision)
    for shape in ((1, 64, 64), (3, 32, 48), (1, 8, 128)):
        n, *sides = shape
        seen = noise((n, architecture.depth, *sides))
        right, found = in_torch(one, seen), run(seen)
        assert found.dtype == np.float32
        assert found.shape == right.shape
        rms = np.sqrt(np.mean(np.square(found - right))) / right.std()
        assert rms < RMS_LIMIT[precision]
        if precision == "bf16":
            assert rms > RMS_LIMIT["f32"]  # it was asked for, and is what ran


def test_what_is_frozen_stays(tmp_path: Path, way: str) -> None:
    """Training goes on in place; a result is the caller's own, and so is its input."""
    one = model(tmp_path, Architecture(width=8))
    run = freeze(one, "f32")
    seen = noise((1, 1, 32, 32))
    before, kept = run(seen), seen.copy()
    copied = before.copy()
    with torch.no_grad():
        for value in one.net.parameters():
            value.add_(1.0)
    run(noise((1, 1, 32, 32), seed=1))
    np.testing.assert_array_equal(before, copied)
    np.testing.assert_array_equal(seen, kept)
    np.testing.assert_array_equal(run(seen), copied)
    assert before.flags.writeable
    strided = np.asfortranarray(seen)[:, :, ::1]
    np.testing.assert_array_equal(run(strided), copied)


def test_many_threads_share_one(tmp_path: Path, way: str) -> None:
    """Each has its own answer, of its own size; the cores it may use stay the same."""
    one = model(tmp_path, Architecture(width=8))
    run = freeze(one, "f32")
    shapes = [(1, 1, 16 + 8 * (i % 5), 32) for i in range(40)]
    inputs = [noise(shape, seed=i) for i, shape in enumerate(shapes)]
    right = [run(seen) for seen in inputs]

    def work(seen: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
        return run(seen), len(os.sched_getaffinity(0))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, inputs))
    cores = len(os.sched_getaffinity(0))
    for (made, allowed), wanted in zip(found, right, strict=True):
        np.testing.assert_array_equal(made, wanted)
        assert allowed == cores


def test_without_openvino_torch_computes_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    frozen._openvino.cache_clear()
    try:
        one = model(tmp_path, Architecture(width=8))
        with caplog.at_level(logging.INFO, "ebl_stream.nets.frozen"):
            run = freeze(one, "f32")
        assert "net runs in torch: there is no OpenVINO" in caplog.text
        seen = noise((1, 1, 16, 16))
        np.testing.assert_allclose(run(seen), in_torch(one, seen), atol=1e-5)
    finally:
        frozen._openvino.cache_clear()


SILENT = """
import sys
def hear(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print("HEARD", event, args, flush=True)
sys.addaudithook(hear)
import numpy as np
from ebl_stream.nets import frozen, zoo
run = frozen.freeze(zoo.load(sys.argv[1]), "f32")
print(run(np.zeros((1, 1, 16, 16), np.float32)).shape)
print(sys.modules["openvino_telemetry"])
"""


def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    """A reporter is in its way, one that would leave its mark."""
    if not frozen.is_available():
        pytest.skip("OpenVINO is not installed (extra 'frozen')")
    place = tmp_path / "site" / "openvino_telemetry"
    (place / "backend").mkdir(parents=True)
    canary = tmp_path / "canary"
    (place / "__init__.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    (place / "backend" / "__init__.py").write_text("backend_ga4 = None\n")
    home = tmp_path / "home"
    home.mkdir()
    path = model(tmp_path, Architecture(width=4)).path
    environment = {
        **os.environ,
        "PYTHONPATH": str(place.parent),
        "HOME": str(home),
        "CI": "",
    }

    def python(program: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "HEARD" not in done.stdout
        return done.stdout

    assert python(SILENT) == "(1, 1, 16, 16)\nNone\n"
    assert not canary.exists()
    assert list(home.iterdir()) == []
    python("import openvino")
    assert canary.exists()  # without the guard it would have been there
