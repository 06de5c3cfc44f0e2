"""What several tests share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DATA = Path(
    os.environ.get(
        "EBL_STREAM_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"
    )
)
LONGEST = (
    "test_mutations.py",
    "test_crash.py",
    "test_tiled_subscription.py",
    "test_docker_stack.py",
    "test_live.py",
    "test_tiled_link.py",
    "test_measured.py",
    "test_stages.py",
)
"""Files that begin first, or one process would be alone with them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    place = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a short name: the path of a socket has at most 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="ebl-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def measured_scan() -> Callable[[str], Path]:
    """Return a measured scan's path by file name; skip where it is absent."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.is_file():
            pytest.skip(
                f"measured scan {name} is not in {DATA} (set EBL_STREAM_TEST_DATA)"
            )
        return path

    return find
