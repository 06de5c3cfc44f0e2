"""What pip installs, and what an installation without extras can do."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ebl_stream.cli.extras import advice

ROOT = Path(__file__).parents[1]

CORE_ONLY = """
import importlib.abc
import sys

sys.path.insert(0, {site!r})
CORE = {{"ebl_stream", "msgpack", "numpy", "pydantic", "pydantic_core", "yaml", "zmq",
        "annotated_types", "typing_extensions", "typing_inspection"}}


class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names | CORE or package.startswith("_"):
            return None
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Absent())
"""
"""As if nothing but the wheel and its own requirements were installed."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy: nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("ebl_stream", "callbacks", "profiles"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--wheel-dir", "dist", "."]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = (folder / "dist").iterdir()
    return path


def core_only(wheel: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program as in an installation without extras."""
    site = wheel.parent / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return subprocess.run(
        [sys.executable, "-c", CORE_ONLY.format(site=str(site)) + program],
        cwd=wheel.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    expected = {"ebl_stream/py.typed"}
    for folder, place in (
        ("ebl_stream", "ebl_stream"),
        ("callbacks", "ebl_stream/callbacks"),
        ("profiles", "ebl_stream/profiles"),
    ):
        kinds = ("*.py", "*.yaml", "*.cu", "models/*.safetensors", "models/*.json")
        files = [file for kind in kinds for file in (ROOT / folder).rglob(kind)]
        expected |= {f"{place}/{file.relative_to(ROOT / folder)}" for file in files}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "ebl_stream/profiles/default.yaml" in names


def test_doors_need_the_core_alone(wheel: Path) -> None:
    done = core_only(
        wheel,
        "import ebl_stream\n"
        "from ebl_stream.callbacks import (\n"
        "    DocumentPublisher, DocumentRecorder, LiveReconstruction)\n"
        "from ebl_stream.profile_file import load, shipped\n"
        "print(*sorted(load(name).name for name in shipped()))\n"
        "door = DocumentPublisher('ipc://socket')\n"
        "door('start', {'uid': 'a', 'time': 0.0})\n"
        "assert ebl_stream.__file__.endswith('/site/ebl_stream/__init__.py')\n"
        "print(door)\n",
    )
    assert done.returncode == 0, done.stderr
    names, door = done.stdout.splitlines()
    assert names == "aps_2bm aps_32id data_exchange default demo nsls2_hex nxtomo"
    assert "1 documents waiting" in door


def test_the_command_says_which_extra_it_needs(wheel: Path) -> None:
    done = core_only(wheel, "from ebl_stream.cli.__main__ import main; main()")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("ebl-stream: 'click' is not installed")
    assert "pip install 'ebl-stream[service]'" in line


def test_advice_names_the_extra_that_brings_a_package() -> None:
    def of(name: str) -> str | None:
        return advice(ModuleNotFoundError("absent", name=name))

    assert "ebl-stream[demo]" in (of("ophyd_async.core") or "")
    assert "ebl-stream[service]" in (of("zarr.storage") or "")
    assert of("ebl_stream.nowhere") is None
    assert advice(ImportError("cannot import name")) is None
