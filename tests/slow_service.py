"""A service whose worker is slowed down, and whose queue is short, for the tests."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from campaign import house
from campaign.forks import forked
from campaign.house import House, Orders

from ebl_stream.service.service import Service
from ebl_stream.service.worker import Worker


def _serve_slowly(orders: Orders, pause_s: float, queue_bytes: int) -> None:
    """Be a service (the child) that pauses at each document while ``slow`` is there."""
    work, sign = Worker._work, orders.folder / "slow"

    def slow_work(worker: Worker, *arguments: Any) -> None:
        if sign.exists():
            time.sleep(pause_s)
        work(worker, *arguments)

    Worker._work = slow_work  # type: ignore[method-assign]
    Service.__init__.__kwdefaults__["max_queue_bytes"] = queue_bytes
    house._serve(orders)


class SlowHouse(House):
    """A house whose service can be slowed down while it runs."""

    def __init__(
        self, folder: Path, pause_s: float, queue_bytes: int, **orders: Any
    ) -> None:
        super().__init__(folder, **orders)
        self._limits = (pause_s, queue_bytes)

    def begin(self) -> int:
        """Start the service; return its process id."""
        process = forked(_serve_slowly, self.orders, *self._limits)
        process.start()
        self.process = process
        assert process.pid is not None
        return process.pid

    def slow_down(self) -> None:
        """From now on the worker pauses at each document."""
        (self.folder / "slow").touch()
