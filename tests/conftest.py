"""What several tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(
    os.environ.get(
        "EBL_STREAM_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"
    )
)


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
