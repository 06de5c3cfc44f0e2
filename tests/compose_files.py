"""docker/'s files as the tests read them: variables filled in, Dockerfiles parsed."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
GIVEN = {
    "TILED_API_KEY": "0123456789abcdef",
    "POSTGRES_PASSWORD": "fedcba9876543210",
    "RAW": "/data",
}
"""What a user has to fill in."""
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def interpolated(text: str, given: Mapping[str, str] = GIVEN) -> str:
    """Fill in ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}``."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if name in given:
            return given[name]
        assert kind == "-", f"{name}: {rest}"
        return rest

    return VARIABLE.sub(value, text)


def compose_text() -> str:
    return (DOCKER / "compose.yaml").read_text(encoding="utf-8")


def services(name: str = "compose.yaml") -> dict[str, Any]:
    return yaml.safe_load(interpolated((DOCKER / name).read_text()))["services"]


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Return folder in the container: (what is mounted, whether it can be written)."""
    parts = [volume.split(":") for volume in service["volumes"]]
    return {place: (source, not mode) for source, place, *mode in parts}


def after(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(DOCKER / dockerfile, Path(folder) / "Dockerfile")
        parsed = DockerfileParser(path=folder).structure
    return [(step["instruction"], step["value"]) for step in parsed]


def every(dockerfile: str, instruction: str) -> list[str]:
    return [value for name, value in instructions(dockerfile) if name == instruction]
