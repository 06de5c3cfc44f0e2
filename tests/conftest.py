"""What several tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(
    os.environ.get(
        "EBL_STREAM_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"
    )
)


_status = [0]


def pytest_sessionfinish(exitstatus: int) -> None:
    """Keep what the tests came to."""
    _status[0] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """End at once: some library of a whole run's crashes an interpreter that ends.

    It does so after the last test and only when all files ran in one process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_status[0])


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
