"""The wish to end, as signals tell it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Asked:
    """Whether somebody asked the service to end."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.interrupted = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self.event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait
        self.interrupted = self.interrupted or number == signal.SIGINT
        self.event.set()


@contextmanager
def asked_by_signals() -> Iterator[Asked]:
    """Take SIGTERM and SIGINT as the wish to end, while this lasts."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, asked) for number in numbers]
    try:
        yield asked
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
