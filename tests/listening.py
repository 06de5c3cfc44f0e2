"""A listener in its thread, and a sink that keeps what it hears."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from ebl_stream.sources.listener import Listener
from ebl_stream.transport.documents import unpack

TIMEOUT_S = 60.0


class Shelf:
    """A sink that keeps documents; `refuse` and `fail_commit` make it difficult."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, dict[str, Any]]] = []
        self.n_committed = 0
        self.refuse = 0
        self.fail_commit = False

    def take(self, packed: bytes) -> bool:
        document = unpack(packed)
        if self.refuse:
            self.refuse -= 1
            return False
        self.taken.append(document)
        return True

    def heard(self, run_uids: Iterable[str]) -> None:
        """Nobody waits for them."""

    def commit(self) -> None:
        if self.fail_commit:
            raise OSError("no space left on device")
        self.n_committed = len(self.taken)

    @property
    def numbers(self) -> list[int]:
        return [doc["seq_num"] for name, doc in self.taken if name == "event"]


class Listening:
    """A listener in its thread."""

    def __init__(self, listener: Listener, refuse: int = 0) -> None:
        self.listener = listener
        self.shelf = Shelf()
        self.shelf.refuse = refuse
        self._thread = threading.Thread(target=listener.listen, args=(self.shelf,))
        self._thread.start()

    def end(self) -> None:
        self.listener.close()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()


def event(number: int, values: Any = 1.0) -> dict[str, Any]:
    return {"seq_num": number, "descriptor": "d", "data": {"image": values}}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)
